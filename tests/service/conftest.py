"""Real servers for tests of the service: one shared and flushed, and one that a test may kill."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from service.embedded import EmbeddedStore


class KillableStore:
    """A server on a folder of its own that can die and come back at the same address with the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store = EmbeddedStore(folder)
        self.start()
        self.url = self._store.url

    def start(self) -> None:
        self._store.__enter__()

    def kill(self) -> None:
        """What a power cut does: no time to write anything."""
        os.kill(self._store.pid, signal.SIGKILL)
        self._store.close()

    def pause(self) -> None:
        """What a stalled disk or a lost network does: connections stay open and nothing answers."""
        os.kill(self._store.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._store.pid, signal.SIGCONT)

    def close(self) -> None:
        self._store.close()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _shared_store_url() -> Iterator[str]:
    # pytest's own temporary folders have paths too long for a socket beside the data.
    with tempfile.TemporaryDirectory() as folder, EmbeddedStore(Path(folder)) as store:
        yield store.url


@pytest.fixture
def store_url(_shared_store_url: str) -> str:
    """URL of a real server, empty."""
    with redis.Redis.from_url(_shared_store_url) as client:
        client.flushall()
    return _shared_store_url


@pytest.fixture
def killable_store() -> Iterator[KillableStore]:
    with tempfile.TemporaryDirectory() as folder:
        store = KillableStore(Path(folder))
        try:
            yield store
        finally:
            store.close()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
