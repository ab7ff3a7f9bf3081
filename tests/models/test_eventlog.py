"""The event log as retraining reads it, written by hand and by the service, on a real server."""

import asyncio
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from models import eventlog
from models.eventlog import EventLogError, LoggedEvent
from service.embedded import EmbeddedStore
from service.logs import JsonFormatter
from service.sequences import SequenceStore, StoreSettings

ROOT = Path(__file__).parents[2]
PLAIN = LoggedEvent("ann", "alien", "e1", "interaction", 1_700_000_000_000)
FULL = LoggedEvent("bøb", "日本", "e\0 2", "rating", 0, 1 / 3, "rec-1", '{"a": ["é", null]}'.encode())


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, EmbeddedStore(Path(folder)) as server:
        yield server.url


@pytest.fixture
def client(server_url: str) -> Iterator[redis.Redis]:
    with eventlog.connect(server_url) as opened:
        opened.flushall()
        yield opened


def fields_of(event: LoggedEvent) -> dict[Any, Any]:
    flat = [part.encode() if isinstance(part, str) else part for part in eventlog.encode(event)]
    return dict(zip(flat[::2], flat[1::2], strict=True))


@pytest.mark.parametrize("event", [PLAIN, FULL])
def test_an_event_comes_back_as_it_was_logged(event: LoggedEvent) -> None:
    assert eventlog.decode((b"1-1", fields_of(event))) == event


def test_the_encoding_is_what_older_logs_hold() -> None:
    assert fields_of(FULL) == {
        b"schema": b"1",
        b"user_id": "bøb".encode(),
        b"item_id": "日本".encode(),
        b"event_id": b"e\0 2",
        b"type": b"rating",
        b"timestamp_ms": b"0",
        b"value": b"0.3333333333333333",
        b"recommendation_id": b"rec-1",
        b"properties": '{"a": ["é", null]}'.encode(),
    }
    assert eventlog.log_key(3) == "recserve:{3}:log"
    assert eventlog.partition_of("123456789") == 0xCBF43926 % 16  # the check value of CRC-32 everywhere


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({b"schema": b"2"}, "schema '2', this version reads 1"),
        ({b"timestamp_ms": b"yesterday"}, "7-1 is damaged.*yesterday"),
        ({b"value": b"nan"}, "7-1 is damaged.*nan"),
        ({b"item_id": b"\xff"}, "7-1 is damaged"),
        ({b"item_id": b""}, "must not be empty"),
    ],
)
def test_an_entry_that_cannot_be_understood_is_an_error_that_names_it(change: dict[bytes, bytes], said: str) -> None:
    with pytest.raises(EventLogError, match=said):
        eventlog.decode((b"7-1", fields_of(FULL) | change))


def test_why_a_log_cannot_be_read_is_said_in_a_log_line_too() -> None:
    with eventlog.connect("unix:///nowhere") as client, pytest.raises(EventLogError) as refused:
        list(eventlog.read_events(client))
    record = logging.makeLogRecord({"msg": str(refused.value), "levelname": "WARNING"})
    assert "connecting to /nowhere" in JsonFormatter().format(record)


def test_a_missing_field_is_named() -> None:
    fields = fields_of(FULL)
    del fields[b"type"]
    with pytest.raises(EventLogError, match="7-1 has no field type"):
        eventlog.decode((b"7-1", fields))


def test_what_the_service_stores_is_what_retraining_reads(client: redis.Redis, server_url: str) -> None:
    events = [
        LoggedEvent(
            f"user{i % 40}", f"item{i}", f"event{i}", "interaction", i, None if i % 3 else i / 7, None, b'{"i": 1}'
        )
        for i in range(5000)
    ] + [PLAIN, FULL]

    async def store() -> None:
        async with SequenceStore.connect(server_url) as opened:
            for start in range(0, len(events), 1000):
                await opened.append(events[start : start + 1000])

    asyncio.run(store())
    read = list(eventlog.read_events(client))
    assert sorted(read, key=lambda e: e.event_id) == sorted(events, key=lambda e: e.event_id)
    assert eventlog.gone(client) == 0
    partitions = [eventlog.partition_of(event.user_id) for event in read]
    assert partitions == sorted(partitions)
    assert len(set(partitions)) > 4


def test_a_partition_longer_than_a_page_is_read_whole(client: redis.Redis) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(4001):
        event = LoggedEvent("ann", "item", f"e{number}", "interaction", number)
        pipeline.xadd(eventlog.log_key(eventlog.partition_of("ann")), fields_of(event))
    pipeline.execute()
    assert [event.timestamp_ms for event in eventlog.read_events(client)] == list(range(4001))


def test_trimmed_entries_are_counted(client: redis.Redis, server_url: str) -> None:
    async def store() -> None:
        async with SequenceStore.connect(server_url, StoreSettings(log_max_events=100)) as opened:
            await opened.append([LoggedEvent("ann", "item", f"e{i}", "interaction", i) for i in range(950)])

    asyncio.run(store())
    held = sum(1 for _ in eventlog.read_events(client))
    assert held < 200
    assert eventlog.gone(client) == 950 - held


class Older(redis.Redis):
    """A client that is told of streams what a server before Redis 7.0 tells."""

    def xinfo_stream(self, *given: Any, **options: Any) -> Any:
        newer = ("entries-added", "max-deleted-entry-id", "recorded-first-entry-id")
        return {name: value for name, value in super().xinfo_stream(*given, **options).items() if name not in newer}


def test_of_a_server_that_does_not_count_what_is_gone_nothing_is_known_to_be(
    client: redis.Redis, server_url: str
) -> None:
    key = eventlog.log_key(eventlog.partition_of("ann"))
    for number in range(3):
        client.xadd(key, fields_of(LoggedEvent("ann", "item", f"e{number}", "interaction", number)))
    client.xtrim(key, maxlen=2, approximate=False)
    assert eventlog.gone(client) == 1
    with Older.from_url(server_url) as older:
        assert eventlog.gone(older) == 0


def test_an_empty_log_is_empty(client: redis.Redis) -> None:
    assert list(eventlog.read_events(client)) == []
    assert eventlog.gone(client) == 0


def test_a_server_that_is_not_there_is_an_error_of_ours() -> None:
    client = eventlog.connect("redis://127.0.0.1:1")
    with pytest.raises(EventLogError, match=r"recserve:\{0\}:"):
        list(eventlog.read_events(client))
    with pytest.raises(EventLogError, match=r"127\.0\.0\.1:1"):
        eventlog.gone(client)


def test_a_url_of_something_else_is_refused() -> None:
    with pytest.raises(EventLogError, match="redis://"):
        eventlog.connect("https://example.org")


def test_models_load_without_redis() -> None:
    program = """
import sys
sys.modules["redis"] = None
from models import eventlog
eventlog.encode(eventlog.LoggedEvent("u", "i", "e", "t", 1))
try:
    eventlog.connect("redis://localhost")
except eventlog.EventLogError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip install redis" in said
