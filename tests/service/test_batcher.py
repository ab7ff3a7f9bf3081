"""The batcher: what shares a batch, what is refused, and what a failure costs."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from service.batcher import Abandoned, Batcher, Closed, Expired, Overloaded

pytestmark = pytest.mark.anyio


class Work:
    """Doubles numbers, when let; remembers the batches; breaks on a 13."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, calls: Sequence[int]) -> list[int]:
        self.batches.append(list(calls))
        await self.gate.wait()
        if 13 in calls:
            raise ValueError("thirteen")
        return [2 * call for call in calls]


def batcher(work: Work, *, max_batch: int = 4, max_waiting: int = 100, stuck_s: float = 30) -> Batcher[int, int]:
    return Batcher(work, max_batch=max_batch, max_waiting=max_waiting, stuck_s=stuck_s)


async def submit(to: Batcher[int, int], *calls: int) -> list["asyncio.Task[int]"]:
    tasks = [asyncio.create_task(to.submit(call)) for call in calls]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_an_idle_batcher_answers_at_once() -> None:
    work = Work()
    work.gate.set()
    async with batcher(work) as batches:
        assert await batches.submit(4) == 8
    assert work.batches == [[4]]


async def test_calls_that_arrive_during_a_run_share_the_next_batch() -> None:
    work = Work()
    async with batcher(work) as batches:
        tasks = await submit(batches, 1)
        tasks += await submit(batches, 2, 3, 4)
        work.gate.set()
        assert await asyncio.gather(*tasks) == [2, 4, 6, 8]
    assert work.batches == [[1], [2, 3, 4]]


async def test_those_who_are_answered_go_before_the_next_batch_even_if_runs_never_wait() -> None:
    order: list[str] = []

    async def run(calls: Sequence[int]) -> list[int]:
        order.append(f"batch {len(calls)}")
        return list(calls)

    async def caller(to: Batcher[int, int], call: int) -> None:
        await to.submit(call)
        order.append("answer")

    async with Batcher(run, max_batch=2, max_waiting=9, stuck_s=30) as batches:
        await asyncio.gather(*(caller(batches, number) for number in range(4)))
    assert order == ["batch 2", "answer", "answer", "batch 2", "answer", "answer"]


async def test_heavy_calls_share_a_batch_by_weight_in_order_and_one_too_heavy_for_any_runs_alone() -> None:
    work = Work()
    batches = Batcher[int, int](work, max_batch=10, max_waiting=100, stuck_s=30, weight=lambda call: call)
    async with batches:
        tasks = await submit(batches, 1)
        tasks += await submit(batches, 6, 4, 3, 40, 9, 2, 1)
        work.gate.set()
        assert await asyncio.gather(*tasks) == [2, 12, 8, 6, 80, 18, 4, 2]
    assert work.batches == [[1], [6, 4], [3], [40], [9], [2, 1]]


async def test_a_heavy_call_whose_caller_has_gone_ends_no_batch() -> None:
    class Caller:
        gone = False

    work, left = Work(), Caller()
    async with Batcher[int, int](work, max_batch=10, max_waiting=9, stuck_s=30, weight=lambda call: call) as batches:
        tasks = await submit(batches, 1)
        tasks += await submit(batches, 3)
        abandoned = batches.enqueue(9, caller=left)
        tasks += await submit(batches, 2)
        left.gone = True
        work.gate.set()
        assert await asyncio.gather(*tasks) == [2, 6, 4]
        with pytest.raises(Abandoned):
            await abandoned
    assert work.batches == [[1], [3, 2]]


async def test_a_batch_is_never_larger_than_allowed() -> None:
    work = Work()
    async with batcher(work, max_batch=4) as batches:
        tasks = await submit(batches, 0)
        tasks += await submit(batches, *range(1, 10))
        work.gate.set()
        assert await asyncio.gather(*tasks) == [2 * n for n in range(10)]
    assert [len(batch) for batch in work.batches] == [1, 4, 4, 1]


async def test_the_surplus_is_refused_at_once_and_those_who_wait_are_answered() -> None:
    work = Work()
    async with batcher(work, max_waiting=2) as batches:
        tasks = await submit(batches, 1)
        tasks += await submit(batches, 2, 3)
        with pytest.raises(Overloaded):
            await asyncio.wait_for(batches.submit(4), 0.1)
        work.gate.set()
        assert await asyncio.gather(*tasks) == [2, 4, 6]


async def test_those_whose_time_is_up_are_never_run_and_keep_nobody_out() -> None:
    work = Work()
    async with batcher(work, max_waiting=2) as batches:
        tasks = await submit(batches, 1)
        late = [asyncio.create_task(batches.submit(number, timeout_s=0.01)) for number in (2, 3)]
        assert [type(error) for error in await asyncio.gather(*late, return_exceptions=True)] == [Expired, Expired]
        tasks += await submit(batches, 4, 5)
        work.gate.set()
        assert await asyncio.gather(*tasks) == [2, 8, 10]
    assert work.batches == [[1], [4, 5]]


async def test_an_answer_that_comes_too_late_is_none_though_the_loop_could_not_tell() -> None:
    async def run(calls: Sequence[int]) -> list[int]:
        time.sleep(0.02)  # noqa: ASYNC251 - as a ranking on the event loop
        return list(calls)

    async with Batcher(run, max_batch=2, max_waiting=9, stuck_s=30) as batches:
        late, answered = await asyncio.gather(
            batches.submit(1, timeout_s=0.005), batches.submit(2, timeout_s=5), return_exceptions=True
        )
    assert isinstance(late, Expired)
    assert answered == 2


async def test_a_call_may_fail_alone() -> None:
    async def run(calls: Sequence[int]) -> list[int | Exception]:
        return [ValueError("unlucky") if call == 13 else call for call in calls]

    async with Batcher(run, max_batch=9, max_waiting=9, stuck_s=30) as batches:
        found = await asyncio.gather(*(batches.submit(call) for call in (1, 13, 2)), return_exceptions=True)
    assert [found[0], type(found[1]), found[2]] == [1, ValueError, 2]


async def test_a_failed_batch_fails_its_members_only() -> None:
    work = Work()
    async with batcher(work, max_batch=2) as batches:
        tasks = await submit(batches, 1)
        tasks += await submit(batches, 13, 2, 3, 4)
        work.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [int, ValueError, ValueError, int, int]
        assert batches.alive
        assert await batches.submit(5) == 10


async def test_callers_who_have_gone_cost_nothing() -> None:
    work = Work()
    async with batcher(work) as batches:
        tasks = await submit(batches, 1)
        gone = await submit(batches, 2, 3)
        for task in gone:
            task.cancel()
        tasks += await submit(batches, 4)
        work.gate.set()
        assert await asyncio.gather(*tasks) == [2, 8]
    assert work.batches == [[1], [4]]


class Client:
    gone = False


async def test_calls_of_clients_who_have_left_are_never_run_and_counted() -> None:
    work, left = Work(), []
    async with Batcher(work, max_batch=4, max_waiting=3, stuck_s=30, on_abandoned=lambda: left.append(1)) as batches:
        tasks = await submit(batches, 1)
        leaving, staying = Client(), Client()
        late = [asyncio.create_task(batches.submit(number, caller=leaving)) for number in (2, 3)]
        tasks.append(asyncio.create_task(batches.submit(4, caller=staying)))
        await asyncio.sleep(0)
        leaving.gone = True
        tasks += await submit(batches, 5)  # they keep nobody out
        work.gate.set()
        assert await asyncio.gather(*tasks) == [2, 8, 10]
        assert [type(error) for error in await asyncio.gather(*late, return_exceptions=True)] == [Abandoned] * 2
    assert work.batches == [[1], [4, 5]]
    assert len(left) == 2


async def test_a_caller_who_leaves_during_the_run_does_not_hurt_the_others() -> None:
    work = Work()
    async with batcher(work) as batches:
        first = await submit(batches, 1)
        pair = await submit(batches, 2, 3)
        first[0].cancel()
        work.gate.set()
        assert await asyncio.gather(*pair) == [4, 6]


async def test_a_stuck_batch_is_not_alive() -> None:
    work = Work()
    async with batcher(work, stuck_s=0.02) as batches:
        assert batches.alive
        tasks = await submit(batches, 1)
        await asyncio.sleep(0.05)
        assert not batches.alive
        work.gate.set()
        await asyncio.gather(*tasks)
        assert batches.alive
    assert not batches.alive


async def test_closing_answers_everyone() -> None:
    work = Work()
    async with batcher(work) as batches:
        tasks = await submit(batches, 1)
        tasks += await submit(batches, 2)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Closed, Closed]
    with pytest.raises(Closed):
        await batches.submit(3)


async def test_answers_that_are_too_few_are_an_error_and_no_mix_up() -> None:
    async def short(calls: Sequence[int]) -> list[int]:
        return []

    async with Batcher(short, max_batch=4, max_waiting=4, stuck_s=1) as batches:
        with pytest.raises(RuntimeError, match="1 got 0"):
            await batches.submit(1)


async def test_a_batch_holds_no_more_than_can_be_done_before_its_calls_expire() -> None:
    ran: list[int] = []

    async def run(calls: Sequence[int]) -> list[int]:
        ran.extend(calls)
        await asyncio.sleep(0.03 * len(calls))
        return list(calls)

    async with Batcher(run, max_batch=16, max_waiting=16, stuck_s=30) as batches:
        await batches.submit(0)  # which shows how long a call takes
        tasks = [asyncio.create_task(batches.submit(call, timeout_s=0.2)) for call in range(1, 17)]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, int | Expired) for answer in found)
        assert 1 < len(ran) < 17  # those that were left out had too little time, all together
        assert await batches.submit(17) == 17


async def test_a_call_is_tried_though_those_before_it_took_longer_than_it_has() -> None:
    first = True

    async def run(calls: Sequence[int]) -> list[int]:
        nonlocal first
        if first:
            await asyncio.sleep(2)
        first = False
        return list(calls)

    async with Batcher(run, max_batch=16, max_waiting=16, stuck_s=30) as batches:
        await batches.submit(0)
        assert await batches.submit(1, timeout_s=1.5) == 1


async def sleep_for(calls: Sequence[float]) -> list[float]:
    await asyncio.sleep(sum(calls))
    return list(calls)


async def test_after_one_slow_batch_an_idle_service_answers_in_time() -> None:
    async with Batcher(sleep_for, max_batch=4, max_waiting=100, stuck_s=30) as batches:
        for _ in range(5):
            await batches.submit(0.002)
        await batches.submit(0.8)
        tasks = [asyncio.create_task(batches.submit(0.002, timeout_s=0.3)) for _ in range(8)]
        assert await asyncio.gather(*tasks) == [0.002] * 8


async def test_nobody_is_given_up_where_it_seems_that_none_can_be_done() -> None:
    """They are tried one by one, those with the most time first, until it shows that they take less."""
    async with Batcher(sleep_for, max_batch=4, max_waiting=100, stuck_s=30) as batches:
        await batches.submit(1)
        tasks = [asyncio.create_task(batches.submit(0.001 * number, timeout_s=0.5)) for number in range(8)]
        assert await asyncio.gather(*tasks) == [0.001 * number for number in range(8)]


async def test_a_burst_that_fits_is_answered_by_a_service_that_has_seen_one_call_at_a_time() -> None:
    async def run(calls: Sequence[int]) -> list[int]:
        await asyncio.sleep(0.05)
        return list(calls)

    async with Batcher(run, max_batch=64, max_waiting=100, stuck_s=30) as batches:
        for call in range(5):
            await batches.submit(call)
        tasks = [asyncio.create_task(batches.submit(call, timeout_s=0.4)) for call in range(64)]
        assert await asyncio.gather(*tasks) == list(range(64))
