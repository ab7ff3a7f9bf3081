"""Recent items of each user, kept in Redis: every key, command and script the service uses.

One packed value per user, changed only by one script: a retried or late event lands where it belongs and never twice,
and the log cannot disagree with it. Whatever goes wrong on the way to Redis is one exception, StoreUnavailable, and it
comes soon: reads degrade and writes refuse, which is for the caller to decide, not for a client library that waits.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import msgpack  # type: ignore[import-untyped]
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from models.eventlog import SEQUENCE_TYPES, encode, log_key, partition_of
from models.eventlog import LoggedEvent as Event

__all__ = ["AppendResult", "Event", "HistoryEvent", "SequenceStore", "StoreSettings", "StoreUnavailable"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

RECORD_TTL_S = 24 * 3600  # how long a client may repeat an event that has already left the history
RECORD_LENGTH = 2_048  # ids remembered a user: two full requests of 1,000 events; 24 KiB at most
STRIDE = 5  # values an event in a packed history
ITEM_ID = 2  # where among them the item id is
VALUE = 4  # and the value; false where there is none
USUAL_TYPE = "interaction"  # packed as an empty string, which saves a quarter of a typical history
ATTEMPTS = 2  # the second meets a fresh connection, which is what a restarted server needs
# What a connection can raise: RuntimeError is uvloop's word for a transport that the peer has closed.
CONNECTION_ERRORS = (RedisConnectionError, RedisTimeoutError, OSError, RuntimeError)


class StoreUnavailable(Exception):  # noqa: N818 - a condition of the world, as in 503 Service Unavailable
    """Redis did not do what was asked; nothing may be counted as stored. The message says why."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How much is kept and how long a call may take. Every key the store writes is bounded by these."""

    history_length: int = 50  # events kept per user
    history_ttl_s: int = 90 * 24 * 3600  # since the user's last event
    log_max_events: int = 62_500  # per partition, of which there are models.eventlog.PARTITIONS; whole nodes of 100
    sequence_types: tuple[str, ...] = SEQUENCE_TYPES  # other types (impressions) go to the log only
    read_timeout_s: float = 0.05  # per attempt, of which there are two; far above a healthy read
    write_timeout_s: float = 0.5  # per attempt; a write waits for the disk
    max_connections: int = 16  # for reads and for writes each


@dataclass(frozen=True, slots=True)
class AppendResult:
    """Events that were new, and events that were already stored. After a lost reply new ones count as duplicates."""

    accepted: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One event of a stored history."""

    event_id: str
    item_id: str
    type: str
    timestamp_ms: int
    value: float | None


class SequenceStore:
    """The sequence store, open while it is entered: `async with SequenceStore.connect(url) as store`.

    Safe for any number of tasks of one event loop. Every call raises StoreUnavailable within two attempts' timeouts,
    and works again as soon as the server does.
    """

    def __init__(
        self,
        reader: redis.asyncio.Redis,
        writer: redis.asyncio.Redis,
        settings: StoreSettings,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Clients must answer in bytes and not retry by themselves, as those of `connect`; `clock`: epoch seconds."""
        self.settings = settings
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._reads = asyncio.Semaphore(settings.max_connections)
        self._writes = asyncio.Semaphore(settings.max_connections)
        self._script = Path(__file__).with_name("append.lua").read_bytes()
        self._script_sha = hashlib.sha1(self._script, usedforsecurity=False).hexdigest()

    @classmethod
    def connect(
        cls, url: str, settings: StoreSettings | None = None, *, clock: Callable[[], float] = time.time
    ) -> SequenceStore:
        """Store at a redis://, rediss:// or unix:// URL. Connects at the first call, so a server may come later.

        Raises ValueError if the URL is not one.
        """
        settings = settings or StoreSettings()
        return cls(_client(url, settings.read_timeout_s), _client(url, settings.write_timeout_s), settings, clock=clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; calls under way fail."""
        for client in (self._reader, self._writer):
            try:
                await client.aclose(close_connection_pool=True)
            except (RedisError, OSError) as error:  # closing a connection to a dead server is still closing it
                logger.debug("closing a connection to the sequence store: %s", error)

    async def append(self, events: Sequence[Event]) -> AppendResult:
        """Store events, in any order, of any users; what is stored already counts as a duplicate and changes nothing.

        All events of a user are stored in one atomic step: history (the newest `history_length` by time, then event id
        in byte order) and log. When it returns, the server has acknowledged all of it. When it raises
        StoreUnavailable, some users' events may be stored and others not; call again with the same events.
        """
        by_user: dict[str, list[Event]] = {}
        for event in events:
            by_user.setdefault(event.user_id, []).append(event)
        if not by_user:
            return AppendResult(accepted=0, duplicates=0)
        calls = [self._append_call(user_id, of_user) for user_id, of_user in by_user.items()]
        accepted = sum(await self._call(self._writer, lambda client: self._run_scripts(client, calls)))
        return AppendResult(accepted=accepted, duplicates=len(events) - accepted)

    async def histories(self, user_ids: Sequence[str]) -> list[list[str]]:
        """Item ids of each user's history, oldest first; an empty list for a user without one. One round trip.

        Needs a single server: on a cluster the users' keys lie on several.
        """
        if not user_ids:
            return []
        keys = [_history_key(user_id) for user_id in user_ids]
        values: list[Any] = await self._call(self._reader, lambda client: client.mget(keys))
        return [
            _unpack(value, user_id)[ITEM_ID::STRIDE] if value else []
            for user_id, value in zip(user_ids, values, strict=True)
        ]

    async def rated_histories(self, user_ids: Sequence[str]) -> list[tuple[list[str], list[float]]]:
        """As `histories`, with the value of each event beside its item: NaN where it has none."""
        if not user_ids:
            return []
        keys = [_history_key(user_id) for user_id in user_ids]
        packed: list[Any] = await self._call(self._reader, lambda client: client.mget(keys))
        found = []
        for value, user_id in zip(packed, user_ids, strict=True):
            flat = _unpack(value, user_id) if value else []
            values = [math.nan if number is False else float(number) for number in flat[VALUE::STRIDE]]
            found.append((flat[ITEM_ID::STRIDE], values))
        return found

    async def history(self, user_id: str) -> list[HistoryEvent]:
        """Everything kept of a user's history, oldest first; empty for a user without one."""
        key = _history_key(user_id)
        value: Any = await self._call(self._reader, lambda client: client.get(key))
        flat = _unpack(value, user_id) if value else []
        return [
            HistoryEvent(
                event_id, item_id, type_ or USUAL_TYPE, timestamp_ms, None if number is False else float(number)
            )
            for timestamp_ms, event_id, item_id, type_, number in zip(*[iter(flat)] * STRIDE, strict=True)
        ]

    async def ping(self) -> None:
        """Return if the server answers within the timeout of a read, and raise StoreUnavailable if not."""
        await self._call(self._reader, lambda client: client.ping())

    async def durability(self) -> str | None:
        """What to warn an operator of if acknowledged events might not survive a crash of the server, else None."""
        try:
            found: Any = await self._call(self._writer, lambda client: client.config_get("append*"))
        except StoreUnavailable as error:
            return f"could not check that the sequence store keeps acknowledged events over a crash: {error}"
        server = {_text(name): _text(value) for name, value in found.items()}
        wrong = {
            name: server.get(name, "unknown")
            for name, safe in (("appendonly", "yes"), ("appendfsync", "always"))
            if server.get(name) != safe
        }
        if not wrong:
            return None
        said = ", ".join(f"{name} is {value}" for name, value in wrong.items())
        return f"acknowledged events can be lost when Redis crashes: {said}; set appendonly yes and appendfsync always"

    def _append_call(self, user_id: str, events: list[Event]) -> tuple[Any, ...]:
        """Keys and arguments of the script for one user."""
        settings = self.settings
        packed = [
            (
                event.timestamp_ms,
                event.event_id,
                event.item_id,
                "" if event.type == USUAL_TYPE else event.type,
                False if event.value is None else event.value,  # nil would leave a hole in a Lua table
                hashlib.blake2b(event.event_id.encode(), digest_size=8).digest(),
                event.type in settings.sequence_types,
                encode(event),
            )
            # The script sorts; sorted events spare it most of the moving.
            for event in sorted(events, key=lambda event: (event.timestamp_ms, event.event_id.encode()))
        ]
        return (
            _history_key(user_id),
            _record_key(user_id),
            log_key(partition_of(user_id)),
            settings.history_length,
            settings.history_ttl_s,
            RECORD_LENGTH,
            RECORD_TTL_S,
            settings.log_max_events,
            int(self._clock()),
            msgpack.packb(packed, use_bin_type=False),  # Redis's Lua knows no separate type for bytes
        )

    async def _run_scripts(self, client: redis.asyncio.Redis, calls: list[tuple[Any, ...]]) -> list[int]:
        """New events per call, all in one round trip; a second one if the server does not know the script yet."""
        replies = await self._evalsha(client, calls)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # the server has restarted, or an operator has flushed its scripts
            again = await self._evalsha(client, [calls[index] for index in unknown], load=True)
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return cast(list[int], replies)

    async def _evalsha(
        self, client: redis.asyncio.Redis, calls: list[tuple[Any, ...]], *, load: bool = False
    ) -> list[int | Exception]:
        pipeline = client.pipeline(transaction=False)
        if load:
            pipeline.execute_command("SCRIPT LOAD", self._script)
        for call in calls:
            pipeline.execute_command("EVALSHA", self._script_sha, 3, *call)
        replies = await pipeline.execute(raise_on_error=False)
        return replies[1:] if load else replies

    async def _call(self, client: redis.asyncio.Redis, command: Callable[[redis.asyncio.Redis], Awaitable[T]]) -> T:
        """Result of a command that may be repeated. Everything that can go wrong becomes StoreUnavailable.

        The bound on connections is a semaphore of ours, because a cancelled caller cannot leak its place in it.
        """
        reading = client is self._reader
        timeout_s = self.settings.read_timeout_s if reading else self.settings.write_timeout_s
        places = self._reads if reading else self._writes
        failure: Exception | None = None
        for _ in range(ATTEMPTS):
            try:
                async with asyncio.timeout(timeout_s), places:
                    return await command(client)
            except CONNECTION_ERRORS as error:
                failure = error
            except RedisError as error:  # an answer, and no better the second time
                raise StoreUnavailable(f"Redis refused: {error}") from error
        reason = str(failure) or f"no answer within {timeout_s * 1000:.0f} ms"
        raise StoreUnavailable(f"Redis cannot be reached ({ATTEMPTS} attempts): {reason}") from failure


def _client(url: str, timeout_s: float) -> redis.asyncio.Redis:
    pool = redis.asyncio.ConnectionPool.from_url(
        url,
        # A whole attempt has one deadline, in _call; a deadline for each read and write would only add to it.
        socket_timeout=None,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,  # saves a new connection one round trip
        decode_responses=False,
    )
    return redis.asyncio.Redis(connection_pool=pool)


def _history_key(user_id: str) -> bytes:
    return b"recserve:{%d}:h:%b" % (partition_of(user_id), user_id.encode())


def _record_key(user_id: str) -> bytes:
    return b"recserve:{%d}:d:%b" % (partition_of(user_id), user_id.encode())


def _unpack(value: bytes, user_id: str) -> list[Any]:
    """Flat list of a packed history. An unreadable one counts as none: one damaged user must not fail a whole batch."""
    try:
        flat = msgpack.unpackb(value)
        if (
            not isinstance(flat, list)
            or len(flat) % STRIDE
            or not all(isinstance(i, str) for i in flat[ITEM_ID::STRIDE])
        ):
            raise ValueError("not a list of events")
    except (ValueError, msgpack.UnpackException) as error:
        # Who it is stays out of the log; the partition is what to look through.
        partition = partition_of(user_id)
        logger.error("a history in partition %d is not readable and counts as empty: %s", partition, error)
        return []
    return flat


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
