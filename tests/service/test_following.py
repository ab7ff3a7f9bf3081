"""How every process follows what is said of items: in pages, to the end, and once."""

import itertools
from typing import Any

import pytest
import redis

from service.attributes import ItemState
from service.connection import Connection, StoreUnavailable
from service.items import MAX_KEPT, ItemStore, LiveItems, TooManyItems


@pytest.mark.anyio
async def test_changes_are_read_in_pages_and_each_once(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection(store_url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    store = ItemStore(connection)
    expected: dict[str, ItemState] = {}
    for write in range(9):
        states = {f"x{n}": ItemState({"write": write}) for n in range(write * 600, write * 600 + 1000)}
        await store.put(states)
        expected |= states
    found: dict[str, ItemState] = {}
    version, pages = 0, 0
    while version < (await store.standing())[1]:
        version, states = await store.since(version)
        found |= states
        pages += 1
    assert (found, version, pages) == (expected, 9, 2)
    assert await store.since(version) == (9, {})
    monkeypatch.setattr("service.items.MAX_KEPT", len(expected))
    gone = ItemState(available=False)
    await store.put({"x0": gone})  # known already
    with pytest.raises(TooManyItems):
        await store.put({"y": gone})
    assert await store.standing() == (0, 10)
    await store.put({"x0": ItemState()})  # which makes room
    await store.put({"y": gone})
    assert await store.since(10) == (12, {"x0": ItemState(), "y": gone})
    await connection.aclose()
    assert MAX_KEPT >= 1_000_000


@pytest.mark.anyio
async def test_items_that_came_and_went_take_no_room_from_new_ones(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who was away meanwhile reads all again, so that it misses none that was taken back and forgotten."""
    monkeypatch.setattr("service.items.MAX_KEPT", 20)
    monkeypatch.setattr("service.items.MAX_COLD", 10)
    connection = Connection(store_url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    store, told = ItemStore(connection), Noted()
    away = LiveItems(store, lambda: [told], poll_s=60)  # type: ignore[list-item]
    gone = ItemState(available=False)
    await store.put({"stays": gone, "back soon": gone})
    await away.refresh()
    await store.put({"back soon": ItemState()})
    for number in range(100):
        await store.meet([(f"met{number}", ("i1",))])
        await store.put({f"x{number}": gone, f"y{number}": gone})
        await store.put({f"x{number}": ItemState(), f"y{number}": ItemState()})
    with redis.Redis.from_url(store_url) as client:
        assert client.zcard("recserve:{items}:changes") < 100
    floor, version = await store.standing()
    assert 1 < floor <= version
    await away.refresh()
    assert "stays" not in told.told[-1]
    assert told.told[-1]["back soon"] == ItemState()
    late = Noted()
    await LiveItems(store, lambda: [late], poll_s=60).refresh()  # type: ignore[list-item]
    (everything,) = late.told
    assert everything.pop("stays") == gone
    assert everything == {f"met{number}": ItemState(contexts=(("i1",),)) for number in range(90, 100)}
    assert everything.items() <= told.told[-1].items()
    await connection.aclose()


COUNT = itertools.count()
WRITES = 8


class Overtaken(ItemStore):
    """Every page of it is followed by writes that make more changes be forgotten, or move, than a page has."""

    async def since(self, version: int) -> tuple[int, dict[str, ItemState]]:
        found = await super().since(version)
        for _ in range(WRITES):
            await self.put({f"new{next(COUNT)}": ItemState() for _ in range(10)})
        return found


@pytest.mark.anyio
async def test_who_reads_all_while_changes_are_forgotten_comes_to_an_end_and_gives_up_nothing_that_stays(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.items.MAX_KEPT", 200)
    monkeypatch.setattr("service.items._PAGE", 24)
    connection = Connection(store_url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    store, late = ItemStore(connection), Noted()
    sold = {f"sold{number}": ItemState(available=False) for number in range(150)}
    for begin in range(0, 150, 10):
        await store.put(dict(list(sold.items())[begin : begin + 10]))
    for number in range(60):
        await store.put({f"x{number}-{one}": ItemState() for one in range(10)})
    flooded = LiveItems(Overtaken(connection), lambda: [late], poll_s=60)  # type: ignore[list-item]
    for _ in range(4):
        await flooded.refresh()
    assert all(state == sold[item] for told in late.told for item, state in told.items() if item in sold)
    monkeypatch.setattr(Overtaken, "since", ItemStore.since)
    await flooded.refresh()  # the flood has ended
    assert {item for told in late.told for item in told if item in sold} == sold.keys()
    await connection.aclose()


@pytest.mark.anyio
async def test_who_reads_all_comes_to_an_end_under_writes(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.items.MAX_KEPT", 200)
    monkeypatch.setattr("service.items._PAGE", 150)
    connection = Connection(store_url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    store, late = ItemStore(connection), Noted()
    for number in range(60):
        await store.put({f"x{number}-{one}": ItemState() for one in range(10)})
    items = LiveItems(Overtaken(connection), lambda: [late], poll_s=60)  # type: ignore[list-item]
    for _ in range(2):
        await items.refresh()
    _, version = await store.standing()
    await items.refresh()
    assert (await store.standing())[1] - version == WRITES  # that many writes are new, in one page
    await connection.aclose()


class Forgetful(ItemStore):
    """Forgets changes up to a write just before its next page is read."""

    upto = 0

    async def since(self, version: int) -> tuple[int, dict[str, ItemState]]:
        while (await self.standing())[0] < self.upto:
            await self.put({f"new{next(COUNT)}": ItemState() for _ in range(10)})
        return await super().since(version)


@pytest.mark.anyio
async def test_a_change_that_is_forgotten_before_its_follower_has_read_it_is_not_missed(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.items.MAX_KEPT", 200)
    connection = Connection(store_url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    store, told = Forgetful(connection), Noted()
    follower = LiveItems(store, lambda: [told], poll_s=60)  # type: ignore[list-item]
    await store.put({"sold": ItemState(available=False)})
    for number in range(60):
        await store.put({f"x{number}-{one}": ItemState() for one in range(10)})
    await follower.refresh()
    await store.put({"sold": ItemState()})
    _, store.upto = await store.standing()
    for number in range(10):
        await store.put({f"y{number}-{one}": ItemState() for one in range(10)})
    floor, version = await store.standing()
    assert floor < store.upto
    await follower.refresh()
    assert store.upto <= (await store.standing())[0] <= version  # which was forgotten, and not all that it then read
    await follower.refresh()
    assert told.told[-1]["sold"] == ItemState()
    await connection.aclose()


@pytest.mark.anyio
async def test_a_change_that_an_engine_could_not_take_over_is_told_again(store_url: str) -> None:
    connection = Connection(store_url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    store, engine = ItemStore(connection), Refusing()
    items = LiveItems(store, lambda: [engine], poll_s=60)  # type: ignore[list-item]
    await store.put({"i1": ItemState(available=False)})
    with pytest.raises(MemoryError):
        await items.refresh()
    engine.full = False
    await items.refresh()
    assert engine.told == [{"i1": ItemState(available=False)}]
    await connection.aclose()


class Noted:
    """Stands for an engine, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, ItemState]] = []
        self.catalogue = self

    def change(self, states: dict[str, ItemState]) -> None:
        self.told.append(states)


class Refusing(Noted):
    full = True

    def change(self, states: dict[str, ItemState]) -> None:
        if self.full:
            raise MemoryError
        super().change(states)


@pytest.mark.anyio
async def test_an_engine_that_starts_to_serve_is_told_once_of_every_change(store_url: str) -> None:
    connection = Connection(store_url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    serving: list[Any] = []
    gone = ItemState(available=False)
    async with LiveItems(ItemStore(connection), lambda: serving, poll_s=60) as live:
        await live.put({"a": gone, "b": gone})
        engine: Any = Noted()
        live.prepare(engine)
        await live.put({"a": ItemState(), "c": gone})
        await live.put({"c": ItemState()})
        serving.append(engine)
        live.catch_up(engine)
        await live.put({"d": gone})
        live.catch_up(engine)
    assert engine.told == [{"a": gone, "b": gone}, {"a": ItemState(), "c": gone}, {"c": ItemState()}, {"d": gone}]
    await connection.aclose()


@pytest.mark.anyio
async def test_what_takes_many_pages_to_read_is_one_change(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.items._PAGE", 3)
    connection = Connection(store_url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    gone = ItemState(available=False)
    engine: Any = Noted()
    store = ItemStore(connection)
    for item in "abcdefg":
        await store.put({item: gone})
    async with LiveItems(store, lambda: [engine], poll_s=60) as live:
        assert engine.told == [dict.fromkeys("abcdefg", gone)]
        await store.put({"a": ItemState()})
        await live.put({"h": gone})
    assert engine.told[1:] == [{"a": ItemState(), "h": gone}]
    await connection.aclose()


class Failing(ItemStore):
    """Does not answer the second time that it is asked for a page."""

    asked = 0

    async def since(self, version: int) -> tuple[int, dict[str, ItemState]]:
        self.asked += 1
        if self.asked == 2:
            raise StoreUnavailable("no answer")
        return await super().since(version)


@pytest.mark.anyio
async def test_pages_that_were_read_before_the_store_went_away_are_not_read_again(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.items._PAGE", 3)
    connection = Connection(store_url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    gone = ItemState(available=False)
    engine: Any = Noted()
    store = Failing(connection)
    for item in "abcde":
        await store.put({item: gone})
    async with LiveItems(store, lambda: [engine], poll_s=60) as live:
        assert engine.told == [dict.fromkeys("ab", gone)]
        await live.refresh()
    assert engine.told[1:] == [dict.fromkeys("cde", gone)]
    assert store.asked == 4
    await connection.aclose()


@pytest.mark.anyio
async def test_a_store_that_was_emptied_takes_its_states_with_it(store_url: str) -> None:
    connection = Connection(store_url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    engine: Any = Noted()
    async with LiveItems(ItemStore(connection), lambda: [engine], poll_s=60) as live:
        gone = ItemState(available=False)
        await live.put({"a": gone, "b": gone})
        await live.put({"c": gone})
        with redis.Redis.from_url(store_url) as server:
            server.flushall()
        await live.put({"b": gone})
    assert engine.told == [{"a": gone, "b": gone}, {"c": gone}, {"a": ItemState(), "c": ItemState()}]
    await connection.aclose()
