"""What an acknowledgement outlives: whether the store is set to what the setting promises.

A server that loses what it acknowledged looks like any other until the day it does, so that a service which promises
more than its server keeps does not start. A store that comes later, or is set otherwise later, gets no acknowledgement
until it is right, and an error in the log. What cannot be checked is warned about instead: providers forbid CONFIG.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from service.connection import Connection, Refused, StoreUnavailable, Unfit
from service.settings import Durability
from service.tasks import ended, every

logger = logging.getLogger(__name__)

_AGAIN_S = 1.0  # between looks at a store, which may come late and may be set otherwise while it runs
_SYNCED: dict[Durability, tuple[str, ...]] = {
    "fast": ("everysec", "always"),
    "durable": ("always",),
    "replicated": ("always",),
}
_NAMES = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory", "maxmemory-policy")


class NotDurable(Unfit):
    """The server keeps less than the mode promises; the message says what to set."""


@contextlib.asynccontextmanager
async def checked(connection: Connection, durability: Durability, replicas: int) -> AsyncIterator[None]:
    """Enter it to check, and to let nothing count that is written while the store keeps less. Raises NotDurable."""
    said: str | None
    try:
        said = await check(connection, durability, replicas)
    except NotDurable:
        raise
    except StoreUnavailable as error:
        said = f"the sequence store's durability is checked when it answers: {error}"
    if said is not None:
        logger.warning("%s", said)
    connection.vet = lambda: _settings(connection, durability)
    watcher = asyncio.create_task(_watch(connection, durability, replicas, said), name="durability")
    try:
        yield
    finally:
        await ended(watcher)


async def _watch(connection: Connection, durability: Durability, replicas: int, said: str | None) -> None:
    """Say what is wrong whenever that changes, and have what is written vetted while something is."""

    async def look() -> None:
        nonlocal said
        unfit = None
        try:
            await connection.follow()
            found = await check(connection, durability, replicas)
        except NotDurable as error:
            found = unfit = str(error)
        except StoreUnavailable:
            return
        connection.refuse(unfit)
        if found != said:
            right = f"the sequence store is set to what durability {durability} promises"
            logger.log(logging.WARNING if unfit is None else logging.ERROR, "%s", found or right)
        said = found

    await every(_AGAIN_S, look, "looking at how the sequence store is set failed")


async def check(connection: Connection, durability: Durability, replicas: int) -> str | None:
    """What an operator should know although the service may start, else None.

    replicas: that `replicated` waits for. Raises NotDurable, or StoreUnavailable if the store does not answer.
    """
    unknown = await _settings(connection, durability)
    return await _replicas(connection, replicas) if unknown is None and durability == "replicated" else unknown


async def _settings(connection: Connection, durability: Durability) -> str | None:
    """Why they cannot be known, else None. Raises as `check` does."""
    try:
        configured: list[Any] = await connection.each(_configured)
    except Refused as error:
        return (
            "could not check that the sequence store keeps acknowledged events and evicts none "
            f"(durability {durability}): {error}"
        )
    safe = _SYNCED[durability]
    weaker = "" if durability == "fast" else ", or ask for less with RECSERVE_DURABILITY=fast"
    loses = f"durability is {durability} and the store could lose acknowledged events when"
    for server in map(_texts, configured):
        appendonly, appendfsync, unsynced, maxmemory, policy = (server.get(name, "unknown") for name in _NAMES)
        if appendonly != "yes" or appendfsync not in safe:
            raise NotDurable(
                f"{loses} it crashes: its appendonly is {appendonly} and its appendfsync {appendfsync}; set appendonly "
                f"yes and appendfsync {' or '.join(safe)} there{weaker}"
            )
        if unsynced == "yes" and durability != "fast":
            raise NotDurable(
                f"{loses} it crashes: its no-appendfsync-on-rewrite is yes, so that nothing is synced while it "
                f"rewrites its append-only file; set no-appendfsync-on-rewrite no there{weaker}"
            )
        if maxmemory != "0" and policy != "noeviction":
            raise NotDurable(
                f"{loses} its memory is full: its maxmemory is {maxmemory} and its maxmemory-policy {policy}; set "
                "maxmemory-policy noeviction there"
            )
    return None


async def _configured(client: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pattern in ("*append*", "maxmemory*"):  # servers before Redis 7 take one at a time
        found |= await client.config_get(pattern)
    return found


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
