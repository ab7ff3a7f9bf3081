"""A process that begins as a copy of this one: how it ends is known, and what it does reaches nothing of ours."""

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.fork import Fork

WAIT_S = 10.0


def ended(fork: Fork) -> int:
    deadline = time.monotonic() + WAIT_S
    while (status := fork.poll()) is None:
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.005)
    return status


def sleeping() -> int:
    time.sleep(60)
    return 0


def answer_of(body: Callable[[], str]) -> str:
    """What the body says in a fork."""
    reading, writing = os.pipe()
    fork = Fork(lambda: os.write(writing, body().encode()) and 0, keep=[writing])
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    assert ended(fork) == 0
    return said


def test_its_status_is_what_the_body_returns() -> None:
    fork = Fork(lambda: 7, keep=[])
    assert ended(fork) == 7
    fork.kill()  # its number may be another process's by now
    assert fork.returncode == fork.poll() == 7


def test_an_error_of_the_body_is_shown_and_is_status_1(capfd: pytest.CaptureFixture[str]) -> None:
    assert ended(Fork(lambda: 1 // 0, keep=[])) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_signals_end_it() -> None:
    for end, number in ((Fork.terminate, signal.SIGTERM), (Fork.kill, signal.SIGKILL)):
        fork = Fork(sleeping, keep=[])
        assert fork.poll() is None
        end(fork)
        assert ended(fork) == -number


def test_no_signal_to_it_reaches_the_event_loop_of_its_parent() -> None:
    told: list[int] = []

    async def main() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.append, 1)
        for _ in range(20):
            fork = Fork(sleeping, keep=[])
            os.kill(fork.pid, signal.SIGTERM)  # before it has handlers of its own, as likely as not
            assert await asyncio.to_thread(ended, fork) == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # and ours still do
        await asyncio.sleep(0.1)

    before = signal.getsignal(signal.SIGTERM)
    asyncio.run(main())
    signal.signal(signal.SIGTERM, before)
    assert told == [1]


def test_an_event_loop_of_its_own_runs_within_that_of_its_parent() -> None:
    async def value() -> int:
        await asyncio.sleep(0.001)
        return 5

    async def main() -> int:
        return await asyncio.to_thread(ended, Fork(lambda: asyncio.run(value()), keep=[]))

    assert asyncio.run(main()) == 5


def test_it_has_only_the_files_it_is_to_keep(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    kept = tmp_path / "kept"
    with ours, theirs, kept.open("w") as file:

        def write() -> int:
            file.write("here")
            file.flush()
            return sleeping()

        fork = Fork(write, keep=[file.fileno()])
        theirs.close()
        assert ours.recv(1) == b""  # the end of the other side, though the fork began with it
        deadline = time.monotonic() + WAIT_S
        while not kept.read_text() and time.monotonic() < deadline:  # then it has let go of all
            time.sleep(0.005)
        links = {str(one.readlink()) for one in Path(f"/proc/{fork.pid}/fd").iterdir()}
        fork.kill()
        ended(fork)
        assert not [link for link in links if link.startswith("socket:")]
        assert str(kept) in links
    assert kept.read_text() == "here"


def test_it_draws_numbers_of_its_own() -> None:
    drawn = {answer_of(lambda: str(random.getrandbits(64))) for _ in range(2)}
    assert len(drawn | {str(random.getrandbits(64))}) == 3


def test_it_is_in_a_session_of_its_own() -> None:
    assert answer_of(lambda: str(os.getsid(0))) != str(os.getsid(0))
