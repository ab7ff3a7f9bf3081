"""A service of two workers with keys and a store that can be killed, and callers that hold keys."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.servers import ROOT
from reliability.bundle import promoted_bundle
from reliability.serving import Service
from service.embedded import EmbeddedStore
from service.keyfile import KeyFolder

WORKERS = 2
_BODY = json.dumps({"history": ["item-3"], "k": 3})
_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class World:
    """Where the service listens, its folder of keys, and its store."""

    address: tuple[str, int]
    keys: KeyFolder
    store: EmbeddedStore

    def kill_store(self) -> None:
        """No time to write anything; `store.__enter__` starts it again in its place."""
        os.kill(self.store.pid, signal.SIGKILL)
        self.store.close()

    def command(self, *words: str) -> str:
        """What `python -m service keys` prints. Raises CalledProcessError."""
        line = [sys.executable, "-m", "service", "keys", *words, "--keys", str(self.keys.folder)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()  # noqa: S603


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """All of it, running while entered. Raises RuntimeError with what the service said if it does not start."""
    artifacts = folder / "artifacts"
    promoted_bundle(artifacts)
    with (
        EmbeddedStore(folder / "store") as store,
        Service(folder, "--workers", str(WORKERS), redis=store.url) as service,
    ):
        yield World(service.address, KeyFolder(artifacts / "keys"), store)


class Caller:
    """One kept connection, which stays with one worker, and a key."""

    def __init__(self, address: tuple[str, int], key: str) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=20)
        self.key = key

    def ask(self) -> http.client.HTTPResponse:
        """The answer to a request for recommendations, read. Raises OSError."""
        headers = _HEADERS | {"Authorization": f"Bearer {self.key}"}
        self._connection.request("POST", "/recommend", _BODY, headers)
        response = self._connection.getresponse()
        response.read()
        return response

    def close(self) -> None:
        self._connection.close()


@dataclass
class Tally:
    """What callers got, while entered: `with Tally(address, key, callers=4) as tally`."""

    address: tuple[str, int]
    key: str
    callers: int
    statuses: dict[int, int] = field(default_factory=dict)
    silent: int = 0  # refusals for the rate that do not say when to come back and what the limit is
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __enter__(self) -> "Tally":
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(self.callers)]
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        self.seconds = time.monotonic() - self._began

    def of(self, *statuses: int) -> int:
        return sum(self.statuses.get(status, 0) for status in statuses)

    @property
    def all(self) -> int:
        return sum(self.statuses.values())

    def _call(self) -> None:
        caller = Caller(self.address, self.key)
        try:
            while not self._stop.wait(0.001):
                response = caller.ask()
                with self._lock:
                    self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
                    told = response.getheader("Retry-After") and response.getheader("RateLimit")
                    self.silent += response.status == 429 and not told
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
        finally:
            caller.close()
