"""Tasks beside the requests: a watcher outlives what it meets, and of an end nothing is passed over but its own."""

import asyncio

import pytest

from service.tasks import ended, every

pytestmark = pytest.mark.anyio


async def test_a_task_has_ended_with_what_it_does_at_its_end() -> None:
    log: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            log.append("ended")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await ended(task)
    assert task.cancelled()
    assert log == ["ended"]
    await ended(task)  # again
    await ended(None)


async def test_what_a_task_failed_with_is_raised() -> None:
    async def work() -> None:
        raise ValueError("a bug")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="a bug"):
        await ended(task)


async def test_who_is_cancelled_while_it_waits_for_the_end_is_cancelled() -> None:
    let_go = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await let_go.wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(ended(task))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert waiting.cancelled()
    let_go.set()
    await asyncio.wait([task])


async def test_a_look_that_fails_is_said_once_until_one_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = ["first", "second", None, "third", "fourth", None]
    done = asyncio.Event()

    async def look() -> None:
        if not outcomes:
            done.set()
        elif (outcome := outcomes.pop(0)) is not None:
            raise ValueError(outcome)

    watcher = asyncio.create_task(every(0, look, "looking failed"))
    async with asyncio.timeout(5):
        await done.wait()
    await ended(watcher)
    said = [(record.getMessage(), str(record.exc_info[1])) for record in caplog.records if record.exc_info]
    assert said == [("looking failed", "first"), ("looking failed", "third")]
