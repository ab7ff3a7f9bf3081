"""POST /recommend: every field and limit of the contract, over HTTP.

In the bundle used, 12 items lie on a circle: after item i come i + 1, i + 2, ...; an item scores 12 less its steps.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from models.neighbours import Neighbours
from models.runtime import Runtime
from service import recommender

READS = {"cmdstat_get", "cmdstat_mget", "cmdstat_hget", "cmdstat_evalsha", "cmdstat_lrange", "cmdstat_zrange"}


def recommend(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/recommend", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def items(client: httpx.Client, **body: Any) -> list[str]:
    return [item["item_id"] for item in recommend(client, **body)["items"]]


def post_events(client: httpx.Client, user_id: str, *item_ids: str) -> None:
    events = [{"user_id": user_id, "item_id": item, "timestamp": at} for at, item in enumerate(item_ids, 1)]
    assert client.post("/events", json={"events": events}).json()["accepted"] == len(events)


def test_an_answer_has_exactly_the_fields_of_the_contract(client: httpx.Client) -> None:
    answer = recommend(client, history=["i1", "i3"], k=2)
    identifier = answer.pop("recommendation_id")
    assert len(identifier) == 16
    assert int(identifier, 16) >= 0
    assert answer == {
        "model_version": "v1",
        "history_length": 2,
        "source": "model",
        "scoring": "exact",
        "degraded": [],
        "items": [
            {"item_id": "i4", "score": 11.0, "source": "model"},
            {"item_id": "i5", "score": 10.0, "source": "model"},
        ],
    }


def test_a_catalogue_whose_ids_are_mapped_is_served_as_any_other(
    make_bundle: Callable[..., Path],
    start_service: Callable[..., httpx.Client],
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("models.draft.MAPPED_FROM", 1)
    make_bundle("large", promote=True)
    client = start_service(store_url)
    events = [{"user_id": "ann", "item_id": item, "timestamp": at} for at, item in enumerate(("i1", "new", "i3"), 1)]
    assert client.post("/events", json={"events": events}).json()["unknown_items"] == 1
    assert items(client, user_id="ann", k=2, exclude_item_ids=["i4", "other"]) == ["i5", "i6"]
    assert items(client, user_id="ann", candidates=["i2", "other", "i9"]) == ["i9", "i2"]
    assert client.get("/items/i1/similar?k=3").status_code == 200
    assert client.get("/items/other/similar").status_code == 404


def test_every_answer_has_its_own_id(client: httpx.Client) -> None:
    assert len({recommend(client, history=["i1"])["recommendation_id"] for _ in range(20)}) == 20


def test_stored_events_become_the_history(client: httpx.Client) -> None:
    post_events(client, "ada", "i1", "i7")
    answer = recommend(client, user_id="ada", k=3)
    assert [item["item_id"] for item in answer["items"]] == ["i8", "i9", "i10"]
    assert (answer["history_length"], answer["source"]) == (2, "model")


def test_a_given_history_replaces_the_stored_one(client: httpx.Client) -> None:
    post_events(client, "ada", "i1", "i7")
    answer = recommend(client, user_id="ada", history=["i4"], k=4)
    assert [item["item_id"] for item in answer["items"]] == ["i5", "i6", "i7", "i8"]
    assert answer["history_length"] == 1


def test_a_given_history_can_continue_the_stored_one(client: httpx.Client) -> None:
    post_events(client, "ada", "i5", "i7")
    answer = recommend(client, user_id="ada", history=["i4"], history_mode="append", k=3)
    assert [item["item_id"] for item in answer["items"]] == ["i6", "i8", "i9"]
    assert answer["history_length"] == 3


def test_recommending_writes_nothing(client: httpx.Client, store_url: str) -> None:
    recommend(client, user_id="ada", history=["i4"], history_mode="append")
    with redis.Redis.from_url(store_url) as server:
        assert server.dbsize() == 0


def test_without_a_usable_history_the_answer_is_what_is_popular(client: httpx.Client) -> None:
    expected = [{"item_id": f"i{n}", "score": 13.0 - n, "source": "popular"} for n in (1, 2, 3)]
    bodies: list[dict[str, Any]] = [{}, {"user_id": "nobody"}, {"history": []}, {"history": ["unheard", "of"]}]
    for body in bodies:
        answer = recommend(client, **body, k=3)
        assert (answer["source"], answer["items"], answer["degraded"]) == ("popular", expected, [])
        assert answer["history_length"] == len(body.get("history", []))


def test_items_unknown_to_the_model_are_passed_over_in_a_history(client: httpx.Client) -> None:
    answer = recommend(client, history=["i3", "unheard"], k=1)
    assert answer["items"][0]["item_id"] == "i4"
    assert answer["history_length"] == 2


def test_k_is_filled_whenever_enough_items_are_eligible(client: httpx.Client) -> None:
    history = ["i2", "i1"]
    assert len(items(client, history=history, k=10)) == 10
    assert len(items(client, history=history, k=500)) == 10  # all that is left
    assert len(items(client, history=history, k=500, exclude_seen=False)) == 12
    assert items(client, history=[f"i{n}" for n in range(1, 13)]) == []


def test_the_default_is_ten_items(client: httpx.Client) -> None:
    assert len(items(client, exclude_seen=False)) == 10


def test_seen_items_come_back_when_asked_for(client: httpx.Client) -> None:
    assert items(client, history=["i3"], exclude_seen=False, k=2) == ["i3", "i4"]


def test_all_of_the_history_is_left_out_and_not_only_what_the_encoder_reads(client: httpx.Client) -> None:
    history = ["i5", "i6", "i8", "i9", "i10", "i11", "i4"]  # the encoder reads the last four
    assert items(client, history=history, k=3) == ["i7", "i12", "i1"]
    post_events(client, "ada", *history)
    assert items(client, user_id="ada", k=3) == ["i7", "i12", "i1"]


def test_excluded_items_never_come_back(client: httpx.Client) -> None:
    assert items(client, history=["i3"], exclude_item_ids=["i4", "i6", "unheard"], k=3) == ["i5", "i7", "i8"]
    assert items(client, exclude_item_ids=["i1", "i3", "i3"], k=3) == ["i2", "i4", "i5"]


def test_no_item_comes_twice(client: httpx.Client) -> None:
    for body in ({"history": ["i3", "i3", "i3"]}, {}, {"history": ["i3"], "exclude_seen": False}):
        found = items(client, **body, k=500)
        assert len(found) == len(set(found))


def test_ties_break_by_item_order(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("flat", table=np.zeros((301, 300)))
    client = start_service(store_url)
    assert items(client, history=["i2"], k=298, exclude_item_ids=["i5"]) == [
        f"i{n}" for n in range(1, 301) if n not in (2, 5)
    ]


def test_a_blended_model_is_served_by_the_same_call(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    """Item 3 pulls item 9 by 8, and by 0.8 * 8 when another came after it; both events count, in their order."""
    pulled, strength = np.zeros((13, 1), np.int32), np.zeros((13, 1), np.float32)
    pulled[3], strength[3] = 9, 8
    make_bundle("v1", neighbours=Neighbours(pulled, strength))
    client = start_service(store_url)
    post_events(client, "ada", "i3")
    assert items(client, user_id="ada", k=3) == ["i9", "i4", "i5"]  # 6 + 8, 11, 10
    post_events(client, "bob", "i3", "i5")
    assert items(client, user_id="bob", k=3) == ["i9", "i6", "i7"]  # 8 + 6.4, 11, 10
    assert items(client, history=["i5"], k=3) == ["i6", "i7", "i8"]
    assert items(client, history=["i3"], exclude_item_ids=["i9"], k=2) == ["i4", "i5"]


def test_calls_that_differ_in_k_and_history_do_not_disturb_each_other_in_a_batch(client: httpx.Client) -> None:
    import concurrent.futures

    def ask(n: int) -> bool:
        found = items(client, history=[f"i{n % 12 + 1}"], k=n % 11 + 1)
        return found == [f"i{(n + 1 + step) % 12 + 1}" for step in range(n % 11 + 1)]

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert all(pool.map(ask, range(240)))


LONG = "é" * 128  # 256 bytes


@pytest.mark.parametrize(
    "body",
    [
        {"k": 1},
        {"k": 500},
        {"user_id": "x" * 256},
        {"user_id": LONG},
        {"history": ["i1"] * 10_000},
        {"exclude_item_ids": ["i1"] * 1000},
        {"user_id": None, "history": None},
        {"history": ["i1"], "history_mode": "append"},
    ],
)
def test_the_limits_themselves_are_allowed(client: httpx.Client, body: dict[str, Any]) -> None:
    recommend(client, **body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": 501}, "k"),
        ({"k": -1}, "k"),
        ({"k": "10"}, "k"),
        ({"k": 10.0}, "k"),
        ({"k": True}, "k"),
        ({"k": None}, "k"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "x" * 257}, "user_id"),
        ({"user_id": LONG + "x"}, "user_id"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": ["ada"]}, "user_id"),
        ({"history": ["i1"] * 10_001}, "history"),
        ({"history": [1]}, "history.0"),
        ({"history": ["i1", ""]}, "history.1"),
        ({"history": "i1"}, "history"),
        ({"history_mode": "prepend"}, "history_mode"),
        ({"exclude_item_ids": ["i1"] * 1001}, "exclude_item_ids"),
        ({"exclude_item_ids": [None]}, "exclude_item_ids.0"),
        ({"exclude_seen": 1}, "exclude_seen"),
        ({"exclude_seen": "yes"}, "exclude_seen"),
        ({"colour": "red"}, "colour"),
        ({"K": 3}, "K"),
    ],
)
def test_one_more_than_the_limit_and_every_wrong_type_is_refused_by_name(
    client: httpx.Client, body: dict[str, Any], field: str
) -> None:
    response = client.post("/recommend", json=body)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "invalid_request")
    assert problem["errors"][0]["field"] == field
    assert field in problem["detail"]
    assert len(response.content) < 1500


def test_a_query_parameter_is_refused_and_never_ignored(client: httpx.Client) -> None:
    assert client.post("/recommend?k=3", json={}).status_code == 422


def test_a_retrained_model_may_renumber_its_items(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("small", items=6)
    client = start_service(store_url)
    post_events(client, "ada", "i6", "i9")
    assert items(client, user_id="ada", k=1) == ["i1"]  # i9 is not known yet
    make_bundle("large", items=12, promote=False)
    assert client.post("/models/large/promote").status_code == 200
    assert items(client, user_id="ada", k=1) == ["i10"]


@pytest.mark.parametrize("brief_s", [1e9, 0.0])
def test_rankings_are_the_same_on_the_loop_with_one_thread_and_beside_it_with_all(
    start_service: Callable[..., httpx.Client],
    make_bundle: Callable[..., Path],
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
    brief_s: float,
) -> None:
    tried: list[str] = []

    class Noted(Runtime):
        def __init__(self, *arguments: Any, threads: int | None = None, **options: Any) -> None:
            tried.append("one" if threads == 1 else "all")
            super().__init__(*arguments, threads=threads, **options)

    monkeypatch.setattr("service.engine._BRIEF_S", brief_s)
    monkeypatch.setattr("service.slot.Runtime", Noted)
    monkeypatch.setattr("service.app.cpu_quota", lambda: 2)
    make_bundle("v1")
    client = start_service(store_url)
    assert items(client, history=["i3", "i5"], k=2) == ["i6", "i7"]
    assert tried == (["one"] if brief_s else ["one", "all"])


def test_a_catalogue_that_is_scanned_over_int8_is_ranked_exactly(
    make_bundle: Callable[..., Path], start_service: Callable[..., httpx.Client], store_url: str
) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(2000, 8)).astype(np.float32)
    matrix[0] = 0
    make_bundle("v8", table=generator.normal(size=(2000, 8)), matrix=matrix, scan="int8")
    client = start_service(store_url)
    answer = recommend(client, history=["i3", "i4"], k=500)
    assert (answer["source"], answer["scoring"]) == ("model", "exact")
    found = [item["item_id"] for item in answer["items"]]
    assert len(set(found)) == 500
    assert not {"i3", "i4"} & set(found)
    popular = recommend(client, k=3)
    assert (popular["source"], popular["scoring"]) == ("popular", "exact")


def test_the_histories_of_a_batch_are_read_in_one_round_trip(client: httpx.Client, store_url: str) -> None:
    users = [f"user {number}" for number in range(50)]
    for user in users:
        post_events(client, user, "i3")

    with redis.Redis.from_url(store_url) as store:

        def reads() -> int:
            return sum(of["calls"] for name, of in store.info("commandstats").items() if name in READS)

        before = reads()
        response = client.post("/recommend/batch", json={"queries": [{"user_id": user, "k": 1} for user in users]})
        assert reads() - before == 1
    assert [one["items"][0]["item_id"] for one in response.json()["results"]] == ["i4"] * 50


@pytest.mark.parametrize("brief", [True, False])
def test_what_is_brief_is_ranked_on_the_event_loop_and_the_rest_on_the_scoring_thread(
    make_bundle: Callable[..., Path],
    start_service: Callable[..., httpx.Client],
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
    brief: bool,
) -> None:
    monkeypatch.setattr("service.engine._BRIEF_S", 60.0 if brief else 0.0)
    make_bundle("v1")
    client = start_service(store_url, threads=1)
    where: list[str] = []
    rank = Runtime.rank

    def ranked(self: Runtime, *arguments: Any, **named: Any) -> Any:
        where.append(threading.current_thread().name)
        return rank(self, *arguments, **named)

    monkeypatch.setattr(Runtime, "rank", ranked)
    recommend(client, history=["i1"])
    recommend(client, history=["i1"], candidates=["i2", "i3"])
    assert (where[0] == "scoring") == (not brief)
    assert where[1:] == ["scoring"]


def test_an_explanation_encodes_all_that_it_leaves_out_together(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = Runtime.encode

    def encoded(self: Runtime, sequences: Any, values: Any = None) -> Any:
        sizes.append(len(sequences))
        return encode(self, sequences, values)

    monkeypatch.setattr(Runtime, "encode", encoded)
    recommend(client, history=["i1", "i2", "i3", "i4"], explain=True)
    assert sizes == [1, 4]


@pytest.mark.parametrize(("events", "sizes"), [(50, [3]), (2, [2, 1]), (1, [1, 1, 1])])
def test_explanations_of_many_events_are_ranked_one_after_the_other(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, events: int, sizes: list[int]
) -> None:
    monkeypatch.setattr("service.recommender._LEFT_OUT", events)
    together: list[int] = []
    ranked = recommender._ranked

    def counted(engine: Any, wishes: Any, queries: Any) -> Any:
        together.append(len(wishes))
        return ranked(engine, wishes, queries)

    monkeypatch.setattr(recommender, "_ranked", counted)
    queries = [{"history": [f"i{number}" for number in range(1, 7)], "explain": True}] * 3
    assert client.post("/recommend/batch", json={"queries": queries}).status_code == 200
    assert together == sizes
