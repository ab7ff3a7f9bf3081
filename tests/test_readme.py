"""Every command of the README is run, here or where the table below says."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Not run by the walk below, and what runs them instead.
ELSEWHERE = {
    "./run demo": "tests/test_demo.py",
    "./run test": ".ci/run",
    "./run test --all": "the same tests with the slow ones",
    "./run test -s -k hundred_bytes tests/service/test_sequences.py": "one of the tests",
    "./run check": ".ci/run",
    "./run bench data": "test_the_benchmarks_of_the_readme_run",
    "docker compose up --wait": "tests/test_deployment.py checks the file; there is no container engine to run it",
    "docker compose --profile train run --rm retrain": "the same",
    "docker compose --profile train run --rm retrain backfill --data /data/interactions.csv --to http://service:8000": (
        "the same"
    ),
    "docker compose --profile gpu up --wait service-gpu": "the same",
    "docker compose exec service python -m models --artifacts /artifacts list": "the same",
    "docker compose exec service python -m models --artifacts /artifacts rollback": "the same",
}


def commands() -> list[str]:
    """The lines of the README's shell blocks, in order, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the environment of this one, so that the walk leaves nothing behind here."""
    if not (ROOT / ".venv" / "ready-train").exists():
        pytest.skip("there is no .venv made by ./run; run the tests with ./run test")
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    copy = tmp_path_factory.mktemp("readme") / "recserve"
    copy.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    (copy / "events.csv").write_text(shop_log(), encoding="utf-8")
    return copy


def shop_log() -> str:
    """300 customers who each buy 12 of 40 articles, the next one mostly following the last."""
    rows = ["customer,sku,timestamp"]
    for customer in range(300):
        article = customer % 40
        for step in range(12):
            rows.append(f"c{customer},sku-{article},{1_700_000_000 + step * 3600 + customer}")
            article = (article + 1 + (customer * step) % 3 // 2) % 40
    return "\n".join(rows) + "\n"


@contextlib.contextmanager
def running(command: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A command that serves, ready while the block runs."""
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            # exec, so that the status below is the service's and not that of a shell that the signal ended too
            f"exec {command}",
            shell=True,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (folder / "serve.log").read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "not ready in time"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{environment['RECSERVE_PORT']}/readyz", timeout=5)
                break
            time.sleep(0.1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_newcomer_can_walk_through_the_readme(checkout: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "RECSERVE_PORT": str(port)}
    walked = []

    def walk(command: str, *, allowed: tuple[int, ...] = (0,)) -> str:
        shown = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("curl ", "curl -sS --fail-with-body ")
        done = subprocess.run(
            shown, shell=True, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode in allowed, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        walked.append(command)
        return done.stdout

    todo = [command for command in commands() if command not in ELSEWHERE]
    before = todo[: todo.index("./run serve")]
    while_serving = todo[len(before) + 1 :]
    for command in before:
        walk(command)
    with running("./run serve", checkout, environment):
        walked.append("./run serve")
        for command in while_serving:
            if "rollback" in command:  # whatever retraining decided, there is a champion before this one
                versions = sorted(path.parent.name for path in (checkout / "artifacts").glob("*/manifest.json"))
                for version in versions[:2]:
                    subprocess.run(
                        [".venv/bin/python", "-m", "models", "promote", version], cwd=checkout, check=True, timeout=60
                    )
            output = walk(command, allowed=(0, 3) if "retrain" in command else (0,))
            if "/recommend" in command:
                assert '"source":"model"' in output
    assert walked == todo


def test_every_command_of_the_readme_is_accounted_for() -> None:
    unknown = set(ELSEWHERE) - set(commands())
    assert not unknown, f"no longer in the README: {unknown}"
    assert all(command.split()[0] in {"./run", "curl", "docker", ".venv/bin/python"} for command in commands())


@pytest.mark.slow
def test_the_benchmarks_of_the_readme_run(checkout: Path) -> None:
    for what in ("data", "training", "catalogue", "serving --quick"):
        command = ["./run", "bench", *what.split()]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
