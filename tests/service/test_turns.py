"""Large bodies that arrive together, on the event loop of the test, which sees how long it is held up."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.app import running
from service.metrics import Metrics
from service.server import Server
from service.settings import Settings

CLIENTS = 60


@asynccontextmanager
async def connected(artifacts: Path, store_url: str) -> AsyncIterator[list[socket.socket]]:
    """Connections to a service on this loop, which it has taken."""
    settings, metrics = Settings(artifacts=artifacts, redis=store_url, device="cpu"), Metrics()
    listener, started = socket.create_server(("127.0.0.1", 0), backlog=CLIENTS), asyncio.Event()
    async with running(settings, store_url, metrics) as app:
        server = Server(app, settings, metrics, started.set)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await started.wait()
        clients = [socket.create_connection(listener.getsockname()) for _ in range(CLIENTS)]
        while len(server.server_state.connections) < CLIENTS:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
        yield clients
        server.stop()
        await serving


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
@pytest.mark.parametrize("route", ["/recommend", "/recommend/batch", "/events"])
async def test_large_bodies_that_arrive_together_are_looked_at_in_turns_of_their_own(
    make_bundle: Callable[..., Path], artifacts: Path, store_url: str, route: str
) -> None:
    make_bundle("v1")
    async with connected(artifacts, store_url) as clients:
        for client in clients:  # no turn of the loop between them: all lie there when it looks
            client.sendall(request(route))
        began = last = time.thread_time()
        longest_s, statuses = 0.0, asyncio.gather(*map(status, clients))
        while not statuses.done():
            await asyncio.sleep(0)
            longest_s, last = max(longest_s, time.thread_time() - last), time.thread_time()
    print(f"the longest turn took {1e3 * longest_s:.1f} ms of {1e3 * (last - began):.1f}")
    assert set(statuses.result()) == {b"200" if route == "/recommend/batch" else b"422"}
    assert longest_s < (last - began) / 3


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
async def test_more_large_bodies_than_there_is_room_for_are_refused_at_once(
    make_bundle: Callable[..., Path], artifacts: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle("v1")
    monkeypatch.setattr("service.hot._MOST_BYTES", 10 * len(request("/recommend")))
    async with connected(artifacts, store_url) as clients:
        address = clients[0].getpeername()
        for client in clients:
            client.sendall(request("/recommend"))
        statuses = await asyncio.gather(*map(status, clients))
        again = socket.create_connection(address)  # and there is room again
        again.sendall(request("/recommend"))
        assert await status(again) == b"422"
    assert set(statuses) == {b"422", b"503"}
    assert statuses.count(b"422") >= 10


def request(route: str) -> bytes:
    """One that is looked at in all of its length, and refused."""
    wrong = {"history": [f"i{n}" for n in range(6000)], "k": 0}
    bodies = {"/recommend": wrong, "/recommend/batch": {"queries": [wrong]}, "/events": {"events": [{}] * 1000}}
    body = json.dumps(bodies[route]).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def status(client: socket.socket) -> bytes:
    client.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=client)
    answer = await reader.read()
    writer.close()
    return answer.split()[1]
