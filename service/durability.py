"""What an acknowledgement outlives: whether the store is set to what the setting promises, checked at start.

A server that loses what it acknowledged looks like any other until the day it does, so that a service which promises
more than its server keeps does not start. What cannot be checked is warned about instead: providers forbid CONFIG, and
the store may come later, when it is checked and a mismatch is an error in the log.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from service.connection import Connection, Refused, StoreUnavailable
from service.settings import Durability

logger = logging.getLogger(__name__)

_AGAIN_S = 1.0  # between looks for a store that was not there at start
_SYNCED: dict[Durability, tuple[str, ...]] = {
    "fast": ("everysec", "always"),
    "durable": ("always",),
    "replicated": ("always",),
}


class NotDurable(Exception):  # noqa: N818 - a condition of the server
    """The server keeps less than the mode promises; the message says what to set."""


@contextlib.asynccontextmanager
async def checked(connection: Connection, durability: Durability, replicas: int) -> AsyncIterator[None]:
    """Enter it to check, and to go on looking for a store that does not answer yet. Raises NotDurable at once only."""
    later: asyncio.Task[None] | None = None
    try:
        warning = await check(connection, durability, replicas)
    except StoreUnavailable as error:
        warning = f"the sequence store's durability is checked when it answers: {error}"
        later = asyncio.create_task(_checked_later(connection, durability, replicas), name="durability")
    if warning is not None:
        logger.warning("%s", warning)
    try:
        yield
    finally:
        if later is not None:
            later.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await later


async def _checked_later(connection: Connection, durability: Durability, replicas: int) -> None:
    while True:
        await asyncio.sleep(_AGAIN_S)
        try:
            warning = await check(connection, durability, replicas)
        except StoreUnavailable:
            continue
        except NotDurable as error:
            logger.error("%s", error)
            return
        if warning is not None:
            logger.warning("%s", warning)
        return


async def check(connection: Connection, durability: Durability, replicas: int) -> str | None:
    """What an operator should know although the service may start, else None.

    replicas: that `replicated` waits for. Raises NotDurable, or StoreUnavailable if the store does not answer.
    """
    try:
        configured: list[Any] = await connection.each(lambda client: client.config_get("*append*"))
    except Refused as error:
        return f"could not check that the sequence store keeps acknowledged events (durability {durability}): {error}"
    safe = _SYNCED[durability]
    weaker = "" if durability == "fast" else ", or ask for less with RECSERVE_DURABILITY=fast"
    loses = f"durability is {durability} and the store could lose acknowledged events when it crashes: its "
    for server in map(_texts, configured):
        appendonly, appendfsync, unsynced = (
            server.get(name, "unknown") for name in ("appendonly", "appendfsync", "no-appendfsync-on-rewrite")
        )
        if appendonly != "yes" or appendfsync not in safe:
            raise NotDurable(
                f"{loses}appendonly is {appendonly} and its appendfsync {appendfsync}; set appendonly yes and "
                f"appendfsync {' or '.join(safe)} there{weaker}"
            )
        if unsynced == "yes" and durability != "fast":
            raise NotDurable(
                f"{loses}no-appendfsync-on-rewrite is yes, so that nothing is synced while it rewrites its append-only "
                f"file; set no-appendfsync-on-rewrite no there{weaker}"
            )
    return await _replicas(connection, replicas) if durability == "replicated" else None


async def _replicas(connection: Connection, wanted: int) -> str | None:
    try:
        servers: list[Any] = await connection.each(lambda client: client.info("replication"))
    except Refused as error:
        return f"could not check how many replicas the sequence store has: {error}"
    for server in servers:
        if server["role"] != "master":
            raise NotDurable(f"the store is a {server['role']} and takes no events; give redis the URL of the primary")
        online = sum(_online(value) for name, value in server.items() if name.startswith("slave"))
        if online < wanted:
            return f"events are refused until {wanted} replica(s) of the sequence store are online; {online} are"
    return None


def _online(replica: object) -> bool:
    return isinstance(replica, dict) and replica.get("state") == "online"


def _texts(found: Any) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in found.items()}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
