"""Programs of the project that run to their end, and say all that they can say."""

import subprocess
import sys
from pathlib import Path

from bench.servers import ROOT, variables

_TIMEOUT_S = 300.0


def archive(url: str, folder: Path, *options: str) -> str:
    """Move the log of the store at `url` to `folder` once, and give what was said meanwhile. Raises as `run`."""
    return run(["-m", "service", "archive", "--redis", url, "--to", str(folder), "--once", *options])


def run(words: list[str]) -> str:
    """What a program of this Python said. Raises RuntimeError with its last words if it failed."""
    done = subprocess.run(  # noqa: S603 - our own programs
        [sys.executable, *words],
        cwd=ROOT,
        env=variables(log_level="debug"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout
