"""One of several processes that answer on one port: a fork of the supervisor, which starts and replaces it.

Over a socket, in lines of JSON, it says when it serves, gives its counts when asked, and asks for everybody's. It
drains and ends when the supervisor is there no more.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import uvloop

from models.device import DeviceError
from models.manifest import BundleError
from service import logs
from service.app import running
from service.metrics import Metrics
from service.scoring import ScoringStuck
from service.server import CannotListen, Server
from service.settings import BadSettings, Settings
from service.totals import snapshot

logger = logging.getLogger(__name__)

LINE_BYTES = 1 << 24  # of a message between the two; a worker's counts are some tens of kilobytes
STUCK = 1  # exit status of a worker that left a ranking behind

_TOTALS_S = 5.0
_GRACE_S = 2.0  # beyond the drain, for a worker whose supervisor has died


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is told at its start. address and family: where all of them listen."""

    number: int
    settings: Settings
    store_url: str
    family: int
    address: tuple[Any, ...]


class Link:
    """The worker's end of the line to its supervisor, open from `open` to `close`."""

    def __init__(self, connection: socket.socket) -> None:
        self.metrics = Metrics(self.totals)
        self._connection = connection
        self._asked: list[asyncio.Future[bytes]] = []
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._connection, limit=LINE_BYTES)
        self._listening = asyncio.create_task(self._listen(reader), name="link")

    async def close(self) -> None:
        """Leave the last counts and hang up."""
        if self._listening is not None:
            self._listening.cancel()
        if self._writer is not None:
            with contextlib.suppress(OSError):  # a supervisor that has died
                self._tell("counted", 0)
                await self._writer.drain()
                self._writer.close()
                await self._writer.wait_closed()

    def ready(self) -> None:
        self._send({"kind": "ready"})

    def failed(self, reason: str) -> None:
        self._send({"kind": "failed", "reason": reason})

    async def totals(self) -> bytes:
        """The counts of all workers as text. Raises TimeoutError if the supervisor does not answer."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self._send({"kind": "totals"})
        async with asyncio.timeout(_TOTALS_S):
            return await answer

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            message = orjson.loads(line)
            if message["kind"] == "count":
                self._tell("counted", message["number"])
            else:  # totals, in the order in which they were asked for
                answer = self._asked.pop(0)
                if not answer.done():
                    answer.set_result(message["text"].encode())

    def _tell(self, kind: str, number: int) -> None:
        counts = snapshot(self.metrics.registry)
        self._send({"kind": kind, "number": number, "healthy": self.metrics.healthy(), "counts": counts})

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(orjson.dumps(message) + b"\n")


def work(assignment: Assignment, connection: socket.socket, lifeline: int) -> int:
    """Serve until told to stop, and give the exit status.

    connection: to the supervisor. lifeline: a file to read from that ends when the supervisor does.
    """
    settings = assignment.settings
    with contextlib.suppress(OSError):  # what ps and top call it
        Path("/proc/self/comm").write_text(f"recserve-w{assignment.number}")
    threading.Thread(target=_end_with_supervisor, args=(lifeline, settings.drain_s), daemon=True).start()
    logs.configure(settings.log_level, worker=assignment.number)
    link = Link(connection)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(assignment, link))


async def _run(assignment: Assignment, link: Link) -> int:
    await link.open()
    try:
        async with running(assignment.settings, assignment.store_url, link.metrics) as app:
            server = Server(app, assignment.settings, link.metrics, on_started=link.ready)
            # Until here the signal just ends the process. Told twice, by whoever stops all processes and by the
            # supervisor, it drains all the same.
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, setattr, server, "should_exit", True)
            await server.serve(sockets=[_listener(assignment)])
        return 0
    except ScoringStuck as error:
        logger.error("%s; the process ends without it", error)
        return STUCK
    except (BadSettings, BundleError, DeviceError, CannotListen, OSError) as error:
        link.failed(str(error))
        return 2
    finally:
        await link.close()


def _listener(assignment: Assignment) -> socket.socket:
    """A socket of this worker's own on the port of all, among which Linux spreads the connections.

    Not one socket for all: whoever wakes first takes all connections that wait, so that of bursts of 64 connections to
    two workers some went to one of them alone, and usually 7 of 8. By the kernel's choice, which hashes addresses, it
    was 21 to 43 at the worst of 64, and 3 to 5 as a rule of 8; what a connection brings stays with its worker.
    """
    listener = socket.socket(assignment.family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(assignment.address)
    return listener


def _end_with_supervisor(lifeline: int, drain_s: float) -> None:
    """Wait for the supervisor's end, however it ends; then drain, or leave if that does not come to its end either."""
    while os.read(lifeline, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(drain_s + _GRACE_S)
    os._exit(1)
