"""Programs of the project that run to their end."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
