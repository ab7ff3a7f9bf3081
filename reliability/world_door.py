"""A service with several workers and a store of its own, as a process to be maltreated from outside."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.servers import free_port
from reliability.bundle import promoted_bundle

ROOT = Path(__file__).parents[1]
_START_S = 60.0  # on a busy machine


@dataclass(frozen=True, slots=True)
class Door:
    """Where a service listens, and the file of what it says."""

    host: str
    port: int
    log: Path

    def said(self, pattern: str) -> int:
        """Lines of its log that match."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return sum(re.search(pattern, line) is not None for line in lines)


@contextlib.contextmanager
def serving(folder: Path, *, workers: int, items: int) -> Iterator[Door]:
    """A service on a bundle of so many items, once it serves. Raises RuntimeError with the end of what it said."""
    artifacts = folder / "artifacts"
    promoted_bundle(artifacts, items)
    port = free_port()
    options = ["--artifacts", str(artifacts), "--embedded", "--device", "cpu", "--workers", str(workers)]
    door = Door("127.0.0.1", port, folder / "service.log")
    with door.log.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "service", "serve", "--port", str(port), *options], cwd=ROOT, stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + _START_S
        while not door.said("serving on"):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the service did not start: {door.log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.05)
        yield door
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
