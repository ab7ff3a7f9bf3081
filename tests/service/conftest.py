"""Real servers for tests of the service: one shared and flushed, and one that a test may kill."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
