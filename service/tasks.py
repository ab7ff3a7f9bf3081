"""Tasks that work beside the requests, and how they end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)


async def every(seconds: float, look: Callable[[], Awaitable[None]], failed: str) -> None:
    """Look for good, with a pause before each time.

    What a look raises is unforeseen: it is logged as `failed`, once until a look succeeds, and ends nothing, for a
    watcher that dies would leave every later change unnoticed.
    """
    said = False
    while True:
        await asyncio.sleep(seconds)
        try:
            await look()
        except Exception:
            if not said:
                logger.exception(failed)
            said = True
        else:
            said = False


async def ended(task: asyncio.Task[None] | None) -> None:
    """Cancel a task, if there is one, and wait for its end. Raises what it has failed with.

    That the task was cancelled is passed over, and that whoever waits was is not: to await the task itself does not
    tell the two apart.
    """
    if task is None:
        return
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
