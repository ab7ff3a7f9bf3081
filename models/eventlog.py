"""The event log as service and training agree on it: one Redis stream a partition, one entry an accepted event.

Retraining reads what the service wrote, possibly months earlier and from another version. So keys, fields and
encoding live here, once; every entry carries the number of its schema, and an entry that cannot be understood is an
error rather than a guess. redis is imported by the functions that use it: models must load without it.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from models.storeurl import BAD_OPTIONS, several

if TYPE_CHECKING:
    import redis

PARTITIONS = 16  # spreads users and logs over a cluster; part of every key: another number is another, empty store
SCHEMA = 1
SEQUENCE_TYPES = ("interaction", "view", "click", "rating", "purchase")  # the default of which types count as history
LAST_TIMESTAMP_MS = 2**53 - 1  # Redis computes in doubles, which are exact up to here

START = "0-0"  # before every entry of a log

_PAGE = 2_000  # entries a round trip: about half a megabyte, a few milliseconds of the server's one thread
_CONNECT_TIMEOUT_S = 2.0
_PAGE_TIMEOUT_S = 10.0  # a batch job waits longer than a request: the server may be rewriting its files


class EventLogError(Exception):
    """The log cannot be reached, or holds an entry that this version cannot read."""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One interaction as it was accepted.

    `timestamp_ms` is milliseconds since 1970, 0 to 2**53 - 1; `value` is finite or None; `properties` is the bytes of
    one JSON object or None. Raises ValueError for a time or a value outside of that, or an empty id.
    """

    user_id: str
    item_id: str
    event_id: str
    type: str
    timestamp_ms: int
    value: float | None = None
    recommendation_id: str | None = None
    properties: bytes | None = None

    def __post_init__(self) -> None:
        if not (self.user_id and self.item_id and self.event_id and self.type):
            raise ValueError("user_id, item_id, event_id and type must not be empty")
        if not 0 <= self.timestamp_ms <= LAST_TIMESTAMP_MS:
            raise ValueError(f"timestamp_ms is {self.timestamp_ms}; give milliseconds from 0 to {LAST_TIMESTAMP_MS}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"value is {self.value}; give a finite number or None")


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A user who was erased: nothing counts that was logged of the user up to the entry `upto`, that one included.

    `user` is the user's `digest_of`: an erased id must not live on in what says that it was erased.
    """

    user: str
    upto: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a partition's log, and its id there: "milliseconds-number", later entries having larger ones.

    A tombstone that was kept beside the log has the id START.
    """

    id: str
    what: LoggedEvent | Tombstone


def partition_of(user_id: str) -> int:
    """Partition of a user, 0 to PARTITIONS - 1: the same in every process and release (CRC-32 of the UTF-8 bytes)."""
    return zlib.crc32(user_id.encode()) % PARTITIONS


def log_key(partition: int) -> str:
    """Stream of a partition. The braces are a cluster hash tag: it lies beside the state of the partition's users."""
    return f"recserve:{{{partition}}}:log"


def archived_key(partition: int) -> str:
    """Id of the last entry of a partition that is in the archive; the log may still hold it."""
    return f"recserve:{{{partition}}}:archived"


def tombstones_key(partition: int) -> str:
    """Tombstones that the archiver has yet to honour, which a full log may have dropped: "digest upto", by time.

    The end of an erasure puts another in the place of its first, with a zero before the second number of `upto`: what
    was done for the first may have been done too early.
    """
    return f"recserve:{{{partition}}}:tombstones"


def digest_of(user_id: str) -> str:
    """What a tombstone says instead of the user's id: 32 hex digits."""
    return hashlib.blake2b(user_id.encode(), digest_size=16).hexdigest()


def position(entry_id: str) -> tuple[int, int]:
    """The two numbers of an entry's id, in whose order entries were logged. Raises EventLogError if it has none."""
    try:
        ms, _, number = entry_id.partition("-")
        return int(ms), int(number)
    except ValueError as error:
        raise EventLogError(f"{entry_id!r} is not the id of a log entry, such as 1700000000000-0") from error


def encode(event: LoggedEvent) -> list[str | bytes]:
    """Fields of a stream entry: name, value, name, value ...

    Every entry has all fields in one order, absent ones empty, because Redis stores the names of such entries once.
    """
    return [
        *("schema", str(SCHEMA)),
        *("user_id", event.user_id),
        *("item_id", event.item_id),
        *("event_id", event.event_id),
        *("type", event.type),
        *("timestamp_ms", str(event.timestamp_ms)),
        *("value", "" if event.value is None else repr(float(event.value))),
        *("recommendation_id", event.recommendation_id or ""),
        *("properties", event.properties or b""),
    ]


def decode(entry: tuple[bytes, Mapping[bytes, bytes]]) -> LoggedEvent:
    """Event of a stream entry (entry id, fields) as a client without `decode_responses` returns it.

    Raises EventLogError if the entry has another schema, lacks a field or holds what `encode` never writes.
    """
    entry_id, fields = entry
    schema = fields.get(b"schema", b"").decode(errors="replace")
    if schema != str(SCHEMA):
        raise EventLogError(
            f"log entry {entry_id.decode()} has schema '{schema}', this version reads {SCHEMA}: "
            "read it with the version that wrote it, or a later one"
        )
    try:
        return LoggedEvent(
            user_id=fields[b"user_id"].decode(),
            item_id=fields[b"item_id"].decode(),
            event_id=fields[b"event_id"].decode(),
            type=fields[b"type"].decode(),
            timestamp_ms=int(fields[b"timestamp_ms"]),
            value=float(fields[b"value"]) if fields[b"value"] else None,
            recommendation_id=fields[b"recommendation_id"].decode() or None,
            properties=fields[b"properties"] or None,
        )
    except KeyError as error:
        raise EventLogError(f"log entry {entry_id.decode()} has no field {error.args[0].decode()}") from error
    except ValueError as error:
        raise EventLogError(f"log entry {entry_id.decode()} is damaged: {error}") from error


def decode_entry(entry: tuple[bytes, Mapping[bytes, bytes]]) -> Entry:
    """As `decode`, for an entry that may be a tombstone."""
    entry_id, fields = entry
    if b"erased" not in fields:
        return Entry(entry_id.decode(), decode(entry))
    if fields.get(b"schema") != str(SCHEMA).encode() or b"upto" not in fields:
        raise EventLogError(f"log entry {entry_id.decode()} is a tombstone of a later version: read it with that one")
    tombstone = Tombstone(fields[b"erased"].decode(), fields[b"upto"].decode())
    position(tombstone.upto)
    return Entry(entry_id.decode(), tombstone)


def connect(url: str) -> redis.Redis:
    """Client for reading the log, with timeouts of seconds: right for a batch job, far too patient for a request.

    Of a cluster the nodes are asked for, else nothing is sent yet. Raises EventLogError if redis is not installed, the
    URL is none (models.storeurl), or no node of a cluster answers.
    """
    try:
        import redis  # noqa: PLC0415
    except ImportError as error:
        raise EventLogError("reading the event log needs redis: pip install redis") from error
    options: dict[str, Any] = {"socket_connect_timeout": _CONNECT_TIMEOUT_S, "socket_timeout": _PAGE_TIMEOUT_S}
    options["retry"] = redis.retry.Retry(redis.backoff.NoBackoff(), 1)  # the client's own default is up to ten
    try:
        found = several(url)
        if found is None:
            client = redis.Redis.from_url(url, **options)
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)  # looks at the options
            return client
    except (ValueError, TypeError, redis.RedisError) as error:
        raise EventLogError(
            f"not the URL of a Redis server: {error if isinstance(error, ValueError) else BAD_OPTIONS}"
        ) from None
    asked = {**options, **(found.tls or {})}
    options = asked | {"username": found.username, "password": found.password}
    if not found.cluster:
        asked["socket_timeout"] = _CONNECT_TIMEOUT_S
        sentinel = redis.sentinel.Sentinel(list(found.addresses), sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
        return cast("redis.Redis", sentinel.master_for(found.name, **options))  # type: ignore[no-untyped-call]
    nodes = [redis.cluster.ClusterNode(*address) for address in found.addresses]  # type: ignore[no-untyped-call]
    try:  # every command here has one key, so that a cluster's client does as well
        return cast("redis.Redis", redis.RedisCluster(startup_nodes=nodes, **options))
    except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
        raise EventLogError(f"cannot reach the cluster of the event log: {error}") from error


def read_events(client: redis.Redis) -> Iterator[LoggedEvent]:
    """Every event in the log, one partition after the other, each in the order of arrival; bounded memory.

    Events that arrive while it reads may be included, some of them twice while a user is being erased. Raises
    EventLogError as `decode` does, or if the server fails.
    """
    for partition in range(PARTITIONS):
        for entry in read_partition(client, partition):
            if isinstance(entry.what, LoggedEvent):
                yield entry.what


def read_partition(client: redis.Redis, partition: int, *, after: str = START) -> Iterator[Entry]:
    """The tombstones kept beside a partition's log, then its entries later than `after`, in the order of arrival.

    The log may hold the same tombstones. Else as `read_events`.
    """
    for tombstone in _tombstones(client, partition):
        yield Entry(START, tombstone)
    while page := _page(client, log_key(partition), f"({after}"):
        yield from map(decode_entry, page)
        after = page[-1][0].decode()


def archived(client: redis.Redis, partition: int) -> str:
    """Id of the last entry of a partition that is in the archive; START if none is. Raises EventLogError."""
    with asking(archived_key(partition)):
        found = cast(bytes | None, client.get(archived_key(partition)))
    return START if found is None else found.decode()


def acknowledge(client: redis.Redis, partition: int, entry_id: str) -> None:
    """Say that the entries up to this one are in the archive, and let the log forget them. May be repeated.

    Whole nodes are trimmed: what Redis deletes of a node stays in its memory, out of reach of an erasure, so that up
    to a hundred archived entries stay in the log. Raises EventLogError if the server fails.
    """
    with asking(log_key(partition)):
        # First, for a store without memory refuses the other, and has none before its log forgets.
        client.xtrim(log_key(partition), minid=entry_id, approximate=True, limit=0)
        if position(entry_id) > position(archived(client, partition)):
            client.set(archived_key(partition), entry_id)


def forget_tombstones(client: redis.Redis, partition: int, tombstones: Sequence[Tombstone]) -> None:
    """Say that these are in the archive, and gone what they say of the store. Raises EventLogError."""
    members = [f"{tombstone.user} {tombstone.upto}" for tombstone in tombstones]
    with asking(tombstones_key(partition)):
        for begin in range(0, len(members), _PAGE):
            client.zrem(tombstones_key(partition), *members[begin : begin + _PAGE])


def gone(client: redis.Redis) -> int:
    """How many entries the log once held and no longer does: archived, trimmed or erased.

    Servers before Redis 7.0 do not count them: there it is 0. Raises EventLogError if the server fails.
    """
    count = 0
    for key in map(log_key, range(PARTITIONS)):
        with asking(key):
            if client.exists(key):
                info = client.xinfo_stream(key)
                count += info.get("entries-added", info["length"]) - info["length"]
    return count


def _page(client: redis.Redis, key: str, start: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    with asking(key):
        return cast(list[tuple[bytes, dict[bytes, bytes]]], client.xrange(key, min=start, count=_PAGE))


def _tombstones(client: redis.Redis, partition: int) -> list[Tombstone]:
    key = tombstones_key(partition)
    with asking(key):
        members = [member.decode().partition(" ") for member, _ in client.zscan_iter(key, count=_PAGE)]
    found = [Tombstone(user, upto) for user, _, upto in members]
    for tombstone in found:
        position(tombstone.upto)
    return found


@contextmanager
def asking(what: str) -> Iterator[None]:
    """What the client raises is an EventLogError that says of what the server was asked."""
    import redis  # noqa: PLC0415

    try:
        yield
    except redis.sentinel.MasterNotFoundError as error:  # whose own message is a page of the client's insides
        raise EventLogError(
            f"cannot use the event log ({what}): no sentinel that can be reached names a primary that is up"
        ) from error
    except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
        raise EventLogError(f"cannot use the event log ({what}): {error}") from error
