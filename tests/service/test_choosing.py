"""What a request may ask for beyond k: filters, candidates, explanations, versions, deadlines, many at once, over HTTP.

In the bundle used, 12 items lie on a circle: after item i come i + 1, i + 2, ...; an item scores 12 less its steps.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from models.neighbours import Neighbours
from models.registry import Registry
from service.settings import Settings
from tests.conftest import service_on_a_thread, succession, write_tiny
from tests.service.sockets import PLAIN

KINDS = ["book", "film"] * 6  # of i1, i2, ...
COLUMNS: dict[str, list[Any]] = {
    "kind": [None, *KINDS],
    "genre": [None, *[["Drama", "War"] if n % 3 == 0 else ["Drama"] if n % 3 == 1 else None for n in range(1, 13)]],
    "year": [None, *range(1991, 2003)],
    "kept": [None, True, False, *[None] * 10],
    "size": [None, 1, 1.5, "1", *[None] * 9],
}


@pytest.fixture(scope="module")
def shop_url(_shared_store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One service for all who only ask: of 12 items with COLUMNS. Nothing may be promoted there, and no item put."""
    with redis.Redis.from_url(_shared_store_url) as store:
        store.flushall()  # a service reads at its start what an earlier test has said of items
    folder = tmp_path_factory.mktemp("shop")
    write_tiny(folder, "v1", succession(12, 1), created="2026-01-01T00:00:00Z", attributes=COLUMNS)
    Registry(folder).promote("v1")
    settings = Settings(artifacts=folder, redis=_shared_store_url, device="cpu")
    with service_on_a_thread(settings, _shared_store_url) as url:
        yield url


@pytest.fixture
def shop(shop_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shop_url, timeout=10, verify=PLAIN) as client:
        yield client


def items(client: httpx.Client, **body: Any) -> list[int]:
    response = client.post("/recommend", json=body)
    assert response.status_code == 200, response.text
    return [int(item["item_id"][1:]) for item in response.json()["items"]]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ({"eq": {"kind": "film"}}, [2, 4, 6, 8, 10, 12]),
        ({"not": {"eq": {"kind": "film"}}}, [1, 3, 5, 7, 9, 11]),
        ({"eq": {"genre": "War"}}, [3, 6, 9, 12]),
        ({"in": {"genre": ["War", "Comedy", 3]}}, [3, 6, 9, 12]),
        ({"not": {"in": {"genre": ["Drama"]}}}, [2, 5, 8, 11]),
        ({"lt": {"year": 1993}}, [1, 2]),
        ({"lte": {"year": 1993}}, [1, 2, 3]),
        ({"gt": {"year": 2000.5}}, [11, 12]),
        ({"gte": {"year": 2001}}, [11, 12]),
        ({"eq": {"year": 1995}}, [5]),
        ({"eq": {"kept": True}}, [1]),
        ({"eq": {"kept": 1}}, []),  # true is no number
        ({"in": {"size": [1, "1"]}}, [1, 3]),
        ({"gt": {"kind": 0}}, []),  # nor is text
        ({"all": [{"eq": {"kind": "film"}}, {"gte": {"year": 1996}}]}, [6, 8, 10, 12]),
        ({"any": [{"eq": {"kept": False}}, {"eq": {"year": 2002}}]}, [2, 12]),
        ({"all": [{"any": [{"lt": {"year": 0}}]}]}, []),
    ],
)
def test_filters_choose_before_the_best_are_taken(
    shop: httpx.Client, expression: dict[str, Any], expected: list[int]
) -> None:
    """i1 is the whole history, and may come back as the first, before 2, 3, ..."""
    assert items(shop, history=["i1"], exclude_seen=False, k=12, filter=expression) == expected
    assert items(shop, history=["i1"], exclude_seen=False, k=2, filter=expression) == expected[:2]
    assert items(shop, k=12, filter=expression) == expected  # without a history, by popularity


@pytest.mark.parametrize(
    ("expression", "field"),
    [
        ({}, "filter"),
        ({"eq": {"kind": "a"}, "not": {}}, "filter"),
        ({"near": {"kind": "a"}}, "filter.near"),
        ({"eq": ["kind", "a"]}, "filter.eq"),
        ({"eq": {"kind": None}}, "filter.eq.kind"),
        ({"eq": {"kind": ["a"]}}, "filter.eq.kind"),
        ({"in": {"kind": []}}, "filter.in.kind"),
        ({"in": {"kind": ["a"] * 1001}}, "filter.in.kind"),
        ({"in": {"kind": ["a", {}]}}, "filter.in.kind.1"),
        ({"lt": {"year": "1990"}}, "filter.lt.year"),
        ({"lt": {"year": True}}, "filter.lt.year"),
        ({"lt": {"year": 2**53}}, "filter.lt.year"),
        ({"gte": {"year": -(2**53)}}, "filter.gte.year"),
        ({"eq": {"year": 2**53}}, "filter.eq.year"),
        ({"in": {"year": [1990, -(2**53)]}}, "filter.in.year.1"),
        ({"eq": {"year": 2**64}}, "filter.eq.year"),  # which is read as a float
        ({"lt": {"year": 2**64}}, "filter.lt.year"),
        ({"gte": {"year": -1e300}}, "filter.gte.year"),
        ({"lt": {"year": 10**400}}, "filter.lt.year"),
        ({"all": []}, "filter.all"),
        ({"any": {"eq": {"kind": "a"}}}, "filter.any"),
        ({"all": [{"eq": {"kind": "a"}}, {"not": 3}]}, "filter.all.1.not"),
        ({"all": [{"eq": {"kind": "a"}}] * 256}, "filter"),
        ({"all": [{"in": {"kind": ["a"] * 1000}}] * 6}, "filter"),
        ({"eq": {"colour": "red"}}, "filter"),
    ],
)
def test_a_filter_that_is_none_is_refused_by_name(shop: httpx.Client, expression: object, field: str) -> None:
    response = shop.post("/recommend", content=_json({"filter": expression}))
    problem = response.json()
    assert (response.status_code, problem["code"]) in {(422, "invalid_request"), (400, "malformed_json")}
    if response.status_code == 422:
        assert problem["errors"][0]["field"] == field
        assert len(response.content) < 1500
    assert items(shop, history=["i1"], k=1) == [2]  # those beside it are answered


def test_filters_of_the_deepest_and_of_the_most_parts_pass(shop: httpx.Client) -> None:
    leaf = {"eq": {"kind": "film"}}
    nested: dict[str, Any] = leaf
    for _ in range(14):
        nested = {"not": nested}
    assert items(shop, history=["i1"], k=1, filter={"not": {"not": leaf}}) == [2]
    assert items(shop, history=["i1"], k=1, filter=nested) == [2]
    assert items(shop, history=["i1"], k=1, filter={"any": [leaf] * 255}) == [2]
    assert shop.post("/recommend", json={"filter": {"not": {"not": nested}}}).status_code == 422


def test_filters_of_the_most_values_pass(shop: httpx.Client) -> None:
    """A thousand in a list, and five thousand in all; each alone is a part of its own."""

    def lists(*sizes: int) -> dict[str, Any]:
        return {"any": [{"in": {"kind": ["film"] * size}} for size in sizes]}

    for most in (lists(1000, 1000, 1000, 1000, 999), lists(*[1000] * 5), lists(*[1000] * 4, *[10] * 100)):
        assert items(shop, history=["i1"], k=1, filter=most) == [2]
    for more in (lists(*[1000] * 5, 1), lists(*[1000] * 4, *[10] * 99, 11), lists(1001)):
        response = shop.post("/recommend", json={"filter": more})
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
        assert "values" in response.json()["detail"]
        assert len(response.content) < 1500


def test_rankings_of_random_filters_equal_a_slow_search(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    """With neighbours, exclusions, candidates and availability, against a loop over all items."""
    generator = np.random.default_rng(5)
    count = 60
    table = generator.permuted(np.tile(np.arange(count), (count + 1, 1)), axis=1).astype(float)
    beside = np.where(np.arange(count + 1)[:, None] > 0, generator.integers(1, count + 1, (count + 1, 3)), 0)
    affinities = np.where(beside > 0, generator.random((count + 1, 3)) * 40, 0)
    neighbours = Neighbours(beside.astype(np.int32), affinities.astype(np.float32))
    columns = {"a": [None, *generator.integers(0, 4, count).tolist()], "b": [None, *generator.random(count).tolist()]}
    make_bundle("v1", table=table, neighbours=neighbours, attributes=columns)
    client = start_service(store_url)
    for _ in range(40):
        history = generator.integers(1, count + 1, generator.integers(1, 6))
        kind, bound = int(generator.integers(0, 4)), float(generator.random())
        k = int(generator.integers(1, 30))
        candidates = sorted(set(generator.integers(1, count + 1, 40).tolist()))
        expression = {"any": [{"eq": {"a": kind}}, {"not": {"lt": {"b": bound}}}]}
        scores = table[history[-1]] + neighbours.bonus([history])[0][1:]
        eligible = [
            item
            for item in candidates
            if (columns["a"][item] == kind or not columns["b"][item] < bound) and item not in history
        ]
        expected = sorted(eligible, key=lambda item: (-scores[item - 1], item))[:k]
        body = {"history": [f"i{item}" for item in history], "k": k, "filter": expression}
        assert items(client, **body, candidates=[f"i{item}" for item in candidates]) == expected


def test_true_is_not_one_whichever_is_asked_first(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("v1", attributes={"flag": [None, *[True, 1, False, 0] * 3]})
    client = start_service(store_url)
    for flag, expected in ((True, [1, 5, 9]), (1, [2, 6, 10]), (0, [4, 8, 12]), (False, [3, 7, 11])):
        assert items(client, k=12, filter={"eq": {"flag": flag}}) == expected


def test_integers_are_compared_exactly_or_not_at_all(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    """From 2^53 on two of them may be one float: nothing smaller equals what a bundle has of these."""
    most = 2**53 - 1
    make_bundle("v1", attributes={"number": [None, most, most + 1, most + 2, -most, -most - 1, *[None] * 7]})
    client = start_service(store_url)
    assert items(client, filter={"eq": {"number": most}}) == [1]
    assert items(client, filter={"in": {"number": [-most, most - 1]}}) == [4]
    assert items(client, filter={"gt": {"number": most}}) == [2, 3]
    assert items(client, filter={"lte": {"number": -most}}) == [4, 5]
    assert items(client, filter={"lt": {"number": most}}) == [4, 5]
    refused = client.post("/recommend", json={"filter": {"eq": {"number": most + 2}}}).json()
    assert refused["errors"][0]["value"] == str(most + 2)
    assert "send large ids as text" in refused["detail"]


def test_candidates_are_all_that_is_ranked(shop: httpx.Client) -> None:
    assert items(shop, history=["i1"], candidates=["i9", "i4", "i1", "unheard of"], k=12) == [4, 9]
    assert items(shop, candidates=["i9", "i4", "i4"], k=12) == [4, 9]
    assert items(shop, history=["i1"], candidates=["unheard of"]) == []
    assert items(shop, history=["i1"], candidates=["i2", "i3"], filter={"eq": {"kind": "book"}}) == [3]
    many = [f"x{n}" for n in range(9999)]
    assert items(shop, history=["i1"], candidates=[*many, "i5"]) == [5]
    assert shop.post("/recommend", json={"candidates": [*many, "i5", "i6"]}).status_code == 422
    assert shop.post("/recommend", json={"candidates": []}).status_code == 422


def test_an_explanation_tells_what_each_event_adds(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    """Item 3 pulls item 9 by 8; without i5, the newest, i3 decides what follows."""
    beside, affinities = np.zeros((13, 1), np.int32), np.zeros((13, 1), np.float32)
    beside[3], affinities[3] = 9, 8
    make_bundle("v1", neighbours=Neighbours(beside, affinities))
    client = start_service(store_url)
    body = {"history": ["i3", "unheard of", "i5"], "k": 2, "explain": True}
    first, second = client.post("/recommend", json=body).json()["items"]
    assert (first["item_id"], first["score"]) == ("i9", pytest.approx(8 + 6.4))
    assert first["because"] == [
        {"item_id": "i3", "effect": pytest.approx(6.4)},
        {"item_id": "i5", "effect": pytest.approx(14.4 - (6 + 8))},
    ]
    assert second["item_id"] == "i6"
    assert second["because"][0] == {"item_id": "i5", "effect": pytest.approx(11 - 9)}
    popular = client.post("/recommend", json={"explain": True, "k": 1}).json()["items"]
    assert popular == [{"item_id": "i1", "score": 12.0, "source": "popular", "because": []}]


def test_the_version_before_may_still_be_asked_for(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, artifacts: Path
) -> None:
    make_bundle("v1")
    make_bundle("v2", step=5, promote=False)
    client = start_service(store_url)
    assert items(client, history=["i1"], k=1, model_version="v1") == [2]
    missing = client.post("/recommend", json={"model_version": "v2"})
    assert (missing.status_code, missing.json()["code"]) == (404, "version_not_found")
    assert "v1" in missing.json()["detail"]
    assert client.post("/models/v2/promote").status_code == 200
    assert Registry(artifacts).current() == "v2"
    assert client.post("/models/v2/promote").status_code == 200  # which it is already
    mixed = {"queries": [{"history": ["i1"], "k": 1, "model_version": version} for version in ("v1", "v2")]}
    results = client.post("/recommend/batch", json=mixed).json()["results"]
    assert [(one["model_version"], one["items"][0]["item_id"]) for one in results] == [("v1", "i2"), ("v2", "i6")]


def test_many_queries_have_each_a_result_or_a_problem(shop: httpx.Client) -> None:
    queries = [
        {"history": ["i1"], "k": 1},
        {"k": 0},
        {"history": ["i3"], "k": 1, "filter": {"eq": {"colour": "red"}}},
        {"history": ["i3"], "k": 2},
        7,
    ]
    response = shop.post("/recommend/batch", json={"queries": queries})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [one.get("status") for one in results] == [None, 422, 422, None, 422]
    assert [item["item_id"] for item in results[3]["items"]] == ["i4", "i5"]
    assert results[1]["errors"][0]["field"] == "k"
    assert len({one["recommendation_id"] for one in results if "items" in one}) == 2
    full = shop.post("/recommend/batch", json={"queries": [{"history": ["i1"]}] * 256})
    assert [one["items"][0]["item_id"] for one in full.json()["results"]] == ["i2"] * 256


@pytest.mark.parametrize("body", [{}, [], {"queries": []}, {"queries": [{}] * 257}, {"queries": [{}], "k": 3}])
def test_a_batch_that_is_none_is_refused(client: httpx.Client, body: object) -> None:
    response = client.post("/recommend/batch", json=body)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "queries")


def test_a_deadline_that_is_kept_changes_nothing(client: httpx.Client) -> None:
    response = client.post("/recommend", json={"history": ["i1"]}, headers={"X-Timeout-Ms": "60000"})
    assert response.status_code == 200
    assert client.get("/items/i1/similar", headers={"X-Timeout-Ms": "60000"}).status_code == 200


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "60001", "soon", ""])
def test_a_deadline_that_is_none_is_refused(client: httpx.Client, given: str) -> None:
    late = {"X-Timeout-Ms": given}
    for response in (client.post("/recommend", json={}, headers=late), client.get("/items/i1/similar", headers=late)):
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
        assert "X-Timeout-Ms" in response.json()["detail"]


def test_a_deadline_on_events_is_refused(client: httpx.Client) -> None:
    event = {"user_id": "ada", "item_id": "i1"}
    assert client.post("/events", json=event, headers={"X-Timeout-Ms": "500"}).status_code == 422


def test_a_deadline_that_passes_is_504_and_costs_no_ranking(
    start_service: Callable[..., httpx.Client],
    make_bundle: Callable[..., Path],
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from service.recommender import Recommender

    ranked: list[int] = []
    recommend = Recommender.recommend

    async def slowly(self: Recommender, wishes: Any) -> Any:
        ranked.append(len(wishes))
        await asyncio.sleep(0.3)
        return await recommend(self, wishes)

    monkeypatch.setattr(Recommender, "recommend", slowly)
    make_bundle("v1")
    client = start_service(store_url)

    async def at_once() -> list[int]:
        async with httpx.AsyncClient(base_url=client.base_url) as own:
            first = asyncio.create_task(own.post("/recommend", json={"history": ["i1"]}))
            await asyncio.sleep(0.1)  # the batch of the first is being ranked
            late = own.post("/recommend", json={"history": ["i1"]}, headers={"X-Timeout-Ms": "50"})
            queries = {"queries": [{"history": ["i1"]}] * 2}
            several = own.post("/recommend/batch", json=queries, headers={"X-Timeout-Ms": "50"})
            found = await asyncio.gather(first, late, several)
            assert found[1].json()["code"] == "deadline_exceeded"
            assert [result["status"] for result in found[2].json()["results"]] == [504, 504]
            return [response.status_code for response in found]

    assert asyncio.run(at_once()) == [200, 504, 200]
    assert items(client, history=["i1"], k=1) == [2]
    assert ranked == [1, 1]  # those that were late are in no batch


def test_similar_items_that_come_too_late_are_504(
    start_service: Callable[..., httpx.Client],
    make_bundle: Callable[..., Path],
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from service.engine import Engine

    similar = Engine.similar

    def slowly(self: Engine, index: int, k: int) -> Any:
        time.sleep(0.3)
        return similar(self, index, k)

    monkeypatch.setattr(Engine, "similar", slowly)
    make_bundle("v1")
    client = start_service(store_url)
    late = client.get("/items/i1/similar", headers={"X-Timeout-Ms": "50"})
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert client.get("/items/i1/similar").status_code == 200


def _json(body: object) -> bytes:
    import json

    return json.dumps(body).encode()
