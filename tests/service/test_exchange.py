"""What a connection does with requests that are answered below the framework, by routes of the test's own."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

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
async def serving(
    hot: Mapping[bytes, Route], other: ASGIApp = framed, *, idle_s: float = 5.0
) -> AsyncIterator[tuple[Server, tuple[str, int]]]:
    """A server, and where it listens; idle_s: how long it keeps an idle connection."""
    started = asyncio.Event()
    server = Server(Application(other, hot), Settings(embedded=True), Metrics(), started.set)
    server.config.timeout_keep_alive = idle_s  # type: ignore[assignment]
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
    async with serving(hot, idle_s=IDLE_S) as (_, address):
        for parts in cases:
            sent_at = time.monotonic()
            reader, writer = await asyncio.open_connection(*address)
            for part in parts:
                sent_at = time.monotonic()
                writer.write(part)
                if part == head:
                    await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(0.05)
            await rest(reader)
            assert time.monotonic() - sent_at > 0.9 * IDLE_S  # and not before its time
            writer.close()


async def test_a_request_behind_a_refused_one_is_not_taken_for_an_idle_connection() -> None:
    async with serving({b"/recommend": Refusal}, idle_s=IDLE_S) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(EMPTY + FRAMED)
        answers = await rest(reader)
        assert [answer[:3] for answer in answers.split(b"HTTP/1.1 ")[1:]] == [b"422", b"200"]
        writer.close()


@pytest.mark.parametrize("stopping", [False, True])
async def test_nothing_is_done_behind_the_last_answer(stopping: bool) -> None:
    done = []

    async def deleting(scope: Scope, receive: Receive, send: Send) -> None:
        done.append(scope["path"])
        await framed(scope, receive, send)

    async with serving({b"/recommend": Refusal}, deleting) as (server, address):
        reader, writer = await asyncio.open_connection(*address)
        if stopping:
            server.stop()
            await asyncio.sleep(0.2)
        last = EMPTY.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n")
        writer.write((EMPTY if stopping else last) + b"DELETE /users/ada HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answers = await rest(reader)
        assert answers.count(b"HTTP/1.1 ") == 1 + len(done)
        assert len(done) == stopping  # while it stops both are answered, and it says so behind the second
        writer.close()


@pytest.mark.parametrize("first", [EMPTY, EMPTY.replace(b"/recommend", b"/refused")])
@pytest.mark.parametrize("last", [EMPTY, FRAMED])
@pytest.mark.parametrize("stopped", ["before", "after"])
async def test_requests_behind_one_another_are_all_answered_when_the_server_stops(
    first: bytes, last: bytes, stopped: str
) -> None:
    async with serving({b"/recommend": Late, b"/refused": Refusal}) as (server, address):
        reader, writer = await asyncio.open_connection(*address)
        if stopped == "before":
            server.stop()
            await asyncio.sleep(0.2)
        writer.write(first + EMPTY + last)
        if stopped == "after":
            await asyncio.sleep(LATE_S / 2)
            server.stop()
        before, _, final = (await rest(reader)).rpartition(b"HTTP/1.1 ")
        assert before.count(b"HTTP/1.1 ") == 2
        assert b"connection: close" not in before
        assert b"connection: close" in final or last == FRAMED  # which may be just in time for a kept connection
        writer.close()
