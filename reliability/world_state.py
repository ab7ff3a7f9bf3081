"""Stores, archivers and services for promises about what is kept and what is erased."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_S = 60.0


def archive(url: str, folder: Path, *options: str) -> None:
    """Move the log of the store at `url` to `folder` once. Raises RuntimeError with what it said if it failed."""
    run(["-m", "service", "archive", "--redis", url, "--to", str(folder), "--once", *options])


def run(words: list[str], *, allowed: tuple[int, ...] = (0,), timeout_s: float = 300) -> int:
    """Exit status of a program of this Python. Raises RuntimeError with its last words if it is not allowed."""
    done = subprocess.run(  # noqa: S603 - our own programs
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    if done.returncode not in allowed:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.returncode


@contextlib.contextmanager
def serving(url: str, artifacts: Path, log: Path, *options: str) -> Iterator[str]:
    """URL of a service on the store at `url` that writes its log to a file, running while entered."""
    command = ["-m", "service", "serve", "--port", "0", "--device", "cpu", "--artifacts", str(artifacts)]
    with log.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *command, "--redis", url, *options], cwd=ROOT, stderr=stderr
        )
    try:
        yield _url(process, log)
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    waited = 0.0
    while waited < START_S:
        if found := re.search(r"serving on (http://[^\"\s]+)", log.read_text()):
            return found[1]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
            break
        waited += 0.05
    raise RuntimeError(f"the service did not start: {log.read_text()[-2000:]}")
