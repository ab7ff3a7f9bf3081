"""What a connection does with requests that are answered below the framework, by routes of the test's own."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import pytest
from starlette.types import Receive, Scope, Send

from service.app import Application
from service.errors import Problem
from service.exchange import Exchange, Route
from service.metrics import Metrics
from service.server import Server
from service.settings import Settings

pytestmark = pytest.mark.anyio

HEAD = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\n"
EMPTY = HEAD + b"Content-Length: 0\r\n\r\n"
FRAMED = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
IDLE_S = 0.3
LATE_S = 0.5


class Refusal:
    """Has seen enough of a request at its head."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def open(self) -> None:
        self.refuse(Problem("invalid_request", "whatever it is"))

    def take(self, body: bytes) -> None:
        raise AssertionError("it was refused")

    def refuse(self, error: Exception) -> None:
        self._exchange.answer(422, b"", b"", {})


class Late:
    """Answers a while after it has the body."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def open(self) -> None:
        self._exchange.opened(self)

    def take(self, body: bytes) -> None:
        asyncio.get_running_loop().call_later(LATE_S, partial(self._exchange.answer, 200, b"", body, {}))

    def refuse(self, error: Exception) -> None:
        raise AssertionError("nothing is wrong with it")


async def framed(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers before it has read the body; a GET takes longer than an idle connection is kept."""
    if scope["method"] == "GET":
        await asyncio.sleep(LATE_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def serving(hot: Mapping[bytes, Route]) -> AsyncIterator[tuple[Server, tuple[str, int]]]:
    started = asyncio.Event()
    server = Server(Application(framed, hot), Settings(embedded=True), Metrics(), started.set)
    server.config.timeout_keep_alive = IDLE_S  # type: ignore[assignment]
    listener = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    await started.wait()
    yield server, listener.getsockname()
    server.stop()
    await running


async def rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.read()


@pytest.mark.parametrize("hot", [{}, {b"/recommend": Refusal}])
async def test_an_idle_connection_ends_whatever_made_it_idle(hot: Mapping[bytes, Route]) -> None:
    head = HEAD + b"Content-Length: 2\r\n\r\n"
    cases: tuple[list[bytes], ...] = (
        [],
        [b"\r\n"],
        [b"", b"\r\n\r\n"],
        [head, b"{}"],
        [head, b"{}", b"\r\n"],
        [head + b"{}", b"\r\n"],
    )
    async with serving(hot) as (_, address):
        for parts in cases:
            reader, writer = await asyncio.open_connection(*address)
            for part in parts:
                writer.write(part)
                if part == head:
                    await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(0.05)
            idle_since = time.monotonic()
            await rest(reader)
            assert time.monotonic() - idle_since > IDLE_S / 3  # and not before its time
            writer.close()


async def test_a_request_behind_a_refused_one_is_not_taken_for_an_idle_connection() -> None:
    async with serving({b"/recommend": Refusal}) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(EMPTY + FRAMED)
        answers = await rest(reader)
        assert [answer[:3] for answer in answers.split(b"HTTP/1.1 ")[1:]] == [b"422", b"200"]
        writer.close()


@pytest.mark.parametrize("last", [EMPTY, FRAMED])
async def test_requests_behind_one_another_are_all_answered_when_the_server_stops(last: bytes) -> None:
    async with serving({b"/recommend": Late}) as (server, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(EMPTY + EMPTY + last)
        await asyncio.sleep(LATE_S / 2)
        server.stop()
        answers = await rest(reader)
        assert answers.count(b"HTTP/1.1 200 ") == 3
        assert answers.count(b"connection: close") == 1
        assert b"connection: close" in answers.rpartition(b"HTTP/1.1 ")[2]
        writer.close()
