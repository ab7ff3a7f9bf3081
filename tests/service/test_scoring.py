"""The scoring thread: it answers, and its end is seen at once and leaves nobody waiting."""

import asyncio
import contextlib
import ctypes
import threading
from concurrent.futures import Future

import pytest

from service.scoring import ScoringStopped, ScoringStuck, ScoringThread


def end(scoring: ScoringThread) -> None:
    """Raise what ends a thread in it, as an exhausted interpreter would, while it works."""
    inside, go = threading.Event(), threading.Event()
    idents: list[int] = []

    def work() -> None:
        idents.append(threading.get_ident())
        inside.set()
        go.wait(10)

    last = scoring.submit(work)
    behind = scoring.submit(int)
    inside.wait(10)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(idents[0]), ctypes.py_object(SystemExit)) == 1
    go.set()
    for future in (last, behind):
        with pytest.raises(ScoringStopped):
            future.result(10)


def test_calls_are_made_in_their_order_and_an_error_is_its_callers() -> None:
    with ScoringThread() as scoring:
        futures: list[Future[float]] = [scoring.submit(lambda by: 6 / by, by) for by in (1, 0, 2)]
        assert futures[2].result(10) == 3
        assert futures[0].result(10) == 6
        with pytest.raises(ZeroDivisionError):
            futures[1].result(10)
        assert scoring.alive
    assert not scoring.alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_thread_ends_whoever_waits_is_told_and_so_is_who_comes_later(caplog: pytest.LogCaptureFixture) -> None:
    scoring = ScoringThread()
    end(scoring)
    assert not scoring.alive
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # the one that operators are to watch for
    with pytest.raises(ScoringStopped):
        scoring.submit(int).result(10)
    scoring.shutdown()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_call_that_comes_while_the_others_are_told_of_the_end_is_told_too() -> None:
    scoring = ScoringThread()
    go, told = threading.Event(), threading.Event()
    later: list[Future[int]] = []

    def ask_again(_: Future[None]) -> None:
        later.append(scoring.submit(int))
        told.set()

    def leave() -> None:
        go.wait(10)
        raise SystemExit

    scoring.submit(leave).add_done_callback(ask_again)
    go.set()
    assert told.wait(10)
    with pytest.raises(ScoringStopped):
        later[0].result(1)
    scoring.shutdown()


def test_calls_that_are_given_up_are_not_made() -> None:
    scoring = ScoringThread()
    go = threading.Event()
    scoring.submit(go.wait, 10)
    waiting = scoring.submit(int)
    assert waiting.cancel()
    go.set()
    scoring.shutdown()
    assert waiting.cancelled()


@pytest.mark.anyio
async def test_a_call_that_ends_soon_is_waited_for_at_the_end() -> None:
    async with ScoringThread() as scoring:
        go = threading.Event()
        last = scoring.submit(go.wait, 10)
        asyncio.get_running_loop().call_later(0.05, go.set)
    assert last.result(0)
    assert not scoring.alive


@pytest.mark.anyio
async def test_a_call_that_does_not_end_is_told_and_keeps_neither_the_end_nor_the_event_loop_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.scoring._END_S", 0.1)
    go, ticks = threading.Event(), 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    with pytest.raises(ScoringStuck, match=r"has not ended 0\.1 s after"):
        async with ScoringThread() as scoring:
            scoring.submit(go.wait, 10)
    assert ticks > 5
    ticking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticking
    go.set()
    scoring.shutdown()
