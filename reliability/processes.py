"""Programs as processes of their own, which can be killed, stopped and started again in place; the store is one."""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import redis

from bench.servers import ROOT, free_port
from reliability.promise import CannotTryError
from service.embedded import NoServerError, packaged_binary

_START_S, _STOP_S = 60.0, 30.0  # on a busy machine


def server_binary() -> Path:
    """A Redis-compatible server. Raises CannotTryError if there is none."""
    try:
        return packaged_binary()
    except NoServerError as error:
        if found := shutil.which("valkey-server") or shutil.which("redis-server"):
            return Path(found)
        raise CannotTryError(f"there is no valkey-server or redis-server here: {error}") from error


class Process:
    """A program that listens on a loopback port, running while entered; what it says goes to a file."""

    def __init__(self, folder: Path, name: str, port: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.port = port or free_port()
        self._log, self._launched_at = folder / f"{name}.log", 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with the end of what it said."""
        self.launch()
        self.wait_until_it_answers()

    def launch(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._launched_at = log.tell()
            self.process = subprocess.Popen(  # noqa: S603 - our own programs
                self.command(), cwd=ROOT, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_until_it_answers(self) -> None:
        """Raises RuntimeError with the end of what it said."""
        until = time.monotonic() + _START_S
        while not self.answers():
            if not self.alive or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"{self.name} did not start: {self.said()[-1500:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """No time to write anything."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self, *, within_s: float = _STOP_S) -> tuple[int | None, float]:
        """Let it end by itself: exit status, None if it has not within that time, and the seconds that it took."""
        began = time.monotonic()
        self._running().terminate()
        with suppress(subprocess.TimeoutExpired):
            return self._running().wait(within_s), time.monotonic() - began
        return None, time.monotonic() - began

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        return self._running().pid

    def said(self, *, since_launch: bool = False) -> str:
        """What it has written."""
        return self._log.read_bytes()[self._launched_at if since_launch else 0 :].decode(errors="replace")

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def answers(self) -> bool:
        raise NotImplementedError

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self.process


class Store(Process):
    """A server that syncs every write, unless `options` (name: value of its configuration) say otherwise.

    environment: variables beside our own.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "store",
        *,
        options: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, name)
        self.data = folder / name
        self.data.mkdir(exist_ok=True)
        self.options = dict(options or {})
        self._environment = dict(environment or {})
        self.binary = server_binary()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        usual = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.data),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        given = [part for name, value in (usual | self.options).items() for part in (f"--{name}", value)]
        return [str(self.binary), *given]

    def environment(self) -> dict[str, str]:
        return super().environment() | self._environment

    def answers(self) -> bool:
        try:
            with self.client() as client:
                client.ping()  # refused while it reads its files
                found: Any = client.info("server")
        except redis.RedisError:
            return False
        # Another server may still listen on the port.
        return self.process is not None and found["process_id"] == self.process.pid

    def client(self) -> redis.Redis:
        """For the one who breaks things."""
        return redis.Redis(port=self.port, socket_timeout=5)
