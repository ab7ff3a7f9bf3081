"""What a wheel and a source archive hold: beside the modules, every file that they read."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="setuptools is not there to build with")
ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
BUILD = "import setuptools.build_meta as build; print(build.build_wheel('.'), build.build_sdist('.'), sep='\\n')"


def files_of(package: str) -> set[str]:
    found = (path.relative_to(ROOT) for path in (ROOT / package).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_a_wheel_and_a_source_archive_hold_every_file_of_the_packages(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    wheel, sdist = done.stdout.splitlines()[-2:]
    expected = {name for package in PACKAGES for name in files_of(package)}
    assert {"service/console/index.html", "service/append.lua", "training/configs/sasrec.toml"} <= expected
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        assert expected - set(archive.namelist()) == set()
    with tarfile.open(tmp_path / sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert expected - held == set()
