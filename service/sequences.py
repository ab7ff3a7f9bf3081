"""Recent items of each user, kept in Redis.

One packed value per user, changed only by one script: a retried or late event lands where it belongs and never twice,
and the log cannot disagree with it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgpack

from models.eventlog import PARTITIONS, SEQUENCE_TYPES, encode, log_key, partition_of
from models.eventlog import LoggedEvent as Event
from service.connection import Connection, Refused, Script, StoreUnavailable

__all__ = ["AppendResult", "Event", "HistoryEvent", "SequenceStore", "StoreSettings", "StoreUnavailable"]

logger = logging.getLogger(__name__)

RECORD_TTL_S = 24 * 3600  # how long a client may repeat an event that has already left the history
RECORD_LENGTH = 2_048  # ids remembered a user: two full requests of 1,000 events; 24 KiB at most
STRIDE = 5  # values an event in a packed history
ITEM_ID = 2  # where among them the item id is
VALUE = 4  # and the value; false where there is none
_VALUES = {int, float, bool}
_AT_ONCE = 128  # users a round trip: while many more are packed, nobody is answered or refused
USUAL_TYPE = "interaction"  # packed as an empty string, which saves a quarter of a typical history


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How much is kept and how long a call may take. Every key the store writes is bounded by these."""

    history_length: int = 50  # events kept per user
    history_ttl_s: int = 90 * 24 * 3600  # since the user's last event
    log_max_events: int = 62_500  # per partition, of which there are models.eventlog.PARTITIONS; whole nodes of 100
    log_min_s: float = 0  # younger entries are never dropped from a full log; then events are refused
    sequence_types: tuple[str, ...] = SEQUENCE_TYPES  # other types (impressions) go to the log only
    read_timeout_s: float = 0.05  # per attempt, of which there are two; far above a healthy read
    write_timeout_s: float = 0.5  # per attempt; a write waits for the disk
    max_connections: int = 16  # for reads and for writes each
    replicas: int = 0  # that must have an event before it counts as stored


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

    Every call raises StoreUnavailable as soon as service.connection does for each round trip, of which it makes one, or
    one for 128 users whose events are appended, and works again a moment after the server does.
    """

    def __init__(
        self, connection: Connection, settings: StoreSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock`: epoch seconds."""
        self.connection = connection
        self.settings = settings
        self._clock = clock
        self._script = Script(Path(__file__).with_name("append.lua").read_bytes(), keys=3)

    @classmethod
    def connect(
        cls, url: str, settings: StoreSettings | None = None, *, clock: Callable[[], float] = time.time
    ) -> SequenceStore:
        """Store at a URL as in models.storeurl. Raises ValueError if it is not one."""
        settings = settings or StoreSettings()
        connection = Connection(
            url,
            read_timeout_s=settings.read_timeout_s,
            write_timeout_s=settings.write_timeout_s,
            max_connections=settings.max_connections,
            replicas=settings.replicas,
        )
        return cls(connection, settings, clock=clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.aclose()

    async def append(self, events: Sequence[Event]) -> AppendResult:
        """Store events, in any order, of any users; what is stored already counts as a duplicate and changes nothing.

        All events of a user are stored in one atomic step: history (the newest `history_length` by time, then event id
        in byte order) and log. When it returns, the server has acknowledged all of it. When it raises
        StoreUnavailable, some users' events may be stored and others not; call again with the same events.
        """
        (result,) = await self.append_each([events])
        if isinstance(result, StoreUnavailable):
            raise result
        return result

    async def append_each(self, groups: Sequence[Sequence[Event]]) -> list[AppendResult | StoreUnavailable]:
        """As `append`, for many callers together: what came of each one's events.

        Raises StoreUnavailable if that is not known of all.
        """
        wanted: list[tuple[str, list[Event]]] = []  # a call for each
        ends: list[int] = []  # of each group's calls
        for events in groups:
            by_user: dict[str, list[Event]] = {}
            for event in events:
                by_user.setdefault(event.user_id, []).append(event)
            wanted += by_user.items()
            ends.append(len(wanted))
        replies: list[Any] = []
        for begin in range(0, len(wanted), _AT_ONCE):
            calls = [self._append_call(user_id, of_user) for user_id, of_user in wanted[begin : begin + _AT_ONCE]]
            replies += await self.connection.run(self._script, calls)
        begins = [0, *ends[:-1]]
        return [
            _result(len(events), replies[begin:end]) for events, begin, end in zip(groups, begins, ends, strict=True)
        ]

    async def histories(self, user_ids: Sequence[str]) -> list[list[str]]:
        """Item ids of each user's history, oldest first; an empty list for a user without one. One round trip."""
        if not user_ids:
            return []
        keys = [history_key(user_id) for user_id in user_ids]
        values = await self.connection.values(keys)
        return [
            _unpack(value, user_id)[ITEM_ID::STRIDE] if value else []
            for user_id, value in zip(user_ids, values, strict=True)
        ]

    async def rated_histories(self, user_ids: Sequence[str]) -> list[tuple[list[str], list[float]]]:
        """As `histories`, with the value of each event beside its item: NaN where it has none."""
        if not user_ids:
            return []
        keys = [history_key(user_id) for user_id in user_ids]
        packed = await self.connection.values(keys)
        found = []
        for value, user_id in zip(packed, user_ids, strict=True):
            flat = _unpack(value, user_id) if value else []
            values = [math.nan if number is False else float(number) for number in flat[VALUE::STRIDE]]
            found.append((flat[ITEM_ID::STRIDE], values))
        return found

    async def history(self, user_id: str) -> list[HistoryEvent]:
        """Everything kept of a user's history, oldest first; empty for a user without one."""
        (value,) = await self.connection.values([history_key(user_id)])
        flat = _unpack(value, user_id) if value else []
        return [
            HistoryEvent(
                event_id, item_id, type_ or USUAL_TYPE, timestamp_ms, None if number is False else float(number)
            )
            for timestamp_ms, event_id, item_id, type_, number in zip(*[iter(flat)] * STRIDE, strict=True)
        ]

    async def log_fill(self) -> float:
        """What share of its room the fullest partition of the event log takes: 0 to 1, or a little above."""
        lengths = await self.connection.lengths([log_key(partition).encode() for partition in range(PARTITIONS)])
        return max(lengths) / self.settings.log_max_events

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
            # The script merges them with those it has.
            for event in sorted(events, key=lambda event: (event.timestamp_ms, event.event_id.encode()))
        ]
        return (
            history_key(user_id),
            record_key(user_id),
            log_key(partition_of(user_id)),
            settings.history_length,
            settings.history_ttl_s,
            RECORD_LENGTH,
            RECORD_TTL_S,
            settings.log_max_events,
            settings.log_min_s,
            int(self._clock()),
            msgpack.packb(packed, use_bin_type=False),  # Redis's Lua knows no separate type for bytes
        )


def _result(events: int, replies: Sequence[int | Exception]) -> AppendResult | StoreUnavailable:
    accepted = 0
    for reply in replies:
        if isinstance(reply, Exception):
            return Refused(f"Redis refused: {reply}")
        if reply < 0:
            logger.error("a history was not readable and begins anew with %d event(s)", -reply)
        accepted += abs(reply)
    return AppendResult(accepted=accepted, duplicates=events - accepted)


def history_key(user_id: str) -> bytes:
    """Where a user's packed history lies, in the hash slot of the user's partition of the log."""
    return b"recserve:{%d}:h:%b" % (partition_of(user_id), user_id.encode())


def record_key(user_id: str) -> bytes:
    """Where the digests of a user's event ids lie, remembered so that repeats count once; in the same slot."""
    return b"recserve:{%d}:d:%b" % (partition_of(user_id), user_id.encode())


def _unpack(value: bytes, user_id: str) -> list[Any]:
    """Flat list of a packed history. An unreadable one counts as none: one damaged user must not fail a whole batch."""
    try:
        flat = msgpack.unpackb(value)
        if (
            not isinstance(flat, list)
            or len(flat) % STRIDE
            or not all(isinstance(i, str) for i in flat[ITEM_ID::STRIDE])
            or not {*map(type, flat[VALUE::STRIDE])} <= _VALUES
        ):
            raise ValueError("not a list of events")
    except (ValueError, msgpack.UnpackException) as error:
        # Who it is stays out of the log; the partition is what to look through.
        partition = partition_of(user_id)
        logger.error("a history in partition %d is not readable and counts as empty: %s", partition, error)
        return []
    return flat
