"""`python -m service serve` as a process on a port, for tests of what happens to processes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.service.sockets import PLAIN

ROOT = Path(__file__).parents[2]


class Process:
    """A running service, and what it has said."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = ""

    def wait_for_url(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"serving on (http://[^\"\s]+)", line):
                self.url = found[1]
                break
        else:
            raise AssertionError(f"it ended: {self.lines}")
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr or []), daemon=True).start()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{self.url}/healthz", verify=PLAIN)
                return
            time.sleep(0.02)

    def records(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        return [json.loads(line) for line in self.lines]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


@contextlib.contextmanager
def serving(
    *arguments: str,
    environment: dict[str, str] | None = None,
    before: tuple[str, ...] = (),
    program: tuple[str, ...] = ("-m", "service"),
) -> Iterator[Process]:
    """before: a command that starts it. program: what the interpreter is to run instead, with the same arguments."""
    command = [*before, sys.executable, *program, "serve", "--port", "0", "--device", "cpu", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, stderr=subprocess.PIPE, text=True
    )
    running = Process(process)
    try:
        running.wait_for_url()
        yield running
    finally:
        process.kill()
        process.wait()


def refused(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """The one sentence of a service that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        check=False,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last
