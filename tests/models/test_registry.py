"""Which version is the champion: promotion, rollback and order, by one process or by many at once."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from models.manifest import BundleError
from models.registry import Registry, RegistryError

MakeBundle = Callable[..., Path]


@pytest.fixture
def registry(artifacts: Path, make_bundle: MakeBundle) -> Registry:
    """Versions b, a, c in the order they were made; nothing promoted."""
    for version in ("b", "a", "c"):
        make_bundle(version, promote=False)
    return Registry(artifacts)


def test_there_is_nothing_before_the_first_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "nowhere")
    assert registry.versions() == []
    assert registry.current() is None
    assert not registry.artifacts.exists()  # asking makes no folder


def test_versions_come_oldest_first_whatever_they_are_called(registry: Registry) -> None:
    assert registry.versions() == ["b", "a", "c"]
    assert registry.manifest("a").version == "a"


def test_what_is_no_bundle_is_no_version_and_a_damaged_one_comes_last(registry: Registry) -> None:
    (registry.artifacts / "runs" / "sasrec-1").mkdir(parents=True)
    (registry.artifacts / ".draft-x").mkdir()
    (registry.artifacts / ".draft-x" / "manifest.json").write_text("{}")
    (registry.artifacts / "0").mkdir()
    (registry.artifacts / "0" / "manifest.json").write_text("{}")
    for odd in ("a copy", "a~", "A" * 101):
        shutil.copytree(registry.artifacts / "a", registry.artifacts / odd)
    assert registry.versions() == ["b", "a", "c", "0"]


def test_promotions_are_undone_one_by_one(registry: Registry) -> None:
    assert registry.current() is None
    assert [registry.promote(version) for version in ("b", "a", "c")] == [None, "b", "a"]
    assert registry.current() == "c"
    assert [registry.rollback(), registry.rollback()] == ["a", "b"]
    assert registry.current() == "b"
    with pytest.raises(RegistryError, match="no earlier champion"):
        registry.rollback()
    assert registry.current() == "b"


def test_a_rollback_that_was_prepared_for_others_changes_nothing(registry: Registry) -> None:
    for version in ("b", "a", "c"):
        registry.promote(version)
    prepared = registry.last_two()
    assert prepared == ("c", "a")
    assert registry.rollback(prepared) == "a"
    with pytest.raises(RegistryError, match="a has become the champion"):  # somebody else was quicker
        registry.rollback(prepared)
    assert registry.last_two() == ("a", "b")


def test_a_promotion_in_place_of_another_champion_changes_nothing(registry: Registry) -> None:
    assert registry.promote("b", instead_of=(None,)) is None
    for instead_of in (None, "a"):
        with pytest.raises(RegistryError, match=r"b has become the champion .* a was not compared"):
            registry.promote("a", instead_of=(instead_of,))
    assert registry.current() == "b"
    assert registry.promote("a", instead_of=("b",)) == "b"


def test_promoting_the_champion_again_changes_nothing(registry: Registry) -> None:
    registry.promote("a")
    registry.promote("b")
    assert registry.promote("b") == "a"
    assert registry.rollback() == "a"


def test_a_version_that_was_rolled_back_can_be_promoted_again(registry: Registry) -> None:
    registry.promote("a")
    registry.promote("b")
    registry.rollback()
    assert registry.promote("b") == "a"
    assert registry.current() == "b"
    assert registry.rollback() == "a"


def test_a_second_registry_sees_what_the_first_did(registry: Registry) -> None:
    registry.promote("c")
    assert Registry(registry.artifacts).current() == "c"
    assert (registry.artifacts / "CURRENT").stat().st_mode & 0o777 == 0o644  # the service may be another user


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/", "a/../b", "/etc", "a/b", ".draft-x", "CURRENT", "d", "a\0", "a\n", "A" * 300]
)
def test_a_name_that_is_no_version_is_refused_and_the_known_ones_are_named(registry: Registry, name: str) -> None:
    registry.promote("a")
    outside = registry.artifacts.parent / "a"
    (registry.artifacts / "b").rename(outside)  # reachable by path, though no version here
    with pytest.raises(RegistryError, match=r"no version .* \(versions here: a, c\)"):
        registry.promote(name)
    assert registry.current() == "a"


def test_a_damaged_version_cannot_become_champion(registry: Registry) -> None:
    registry.promote("a")
    items = registry.artifacts / "b" / "items.npy"
    items.chmod(0o644)
    items.write_bytes(items.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(BundleError, match=r"items\.npy"):
        registry.promote("b")
    assert registry.current() == "a"


def test_a_rollback_to_a_damaged_or_missing_version_keeps_the_champion(registry: Registry) -> None:
    registry.promote("a")
    registry.promote("b")
    encoder = registry.artifacts / "a" / "encoder.onnx"
    encoder.unlink()
    with pytest.raises(BundleError, match=r"encoder\.onnx missing"):
        registry.rollback()
    (registry.artifacts / "a").rename(registry.artifacts.parent / "gone")
    with pytest.raises(RegistryError, match="no version 'a'"):
        registry.rollback()
    assert registry.current() == "b"


_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from models.registry import Registry

resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # every write fails
try:
    Registry(Path(sys.argv[1])).promote("b")
except OSError as error:
    print(error)
"""


def test_a_promotion_that_cannot_be_written_leaves_everything_as_it_was(registry: Registry) -> None:
    registry.promote("a")
    before = sorted(registry.artifacts.iterdir())
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(registry.artifacts)]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert "File too large" in said
    assert registry.current() == "a"
    assert sorted(registry.artifacts.iterdir()) == before


def test_a_promotion_is_on_disk_with_its_name_when_it_returns(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, str | None]] = []

    def fsync(number: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(number).st_mode), registry.current()))

    monkeypatch.setattr(os, "fsync", fsync)
    registry.promote("a")
    assert synced == [(False, None), (True, "a")]  # the file before it has its name, then the folder


_ANOTHER_USER = """
import os, sys
from pathlib import Path
from models.registry import Registry

os.umask(0o077)
registry = Registry(Path(sys.argv[1]))
registry.promote("a")
if os.geteuid() == 0:
    os.chown(registry.artifacts, 65534, 65534)
    os.setuid(65534)
else:
    (registry.artifacts / ".lock").chmod(0o444)
registry.promote("b")
print(registry.rollback())
"""


def test_a_lock_that_somebody_else_made_keeps_nobody_from_promoting_who_may_write_the_folder(
    registry: Registry,
) -> None:
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        Path(folder).chmod(0o755)
        artifacts = shutil.copytree(registry.artifacts, Path(folder) / "artifacts")
        command = [sys.executable, "-c", _ANOTHER_USER, str(artifacts)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("a\n", 0), done.stderr


def test_a_lock_that_cannot_be_made_is_named(registry: Registry) -> None:
    (registry.artifacts / ".lock").mkdir()
    with pytest.raises(OSError, match=r"\.lock"):
        registry.promote("a")


def test_a_link_in_the_place_of_the_lock_is_not_followed(registry: Registry, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    (registry.artifacts / ".lock").symlink_to(secret)
    with pytest.raises(OSError, match=r"\.lock"):
        registry.promote("a")
    assert secret.stat().st_mode & 0o777 == 0o600


_PROMOTER = """
import sys
from pathlib import Path
from models.registry import Registry, RegistryError

registry = Registry(Path(sys.argv[1]))
for turn in range(40):
    registry.promote(sys.argv[2])
    if turn % 4 == 3:
        try:
            registry.rollback()
        except RegistryError:
            pass
print("done")
"""


_ONCE = """
import sys, time
from pathlib import Path
from models.registry import Registry

artifacts = Path(sys.argv[1])
(artifacts / f"ready-{sys.argv[2]}").touch()
while not (artifacts / "go").exists():
    time.sleep(0.001)
for version in sys.argv[2:]:
    Registry(artifacts).promote(version)
"""


def test_no_promotion_is_lost_among_several_at_once(artifacts: Path, make_bundle: MakeBundle) -> None:
    versions = [f"v{number}" for number in range(24)]
    for version in versions:
        make_bundle(version, promote=False)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _ONCE, str(artifacts)]
    writers = [subprocess.Popen([*command, *versions[begin::4]], cwd=root) for begin in range(4)]
    while len(list(artifacts.glob("ready-*"))) < len(writers):
        assert all(writer.poll() is None for writer in writers)
        time.sleep(0.001)
    (artifacts / "go").touch()
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert sorted((artifacts / "CURRENT").read_text().split()) == sorted(versions)


def test_promotions_by_several_processes_at_once_never_show_a_broken_state(registry: Registry) -> None:
    registry.promote("a")
    command = [sys.executable, "-c", _PROMOTER, str(registry.artifacts)]
    root = Path(__file__).parents[2]
    writers = [
        subprocess.Popen([*command, version], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for version in ("a", "b", "c")
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = (registry.artifacts / "CURRENT").read_text()
        assert content.endswith("\n")
        names = content.split()
        assert names
        assert set(names) <= {"a", "b", "c"}
        assert all(one != two for one, two in pairwise(names))  # no promotion was lost or doubled
        seen.add(names[0])
    for writer in writers:
        out, error = writer.communicate()
        assert (out, writer.returncode) == ("done\n", 0), error
    assert len(seen) > 1
    assert not list(registry.artifacts.glob(".current-*"))
    assert len((registry.artifacts / "CURRENT").read_text().split()) <= 50
