"""`python -m service bench`: requests a second of a running service, beside a route that does nothing.

Closed loop: each of 64 keep-alive connections sends its next request when it has its answer, from this process to the
service's. The no-op route is measured in the same run, because requests a second mean little without the machine.
The service is one of its own, with a store that is thrown away: a benchmark's events must not reach a real log.
"""

import asyncio
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import uvloop

CONNECTIONS = 64
MAX_HISTORY = 50
_SEED = 7
_START_S = 60


class BenchError(Exception):
    """The service under test does not answer as it should; the message says how."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one kind of request came to; times in seconds."""

    name: str
    per_second: float
    median_s: float
    p99_s: float
    refused: int  # answers other than 200


def bench(url: str, seconds: float) -> list[Load]:
    """Measure the service at a URL (it must need no key). Raises BenchError if it is not there or not ready."""
    parts = urlsplit(url)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_bench((parts.hostname or "127.0.0.1", parts.port or 80), seconds))


def table(loads: Sequence[Load]) -> str:
    """The measurements as text."""
    lines = [f"{CONNECTIONS} connections  {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8} {'not 200':>8}"]
    for load in loads:
        figures = f"{load.per_second:>11,.0f} {load.median_s * 1e3:>8.1f} {load.p99_s * 1e3:>8.1f} {load.refused:>8}"
        lines.append(f"{load.name:<14}  {figures}")
    return "\n".join(lines)


@contextmanager
def own_service(artifacts: Path, workers: int) -> Iterator[str]:
    """URL of a service on the promoted bundle with an empty store, both gone when the block ends.

    Raises BenchError if it does not start, with what it said.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        options = ["--port", str(port), "--artifacts", str(artifacts), "--embedded", "--data", f"{folder}/store"]
        options += ["--workers", str(workers), "--log-level", "error"]
        command = [sys.executable, "-m", "service", "serve", *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)  # noqa: S603 - our own program
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
        deadline = time.monotonic() + _START_S
        try:
            while process.poll() is None:
                with suppress(OSError), direct.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    if b"\nrecserve_workers %d.0\n" % workers in answer.read():  # or one would get all connections
                        break
                if time.monotonic() > deadline:
                    raise BenchError(f"the service did not answer within {_START_S} s")
                time.sleep(0.05)
            else:
                raise BenchError(process.stderr.read().decode() if process.stderr else "the service did not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


async def _bench(address: tuple[str, int], seconds: float) -> list[Load]:
    generator = np.random.default_rng(_SEED)
    items = [item["item_id"] for item in (await _call(address, "/recommend", {"k": 500}))["items"]]

    def history() -> list[str]:
        length = min(MAX_HISTORY, max(1, round(generator.lognormal(np.log(12), 0.8))))
        return [items[index] for index in generator.integers(0, len(items), length)]

    users = [f"bench-{number}" for number in range(500)]
    events = [
        {"user_id": user, "item_id": item, "timestamp": at} for user in users for at, item in enumerate(history(), 1)
    ]
    for start in range(0, len(events), 1000):
        await _call(address, "/events", {"events": events[start : start + 1000]})
    stateless = [{"history": history()} for _ in range(2000)]
    stored = [{"user_id": user} for user in users]
    loads = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        process = multiprocessing.get_context("spawn").Process(target=_serve_no_op, args=(listener,), daemon=True)
        process.start()
        try:
            no_op = listener.getsockname()[:2]
            await _until_open(no_op)
            loads.append(await _load("no-op", no_op, "/noop", [{}], seconds))
        finally:
            process.terminate()
            process.join()
    loads.append(await _load("history given", address, "/recommend", stateless, seconds))
    loads.append(await _load("history stored", address, "/recommend", stored, seconds))
    posted = [{"user_id": users[n % 500], "item_id": items[n % len(items)], "type": "impression"} for n in range(2000)]
    loads.append(await _load("one event", address, "/events", posted, seconds))
    return loads


async def _load(name: str, address: tuple[str, int], path: str, bodies: Sequence[object], seconds: float) -> Load:
    requests = [_request(path, body) for body in bodies]
    times: list[float] = []
    refused = 0
    deadline = time.perf_counter() + seconds

    async def connection(number: int) -> None:
        nonlocal refused
        reader, writer = await asyncio.open_connection(*address)
        ended = 0.0
        while ended < deadline:  # once at least, however long connecting took
            started = time.perf_counter()
            writer.write(requests[number % len(requests)])
            status, _ = await _answer(reader)
            ended = time.perf_counter()
            times.append(ended - started)
            refused += status != 200
            number += CONNECTIONS
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(connection(number) for number in range(CONNECTIONS)))
    elapsed = time.perf_counter() - started
    median, p99 = np.percentile(times, [50, 99])
    return Load(name, len(times) / elapsed, float(median), float(p99), refused)


async def _call(address: tuple[str, int], path: str, body: object) -> Any:
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError as error:
        raise BenchError(f"no service answers at {address[0]} port {address[1]}; start one or give --url") from error
    writer.write(_request(path, body))
    status, content = await _answer(reader)
    writer.close()
    if status != 200:
        raise BenchError(f"{path} answered {status}: {content[:300].decode(errors='replace')}")
    return orjson.loads(content)


def _request(path: str, body: object) -> bytes:
    content = orjson.dumps(body)
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(content))
    return head + content


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of a response, which must say how long it is, as all of the service's do."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


async def _until_open(address: tuple[str, int]) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection(*address)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise BenchError("the no-op server did not start")


def _serve_no_op(listener: socket.socket) -> None:
    import uvicorn  # noqa: PLC0415 - in the process that serves
    from fastapi import FastAPI, Request, Response  # noqa: PLC0415

    app = FastAPI()

    @app.post("/noop")
    async def noop(request: Request) -> Response:
        await request.body()
        return Response(b"{}", media_type="application/json")

    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])
