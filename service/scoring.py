"""The one thread that ranks what would keep the event loop waiting, and whose end does not go unnoticed.

A pool of the standard library does not tell when its thread has ended: calls then wait for ever behind a service that
looks healthy.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError
from queue import SimpleQueue
from typing import Any, ParamSpec, Self, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_END_S = 2.0  # for a ranking under way when all who waited for it have been told of the end


class ScoringStopped(Exception):  # noqa: N818 - a condition: the service has to be restarted
    """The thread has ended; nothing is ranked on it any more."""


class ScoringStuck(Exception):  # noqa: N818 - the message is the whole of it
    """A ranking does not end. No process that has such a thread can end in the interpreter's usual way."""


class ScoringThread(Executor):
    """An executor of one thread. Calls that its end leaves without an answer fail with ScoringStopped.

    `async with` ends it without holding the event loop up, and raises ScoringStuck where `with` would wait for ever.
    """

    def __init__(self, name: str = "scoring") -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._open: set[Future[Any]] = set()  # calls without an answer, whoever has hold of them
        self._ended = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.shutdown(wait=False)
        await asyncio.to_thread(self._thread.join, _END_S)
        if self._thread.is_alive():
            raise ScoringStuck(f"a ranking has not ended {_END_S:g} s after the last request was let go")

    @property
    def alive(self) -> bool:
        return not self._ended

    def submit(
        self, function: Callable[Parameters, Result], /, *args: Parameters.args, **options: Parameters.kwargs
    ) -> Future[Result]:
        """The result of a call to come."""
        future: Future[Result] = Future()
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        self._calls.put((future, lambda: function(*args, **options)))
        if self._ended:
            self._fail()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after the calls that wait, or without those that have not begun."""
        if cancel_futures:
            for future in list(self._open):
                future.cancel()
        self._calls.put(None)
        if wait:
            self._thread.join()

    def _work(self) -> None:
        ordered = False
        try:
            while (call := self._calls.get()) is not None:
                future, function = call
                if future.set_running_or_notify_cancel():
                    try:
                        result = function()
                    except Exception as error:  # noqa: BLE001 - the caller's, not the thread's
                        future.set_exception(error)
                    else:
                        future.set_result(result)
                        del result
                del call, future, function  # or what they hold would live until the next call
            ordered = True
        finally:
            self._ended = True  # before the look at who is open: whoever comes after that look is told by `submit`
            if not ordered:
                logger.error("the scoring thread ends, which it never should; restart the service")
            self._fail()

    def _fail(self) -> None:
        """Answer the calls that nobody will take."""
        for future in list(self._open):
            with contextlib.suppress(InvalidStateError):  # answered or cancelled meanwhile
                future.set_exception(ScoringStopped("the scoring thread has ended; restart the service"))
