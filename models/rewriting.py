"""What the store's servers keep of erased users beside their values: files, and logs of what was slow or large.

Each server has to be asked to let go of them, replicas too, for Redis does not replicate such commands. redis is
imported by the functions that use it, as in models.eventlog.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
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


def rewrite(client: redis.Redis, begun: set[str]) -> list[str]:
    """Ask all primaries and their replicas to write their files anew from what they hold, which they do beside their
    work, and to empty their slow logs.

    Gives why some cannot be asked now, a sentence each: ask again, for nothing has changed there. Those that have begun
    are added to `begun`, and not asked again while they are in it. Raises RewriteRefusedError if one never does and
    all others have begun, and EventLogError if a primary does not answer.
    """
    import redis  # noqa: PLC0415

    refusal: redis.ResponseError | None = None
    told: list[dict[str, Any]] = []  # by primaries
    with asking(_FILES):
        primaries = _primaries(client)
        waiting = _away(client)
    for server in primaries:  # of all at once, the first that refuses would be the last that is asked
        with asking(_FILES):
            try:
                told.append(server.info())
                _begin(server, told[-1], begun)
            except _LaterError as error:
                waiting.append(f"a primary says '{error}'")
            except redis.ResponseError as error:
                refusal = error
    written = {info["master_replid"]: info["master_repl_offset"] for info in told}
    for address, server in _replicas(client, told):
        try:
            info = server.info()
            if info["role"] == "slave" and not _has(info, written):
                raise _LaterError("it has not yet what its primary has")
            _begin(server, info, begun)
        except redis.ResponseError as error:
            refusal = error
        except (_LaterError, redis.RedisError, OSError) as error:
            waiting.append(f"replica {address}: {error}")
    if refusal is not None and not waiting:
        raise RewriteRefusedError(str(refusal)) from refusal
    return waiting


def _begin(server: redis.Redis, info: dict[str, Any], begun: set[str]) -> None:
    import redis  # noqa: PLC0415

    if info["run_id"] in begun:
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
    begun.add(info["run_id"])


def _has(replica: dict[str, Any], written: dict[str, int]) -> bool:
    """Whether a replica has what primaries had written, by the names of their histories, and so their erasures."""
    sought = written.get(replica["master_replid"], math.inf)
    return bool(replica["master_link_status"] == "up" and replica["slave_repl_offset"] >= sought)


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
