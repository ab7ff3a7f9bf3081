"""PUT /items and what follows from it, and GET /items/{id}/similar, over HTTP.

In the bundle used, 12 items lie on a circle: after item i come i + 1, i + 2, ...; an item scores 12 less its steps.
"""

import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

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
