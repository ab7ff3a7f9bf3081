"""Pieces of work of which each turn of the event loop does one.

Many at once would hold up everything else, answers of the store included, which would then seem not to answer.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context


class Turns:
    """Work that waits for its turn, in the order of its arrival."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Context, Callable[[], None], int]] = deque()
        self.bytes = 0  # that waiting work keeps in memory

    def add(self, work: Callable[[], None], size: int = 0) -> None:
        """Do this in a turn of its own, in the context of now, which has the id of the request. It raises nothing.

        size: bytes that it keeps in memory until then.
        """
        self._waiting.append((copy_context(), work, size))
        self.bytes += size
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        context, work, size = self._waiting.popleft()
        self.bytes -= size
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        context.run(work)
