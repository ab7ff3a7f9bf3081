"""Ending a task beside the requests: its own cancellation is passed over, and nothing else is."""

import asyncio

import pytest

from service.tasks import ended

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
