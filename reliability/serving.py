"""The service as a process of its own, what it says in a file."""

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import with_children
from bench.servers import variables
from reliability.processes import Process
from service.embedded import packaged_binary

_NO_STORE = "redis://127.0.0.1:1"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body, parsed where it is JSON; status 0 where there was no answer."""

    status: int
    body: Any
    headers: Mapping[str, str]


class Service(Process):
    """A service on `folder / "artifacts"`, running while entered; redis: None for an embedded store. module: what to
    run, and settings: as the service takes them.

    Making one raises NoServerError where there is no server for an embedded store.
    """

    def __init__(
        self, folder: Path, *options: str, redis: str | None = _NO_STORE, module: str = "service", **settings: object
    ) -> None:
        super().__init__(folder, "service")
        if redis is None:
            packaged_binary()
        store = ["--embedded"] if redis is None else ["--redis", redis]
        where = ["--port", str(self.port), "--artifacts", str(folder / "artifacts"), "--device", "cpu"]
        self._command = [sys.executable, "-m", module, "serve", *where, *store, *options]
        self._settings = settings

    def __exit__(self, *_: object) -> None:
        if self.alive:
            self.stop()
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return self._command

    def environment(self) -> dict[str, str]:
        return variables(**self._settings)

    def answers(self) -> bool:
        return "serving on" in self.said(since_launch=True)

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
        return with_children([self.pid])


def _answer(status: int, content: bytes, headers: dict[str, str]) -> Answer:
    try:
        body: Any = json.loads(content)
    except ValueError:
        body = content.decode(errors="replace")
    return Answer(status, body, headers)
