"""The load generator: what it counts, what it refuses to count, and what it asks."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from bench.child import Child, ChildError
from bench.load import Job, LoadError, LoadGenerator, histories

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


@contextmanager
def answering(parts: Sequence[bytes]) -> Iterator[tuple[str, int]]:
    """A server that answers whatever it reads with these parts, each in a packet of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def converse(connection: socket.socket) -> None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                while connection.recv(1 << 16):
                    for part in parts:
                        connection.sendall(part)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=converse, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[:2]


def test_answers_are_counted_with_and_without_a_rate() -> None:
    with answering([OK, b"{}"]) as address:
        for rate in (None, 200.0):
            load = LoadGenerator().measure(Job([address], "/", [b"{}"], 0.5, connections=3, rate=rate))
            assert load.per_second > 0
            assert 0 < load.median_s <= load.p99_s


def test_an_answer_in_pieces_is_one_answer() -> None:
    whole = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"degraded":[]}'
    with answering([whole[:5], whole[5:-17], whole[-17:-1], whole[-1:]]) as address:
        assert LoadGenerator().measure(Job([address], "/", [b"{}"], 0.3, connections=2)).per_second > 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "503"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "without Content-Length"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 28\r\n\r\n{"degraded":["state_store"]}', "state_store"),
    ],
)
def test_what_is_no_good_answer_ends_the_measurement(answer: bytes, reason: str) -> None:
    with answering([answer]) as address, pytest.raises(LoadError, match=f"/: .*{reason}"):
        LoadGenerator().measure(Job([address], "/", [b"{}"], 0.2, connections=1))


def test_what_goes_wrong_in_another_process_is_said_here(unused_port: int) -> None:
    job = Job([("127.0.0.1", unused_port)], "/", [b"{}"], 0.1)
    with Child(LoadGenerator) as child, pytest.raises(ChildError, match="LoadGenerator: ConnectionRefusedError"):
        child.call("measure", job)


def test_histories_are_mixed_as_the_goals_say() -> None:
    found = histories(20_000, 300, np.random.default_rng(0))
    lengths = np.array([len(history) for history in found])
    assert np.median(lengths) == 12
    assert 15 < lengths.mean() < 16.5  # 16 before the longest are cut
    assert lengths.min() >= 1
    assert lengths.max() == 50
    together = np.concatenate(found)
    assert together.min() == 1
    assert together.max() == 300
