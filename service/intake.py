"""Events on their way in: each is checked by itself, then all good ones of a request are stored together.

One bad event in a batch must not cost the others, and one that was not stored is never acknowledged.
"""

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from pydantic import ValidationError

from service.arrivals import Arrivals
from service.batcher import Batcher, Closed, Overloaded, Pending
from service.connection import StoreUnavailable
from service.engine import Engine
from service.errors import Problem, describe, field_errors, invalid_field, shorten, unavailable
from service.failures import store_failed
from service.logs import Seldom
from service.metrics import Metrics
from service.requests import parse_json
from service.schemas import MAX_AHEAD_MS, MAX_EVENTS, EventRequest, default_event_id
from service.sequences import AppendResult, Event, SequenceStore
from service.turns import Turns

logger = logging.getLogger(__name__)

_TOGETHER = 128  # events; the answers to all come when the last of these is stored
_MOST_BYTES = 1 << 20  # of bodies that wait, before the last: some tenths of a second's work
_LARGE_BYTES = 1 << 11  # of a body that is checked in a turn of its own: half a millisecond's work
_SECONDS = 100_000_000_000  # in 1973; as seconds, whatever is below lies in our time
# A number of 1e18 or more in properties as they were written: of integers beyond 64 bits the parser makes floats.
_ROUNDED = re.compile(rb"e\+(?:1[89]|[2-9]\d|\d{3})[,\]}]")


class _Waiting(NamedTuple):
    """Events of one request, and since when they wait, by time.monotonic."""

    events: Sequence[Event]
    since: float


class Intake:
    """Checks and stores events, those of several requests that wait together. Enter it to start.

    Every write waits for the disk, and one that holds many costs little more. `now` gives epoch seconds; at most
    max_waiting requests wait; on_unknown is told of stored events whose items the live model does not know.
    """

    def __init__(
        self,
        store: SequenceStore,
        live: Callable[[], Engine | None],
        metrics: Metrics,
        *,
        max_waiting: int,
        now: Callable[[], float] = time.time,
        on_unknown: Callable[[Sequence[Event]], None] = lambda events: None,
    ) -> None:
        self._on_unknown = on_unknown
        self._store = store
        self._writes = Batcher[_Waiting, AppendResult](
            self._write,
            max_batch=_TOGETHER,
            weight=lambda one: len(one.events),
            max_waiting=max_waiting,
            stuck_s=math.inf,
        )
        self._failed: tuple[float, StoreUnavailable] | None = None  # when the last write that did began, and why
        self._live = live
        self._metrics = metrics
        self._now = now
        self._arrivals = Arrivals()
        self._bytes = 0  # of the bodies whose events wait or are being stored
        self._large = Turns()
        self._log = Seldom(logger)

    async def __aenter__(self) -> Self:
        await self._writes.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._writes.__aexit__(kind, error, traceback)

    def check_room(self) -> None:
        """Raises Problem if a body would be refused now.

        Requests are no measure of what waits: of two, one may bring a thousand times the events of the other.
        """
        try:
            self._writes.check_room()
            if self._bytes >= _MOST_BYTES:
                raise Overloaded(f"events of {self._bytes} bytes are waiting already")
        except Overloaded as error:
            raise _full(error) from error

    def take(self, body: bytes) -> Pending[Any]:
        """Store the events of a body; what that ends with makes the response.

        Raises Problem, now or when told, if there is no room, if the body is no event and no list of events, if none is
        acceptable, or if the store is down.
        """
        self.check_room()
        pending: Pending[Any] = self._in_turn(body) if len(body) > _LARGE_BYTES else self._begin(body)
        self._bytes += len(body)
        pending.future.add_done_callback(partial(self._done, len(body)))
        return pending

    def _done(self, size: int, future: "asyncio.Future[Any]") -> None:
        self._bytes -= size

    def _in_turn(self, body: bytes) -> Pending[Pending[AppendResult]]:
        begun: asyncio.Future[Pending[AppendResult]] = asyncio.get_running_loop().create_future()

        def begin() -> None:
            try:
                pending = self._begin(body)
            except Exception as error:  # noqa: BLE001 - whoever waits tells a problem from a bug
                begun.set_exception(error)
            else:
                pending.future.add_done_callback(lambda _: begun.set_result(pending))

        self._large.add(begin)
        return Pending(begun, lambda future: future.result().told(future.result().future))

    def _begin(self, body: bytes) -> Pending[AppendResult]:
        """Check a body and let its events wait to be stored. Raises Problem."""
        received = _received(parse_json(body))
        checked: list[EventRequest] = []
        rejected: list[dict[str, Any]] = []
        problems: list[dict[str, Any]] = []
        now_ms = int(self._now() * 1000)
        exact: list[Any] = []
        for index, raw in enumerate(received):
            found = _check(raw, latest_ms=now_ms + MAX_AHEAD_MS)
            if isinstance(found, EventRequest) and found.properties is not None and _ROUNDED.search(found.properties):
                exact = exact or _received(json.loads(body))  # ten times as slow, with integers of any size
                found = _check(exact[index], latest_ms=now_ms + MAX_AHEAD_MS)
            if isinstance(found, EventRequest):
                checked.append(found)
            else:
                rejected.append({"index": index, "code": found[0]["code"], "detail": describe(found[0])})
                problems += [{"index": index, **entry} for entry in found]
        self._metrics.events_rejected.inc(len(rejected))
        if not checked:
            first = rejected[0]
            raise Problem(
                "no_valid_event",
                f"none of {len(received)} event(s) can be accepted; event {first['index']}: {first['detail']}",
                errors=problems[:20],
            )
        try:
            accepted = self._timed(checked, now_ms)
            future = self._writes.enqueue(_Waiting(accepted, time.monotonic()))
        except Overloaded as error:
            raise _full(error) from error
        except Closed as error:
            raise _closed(error) from error
        earliest_ms = min(event.timestamp_ms for event in accepted)
        if 0 < earliest_ms < _SECONDS:
            said = "an event has the timestamp %d, in milliseconds before 1974; send no seconds"
            self._log.log(logging.WARNING, said, earliest_ms)
        return Pending(future, partial(self._stored, accepted, rejected))

    def _timed(self, events: Sequence[EventRequest], now_ms: int) -> list[Event]:
        """The events as they will be stored. Raises Overloaded."""
        untimed: dict[str, int] = {}
        for event in events:
            if event.timestamp is None:
                untimed[event.user_id] = untimed.get(event.user_id, 0) + 1
        next_ms = {user_id: self._arrivals.first_ms(user_id, count, now_ms) for user_id, count in untimed.items()}
        stored = []
        for event in events:
            timestamp_ms = event.timestamp
            if timestamp_ms is None:
                timestamp_ms = next_ms[event.user_id]
                next_ms[event.user_id] += 1
            stored.append(_stored(event, timestamp_ms))
        return stored

    def _stored(
        self, accepted: Sequence[Event], rejected: list[dict[str, Any]], future: "asyncio.Future[AppendResult]"
    ) -> dict[str, object]:
        try:
            result = future.result()
        except Closed as error:
            raise _closed(error) from error
        except StoreUnavailable as error:
            advice = "the events could not be stored; send the same events again"
            failures = self._metrics.store_write_errors
            raise store_failed(error, failures, self._log, "events were not stored: %s", advice) from error
        self._metrics.events_accepted.inc(result.accepted)
        self._metrics.events_duplicate.inc(result.duplicates)
        engine = self._live()
        ids = [event.item_id for event in accepted]
        known = [False] * len(ids) if engine is None else engine.bundle.known(ids)
        unknown = [event for event, is_known in zip(accepted, known, strict=True) if not is_known]
        self._on_unknown(unknown)
        return {
            "accepted": result.accepted,
            "duplicates": result.duplicates,
            "rejected": rejected,
            "unknown_items": len(unknown),
        }

    async def _write(self, waiting: Sequence[_Waiting]) -> list[AppendResult | StoreUnavailable]:
        """Store what several requests brought. Those who waited already when a write began that failed fail with it:
        one after the other they would wait as long for the same."""
        began = time.monotonic()
        if self._failed is not None and waiting[-1].since < self._failed[0]:
            return [self._failed[1]] * len(waiting)
        try:
            return await self._store.append_each([one.events for one in waiting])
        except StoreUnavailable as error:
            self._failed = began, error
            return [error] * len(waiting)


def _full(error: Overloaded) -> Problem:
    return unavailable("overloaded", f"{error}; send the same events again later")


def _closed(error: Closed) -> Problem:
    return unavailable("shutting_down", f"{error}; send the same events again")


def _check(raw: object, *, latest_ms: int) -> EventRequest | list[dict[str, Any]]:
    """The event as it was sent, or what is wrong with it."""
    try:
        event = EventRequest.model_validate(raw)
    except ValidationError as error:
        return field_errors(error)
    if event.timestamp is not None and event.timestamp > latest_ms:
        detail = "must not be more than 5 minutes ahead of the service's clock"
        return [{"field": "timestamp", "code": "timestamp_ahead", "detail": detail, "value": shorten(event.timestamp)}]
    return event


def _stored(event: EventRequest, timestamp_ms: int) -> Event:
    return Event(
        user_id=event.user_id,
        item_id=event.item_id,
        event_id=event.event_id or default_event_id(event.user_id, event.item_id, event.type, timestamp_ms),
        type=event.type,
        timestamp_ms=timestamp_ms,
        value=event.value,
        recommendation_id=event.recommendation_id,
        properties=event.properties,
    )


def _received(body: object) -> list[object]:
    """The events of a body, unchecked."""
    if not isinstance(body, dict):
        raise invalid_field("body", "model_type", "must be an event, or an object with 'events'", shorten(body))
    if "events" not in body:
        return [body]
    surplus = sorted(body.keys() - {"events"})
    if surplus:
        detail = "is not a field beside 'events'"
        errors = [
            {"field": name[:80], "code": "extra_forbidden", "detail": detail, "value": shorten(body[name])}
            for name in surplus[:20]
        ]
        raise Problem("invalid_request", f"{surplus[0][:80]} {detail}; leave it out", errors=errors)
    events = body["events"]
    if not isinstance(events, list) or not 1 <= len(events) <= MAX_EVENTS:
        found = f"{len(events)} events" if isinstance(events, list) else shorten(events)
        raise invalid_field("events", "events_count", f"must be a list of 1 to {MAX_EVENTS} events", found)
    return events
