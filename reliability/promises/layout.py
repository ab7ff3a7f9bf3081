"""What a user costs in the store and how fast it goes, beside a sorted set and a list of the same events."""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.servers import ROOT
from models.eventlog import LoggedEvent, connect, digest_of, log_key, partition_of, tombstones_key
from reliability.programs import archive
from reliability.promise import Finding
from service.attributes import ItemState
from service.cold import MAX_COLD
from service.embedded import EmbeddedStore
from service.erasure import Erasure
from service.items import MAX_KEPT, ItemStore
from service.keyfile import Limit
from service.limits import Limits
from service.sequences import RECORD_LENGTH, SequenceStore, StoreSettings, history_key, record_key

TITLE = "The store's layout: at most 3 KB a user with 50 events, and every key expires or is bounded"

_LENGTH = 50  # events of a history
_AT_ONCE = 500  # users a read
_ROUNDS = 5
_DAY_S = 86_400
_NOW_MS = 1_780_000_000_000
_LOG_LENGTH = 1_000
_SETTINGS = StoreSettings(log_max_events=_LOG_LENGTH, read_timeout_s=10, write_timeout_s=10)
_LAYOUTS = ("packed value", "sorted set", "list")
_UNPACKED = "histories"
_ERASED_LENGTH = 100  # of a log, for erasures: that of two nodes, so that few of them reach the bounds
_CUT_OFF = 500
_NODE = 100  # entries of a log that go together
_KINDS = 12  # of keys
_BUSY = "busy0000"


def check(full: bool, folder: Path) -> list[Finding]:
    """Quick: 200 users and no bound on speed; full: 10,000, and at least 100,000 users read a second."""
    users = [f"user{n:04d}" for n in range(10_000 if full else 200)]
    with EmbeddedStore(folder / "store") as store:
        client = connect(store.url)
        client.config_set("appendfsync", "everysec")  # the disk would hide what a layout costs
        asyncio.run(_append(store.url, users))
        for user in users:
            _in_the_other_layouts(client, user)
        sizes = {layout: [_size(client, user, layout) for user in users] for layout in _LAYOUTS}
        values = [client.strlen(history_key(user)) for user in users]
        appended, read = asyncio.run(_rates(store.url, users, repeats=2_000 if full else 200))
        client.delete(*(_key(user, layout) for user in users for layout in _LAYOUTS[1:]))
        asyncio.run(_append(store.url, [_BUSY], events=RECORD_LENGTH))
        busy = _size(client, _BUSY, _LAYOUTS[0])
        archive(store.url, folder / "archive")
        asyncio.run(_write_other_keys(store.url, users[0]))
        _cut_erasures_off(client)
        keys = list(client.scan_iter("*", count=1000))
        unbounded = [key for key in keys if not _bounded(client, key)]
        client.close()
    packed, *others = _LAYOUTS
    return [
        Finding("bytes of a user with 50 events and their ids, the largest", max(sizes[packed]), most=3_072, unit="B"),
        Finding("bytes of the packed history in it, the largest", max(values), unit="B"),
        Finding(f"bytes of a user with as many ids as are ever remembered, {RECORD_LENGTH:,}", busy, unit="B"),
        Finding("keys without an expiry or a bound", len(unbounded), most=0),
        Finding("kinds of keys that were looked at", len(set(map(_kind, keys))), least=_KINDS),
        Finding("users read in 1 s, 500 a command", read[packed], least=100_000 if full else None, unit="users/s"),
        Finding("the same and unpacked, by SequenceStore.histories", read[_UNPACKED], unit="users/s"),
        *(Finding(f"users read in 1 s from a {layout} each", read[layout], unit="users/s") for layout in others),
        Finding("events appended in 1 s, one a call, as a share of PING", appended[packed]),
        *(Finding(f"the same to a {layout}, without repeats or a log", appended[layout]) for layout in others),
        *(Finding(f"bytes of a user in a {layout}, ids aside", max(sizes[layout]), unit="B") for layout in others),
    ]


def _event(user: str, number: int) -> LoggedEvent:
    return LoggedEvent(user, f"item{number % 10_000:04d}", f"e{number:07d}", "interaction", _NOW_MS + number)


async def _append(url: str, users: Iterable[str], *, events: int = _LENGTH) -> None:
    async with SequenceStore.connect(url, _SETTINGS) as store:
        for user in users:
            await store.append([_event(user, number) for number in range(events)])


def _key(user: str, layout: str) -> str:
    return f"{layout}:{user}"


def _in_the_other_layouts(client: Any, user: str) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(_LENGTH):
        _to_a_sorted_set(pipeline, user, number)
        _to_a_list(pipeline, user, number)
    pipeline.execute()


def _to_a_sorted_set(pipeline: Any, user: str, number: int) -> None:
    """Event id and item id by time, the newest kept."""
    key, event = _key(user, "sorted set"), _event(user, number)
    pipeline.zadd(key, {f"{event.event_id}:{event.item_id}": event.timestamp_ms})
    pipeline.zremrangebyrank(key, 0, -_LENGTH - 1)
    pipeline.expire(key, _DAY_S)


def _to_a_list(pipeline: Any, user: str, number: int) -> None:
    """One JSON array an event in order of arrival, the newest kept."""
    key, event = _key(user, "list"), _event(user, number)
    pipeline.rpush(key, json.dumps([event.timestamp_ms, event.event_id, event.item_id]))
    pipeline.ltrim(key, -_LENGTH, -1)
    pipeline.expire(key, _DAY_S)


def _size(client: Any, user: str, layout: str) -> int:
    """Bytes of all that is kept of a user but the log, the server's own for the keys included."""
    keys = [history_key(user), record_key(user)] if layout == _LAYOUTS[0] else [_key(user, layout)]
    return sum(client.memory_usage(key, samples=0) for key in keys)


async def _rates(url: str, users: list[str], *, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Appends of each layout as a share of PING's rate, and users read a second: medians of rounds in turn."""
    appended: dict[str, list[float]] = {layout: [] for layout in _LAYOUTS}
    read: dict[str, list[float]] = {layout: [] for layout in (*_LAYOUTS, _UNPACKED)}
    parts = [users[begin : begin + _AT_ONCE] for begin in range(0, len(users), _AT_ONCE)]
    async with SequenceStore.connect(url, _SETTINGS) as store:
        for number in range(_ROUNDS):
            numbers = range(_LENGTH + number * repeats, _LENGTH + (number + 1) * repeats)
            ping = await _rate(lambda _: store.connection.read(b"", lambda client: client.ping()), numbers)
            for layout in _LAYOUTS:
                appended[layout].append(await _rate(_appending(store, users, layout), numbers) / ping)
                read[layout].append(await _rate(_reading(store, layout), parts) * len(users) / len(parts))
            read[_UNPACKED].append(await _rate(store.histories, parts) * len(users) / len(parts))
    return (
        {layout: statistics.median(rates) for layout, rates in appended.items()},
        {layout: statistics.median(rates) for layout, rates in read.items()},
    )


async def _rate(call: Callable[[Any], Awaitable[Any]], arguments: Sequence[Any]) -> float:
    """Calls a second, one after the other."""
    began = time.perf_counter()
    for argument in arguments:
        await call(argument)
    return len(arguments) / (time.perf_counter() - began)


def _appending(store: SequenceStore, users: list[str], layout: str) -> Callable[[int], Awaitable[Any]]:
    add = {"sorted set": _to_a_sorted_set, "list": _to_a_list}.get(layout)

    async def append(number: int) -> Any:
        user = users[number * 7 % len(users)]
        if add is None:
            return await store.append([_event(user, number)])

        async def others(client: Any) -> Any:
            pipeline = client.pipeline(transaction=True)
            add(pipeline, user, number)
            return await pipeline.execute()

        return await store.connection.read(history_key(user), others, large=True)

    return append


def _reading(store: SequenceStore, layout: str) -> Callable[[list[str]], Awaitable[Any]]:
    async def read(users: list[str]) -> Any:
        async def others(client: Any) -> Any:
            if layout == _LAYOUTS[0]:
                return await client.mget([history_key(user) for user in users])
            pipeline = client.pipeline(transaction=False)
            for user in users:
                command = pipeline.zrange if layout == "sorted set" else pipeline.lrange
                command(_key(user, layout), 0, -1)
            return await pipeline.execute()

        return await store.connection.read(history_key(users[0]), others)

    return read


async def _write_other_keys(url: str, user: str) -> None:
    """Erase a user, put items, note where more new items were met than are kept, and count a key's request."""
    async with SequenceStore.connect(url, _SETTINGS) as store:
        await Erasure(store.connection, log_length=_ERASED_LENGTH).erase(user)
        items = ItemStore(store.connection)
        await items.put({f"item{number:04d}": ItemState(None, False) for number in range(1_000)})
        for begin in range(0, MAX_COLD + 1_000, 1_000):
            await items.meet([(f"new{number}", ("item0001",)) for number in range(begin, begin + 1_000)])
        await Limits(store.connection).admit("key", Limit(requests=60, seconds=3_600))


def _cut_erasures_off(client: Any) -> None:
    """What services leave that die after the first step of an erasure, of more users than a log has entries."""
    script = client.register_script((ROOT / "service" / "erase.lua").read_text(encoding="utf-8"))
    users = [f"gone{number}" for number in range(_CUT_OFF * 20)]
    partition = partition_of(users[0])
    shared = [log_key(partition), f"recserve:{{{partition}}}:erasing", tombstones_key(partition)]
    for user in [user for user in users if partition_of(user) == partition][:_CUT_OFF]:
        script([history_key(user), record_key(user), *shared], [user, digest_of(user), _ERASED_LENGTH, 0])


def _kind(key: bytes) -> bytes:
    """What follows the hash tag but the user, as in recserve:{5}:h:user; of a limit it is all tag."""
    return key.partition(b"}")[2].split(b":")[1] if not key.endswith(b"}") else b"limit"


def _bounded(client: Any, key: bytes) -> bool:
    """Whether a key expires, or is one of its partition or of all items and holds no more than is ever kept there."""
    if client.ttl(key) > 0:
        return True
    kind = _kind(key)
    size = {"stream": client.xlen, "hash": client.hlen, "zset": client.zcard, "string": client.strlen}
    most = {
        b"log": _LOG_LENGTH + _NODE,
        b"archived": 64,
        b"tombstones": _ERASED_LENGTH,
        b"erasing": 2 * _ERASED_LENGTH + _NODE,
        b"states": MAX_KEPT,
        b"changes": 2 * MAX_KEPT,
        b"version": 64,
        b"contexts": MAX_COLD,
        b"met": MAX_COLD,
    }
    return bool(kind in most and size[client.type(key).decode()](key) <= most[kind])
