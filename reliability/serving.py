"""The service as a process of its own, what it says in a file."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.servers import ROOT, free_port, variables
from service.embedded import packaged_binary

_START_S = 60.0  # on a busy machine
_NO_STORE = "redis://127.0.0.1:1"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body, parsed where it is JSON; status 0 where there was no answer."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Service:
    """A service that runs."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: object = None, *, timeout_s: float = 30) -> Answer:
        """One request on a connection of its own."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", content, method=method)
        try:
            with _DIRECT.open(request, timeout=timeout_s) as response:
                return _answer(response.status, response.read(), dict(response.headers))
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.read(), dict(error.headers))
        except OSError as error:
            return Answer(0, str(error), {})

    def said(self) -> str:
        """Everything in its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def lines(self, pattern: str) -> int:
        """Lines of its log that match."""
        return sum(re.search(pattern, line) is not None for line in self.said().splitlines())

    def metric(self, name: str) -> float:
        """The sum of a metric's samples, whatever their labels."""
        text = str(self.ask("GET", "/metrics").body)
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return sum(float(value) for key, _, value in lines if key.partition("{")[0] == name)

    def processes(self) -> list[int]:
        """Its process and all below it."""
        found = [self.process.pid]
        for pid in found:
            with suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def stop(self, *, within_s: float) -> tuple[int | None, float]:
        """SIGTERM: exit status, None if it had to be killed, and the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(within_s), time.monotonic() - began
        return None, time.monotonic() - began


@contextmanager
def serving(
    folder: Path, *options: str, redis: str | None = _NO_STORE, module: str = "service", **settings: object
) -> Iterator[Service]:
    """A service on `folder / "artifacts"`, once it serves; redis: None for an embedded store. module: what to
    run, and settings: as the service takes them.

    Raises RuntimeError with the end of what it said, or NoServerError where there is none for the embedded store.
    """
    if redis is None:
        packaged_binary()
    port = free_port()
    store = ["--embedded"] if redis is None else ["--redis", redis]
    where = ["--port", str(port), "--artifacts", str(folder / "artifacts"), "--device", "cpu"]
    log = folder / "service.log"
    with log.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", module, "serve", *where, *store, *options],
            cwd=ROOT,
            env=variables(**settings),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    service = Service(process, port, log)
    try:
        until = time.monotonic() + _START_S
        while "serving on" not in service.said():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the service did not start: {service.said()[-1500:]}")
            time.sleep(0.02)
        yield service
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answer(status: int, content: bytes, headers: dict[str, str]) -> Answer:
    try:
        body: Any = json.loads(content)
    except ValueError:
        body = content.decode(errors="replace")
    return Answer(status, body, headers)
