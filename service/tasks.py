"""Tasks that work beside the requests, and how they end."""

import asyncio


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
