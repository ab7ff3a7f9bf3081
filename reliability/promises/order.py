"""The same events in any order, split into any requests and repeated at will, against a few slow lines of Python."""

import asyncio
import itertools
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from models.eventlog import LoggedEvent
from reliability.ledger import logged
from reliability.processes import Store
from reliability.promise import Finding
from service.sequences import SequenceStore, StoreSettings

TITLE = "Any order, split and repetition of the same events gives the same history"
_LENGTH = 4
_USERS = ("ann", "bob")
_IDS = ["a", "B", "_", "é", "aa", "b", "Z", "0", "日", "\0", "ab", "zz"]
_of_user_and_id = attrgetter("user_id", "event_id")


def _event(event_id: str, timestamp_ms: int, user_id: str, type_: str) -> LoggedEvent:
    return LoggedEvent(user_id, f"item-{event_id}", event_id, type_, timestamp_ms)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[LoggedEvent], list[list[LoggedEvent]]]:
    """Distinct events, and requests in which each of them arrives at least once, in any order."""
    types = st.sampled_from(["interaction", "interaction", "impression"])
    one = st.builds(_event, st.sampled_from(_IDS), st.integers(0, 4), st.sampled_from(_USERS), types)
    events = draw(st.lists(one, min_size=1, max_size=16, unique_by=_of_user_and_id))
    repeated = draw(st.lists(st.sampled_from(events), max_size=8))
    stream = draw(st.permutations(events + repeated))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    return events, [stream[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(stream)])]


def oracle(events: Iterable[LoggedEvent], user_id: str) -> list[str]:
    """The newest items of a user by time, then by the bytes of the event id."""
    own = [event for event in events if event.user_id == user_id and event.type == "interaction"]
    newest = sorted(own, key=lambda event: (event.timestamp_ms, event.event_id.encode()))[-_LENGTH:]
    return [event.item_id for event in newest]


def check(full: bool, folder: Path) -> list[Finding]:
    examples = 1_000 if full else 100
    tried = requests = 0

    @seed(1)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(arrivals())
    def one(arrived: tuple[list[LoggedEvent], list[list[LoggedEvent]]]) -> None:
        nonlocal tried, requests
        events, split = arrived
        with store.client() as client:
            client.flushall()
        found, accepted = asyncio.run(_stored(store.url, split))
        expected = [oracle(events, user_id) for user_id in _USERS]
        if found != expected:
            raise AssertionError(f"{split} gave the histories {found} and not {expected}")
        if accepted != len(events):
            raise AssertionError(f"{accepted} events of {split} were new and not {len(events)}")
        if sorted(logged(store.url), key=_of_user_and_id) != sorted(events, key=_of_user_and_id):
            raise AssertionError(f"the log of {split} is not what was sent")
        tried += 1
        requests += len(split)

    with Store(folder, options={"appendfsync": "no"}) as store:  # nothing dies here
        one()
    return [
        Finding("examples in which history, log and counts are those of the oracle", tried, least=examples),
        Finding("requests", requests, least=examples),
    ]


async def _stored(url: str, requests: Iterable[list[LoggedEvent]]) -> tuple[list[list[str]], int]:
    """Both histories after all requests, and how many events were new."""
    async with SequenceStore.connect(url, StoreSettings(history_length=_LENGTH, read_timeout_s=5)) as store:
        accepted = [(await store.append(request)).accepted for request in requests]
        return await store.histories(_USERS), sum(accepted)
