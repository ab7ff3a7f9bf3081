"""What was sent and what was acknowledged, to be compared with what the store holds in the end.

An event that was acknowledged and is not stored was lost; one that is stored twice was applied twice; one that was
sent and never acknowledged may be stored or not.
"""

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models import eventlog
from reliability.promise import Finding
from service.sequences import SequenceStore, StoreSettings

HISTORY_LENGTH = StoreSettings().history_length


@dataclass(frozen=True, slots=True)
class Sent:
    """One event as it is sent: distinct by its number, times in the order of numbers."""

    number: int
    users: int

    @property
    def user_id(self) -> str:
        return f"user-{self.number % self.users}"

    @property
    def event_id(self) -> str:
        return f"event-{self.number:06d}"

    def body(self) -> dict[str, Any]:
        """For POST /events."""
        return {
            "user_id": self.user_id,
            "item_id": f"item-{self.number % 97}",
            "event_id": self.event_id,
            "timestamp": 1_700_000_000_000 + self.number,
        }


def events(*, users: int) -> Iterator[Sent]:
    """Distinct events of so many users, without an end."""
    return (Sent(number, users) for number in itertools.count())


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts of events: acknowledged and stored nowhere, stored more than once, stored and never sent; and of users
    whose history is not what the log says it must be."""

    sent: int
    acknowledged: int
    stored: int
    lost: int
    doubled: int
    unknown: int
    wrong_histories: int

    def findings(self, *, at_least: int) -> list[Finding]:
        """The lines that every promise about events has, with at least so many acknowledged ones."""
        return [
            Finding("events acknowledged", self.acknowledged, least=at_least),
            Finding("acknowledged events lost", self.lost, most=0),
            Finding("events stored twice", self.doubled, most=0),
            Finding("events stored that nobody sent", self.unknown, most=0),
            Finding("histories that differ from the log", self.wrong_histories, most=0),
        ]


class Ledger:
    """Kept by any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[str, Sent] = {}
        self._acknowledged: dict[str, float] = {}  # event id -> when, by the clock of who acknowledged
        self.refused = 0  # answers of 503, each with Retry-After
        self.failed = 0  # requests without an answer
        self.surprises: list[str] = []  # answers that no client should see

    def send(self, event: Sent) -> None:
        with self._lock:
            self._sent[event.event_id] = event

    def acknowledge(self, event: Sent, at: float) -> None:
        """at: seconds of any one clock."""
        with self._lock:
            self._acknowledged.setdefault(event.event_id, at)

    @property
    def acknowledged(self) -> int:
        return len(self._acknowledged)

    @property
    def unacknowledged(self) -> list[Sent]:
        """What was sent and may have been stored or not."""
        return [event for event_id, event in self._sent.items() if event_id not in self._acknowledged]

    def refuse(self) -> None:
        with self._lock:
            self.refused += 1

    def fail(self) -> None:
        with self._lock:
            self.failed += 1

    def wonder(self, answer: str) -> None:
        with self._lock:
            self.surprises.append(answer)

    def lost(self, stored: Sequence[eventlog.LoggedEvent]) -> list[float]:
        """When each event was acknowledged that is not among the stored, in order."""
        there = {event.event_id for event in stored}
        return sorted(at for event_id, at in self._acknowledged.items() if event_id not in there)

    def audit(self, store_url: str) -> Audit:
        """Compare with the store."""
        stored = logged(store_url)
        times = Counter((event.user_id, event.event_id) for event in stored)
        users = sorted({event.user_id for event in self._sent.values()})
        return Audit(
            sent=len(self._sent),
            acknowledged=len(self._acknowledged),
            stored=len(times),
            lost=len(self.lost(stored)),
            doubled=sum(count > 1 for count in times.values()),
            unknown=sum(event_id not in self._sent for _, event_id in times),
            wrong_histories=_wrong_histories(store_url, users, stored),
        )


def logged(store_url: str) -> list[eventlog.LoggedEvent]:
    """Everything in the store's log."""
    client = eventlog.connect(store_url)
    try:
        return list(eventlog.read_events(client))
    finally:
        client.close()


def _wrong_histories(store_url: str, users: Sequence[str], stored: Sequence[eventlog.LoggedEvent]) -> int:
    by_user: dict[str, dict[str, eventlog.LoggedEvent]] = {user: {} for user in users}
    for event in stored:
        by_user.setdefault(event.user_id, {})[event.event_id] = event

    async def read() -> list[list[str]]:
        patient = StoreSettings(read_timeout_s=10)
        async with SequenceStore.connect(store_url, patient) as store:
            return [[event.event_id for event in await store.history(user)] for user in by_user]

    wrong = 0
    for found, of_user in zip(asyncio.run(read()), by_user.values(), strict=True):
        ordered = sorted(of_user.values(), key=lambda event: (event.timestamp_ms, event.event_id.encode()))
        wrong += found != [event.event_id for event in ordered[-HISTORY_LENGTH:]]
    return wrong
