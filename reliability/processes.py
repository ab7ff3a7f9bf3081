"""The service and the store as processes of their own, which can be killed, stopped and started again in place."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import redis

from bench.servers import ROOT, free_port, variables
from reliability.promise import CannotTryError
from service.embedded import NoServerError, packaged_binary

_START_S = 30.0  # on a busy machine


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
        with (self.folder / f"{self.name}.log").open("ab") as log:
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

    def stop(self) -> None:
        """Let it write what it has yet to write."""
        self._running().terminate()
        self._running().wait()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def said(self) -> str:
        """Everything it has written."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

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


class Service(Process):
    """The service with a store, and settings as it takes them: `Service(folder, url, durability="fast")`."""

    def __init__(self, folder: Path, store_url: str, **settings: object) -> None:
        super().__init__(folder, "service")
        self.store_url = store_url
        self._settings = {"artifacts": folder / "artifacts", "device": "cpu", "log_level": "warning"} | settings

    def command(self) -> list[str]:
        return [sys.executable, "-m", "service", "serve", "--port", str(self.port), "--redis", self.store_url]

    def environment(self) -> dict[str, str]:
        return variables(**self._settings)

    def answers(self) -> bool:
        try:
            with socket.create_connection(self.address, timeout=1) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                return connection.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False
