"""The load generator: keep-alive connections over plain sockets, from a process of its own.

No framework, because it shares two cores with what it measures: a request costs it some twenty microseconds. Waiting
is by `select`, whose timeout has microseconds; those of event loops have milliseconds, which is a whole answer here.
"""

import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

CONNECTIONS = 64
MAX_HISTORY = 50
_MEDIAN, _SPREAD = 12.0, 0.7585  # log-normal with a mean of 16: exp(spread**2 / 2) is 16 / 12
_WARM_SHARE = 0.15  # of the time, before counting begins
_REFUSED_SHARE = 0.01  # of all answers: a store may miss its deadline once while the disk is busy with others
STATUS = slice(9, 12)  # of an answer's first line
_DEGRADED = b'"degraded":["'  # of a recommendation for which a part of the work was left out
_PATIENCE_S = 60.0  # for one answer; a straightforward stack at a million items takes seconds


class LoadError(Exception):
    """A server that does not answer as it should."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is sent where. `addresses` share the connections evenly; with a `rate` requests arrive at random times,
    else each connection sends the next one when it has its answer."""

    addresses: Sequence[tuple[str, int]]
    path: str
    bodies: Sequence[bytes]
    seconds: float
    connections: int = CONNECTIONS
    rate: float | None = None  # requests/s


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it; times in seconds, with a `rate` from when the request was due, so that a queue counts.

    Answers other than 200, and recommendations made without the store, of which there may be a few, are not in it.
    """

    per_second: float
    median_s: float
    p99_s: float


class Connection:
    """A kept connection that waits for at most one answer. due: when its request was, by the clock of who asks."""

    __slots__ = ("due", "received", "socket")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.due = 0.0

    def answer(self) -> bytes | None:
        """Read what there is, and give the answer if that completes it. Raises LoadError if none can come any more."""
        try:
            chunk = self.socket.recv(1 << 16)
        except OSError as error:
            raise LoadError(f"a connection was lost: {error}") from error
        if not chunk:
            raise LoadError("the server closed a connection")
        received = self.received = self.received + chunk
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = received[:end].lower()
        _, found, rest = head.partition(b"content-length: ")
        if not found:
            raise LoadError(f"an answer without Content-Length: {head!r}")
        if len(received) < end + 4 + int(rest.partition(b"\r\n")[0]):
            return None
        self.received = b""
        return received


class LoadGenerator:
    """Made in a Child; `measure` takes a Job and gives a Load."""

    def measure(self, job: Job) -> Load:
        """Raises LoadError for too many answers that are not good ones, for none, or for a closed connection."""
        requests = [request(job.path, body) for body in job.bodies]
        with selectors.DefaultSelector() as ready:
            connections = [Connection(job.addresses[n % len(job.addresses)]) for n in range(job.connections)]
            try:
                for connection in connections:
                    ready.register(connection.socket, selectors.EVENT_READ, connection)
                return _run(job, requests, ready, deque(connections))
            except LoadError as error:
                raise LoadError(f"{job.path}: {error}") from error
            finally:
                for connection in connections:
                    connection.socket.close()


def _run(job: Job, requests: list[bytes], ready: selectors.DefaultSelector, idle: deque[Connection]) -> Load:
    clock = time.perf_counter
    began = clock()
    counted_from, deadline = began + job.seconds * _WARM_SHARE, began + job.seconds
    arrivals = _arrivals(began, job.rate)
    due = next(arrivals)
    times: list[float] = []
    refused: list[bytes] = []
    number = waiting = 0
    heard = began
    descriptor = ready.fileno()  # of epoll or kqueue, which is readable when a connection is
    while True:
        now = clock()
        if now >= deadline and not (times or refused) and now - began < _PATIENCE_S:
            deadline += job.seconds  # a short load on a busy machine: at least one answer has to count
        while idle and due <= now < deadline:
            connection = idle.popleft()
            connection.due = due or now
            connection.socket.send(requests[number % len(requests)])
            number += 1
            waiting += 1
            due = next(arrivals)
        if now >= deadline and not waiting:
            break
        if now - heard > _PATIENCE_S:
            raise LoadError(f"no answer within {_PATIENCE_S:.0f} s")
        wait = min(due, deadline) - now if idle and now < deadline else _PATIENCE_S
        if not select.select([descriptor], [], [], max(0.0, wait))[0]:
            continue
        for key, _ in ready.select(0):
            connection = key.data
            answer = connection.answer()
            if answer is None:
                continue
            heard = clock()
            if answer[STATUS] != b"200" or _DEGRADED in answer:
                refused.append(answer)
            elif counted_from <= heard <= deadline:
                times.append(heard - connection.due)
            idle.append(connection)
            waiting -= 1
    if len(refused) > _REFUSED_SHARE * number:
        raise LoadError(f"{len(refused)} of {number} answers were like {refused[0][:400]!r}")
    if not times:
        raise LoadError(f"no answer within the {job.seconds} s of the measurement; give it longer")
    median, p99 = np.percentile(times, [50, 99])
    return Load(len(times) / (deadline - counted_from), float(median), float(p99))


def _arrivals(began: float, rate: float | None) -> Iterator[float]:
    """When requests are due: at random times at a rate, or, as 0, whenever a connection is free."""
    if rate is None:
        while True:
            yield 0.0
    generator = np.random.default_rng(1)
    at = began
    while True:
        for gap in generator.exponential(1 / rate, 1000):
            at += gap
            yield at


def request(path: str, body: bytes) -> bytes:
    """A POST of JSON as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def histories(count: int, items: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Mixed histories of item indices 1..items: log-normal lengths, median 12, mean 16, at most 50."""
    lengths = np.exp(generator.normal(np.log(_MEDIAN), _SPREAD, count)).round().clip(1, MAX_HISTORY).astype(int)
    return [generator.integers(1, items + 1, length) for length in lengths]


def encode(bodies: Sequence[object]) -> list[bytes]:
    """Bodies as JSON."""
    return [orjson.dumps(body) for body in bodies]
