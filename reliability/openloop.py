"""Requests that come when they come: at a rate, whether or not the ones before are answered.

A generator that waits for answers slows down with what it measures and never sees its queue. Here a request is due at
its time, on one of so many kept connections that hardly ever all of them wait, as those of a proxy are, and its latency
counts from when it was due.
"""

import select
import selectors
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.load import STATUS, Connection, LoadError

_PATIENCE_S = 30.0  # for the last answers


@dataclass(frozen=True, slots=True)
class Pressure:
    """`rate` requests a second at random times for `seconds`, each one of `requests` (whole, as bytes)."""

    address: tuple[str, int]
    requests: Sequence[bytes]
    rate: float
    seconds: float
    connections: int = 1024  # what is due while all of them wait goes out late, which its latency shows


@dataclass(frozen=True, slots=True)
class Answers:
    """One entry a request, in the order of the answers.

    status 0: the connection was closed; due_s and latency_s: since the begin, and since due.
    """

    status: NDArray[np.int64]
    due_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    retry_after: NDArray[np.bool_]  # whether the answer has the header


class OpenLoop:
    """Made in a process of its own (bench.child.Child)."""

    def press(self, pressure: Pressure) -> Answers:
        """What came of every request."""
        random = np.random.default_rng(3)
        gaps = random.exponential(1 / pressure.rate, int(pressure.rate * pressure.seconds))
        due = np.cumsum(gaps)
        rows: list[tuple[int, float, float, bool]] = []
        sent = 0
        with selectors.DefaultSelector() as ready:
            descriptor = ready.fileno()
            idle = deque(Connection(pressure.address) for _ in range(pressure.connections))
            for connection in idle:
                ready.register(connection.socket, selectors.EVENT_READ, connection)
            began = time.perf_counter()
            while len(rows) < len(due):
                now = time.perf_counter() - began
                if now > pressure.seconds + _PATIENCE_S:
                    raise TimeoutError(f"{len(due) - len(rows)} requests had no answer after {_PATIENCE_S:.0f} s")
                while idle and sent < len(due) and due[sent] <= now:
                    connection = idle.popleft()
                    connection.due = float(due[sent])
                    connection.socket.send(pressure.requests[sent % len(pressure.requests)])
                    sent += 1
                next_s = due[sent] - now if idle and sent < len(due) else 1.0
                if not select.select([descriptor], [], [], max(0.0, next_s))[0]:
                    continue
                for key, _ in ready.select(0):
                    connection = key.data
                    row = _heard(connection, time.perf_counter() - began)
                    if row is None:
                        continue
                    rows.append(row)
                    if not row[0]:  # closed
                        ready.unregister(connection.socket)
                        connection.socket.close()
                        connection = Connection(pressure.address)
                        ready.register(connection.socket, selectors.EVENT_READ, connection)
                    idle.append(connection)
            for key in list(ready.get_map().values()):
                key.data.socket.close()
        status, at, latency, retry_after = zip(*rows, strict=True)
        return Answers(np.array(status), np.array(at), np.array(latency), np.array(retry_after))


def _heard(connection: Connection, now: float) -> tuple[int, float, float, bool] | None:
    """Status, when it was due, latency and whether it says when to retry; None while more has to come."""
    try:
        answer = connection.answer()
    except LoadError:
        return 0, connection.due, now - connection.due, False
    if answer is None:
        return None
    return int(answer[STATUS]), connection.due, now - connection.due, b"retry-after:" in answer.lower()
