"""What the store's servers keep of erased users beside their values: files, and logs of what was slow or large.

Each server has to be asked to let go of them, replicas too, for Redis does not replicate such commands. redis is
imported by the functions that use it, as in models.eventlog.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from models.eventlog import EventLogError, asking

if TYPE_CHECKING:
    import redis

logger = logging.getLogger(__name__)

_FILES = "files of the store"
# Of commands with their keys and arguments, which name users; the second is Valkey's.
_LOGS = ("SLOWLOG RESET", "COMMANDLOG RESET large-request", "COMMANDLOG RESET large-reply")
# What a server says that may write its files anew another time: it is at it, or could not start a process.
_LATER = ("in progress", "Can't execute")
_OPTIONS = ("username", "password", "socket_connect_timeout", "socket_timeout", "retry")


class RewriteRefusedError(EventLogError):
    """A server does not write its files anew when it is asked to."""


class _LaterError(Exception):
    """A server does not do it now; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the servers of a store were asked for some erasures: those that have begun, by their run ids, and how far
    the history of each primary reached when it was first asked, by the history's id."""

    begun: set[str] = field(default_factory=set)
    written: dict[str, int] = field(default_factory=dict)


def rewrite(client: redis.Redis, asked: Asked) -> list[str]:
    """Ask all primaries and their replicas to write their files anew from what they hold, which they do beside their
    work, and to empty their slow logs.

    Gives why some cannot be asked now, a sentence each: ask again with the same `asked`, and those that have begun are
    left alone. Raises RewriteRefusedError if a primary never does, or a replica and all others have begun, and
    EventLogError if a primary does not answer.
    """
    import redis  # noqa: PLC0415

    refused: redis.ResponseError | None = None
    refused_by_replica: redis.ResponseError | None = None
    told: list[dict[str, Any]] = []  # by primaries
    with asking(_FILES):
        primaries = _primaries(client)
        waiting = _away(client)
    for number, server in enumerate(primaries):  # of all at once, the first that refuses would be the last
        with asking(_FILES):
            told.append(_info(server))
            try:
                _begin(server, told[-1].get("run_id", f"primary {number}"), asked)
            except _LaterError as error:
                waiting.append(f"a primary says '{error}'")
            except redis.ResponseError as error:
                refused = error
    for info in told:
        if "master_replid" in info:
            asked.written.setdefault(info["master_replid"], info.get("master_repl_offset", 0))
    for address, server in _replicas(client, told):
        try:
            info = _info(server)
            name = info.get("run_id", f"replica {address}")
            if name not in asked.begun and info.get("role") != "master" and not _has(info, asked):
                raise _LaterError("it has not yet what its primary had")
            _begin(server, name, asked)
        except redis.ResponseError as error:
            refused_by_replica = error
        except (_LaterError, redis.RedisError, OSError) as error:
            waiting.append(f"replica {address}: {error}{_advice(client)}")
    refusal = refused or (None if waiting else refused_by_replica)
    if refusal is not None:
        raise RewriteRefusedError("; ".join([str(refusal), *waiting])) from refusal
    return waiting


def _info(server: redis.Redis) -> dict[str, Any]:
    """What a server tells of itself, of which a provider may leave out anything; nothing if it may not be asked."""
    import redis  # noqa: PLC0415

    try:
        return server.info()
    except redis.ResponseError as error:
        logger.debug("a server of the store does not do INFO: %s", error)
        return {}


def _begin(server: redis.Redis, name: str, asked: Asked) -> None:
    import redis  # noqa: PLC0415

    if name in asked.begun:
        return
    for log in _LOGS:
        try:
            server.execute_command(*log.split())  # type: ignore[no-untyped-call]
        except redis.ResponseError as error:  # of a server without that log, or a provider that forbids it
            logger.debug("a server of the store does not do %s: %s", log, error)
    try:
        server.bgrewriteaof()
    except redis.ResponseError as error:
        if any(words in str(error) for words in _LATER):
            raise _LaterError(str(error)) from error
        raise
    asked.begun.add(name)


def _has(replica: dict[str, Any], asked: Asked) -> bool:
    """Whether a replica has what primaries had written when they were asked, and so the erasures."""
    sought = asked.written.get(replica.get("master_replid", ""), math.inf)
    return bool(replica.get("master_link_status") == "up" and replica.get("slave_repl_offset", -1) >= sought)


def _advice(client: redis.Redis) -> str:
    """Sentinels never forget a replica by themselves."""
    import redis  # noqa: PLC0415

    pool = getattr(client, "connection_pool", None)
    if not isinstance(pool, redis.sentinel.SentinelConnectionPool):
        return ""
    return f" (if it is gone for good, send the sentinels SENTINEL RESET {pool.service_name})"


def _primaries(client: redis.Redis) -> list[redis.Redis]:
    import redis  # noqa: PLC0415

    if not isinstance(client, redis.RedisCluster):
        return [client]
    client.nodes_manager.initialize()  # or it would know the replicas of when it was connected
    return [client.get_redis_connection(node) for node in client.get_primaries()]


def _away(client: redis.Redis) -> list[str]:
    """Why some replicas of a cluster cannot be asked: it does not name to clients who has failed or just joined."""
    import redis  # noqa: PLC0415

    if not isinstance(client, redis.RedisCluster):
        return []
    try:
        nodes: dict[str, dict[str, Any]] = client.cluster_nodes()
    except redis.ResponseError:  # who may not ask is told of no more
        return []
    away = sum("slave" in node["flags"] for node in nodes.values()) - len(client.get_replicas())
    advice = "let it FORGET those that are gone for good"
    return [f"the cluster does not say where {away} of its replicas are; {advice}"] if away > 0 else []


def _replicas(client: redis.Redis, told: list[dict[str, Any]]) -> Iterator[tuple[str, redis.Redis]]:
    """Each replica by its address: as the cluster names them, the sentinels, or else the primary in its INFO."""
    import redis  # noqa: PLC0415

    if isinstance(client, redis.RedisCluster):
        for node in client.get_replicas():
            yield node.name, client.get_redis_connection(node)
        return
    pool = client.connection_pool
    if isinstance(pool, redis.sentinel.SentinelConnectionPool):
        known = _known_to_sentinels(pool)
    else:
        known = [value for info in told for value in info.values() if isinstance(value, dict) and "lag" in value]
    options = {name: value for name, value in pool.connection_kwargs.items() if name in _OPTIONS or name[:4] == "ssl_"}
    options["ssl"] = issubclass(pool.connection_class, redis.SSLConnection)
    for one in known:
        with redis.Redis(host=str(one["ip"]), port=one["port"], **options) as server:
            yield f"{one['ip']}:{one['port']}", server


def _known_to_sentinels(pool: redis.sentinel.SentinelConnectionPool) -> list[dict[str, Any]]:
    """Replicas that are up and those that are down."""
    import redis  # noqa: PLC0415

    for sentinel in pool.sentinel_manager.sentinels:
        try:
            known: list[dict[str, Any]] = sentinel.sentinel_slaves(pool.service_name)
        except redis.RedisError:
            continue
        return known
    raise EventLogError(f"no sentinel that can be reached names the replicas of {pool.service_name}")
