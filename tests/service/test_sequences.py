"""The sequence store against a real server, compared with a few slow lines of Python."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

import msgpack
import pytest
import redis

from models import eventlog
from service.connection import StillUnavailable
from service.sequences import AppendResult, Event, HistoryEvent, SequenceStore, StoreSettings, StoreUnavailable
from tests.service import topologies
from tests.service.conftest import KillableStore

pytestmark = pytest.mark.anyio

both_event_loops = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)


def event(name: str, at: int, *, user: str = "ann", type_: str = "interaction", value: float | None = None) -> Event:
    return Event(user, f"item-{name}", name, type_, at, value)


def oracle(events: Iterable[Event], user: str, length: int) -> list[str]:
    distinct = {e.event_id: e for e in events if e.user_id == user and e.type == "interaction"}
    newest = sorted(distinct.values(), key=lambda e: (e.timestamp_ms, e.event_id.encode()))[-length:]
    return [e.item_id for e in newest]


async def in_a_moment(call: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a call, tried for as long as the service may take to recover."""
    until = time.monotonic() + 2
    while True:
        try:
            return await call()
        except StillUnavailable:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[SequenceStore]:
    async with SequenceStore.connect(store_url) as opened:
        yield opened


@pytest.fixture(scope="module", params=topologies.NAMES)
def topology_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with topologies.store(request.param, tmp_path_factory.mktemp(request.param)) as url:
        yield url


@pytest.fixture
def store_url(topology_url: str) -> str:
    """URL of a store of every shape, empty."""
    with contextlib.closing(eventlog.connect(topology_url)) as client:
        client.flushall()
    return topology_url


@pytest.fixture
def client(store_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(eventlog.connect(store_url)) as opened:
        yield opened


async def test_callers_who_share_a_round_trip_are_told_apart(store_url: str, client: redis.Redis) -> None:
    async with SequenceStore.connect(store_url) as store:
        first = [Event("ada", "a", "1", "view", 1), Event("bob", "a", "2", "view", 2)]
        damaged = [Event("eve", "a", "3", "view", 3)]
        await store.append(damaged)
        (key,) = client.keys("*:h:eve")
        client.delete(key)
        client.lpush(key, "no history")
        again = [Event("ada", "b", "4", "view", 4), *first]
        found = await store.append_each([first, [Event("eve", "b", "5", "view", 5)], again, []])
        assert isinstance(found[1], StoreUnavailable)
        assert [found[0], *found[2:]] == [AppendResult(2, 0), AppendResult(1, 2), AppendResult(0, 0)]
        assert await store.histories(["ada", "bob"]) == [["a", "b"], ["a"]]


async def test_more_users_than_a_round_trip_takes_are_stored_and_callers_told_apart(store: SequenceStore) -> None:
    many = [event("a", 10, user=f"user-{number}") for number in range(700)]
    assert await store.append_each([many[:300], many, [], many[699:]]) == [
        *(AppendResult(300, 0), AppendResult(400, 300), AppendResult(0, 0), AppendResult(0, 1)),
    ]
    assert await store.histories([one.user_id for one in many]) == [["item-a"]] * 700


async def test_items_come_back_oldest_first_and_an_unknown_user_has_none(store: SequenceStore) -> None:
    await store.append([event("b", 20), event("a", 10), event("c", 30, user="bob")])
    assert await store.histories(["bob", "nobody", "ann"]) == [["item-c"], [], ["item-a", "item-b"]]
    assert await store.histories([]) == []
    assert await store.history("nobody") == []


async def test_an_event_comes_back_as_it_was_given(store: SequenceStore) -> None:
    values = [None, 0.0, 1.0, -1.5, 0.1, 1 / 3, 5e-324, 1e300, 2.0**53 + 2, 2.0**63, -(2.0**63), 2.0**64, 1e18]
    names = ["é", "日本" * 40, "nul\0in it", 'quo"te', "{brace}", "x" * 256, *(f"id{i}" for i in range(7))]
    given_ = [
        Event(
            "ann {0} \0 é",
            f"item {name}",
            name,
            ("click", "interaction")[i % 2],
            eventlog.LAST_TIMESTAMP_MS - 50 + i,
            value,
        )
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    await store.append(given_)
    assert await store.history("ann {0} \0 é") == [
        HistoryEvent(e.event_id, e.item_id, e.type, e.timestamp_ms, e.value) for e in given_
    ]


async def test_a_repeated_event_counts_once_and_changes_nothing(store: SequenceStore, client: redis.Redis) -> None:
    events = [event("a", 10), event("b", 20), event("seen", 30, type_="impression")]
    assert await store.append([*events, events[0]]) == AppendResult(accepted=3, duplicates=1)
    for key in client.scan_iter("*"):
        if client.type(key) == b"string":
            client.expire(key, 100)
    before = {key: (client.dump(key), client.ttl(key)) for key in client.scan_iter("*")}
    assert await store.append(events) == AppendResult(accepted=0, duplicates=3)
    assert {key: (client.dump(key), client.ttl(key)) for key in client.scan_iter("*")} == before


async def test_the_same_event_id_of_two_users_is_two_events(store: SequenceStore) -> None:
    assert (await store.append([event("a", 1), event("a", 1, user="bob")])).accepted == 2


async def test_equal_times_are_ordered_by_the_bytes_of_the_event_id(store: SequenceStore) -> None:
    names = ["é", "b", "B", "_", "a", "aa", "a\0b", "Z", "ab", "0"]
    await store.append([event(name, 7) for name in names])
    assert [e.event_id for e in await store.history("ann")] == sorted(names, key=str.encode)


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_history_keeps_exactly_the_newest_n(store_url: str, extra: int, at_once: bool) -> None:
    async with SequenceStore.connect(store_url, StoreSettings(history_length=5)) as store:
        events = [event(f"e{i}", i) for i in range(5 + extra)]
        for part in [events] if at_once else [[e] for e in events]:
            await store.append(part)
        assert (await store.histories(["ann"]))[0] == [e.item_id for e in events[-5:]]


async def test_an_event_older_than_a_full_history_is_logged_and_not_shown(store_url: str, client: redis.Redis) -> None:
    async with SequenceStore.connect(store_url, StoreSettings(history_length=2)) as store:
        await store.append([event("b", 20), event("c", 30)])
        assert await store.append([event("a", 10)]) == AppendResult(accepted=1, duplicates=0)
        assert await store.append([event("a", 10)]) == AppendResult(accepted=0, duplicates=1)
        assert await store.histories(["ann"]) == [["item-b", "item-c"]]
    assert [e.event_id for e in eventlog.read_events(client)] == ["b", "c", "a"]


async def test_an_impression_goes_to_the_log_only(store_url: str, client: redis.Redis) -> None:
    async with SequenceStore.connect(store_url, StoreSettings(sequence_types=("buy",))) as store:
        await store.append([event("a", 1, type_="buy"), event("b", 2, type_="impression"), event("c", 3)])
        assert await store.histories(["ann"]) == [["item-a"]]
    assert [e.event_id for e in eventlog.read_events(client)] == ["a", "b", "c"]


async def test_a_batch_of_a_thousand_in_reverse_is_what_it_would_be_one_by_one(store: SequenceStore) -> None:
    events = [event(f"e{i:04d}", i) for i in range(1000)]
    await store.append(events[::-2])
    assert (await store.append(events[::-1])).duplicates == 500
    assert (await store.histories(["ann"]))[0] == oracle(events, "ann", 50)


async def test_a_thousand_long_ids_that_differ_at_their_ends_hold_up_nobody(store: SequenceStore) -> None:
    """They sort below a full history at the same time; a request that takes half a second is refused."""
    later, earlier = ([event("p" * 240 + f"{kind}{i:04d}", 5) for i in range(1000)] for kind in "za")
    await store.append(later)
    assert await store.append(earlier) == AppendResult(accepted=1000, duplicates=0)
    assert (await store.histories(["ann"]))[0] == oracle(later + earlier, "ann", 50)


@pytest.mark.parametrize("length", [1, 7, 64, 1000])
async def test_late_events_are_merged_where_they_belong(store_url: str, length: int) -> None:
    """Requests of many sizes, with ids that differ around every 32nd byte or not until one has ended."""
    rng = random.Random(length)
    ids = [f"{'é' * rng.choice((0, 15, 16, 31))}{rng.choice('aB_zé')}{'é' * (i % 37)}{i:03d}" for i in range(300)]
    ids += ["x" * width for width in range(1, 100)]
    events = [event(name, rng.randrange(4)) for name in ids]
    rng.shuffle(events)
    async with SequenceStore.connect(store_url, StoreSettings(history_length=length, read_timeout_s=5)) as store:
        begin = 0
        while begin < len(events):
            size = rng.choice((1, 3, 5, 90))
            await store.append(events[begin : begin + size])
            begin += size
            assert (await store.histories(["ann"]))[0] == oracle(events[:begin], "ann", length)


async def test_every_key_expires_or_is_bounded(store_url: str, client: redis.Redis) -> None:
    async with SequenceStore.connect(store_url, StoreSettings(log_max_events=300)) as store:
        for start in range(0, 3000, 1000):
            await store.append([event(f"{i}", i) for i in range(start, start + 1000)])
    ages = {key: client.ttl(key) for key in client.scan_iter("*") if client.type(key) == b"string"}
    streams = [key for key in client.scan_iter("*") if client.type(key) == b"stream"]
    assert sorted(ages.values()) == [24 * 3600, 90 * 24 * 3600]
    assert max(client.strlen(key) for key in ages) <= 2048 * 12
    assert len(streams) == 1
    assert 300 <= client.xlen(streams[0]) < 400  # whole nodes of a hundred are trimmed
    assert eventlog.gone(client) == 3000 - client.xlen(streams[0])


async def test_a_worker_whose_clock_is_ahead_drops_no_entry_that_is_too_young(
    store_url: str, client: redis.Redis
) -> None:
    keeps = StoreSettings(log_max_events=200, log_min_s=7 * 24 * 3600, write_timeout_s=5)
    async with SequenceStore.connect(store_url, keeps, clock=lambda: time.time() + 8 * 24 * 3600) as store:
        await store.append([event(f"{i}", i) for i in range(200)])
        with pytest.raises(StoreUnavailable, match="LOGFULL"):
            await store.append([event(f"{i}", i) for i in range(200, 400)])
    assert len(list(eventlog.read_events(client))) == 200


async def test_event_ids_are_remembered_for_a_day(store_url: str) -> None:
    now = 1_700_000_000.0
    settings_ = StoreSettings(history_length=1)
    async with SequenceStore.connect(store_url, settings_, clock=lambda: now) as store:
        await store.append([event("old", 1), event("new", 2)])  # the history of one holds "new" alone
        now += 24 * 3600 - 1
        assert (await store.append([event("old", 1)])).duplicates == 1
        now += 1
        assert (await store.append([event("old", 1), event("new", 2)])) == AppendResult(accepted=1, duplicates=1)
        assert (await store.append([event("old", 1)])).duplicates == 1
        assert await store.histories(["ann"]) == [["item-new"]]


def memory(client: redis.Redis, key: Any) -> int:
    size_bytes = client.memory_usage(key, samples=0)
    assert size_bytes is not None
    return size_bytes


async def test_fifty_events_take_at_most_three_kilobytes(store: SequenceStore, client: redis.Redis) -> None:
    events = [
        Event("ann", f"item{i:04d}", f"evnt{i:04d}", "interaction", 1_700_000_000_000 + i, 4.5) for i in range(50)
    ]
    await store.append(events)
    sizes = {key.decode(): memory(client, key) for key in client.scan_iter("*:[hd]:*")}
    print(sizes)
    assert len(sizes) == 2
    assert sum(sizes.values()) <= 3 * 1024


async def test_a_logged_event_takes_about_a_hundred_bytes(store: SequenceStore, client: redis.Redis) -> None:
    """Ids of eight characters, the event id a digest, and the id of the recommendation that led to it."""
    for start in range(0, 20_000, 1_000):
        await store.append(
            [
                Event(
                    *(f"user{n % 997:04d}", f"item{n % 991:04d}", f"{n * 2654435761:016x}", "click"),
                    timestamp_ms=1_700_000_000_000 + n,
                    recommendation_id=f"{n:016x}",
                )
                for n in range(start, start + 1_000)
            ]
        )
    keys = [eventlog.log_key(partition) for partition in range(eventlog.PARTITIONS)]
    size = sum(memory(client, key) for key in keys) / 20_000
    print(f"{size:.0f} bytes an event")
    assert 50 < size <= 110  # 93 in Valkey 9, and 107 in Redis 7.0


async def test_a_server_that_forgot_the_script_is_taught_it_again(store: SequenceStore, client: redis.Redis) -> None:
    await store.append([event("a", 1)])
    client.script_flush()
    assert await store.append([event("a", 1), event("b", 2), event("c", 3, user="bob")]) == AppendResult(2, 1)


async def test_a_server_without_memory_stores_nothing(store: SequenceStore, client: redis.Redis) -> None:
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await store.append([event("a", 1)])
    finally:
        client.config_set("maxmemory", "0")
    assert client.dbsize() == 0
    assert await store.append([event("a", 1)]) == AppendResult(accepted=1, duplicates=0)


DAMAGED_VALUES = [
    msgpack.packb([1, "e", "item", "rating", value, 3, "f", "item", "", False]) for value in (None, "x", [1])
]


async def test_one_damaged_history_does_not_fail_the_others(
    store: SequenceStore, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await store.append([event("a", 1), event("b", 1, user="bob")])
    key = next(client.scan_iter("*:h:ann"))
    for damage in (b"\x05", b"\x93\x01\x02\x03", b"\x95\x01\xa1e\x07\xa1t\xc2", b"\xc1", *DAMAGED_VALUES):
        client.set(key, damage)
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            assert await store.histories(["ann", "bob"]) == [[], ["item-b"]]
            nothing, (others, _) = await store.rated_histories(["ann", "bob"])
            assert (nothing, others) == (([], []), ["item-b"])
            assert await store.history("ann") == []
        assert caplog.text.count("not readable") == 3, damage
    assert "ann" not in caplog.text  # who it is stays out of the log


DAMAGED = [
    b"",
    b"\x05",
    b"\xa5abcde",
    b"\xc1",  # no MessagePack
    b"\x93\x01\x02\x03",
    msgpack.packb([1, "e", "item", "", False])[:-1],
    msgpack.packb([1, "e", "item", "", False]) + b"\x05",
    msgpack.packb({"a": 1}),
    msgpack.packb({1: 1, 2: "e", 3: "item", 4: "", 5: False, "a": 1}),
    msgpack.packb(["1", "e", "item", "", False]),
    msgpack.packb([1, 7, "item", "", False]),
    msgpack.packb([1, "e", 7, "", False, 3, "f", "item", "", False]),
    msgpack.packb([1, "e", [], "", False]),
    *DAMAGED_VALUES,
]


@pytest.mark.parametrize("size", [1, 7])  # few events are looked for in another way than many
async def test_a_damaged_history_begins_anew_with_the_next_event_and_keeps_nobody_out(
    store_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    async with SequenceStore.connect(store_url, StoreSettings(read_timeout_s=5, write_timeout_s=5)) as store:
        for damage in DAMAGED:
            client.flushall()
            caplog.clear()
            await store.append([event("a", 1)])
            client.set(next(client.scan_iter("*:h:ann")), damage)
            assert await store.append([event("seen", 2, type_="impression")]) == AppendResult(1, 0)
            assert caplog.messages == []  # that one belongs to no history
            later = [event(f"c{n}", 3 + n) for n in range(size)]
            others = [event("b", 1, user="bob")]
            assert await store.append_each([later, others]) == [AppendResult(size, 0), AppendResult(1, 0)], damage
            assert await store.histories(["ann", "bob"]) == [[one.item_id for one in later], ["item-b"]]
            assert caplog.messages == [f"a history was not readable and begins anew with {size} event(s)"]
            assert await store.append([event("a", 1), *later]) == AppendResult(0, 1 + size)  # the record has them
            assert len(list(eventlog.read_events(client))) == 3 + size


@pytest.mark.parametrize("field", ["timestamp_ms", "value", "item_id"])
def test_an_event_that_could_not_be_stored_exactly_is_refused(field: str) -> None:
    good = {"user_id": "u", "item_id": "i", "event_id": "e", "type": "t", "timestamp_ms": 0, "value": 0.0}
    bad = {"timestamp_ms": 2**53, "value": float("nan"), "item_id": ""}
    given: dict[str, Any] = {**good, field: bad[field]}
    with pytest.raises(ValueError, match=field):
        Event(**given)


@both_event_loops
async def test_a_server_that_never_answers_fails_a_read_within_120_ms() -> None:
    accepted = []
    server = await asyncio.start_server(lambda _reader, writer: accepted.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    elapsed = []
    async with SequenceStore.connect(f"redis://127.0.0.1:{port}", StoreSettings(max_connections=2)) as store:
        for _ in range(3):
            start = time.perf_counter()
            results = await asyncio.gather(*(store.histories(["ann"]) for _ in range(50)), return_exceptions=True)
            elapsed.append(time.perf_counter() - start)
            assert all(isinstance(r, StoreUnavailable) for r in results)
        start = time.perf_counter()
        with pytest.raises(StillUnavailable, match="50 ms"):
            await store.histories(["ann"])
        assert time.perf_counter() - start < 0.05  # what is known is not waited for again
    assert min(elapsed) < 0.12  # the fastest of three: a busy machine only adds
    for writer in accepted:
        writer.close()
    server.close()


async def test_nobody_listening_is_said_at_once() -> None:
    async with SequenceStore.connect("redis://:secret@127.0.0.1:1") as store:
        start = time.perf_counter()
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1") as raised:
            await store.append([event("a", 1)])
        assert time.perf_counter() - start < 0.1
    assert "secret" not in str(raised.value)


async def test_something_else_listening_is_unavailable() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with SequenceStore.connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as store:
        with pytest.raises(StoreUnavailable):
            await store.histories(["ann"])
        with pytest.raises(StoreUnavailable):
            await store.append([event("a", 1)])
    server.close()


@both_event_loops
async def test_calls_work_a_moment_after_the_server_is_back(killable_store: KillableStore) -> None:
    settings_ = StoreSettings(max_connections=8)
    async with SequenceStore.connect(killable_store.url, settings_) as store:
        await asyncio.gather(*(store.append([event(f"{i}", i)]) for i in range(8)))  # several pooled connections
        await asyncio.gather(*(store.histories(["ann"]) for _ in range(8)))
        killable_store.kill()
        with pytest.raises(StoreUnavailable):
            await store.histories(["ann"])
        with pytest.raises(StoreUnavailable):
            await store.append([event("x", 100)])
        killable_store.start()
        assert len((await in_a_moment(lambda: store.histories(["ann"])))[0]) == 8
        again = await in_a_moment(lambda: store.append([event("x", 100)]))
        assert again == AppendResult(accepted=1, duplicates=0)
        results = await asyncio.gather(*(store.histories(["ann"]) for _ in range(16)))
        assert {len(r[0]) for r in results} == {9}


@both_event_loops
async def test_a_restart_between_calls_goes_unnoticed(killable_store: KillableStore) -> None:
    async with SequenceStore.connect(killable_store.url) as store:
        await store.append([event("a", 1)])
        await store.histories(["ann"])
        killable_store.kill()
        killable_store.start()
        assert await store.histories(["ann"]) == [["item-a"]]
        assert await store.append([event("a", 1), event("b", 2)]) == AppendResult(accepted=1, duplicates=1)


async def test_a_server_that_stalls_and_goes_on_is_used_again(killable_store: KillableStore) -> None:
    async with SequenceStore.connect(killable_store.url) as store:
        await store.append([event("a", 1)])
        killable_store.pause()
        with pytest.raises(StoreUnavailable, match="500 ms"):
            await store.append([event("b", 2)])
        with pytest.raises(StoreUnavailable, match="50 ms"):
            await store.histories(["ann"])
        killable_store.resume()
        await in_a_moment(lambda: store.append([event("b", 2)]))  # the unanswered attempts may have been carried out
        assert await in_a_moment(lambda: store.histories(["ann"])) == [["item-a", "item-b"]]


@both_event_loops
async def test_cancelled_calls_leave_neither_wrong_answers_nor_lost_connections(store_url: str) -> None:
    users = [f"user{i}" for i in range(20)]
    async with SequenceStore.connect(store_url, StoreSettings(max_connections=2)) as store:
        await store.append([event(user, 1, user=user) for user in users])

        async def read(index: int) -> None:
            task = asyncio.create_task(store.histories([users[index % 20]]))
            for _ in range(index % 13):  # cancelled at every stage of a call
                await asyncio.sleep(0)
            if index % 3:
                task.cancel()
            answer = (await asyncio.gather(task, return_exceptions=True))[0]
            assert isinstance(answer, asyncio.CancelledError) or answer == [[f"item-{users[index % 20]}"]]

        for start in range(0, 400, 8):
            await asyncio.gather(*(read(index) for index in range(start, start + 8)))
        assert await store.histories(users) == [[f"item-{user}"] for user in users]
