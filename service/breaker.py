"""A circuit breaker: once the store does not answer, nobody waits for it again until it does.

Whoever meets the silence first pays for it, with a call's deadline; from then on calls are refused at once, and a probe
of our own, never a caller's request, finds out when the store is back.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from service.tasks import ended

logger = logging.getLogger(__name__)

_EVERY_S = 0.05  # between probes, so that recovery is noticed at once; a probe is a PING


class Breaker:
    """Closed while `reason` is None. `probe` gives whether the store answers; what it raises is logged as a bug."""

    def __init__(self, name: str, probe: Callable[[], Awaitable[bool]]) -> None:
        """name: of what it breaks, for the log."""
        self.reason: str | None = None
        self._name = name
        self._probe = probe
        self._watching: asyncio.Task[None] | None = None

    def open(self, reason: str) -> None:
        """Let calls be refused until a probe succeeds. Does nothing if they already are."""
        if self.reason is None:
            self.reason = reason
            logger.warning("%s of the store are refused until it answers: %s", self._name, reason)
            self._watching = asyncio.create_task(self._watch(), name="breaker")

    async def aclose(self) -> None:
        """Stop probing, and let calls be refused for good: one under way would begin it again."""
        try:
            await ended(self._watching)
        finally:
            self.reason = "the connections to it are closed"

    async def _watch(self) -> None:
        said = False
        while self.reason is not None:
            try:
                if await self._probe():
                    self.reason = None
                    logger.warning("%s of the store are answered again", self._name)
                    return
            except Exception:
                # A task that ends here would leave the store refused for ever; once is enough of twenty a second.
                if not said:
                    logger.exception("a probe of the store has failed, and is made again")
                said = True
            await asyncio.sleep(_EVERY_S)
