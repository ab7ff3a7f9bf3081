"""Calls that arrive while one batch runs share the next one.

There is no timer to tune: an idle service answers at once, and a busy one fills its batches by itself. What waits is
bounded, because a queue that grows turns overload into timeouts. A failed batch fails its members only.

Where calls have deadlines and more come than can be answered, those who have waited longest are nearly out of time, and
a service that took them first would rank for nobody. So a batch holds only calls for which it can be done in time, and
those that cannot be are told so at once.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from service.pace import Pace
from service.tasks import ended

Call = TypeVar("Call")
Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

_LATE = "there is no answer in time"
_SWEEP_S = 0.01  # between looks for calls that nobody waits for; one for each refusal would cost more than refusing


class Overloaded(Exception):  # noqa: N818 - a condition, as in 503
    """The queue is full."""


class Closed(Exception):  # noqa: N818 - a condition, as in 503
    """The batcher has stopped, or the batch was given up because it is stopping."""


class Expired(Exception):  # noqa: N818 - a condition, as in 504
    """The caller's time was up before the answer was there."""


class Abandoned(Exception):  # noqa: N818 - a condition that nobody is told of
    """The caller has gone, and the call was not run."""


class Caller(Protocol):
    """Who waits for an answer, and may stop waiting."""

    @property
    def gone(self) -> bool: ...


class _Entry(NamedTuple, Generic[Call, Answer]):
    call: Call
    future: "asyncio.Future[Answer]"
    caller: Caller | None
    until: float  # when the answer must be there, by time.monotonic, or infinity


class Pending(NamedTuple, Generic[Answer]):
    """What will be answered: `told` makes it of the future when that is done, or raises what it failed with."""

    future: "asyncio.Future[Answer]"
    told: "Callable[[asyncio.Future[Answer]], dict[str, object]]"


class Batcher(Generic[Call, Answer]):
    """Collects calls into batches for `run`, which takes a list and gives as many answers, or what a call failed with.
    Enter it to start.

    At most max_batch calls run together and max_waiting wait; a batch that takes longer than stuck_s counts as stuck.
    weight: how many calls one counts as in a batch; one that is too heavy for any runs alone.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Call]], Awaitable[Sequence[Answer | Exception]]],
        *,
        max_batch: int,
        max_waiting: int,
        stuck_s: float,
        weight: Callable[[Call], int] = lambda call: 1,
        on_batch: Callable[[int], None] = lambda size: None,
        on_abandoned: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._stuck_s = stuck_s
        self._weight = weight
        self._on_batch = on_batch
        self._on_abandoned = on_abandoned
        self._waiting: deque[_Entry[Call, Answer]] = deque()
        self._deadlines = 0  # calls that wait or have waited with one, since the queue was last empty
        self._pace = Pace()
        self._swept_at = 0.0
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._busy_since: float | None = None

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._work(), name="batcher")
        return self

    async def __aexit__(self, *_: object) -> None:
        worker, self._worker = self._worker, None
        try:
            await ended(worker)
        finally:
            while self._waiting:
                _refuse([self._waiting.popleft().future], Closed("the service is shutting down"))

    @property
    def alive(self) -> bool:
        """Whether calls are being answered: the worker runs, and its batch is not stuck."""
        running = self._worker is not None and not self._worker.done()
        return running and (self._busy_since is None or time.monotonic() - self._busy_since < self._stuck_s)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def check_room(self) -> None:
        """Raises Overloaded if a call would be refused now."""
        if len(self._waiting) >= self._max_waiting and time.monotonic() - self._swept_at > _SWEEP_S:
            # Those whose caller has gone, or whose time is up, keep nobody out.
            self._waiting = deque(entry for entry in self._waiting if self._wanted(entry))
            self._swept_at = time.monotonic()
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} requests are waiting already")

    def enqueue(
        self, call: Call, *, timeout_s: float | None = None, caller: Caller | None = None
    ) -> "asyncio.Future[Answer]":
        """Answer of one call, or what it or its batch failed with. Raises Overloaded if the queue is full, or Closed.

        It is Expired after timeout_s, and Abandoned if the caller is gone; a call that still waits then is never run.
        """
        if self._worker is None or self._worker.done():
            raise Closed("the service is shutting down")
        self.check_room()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self._waiting.append(_Entry(call, future, caller, until))
        self._arrived.set()
        if timeout_s is not None:
            self._deadlines += 1
            alarm = loop.call_later(timeout_s, _refuse, [future], Expired(_LATE))
            future.add_done_callback(lambda _: alarm.cancel())
        return future

    async def submit(self, call: Call, *, timeout_s: float | None = None, caller: Caller | None = None) -> Answer:
        """The same, awaited; raises whatever it failed with."""
        return await self.enqueue(call, timeout_s=timeout_s, caller=caller)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._take()
            if batch:
                self._on_batch(len(batch))
                self._busy_since = began = time.monotonic()
                await self._answer(batch)
                self._busy_since = None
                self._pace.learn(len(batch), time.monotonic() - began)
                await asyncio.sleep(0)  # a batch that was run without waiting has kept everything else waiting

    def _wanted(self, entry: _Entry[Call, Answer]) -> bool:
        """Whether anybody still waits for an answer."""
        if entry.future.done():
            return False
        if entry.caller is not None and entry.caller.gone:
            self._on_abandoned()
            entry.future.set_exception(Abandoned())
            return False
        return True

    def _take(self) -> list[_Entry[Call, Answer]]:
        """Everything that waits and can be done in time, up to max_batch; a caller who has gone costs nothing."""
        most = self._give_up() if self._deadlines else self._max_batch
        batch: list[_Entry[Call, Answer]] = []
        room = self._max_batch
        while self._waiting and len(batch) < most:
            entry = self._waiting[0]
            if self._wanted(entry):
                room -= self._weight(entry.call)
                if batch and room < 0:
                    break
                batch.append(entry)
            self._waiting.popleft()
        if not self._waiting:
            self._arrived.clear()
            self._deadlines = 0
        return batch

    def _give_up(self) -> int:
        """Expire the calls that the next batch would come too late for, and give how large it may be.

        As large as it can be: the h-index of the calls, by how many of a batch fit into the time that each has left.
        """
        now, most = time.monotonic(), min(self._max_batch, self._pace.known)
        live = [entry for entry in self._waiting if self._wanted(entry)]
        left = sorted((entry.until - now for entry in live), reverse=True)
        size = 0
        while size < min(len(left), most) and left[size] >= self._pace.expected_s(size + 1):
            size += 1
        if not size:  # one is tried, or nobody would ever find out that a call takes less by now
            live.sort(key=lambda entry: entry.until, reverse=True)
        expected_s = self._pace.expected_s(size) if size else 0.0
        for entry in live:
            if entry.until - now < expected_s:
                _refuse([entry.future], Expired("the answer would come too late"))
        self._waiting = deque(entry for entry in live if not entry.future.done())
        return max(1, size)

    async def _answer(self, batch: list[_Entry[Call, Answer]]) -> None:
        futures = [entry.future for entry in batch]
        try:
            answers = await self._run([entry.call for entry in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} got {len(answers)} answers")
        except asyncio.CancelledError:
            _refuse(futures, Closed("the service is shutting down"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is its members' and not the worker's
            logger.error("a batch of %d failed: %s", len(batch), type(error).__name__)  # each member says more
            _refuse(futures, error)
            return
        now = time.monotonic()
        for entry, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                _refuse([entry.future], answer)
            elif entry.until < now:  # where the batch ran on the event loop, its alarm could not go off
                _refuse([entry.future], Expired(_LATE))
            elif not entry.future.done():
                entry.future.set_result(answer)


def _refuse(futures: Sequence[asyncio.Future[Answer]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
