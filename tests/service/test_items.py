"""PUT /items and what follows from it, and GET /items/{id}/similar, over HTTP.

In the bundle used, 12 items lie on a circle: after item i come i + 1, i + 2, ...; an item scores 12 less its steps.
"""

import asyncio
import fcntl
import itertools
import json
import logging
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from service.attributes import ItemState
from service.connection import Connection, StoreUnavailable
from service.engine import Engine, Ranking
from service.items import MAX_KEPT, ItemStore, LiveItems, TooManyItems
from tests.service.conftest import KillableStore

COLUMNS: dict[str, list[Any]] = {"kind": [None, *["book", "film"] * 6]}


@pytest.fixture
def shop(start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str) -> httpx.Client:
    make_bundle("v1", attributes=COLUMNS)
    return start_service(store_url)


def put(client: httpx.Client, *items: dict[str, Any]) -> dict[str, Any]:
    response = client.put("/items", json={"items": list(items)})
    assert response.status_code == 200, response.text
    return response.json()


def recommended(client: httpx.Client, **body: Any) -> list[str]:
    return [item["item_id"] for item in client.post("/recommend", json=body).json()["items"]]


def eventually(client: httpx.Client, expected: list[str], **body: Any) -> None:
    """Other processes follow by looking, and so does one whose store was slow to answer."""
    deadline = time.monotonic() + 10
    while (found := recommended(client, **body)) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found == expected


def similar(client: httpx.Client, item: str, **parameters: Any) -> list[str]:
    response = client.get(f"/items/{item}/similar", params=parameters)
    assert response.status_code == 200, response.text
    return [one["item_id"] for one in response.json()["items"]]


def test_what_is_not_available_is_in_no_answer_until_it_is_again(shop: httpx.Client) -> None:
    said = put(shop, {"item_id": "i2", "available": False}, {"item_id": "new", "available": False})
    assert said == {"accepted": 2, "unknown_items": 1}
    assert recommended(shop, history=["i1"], k=2) == ["i3", "i4"]
    assert recommended(shop, history=["i2"], k=2) == ["i3", "i4"]  # it still says what its user likes
    assert recommended(shop, k=2) == ["i1", "i3"]
    assert recommended(shop, history=["i1"], candidates=["i2", "i5"]) == ["i5"]
    assert recommended(shop, history=["i1"], k=2, filter={"eq": {"kind": "film"}}) == ["i4", "i6"]
    assert "i2" not in similar(shop, "i1", k=12)
    put(shop, {"item_id": "i2"})
    assert recommended(shop, history=["i1"], k=2) == ["i2", "i3"]


def test_attributes_replace_those_of_the_bundle_until_they_are_taken_back(shop: httpx.Client) -> None:
    films = {"eq": {"kind": "film"}}
    assert recommended(shop, history=["i1"], k=2, filter=films) == ["i2", "i4"]
    put(shop, {"item_id": "i2", "attributes": {"stock": 3}}, {"item_id": "i3", "attributes": {"kind": ["x", "film"]}})
    assert recommended(shop, history=["i1"], k=2, filter=films) == ["i3", "i4"]
    assert recommended(shop, history=["i1"], filter={"gte": {"stock": 1}}) == ["i2"]
    put(shop, {"item_id": "i2", "attributes": {"stock": 0}})
    assert recommended(shop, history=["i1"], filter={"gte": {"stock": 1}}) == []
    put(shop, {"item_id": "i2"}, {"item_id": "i3"})
    assert recommended(shop, history=["i1"], k=2, filter=films) == ["i2", "i4"]


def test_what_was_said_outlives_a_restart_and_a_new_bundle(
    shop: httpx.Client, start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    put(shop, {"item_id": "i2", "available": False}, {"item_id": "i14", "attributes": {"kind": "toy"}})
    make_bundle("v2", items=14, promote=False)
    assert shop.post("/models/v2/promote").status_code == 200
    for client in (shop, start_service(store_url)):
        assert recommended(client, history=["i1"], k=1) == ["i3"]
        assert recommended(client, history=["i1"], filter={"eq": {"kind": "toy"}}) == ["i14"]


def test_what_is_taken_back_during_a_promotion_is_as_the_new_bundle_says(
    shop: httpx.Client, make_bundle: Callable[..., Path], artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    put(shop, {"item_id": "i2", "available": False}, {"item_id": "i3", "attributes": {"kind": "toy"}})
    make_bundle("v2", attributes=COLUMNS, promote=False)
    with (artifacts / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which a promotion waits for when its engine has been told of all items
        promotion = threading.Thread(target=lambda: shop.post("/models/v2/promote"))
        promotion.start()
        until = time.monotonic() + 10
        while "loaded v2" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.01)
        put(shop, {"item_id": "i2"}, {"item_id": "i3"}, {"item_id": "i4", "available": False})
    promotion.join()
    assert shop.get("/readyz").json()["model_version"] == "v2"
    eventually(shop, ["i2", "i3", "i5"], history=["i1"], k=3)
    assert recommended(shop, history=["i1"], filter={"eq": {"kind": "book"}}, k=1) == ["i3"]
    put(shop, {"item_id": "i3", "available": False})  # it goes on being followed
    eventually(shop, ["i2", "i5"], history=["i1"], k=2)


def test_other_processes_follow(shop: httpx.Client, start_service: Callable[..., httpx.Client], store_url: str) -> None:
    other = start_service(store_url)
    put(shop, {"item_id": "i2", "available": False})
    eventually(other, ["i3"], history=["i1"], k=1)


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({}, "items.0.item_id"),
        ({"item_id": ""}, "items.0.item_id"),
        ({"item_id": 7}, "items.0.item_id"),
        ({"item_id": "i1", "available": "no"}, "items.0.available"),
        ({"item_id": "i1", "attributes": []}, "items.0.attributes"),
        ({"item_id": "i1", "attributes": {"a": "x" * 4096}}, "items.0.attributes"),
        ({"item_id": "i1", "colour": "red"}, "items.0.colour"),
    ],
)
def test_an_item_that_is_none_is_refused_by_name_and_nothing_is_stored(
    shop: httpx.Client, store_url: str, item: dict[str, Any], field: str
) -> None:
    response = shop.put("/items", json={"items": [item, {"item_id": "i2", "available": False}]})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, field)
    with redis.Redis.from_url(store_url) as server:
        assert server.dbsize() == 0


def test_similar_items_are_asked_of_an_id_that_an_item_could_have(shop: httpx.Client) -> None:
    asked = {"": "too_short", "é" * 128 + "x": "too_long", "é" * 128: None}
    for item, code in asked.items():
        answer = shop.get(f"/items/{item}/similar")
        found = [entry["code"] for entry in answer.json()["errors"]]
        assert (answer.status_code, found) == ((422, [code]) if code else (404, []))


@pytest.mark.parametrize("value", [None, {"b": 1}, [["x"]], [None]])
def test_an_attribute_is_a_value_or_a_list_of_them(shop: httpx.Client, value: object) -> None:
    response = shop.put("/items", json={"items": [{"item_id": "i1", "attributes": {"a": value}}]})
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert (error["field"], error["code"]) == ("items.0.attributes.a", "attribute")


@pytest.mark.parametrize("value", [2**53, -(2**53), [1, 2**60], 1e16, [-1e300]])
def test_a_number_that_filters_could_take_for_another_is_refused(shop: httpx.Client, value: object) -> None:
    response = shop.put("/items", json={"items": [{"item_id": "i1", "attributes": {"a": value}}]})
    (error,) = response.json()["errors"]
    assert (response.status_code, error["field"]) == (422, "items.0.attributes.a")
    assert error["value"] == json.dumps(value, separators=(",", ":"))
    assert shop.put("/items", json={"items": [{"item_id": "i1", "attributes": {"a": 2**64}}]}).status_code == 422
    assert "send large ids as text" in error["detail"]
    put(shop, {"item_id": "i1", "attributes": {"a": [2**53 - 1, 1e15, True]}}, {"item_id": "i2", "attributes": {}})
    assert recommended(shop, filter={"eq": {"a": 2**53 - 1}}) == ["i1"]


def test_as_many_items_as_the_contract_says_and_no_more(shop: httpx.Client) -> None:
    many = [{"item_id": f"x{n}", "available": False} for n in range(1001)]
    assert put(shop, *many[:1000]) == {"accepted": 1000, "unknown_items": 1000}
    for items in (many, [], many[:1] * 2):
        assert shop.put("/items", json={"items": items}).status_code == 422


def test_an_item_that_stands_twice_is_named(shop: httpx.Client) -> None:
    items = [{"item_id": "i1"}, {"item_id": "i2"}, {"item_id": "i1", "available": False}, {"item_id": "i2"}]
    refused = shop.put("/items", json={"items": items})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    (error,) = refused.json()["errors"]
    assert (error["field"], error["value"]) == ("items.2.item_id", '"i1"')
    assert 'items.2.item_id is "i1": ' in refused.json()["detail"]


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


def test_without_the_store_what_is_known_stands_and_nothing_is_acknowledged(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], killable_store: KillableStore
) -> None:
    make_bundle("v1", attributes=COLUMNS)
    client = start_service(killable_store.url)
    put(client, {"item_id": "i2", "available": False})
    killable_store.kill()
    refused = client.put("/items", json={"items": [{"item_id": "i3", "available": False}]})
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert recommended(client, history=["i1"], k=2) == ["i3", "i4"]
    killable_store.start()
    again, until = {"items": [{"item_id": "i3", "available": False}]}, time.monotonic() + 2
    while client.put("/items", json=again).status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert recommended(client, history=["i1"], k=1) == ["i4"]  # i2 has outlived the server


def test_items_that_a_full_store_refuses_are_counted_and_the_reason_is_in_the_log(
    shop: httpx.Client, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis.from_url(store_url) as server:
        server.config_set("maxmemory", "1")
        try:
            began = time.monotonic()
            for _ in range(20):
                refused = shop.put("/items", json={"items": [{"item_id": "i2", "available": False}]})
        finally:
            server.config_set("maxmemory", "0")
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert 'recserve_store_errors_total{call="write"} 20.0' in shop.get("/metrics").text
    said = [record for record in caplog.records if record.getMessage().startswith("items were not stored: ")]
    assert 1 <= len(said) <= 1 + (time.monotonic() - began)  # once a second
    assert all(record.levelname == "ERROR" and "maxmemory" in record.getMessage() for record in said)


def test_similar_items_are_those_with_the_smallest_angle(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    """All items of such a bundle stand at right angles: ties, which go in item order, and none is itself."""
    make_bundle("v1")
    client = start_service(store_url)
    answer = client.get("/items/i3/similar", params={"k": 3}).json()
    assert answer == {
        "item_id": "i3",
        "model_version": "v1",
        "items": [{"item_id": item, "score": 0.0} for item in ("i1", "i2", "i4")],
    }
    assert similar(client, "i3", k=500) == [f"i{n}" for n in range(1, 13) if n != 3]
    assert len(similar(client, "i3")) == 10


def test_more_calls_for_similar_items_than_may_wait_are_refused_and_hold_nothing_else_up(
    start_service: Callable[..., httpx.Client],
    make_bundle: Callable[..., Path],
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go, find = threading.Event(), Engine.similar

    def held(self: Engine, index: int, k: int) -> Ranking:
        go.wait(20)
        return find(self, index, k)

    monkeypatch.setattr(Engine, "similar", held)
    make_bundle("v1")
    make_bundle("v2", promote=False)
    client = start_service(store_url, max_waiting=8)

    async def at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=20) as own:
            calls = [asyncio.create_task(own.get("/items/i1/similar")) for _ in range(40)]
            until = time.monotonic() + 10
            while sum(call.done() for call in calls) < 31:  # all but the one that is looked for and eight that wait
                assert time.monotonic() < until
                await asyncio.sleep(0.01)
            await asyncio.to_thread(put, client, {"item_id": "i2", "available": False})
            promoted = await own.post("/models/v2/promote")
            assert promoted.status_code == 200
            go.set()
            return await asyncio.gather(*calls)

    answers = asyncio.run(at_once())
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert (len(served), len(refused)) == (9, 31)
    assert {answer.json()["code"] for answer in refused} == {"overloaded"}
    assert all(answer.headers["Retry-After"] for answer in refused)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/items/unheard%2Fof/similar", 404, "item_not_found"),
        ("/items/i1/similar?k=0", 422, "invalid_request"),
        ("/items/i1/similar?k=501", 422, "invalid_request"),
        ("/items/i1/similar?k=ten", 422, "invalid_request"),
        ("/items/i1/similar?K=3", 422, "invalid_request"),
        ("/items/i1/similar?k=3&k=5", 422, "invalid_request"),
        ("/items/i1/similar?k=", 422, "invalid_request"),
        ("/items/i1", 404, "not_found"),
        ("/items/unheard/of/similar", 404, "not_found"),
        ("/items/%ff/similar", 422, "invalid_request"),
    ],
)
def test_a_wrong_call_for_similar_items_is_refused(client: httpx.Client, path: str, status: int, code: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert code != "item_not_found" or '"unheard/of"' in response.json()["detail"]


@pytest.mark.parametrize("scale", [1, 1e25, 1e-25])  # the squares of the last two are no numbers of float32
def test_similar_items_equal_a_slow_search(make_bundle: Callable[..., Path], scale: float) -> None:
    from models.bundle import read_bundle
    from models.runtime import Runtime

    engine = Engine(Runtime(read_bundle(make_bundle("v1", items=40)), device="cpu", threads=1))
    vectors = np.random.default_rng(1).standard_normal((41, 40)).astype(np.float32)
    object.__setattr__(engine.bundle, "items", vectors * np.float32(scale))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for index in range(1, 41):
        cosines = unit @ unit[index]
        expected = sorted((row for row in range(1, 41) if row != index), key=lambda row: -cosines[row])[:7]
        assert engine.similar(index, 7).indices == expected


def test_similar_items_need_no_copy_of_the_matrix(make_bundle: Callable[..., Path]) -> None:
    from models.bundle import read_bundle
    from models.runtime import Runtime

    engine = Engine(Runtime(read_bundle(make_bundle("v1", items=3000)), device="cpu", threads=1))
    tracemalloc.start()
    engine.similar(7, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < engine.bundle.items.nbytes / 10


def test_a_cosine_is_at_most_1_whatever_rounding_adds(make_bundle: Callable[..., Path]) -> None:
    from models.bundle import read_bundle
    from models.runtime import Runtime

    direction = np.random.default_rng(1).standard_normal(8).astype(np.float32)
    matrix = np.arange(41, dtype=np.float32)[:, None] * direction
    folder = make_bundle("v1", table=matrix, matrix=matrix)
    engine = Engine(Runtime(read_bundle(folder), device="cpu", threads=1))
    scores = [score for index in range(1, 41) for score in engine.similar(index, 39).scores]
    assert max(scores) == 1
    assert min(scores) == pytest.approx(1)
