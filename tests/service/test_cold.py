"""Items that are newer than the model, over HTTP.

In the bundle used, 12 items lie on a circle: after item i come i + 1, i + 2, ...; an item scores 12 less its steps.
Each has a direction of its own, and two neighbours share a topic: a cold item of the topic of i3 and i4 lies between
them, towards the more popular i3: along (sqrt(10), sqrt(9)), as their 10 and 9 interactions say.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from models.bundle import Bundle, read_bundle
from models.cold import FULL, Learned
from models.neighbours import Neighbours
from models.runtime import Runtime
from service.attributes import ItemState
from service.cold import MAX_COLD, ColdItems
from service.engine import Engine, Query
from service.items import ItemStore
from service.sequences import SequenceStore, StoreSettings, StoreUnavailable

TOPICS = [topic for topic in "abcdef" for _ in range(2)]  # of i1, i2, ...
COLUMNS: dict[str, list[Any]] = {"topic": [None, *TOPICS], "even": [None, *[False, True] * 6]}
NEAR = (10 * 10**0.5 + 9 * 9**0.5) / 19**0.5  # what a new item of topic b scores after i1, and one of topic f:
FAR = (2 * 2**0.5 + 1 * 1**0.5) / 3**0.5


@pytest.fixture
def shop(start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str) -> httpx.Client:
    make_bundle("v1", attributes=COLUMNS)
    return start_service(store_url)


def put(client: httpx.Client, **attributes: Any) -> None:
    """Items by id with their attributes; one with None for them is not available."""
    items = [{"item_id": item, "attributes": own, "available": own is not None} for item, own in attributes.items()]
    response = client.put("/items", json={"items": items})
    assert response.status_code == 200, response.text


def answer(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/recommend", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def items(client: httpx.Client, **body: Any) -> list[str]:
    return [item["item_id"] for item in answer(client, **body)["items"]]


def known(*numbers: int) -> list[str]:
    return [f"i{number}" for number in numbers]


def test_a_new_item_is_recommended_where_its_attributes_place_it_and_marked(shop: httpx.Client) -> None:
    put(shop, near={"topic": "b"})
    found = answer(shop, history=["i1"])
    assert found["source"] == "model"
    assert found["items"][0] == {"item_id": "near", "score": pytest.approx(NEAR), "source": "cold"}
    assert [item["item_id"] for item in found["items"]] == ["near", *known(*range(2, 11))]
    assert {item["source"] for item in found["items"][1:]} == {"model"}
    put(shop, near={"topic": "f"})
    assert items(shop, history=["i1"]) == [*known(*range(2, 11)), "near"]  # i11 scores 2
    assert answer(shop, history=["i1"])["items"][9]["score"] == pytest.approx(FAR)


def test_what_the_model_learned_of_an_attribute_by_itself_counts_beside_the_items_that_have_it(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    """Topic z, which no known item has, has the vector of i2; that of topic f is far from where items of f lie."""
    vectors = np.eye(12, dtype=np.float32)[[1, 1]]
    make_bundle("v1", attributes=COLUMNS, learned=Learned([("topic", "z"), ("topic", "f")], vectors))
    client = start_service(store_url)
    put(client, unseen={"topic": "z"})
    assert answer(client, history=["i1"])["items"][1] == {"item_id": "unseen", "score": 11.0, "source": "cold"}
    put(client, unseen=None, other={"topic": "f"})
    (score,) = [item["score"] for item in answer(client, history=["i1"])["items"] if item["item_id"] == "other"]
    assert FAR < score < 11


@pytest.mark.parametrize("attributes", [None, {}, {"topic": "z"}, {"colour": "b"}, {"topic": 3}])
def test_one_that_is_away_or_tells_nothing_is_not(shop: httpx.Client, attributes: dict[str, Any] | None) -> None:
    put(shop, near={"topic": "b"})
    put(shop, near=attributes)
    assert items(shop, history=["i1"]) == known(*range(2, 12))
    assert items(shop, history=["i1"], candidates=["near"]) == []


def test_new_items_have_their_share_of_an_answer_and_no_more(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("v1", attributes=COLUMNS)
    tenth, more, none = (start_service(store_url, cold_share=share) for share in (0.1, 0.4, 0))
    put(tenth, third={"topic": "c"}, first={"topic": "b"}, second={"topic": "b"})
    for client in (more, none):  # the others are told by the store
        put(client, i12=None)
    assert items(tenth, history=["i1"]) == ["first", *known(*range(2, 11))]
    assert items(tenth, history=["i1"], k=9) == known(*range(2, 11))
    assert items(more, history=["i1"], k=5) == ["first", "second", *known(2, 3, 4)]
    assert items(more, history=["i1"], k=8) == ["first", "second", *known(2), "third", *known(3, 4, 5, 6)]
    assert items(none, history=["i1"]) == known(*range(2, 12))
    assert items(none, history=["i1"], candidates=["first"]) == []


def test_where_known_items_do_not_suffice_new_ones_fill_the_answer(shop: httpx.Client) -> None:
    put(shop, **{f"n{number}": {"topic": topic} for number, topic in enumerate("bcd")})
    assert items(shop, history=["i1"], candidates=["n0", "n2", "n1"], k=2) == ["n0", "n1"]
    assert items(shop, history=["i1"], k=13) == ["n0", *known(2), "n1", *known(*range(3, 13))]
    assert len(items(shop, history=["i1"], k=500)) == 14


def test_filters_candidates_and_exclusions_are_for_new_items_too(shop: httpx.Client) -> None:
    put(shop, near={"topic": "b", "stock": 3}, far={"topic": ["f", "z"]})
    assert items(shop, history=["i1"], filter={"eq": {"topic": "b"}}) == ["near", *known(3, 4)]
    assert items(shop, history=["i1"], filter={"eq": {"topic": "z"}}) == ["far"]
    assert items(shop, history=["i1"], filter={"gte": {"stock": 3}}) == ["near"]  # which no known item has
    cheap = {"not": {"lt": {"stock": 9}}}
    assert items(shop, history=["i1"], filter=cheap, k=12) == [*known(*range(2, 11)), "far", *known(11, 12)]
    assert items(shop, history=["i1"], filter={"eq": {"even": True}}) == known(2, 4, 6, 8, 10, 12)
    assert items(shop, history=["i1"], candidates=["far", "i5"]) == ["i5", "far"]
    assert items(shop, history=["i1"], candidates=["far", "near", "i5"], filter={"eq": {"topic": "f"}}) == ["far"]
    assert items(shop, history=["i1"], exclude_item_ids=["near"]) == [*known(*range(2, 11)), "far"]
    refused = shop.post("/recommend", json={"history": ["i1"], "filter": {"eq": {"colour": "red"}}})
    assert refused.status_code == 422


def test_what_was_seen_does_not_come_back_though_the_model_does_not_know_it(shop: httpx.Client) -> None:
    put(shop, near={"topic": "b"})
    assert shop.post("/events", json={"user_id": "ada", "item_id": "i1"}).status_code == 200
    assert items(shop, user_id="ada")[0] == "near"
    assert shop.post("/events", json={"user_id": "ada", "item_id": "near"}).json()["unknown_items"] == 1
    assert items(shop, user_id="ada") == known(*range(2, 12))
    assert items(shop, user_id="ada", exclude_seen=False)[0] == "near"
    assert answer(shop, user_id="ada")["history_length"] == 2


def test_a_history_of_new_items_alone_gets_what_is_popular(shop: httpx.Client) -> None:
    put(shop, near={"topic": "b"})
    found = answer(shop, history=["near"], k=2)
    assert (found["source"], [item["item_id"] for item in found["items"]]) == ("popular", known(1, 2))
    assert answer(shop, history=["near"], k=2, explain=True)["items"][0]["because"] == []


def test_without_a_history_new_items_fill_what_the_popular_ones_leave(shop: httpx.Client) -> None:
    put(shop, near={"topic": "b"}, far={"topic": "f", "stock": 3})
    found = answer(shop, k=14)
    assert found["source"] == "popular"
    assert [item["item_id"] for item in found["items"]] == [*known(*range(1, 13)), "far", "near"]
    assert found["items"][-1] == {"item_id": "near", "score": 0.0, "source": "cold"}
    assert items(shop, k=13) == [*known(*range(1, 13)), "far"]
    assert items(shop, k=12) == known(*range(1, 13))
    assert items(shop, candidates=["near"]) == ["near"]
    assert items(shop, candidates=["near", "i3", "unheard of"]) == [*known(3), "near"]
    assert items(shop, filter={"gte": {"stock": 1}}, explain=True) == ["far"]
    assert items(shop, history=["far"], k=14) == [*known(*range(1, 13)), "near"]
    assert items(shop, exclude_item_ids=["far"], filter={"eq": {"topic": "f"}}) == known(11, 12)
    assert items(shop, user_id="unheard of", candidates=["near", "far"], k=1) == ["far"]


def meet(client: httpx.Client, item: str, *walks: list[str], users: str = "user") -> None:
    """For each walk a user who makes it and then meets the item."""
    events = [
        {"user_id": f"{users}{number}", "item_id": one, "timestamp": 1_700_000_000_000 + step}
        for number, walk in enumerate(walks)
        for step, one in enumerate([*walk, item])
    ]
    assert client.post("/events", json={"events": events}).status_code == 200


def eventually(client: httpx.Client, expected: list[str], **body: Any) -> None:
    """Contexts are noted beside the answer, and followed a poll later."""
    deadline = time.monotonic() + 10
    while (found := items(client, **body)) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found == expected


def test_a_new_item_without_attributes_is_placed_by_what_its_users_met_before_it(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    """After i3 and i4 come i5 and what follows; near them lies what is met after them."""
    make_bundle("v1")
    client, other = start_service(store_url), start_service(store_url)
    assert items(client, history=["i12"], k=11) == known(*range(1, 12))
    meet(client, "near", known(3), known(4), known(3, 4))
    for one in (client, other):  # every process follows
        eventually(one, ["near", *known(1, 2, 3, 4, 5, 6, 7, 8, 9)], history=["i12"], k=10)
    found = answer(client, history=["i12"], k=10)["items"]
    assert {item["item_id"] for item in found if item["source"] == "cold"} == {"near"}
    assert items(client, user_id="user0", k=10) == known(4, 5, 6, 7, 8, 9, 10, 11, 12, 1)  # who has met it
    put(client, near=None)
    assert items(client, history=["i12"], k=10) == known(*range(1, 11))
    put(client, near={})
    assert items(client, history=["i12"], k=10)[0] == "near"


def test_too_few_contexts_place_nothing_and_the_same_one_is_one(shop: httpx.Client) -> None:
    meet(shop, "near", known(3), known(4))
    meet(shop, "near", known(3), known(4), users="another")
    meet(shop, "lost", ["unheard of"], [], ["near"])
    put(shop, last={"topic": "b"})  # by then all before it was noted
    eventually(shop, ["last", *known(2)], history=["i1"], candidates=["near", "lost", "last", "i2"])
    meet(shop, "near", known(2, 3))
    eventually(shop, ["near", "last", *known(2)], history=["i1"], candidates=["near", "lost", "last", "i2"])


def test_attributes_and_contexts_count_together(shop: httpx.Client) -> None:
    put(shop, near={"topic": "f"})
    before = answer(shop, history=["i1"], candidates=["near"])["items"][0]["score"]
    meet(shop, "near", known(3))
    deadline = time.monotonic() + 10
    while (after := answer(shop, history=["i1"], candidates=["near"])["items"][0]["score"]) == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert FAR < after < NEAR


def test_contexts_are_kept_although_a_replica_is_away_and_states_are_not_acknowledged(store_url: str) -> None:
    async def stored() -> dict[str, ItemState]:
        async with SequenceStore.connect(store_url, StoreSettings(replicas=1, write_timeout_s=2)) as store:
            kept = ItemStore(store.connection)
            await kept.meet([("one", ("i1",))])
            with pytest.raises(StoreUnavailable, match=r"0 of 1 replica\(s\)"):
                await kept.put({"two": ItemState(available=False)})
            return (await kept.since(0))[1]

    assert asyncio.run(stored())["one"].contexts == (("i1",),)


def test_contexts_are_bounded_an_item_and_over_all(store_url: str) -> None:
    async def stored() -> tuple[int, dict[str, ItemState]]:
        async with SequenceStore.connect(store_url) as store:
            kept = ItemStore(store.connection)
            await kept.meet([("one", (f"i{number}",)) for number in range(30)] + [("two", ("i1", "i2"))])
            _, version = await kept.standing()
            await kept.meet([("one", ("i77",)), ("two", ("i1", "i2"))])  # nothing new
            assert await kept.standing() == (0, version)
            _, states = await kept.since(0)
            for begin in range(0, MAX_COLD, 1000):
                await kept.meet([(f"flood{begin + number}", ("i1",)) for number in range(1000)])
            return version, states

    version, states = asyncio.run(stored())
    assert version == 1
    assert states["one"].contexts == tuple((f"i{number}",) for number in range(FULL))
    assert states["two"].contexts == (("i1", "i2"),)
    with redis.Redis.from_url(store_url) as client:
        assert client.hlen("recserve:{items}:contexts") == client.zcard("recserve:{items}:met") == MAX_COLD
        assert client.hget("recserve:{items}:contexts", "one") is None


def test_ids_that_nobody_sells_leave_room_for_items_that_are_put(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.items.MAX_KEPT", 10)
    monkeypatch.setattr("service.items.MAX_COLD", 10)

    async def flood() -> int:
        async with SequenceStore.connect(store_url) as store:
            kept = ItemStore(store.connection)
            for number in range(30):
                await kept.meet([(f"flood{number}", ("i1",))])
            await kept.put({f"sold{number}": ItemState(available=False) for number in range(10)})
            _, states = await kept.since(0)
            return sum(bool(state.contexts) for state in states.values())

    assert asyncio.run(flood()) == 10


def test_new_items_are_explained_like_all_others(shop: httpx.Client) -> None:
    put(shop, near={"topic": "b"})
    found = answer(shop, history=["i5", "i1"], k=11, explain=True)["items"]
    (reason, other) = found[0]["because"]  # the model reads the last of the two alone
    assert (found[0]["item_id"], reason["item_id"], other) == (
        "near",
        "i1",
        {"item_id": "i5", "effect": pytest.approx(0, abs=1e-5)},
    )
    alone = answer(shop, history=["i5"], candidates=["near"], explain=True)["items"]
    assert reason["effect"] == pytest.approx(found[0]["score"] - alone[0]["score"])
    put(shop, near=None)
    assert found[1:] == answer(shop, history=["i5", "i1"], k=10, explain=True)["items"]


def test_queries_of_one_batch_get_what_they_get_alone(shop: httpx.Client) -> None:
    put(shop, near={"topic": "b"}, far={"topic": "f"})
    queries: list[dict[str, Any]] = [
        {"history": ["i1"]},
        {"history": ["i5"], "k": 3},
        {"history": ["i1"], "filter": {"eq": {"topic": "f"}}},
        {"history": ["i1"], "filter": {"eq": {"colour": "red"}}},
        {"k": 2},
    ]
    together = shop.post("/recommend/batch", json={"queries": queries}).json()["results"]
    assert together[3]["status"] == 422
    for query, found in zip(queries, together, strict=True):
        if "items" in found:
            assert found["items"] == answer(shop, **query)["items"]


def test_a_model_that_knows_the_item_ranks_it_itself(shop: httpx.Client, make_bundle: Callable[..., Path]) -> None:
    put(shop, i13={"topic": "b"})
    assert answer(shop, history=["i1"])["items"][0]["source"] == "cold"
    make_bundle("v2", items=13, attributes={"topic": [None, *TOPICS, "b"]}, promote=False)
    put(shop, near={"topic": "b"})
    assert shop.post("/models/v2/promote").status_code == 200
    found = answer(shop, history=["i1"], k=13)["items"]
    assert [item["item_id"] for item in found if item["source"] == "cold"] == ["near"]
    assert found[-1] == {"item_id": "i13", "score": 1, "source": "model"}
    assert [item["source"] for item in answer(shop, history=["i1"], model_version="v1")["items"]].count("cold") == 1


def test_a_blended_model_ranks_new_items_beside_what_its_neighbours_raise(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    """i1 pulls i9, which scores 4, by 12."""
    pulled, affinities = np.zeros((13, 1), np.int32), np.zeros((13, 1), np.float32)
    pulled[1], affinities[1] = 9, 12
    make_bundle("v1", attributes=COLUMNS, neighbours=Neighbours(pulled, affinities))
    client = start_service(store_url, cold_share=0.5)
    put(client, near={"topic": "b"})
    assert items(client, history=["i1"], k=4) == ["i9", "near", *known(2, 3)]


@pytest.fixture
def engine(make_bundle: Callable[..., Path]) -> Engine:
    return Engine(Runtime(read_bundle(make_bundle("v1", attributes=COLUMNS)), device="cpu", threads=1), cold_share=0.1)


def of_topic(topic: str) -> ItemState:
    return ItemState({"topic": topic})


def test_only_where_there_are_many_new_items_does_the_thread_rank(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine._BRIEF_S", 60.0)
    monkeypatch.setattr("service.engine._BRIEF_TAIL", 2)
    engine.warm_up()
    assert engine.catalogue.cold.choice(10, []) is None
    usual = Query(np.array([1]), np.array([1]), 10)
    for item, brief in (("a", True), ("b", True), ("c", False)):
        engine.catalogue.change({item: of_topic("b")})
        assert engine.brief_for([replace(usual, cold=engine.catalogue.cold.choice(10, []))]) is brief


def test_of_too_many_new_items_those_said_last_remain(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cold.MAX_COLD", 2)
    cold = engine.catalogue.cold
    engine.catalogue.change({"x": of_topic("a"), "y": of_topic("b")})
    engine.catalogue.change({"x": of_topic("c")})
    engine.catalogue.change({"w": of_topic("d"), "gone": ItemState({"topic": "a"}, available=False)})
    assert cold.tail is not None
    assert cold.tail.ids == ["", "w", "x"]
    tail = cold.tail
    engine.catalogue.change({"x": of_topic("c"), "i1": of_topic("b")})
    assert cold.tail is tail  # nothing has changed
    everything = {"v": of_topic("a"), "w": of_topic("d"), "none": of_topic("z"), "x": of_topic("c")}
    for _ in range(2):  # as an engine is told that starts to serve
        engine.catalogue.change(everything)
        assert cold.tail is tail
    engine.catalogue.change({"x": ItemState(), "w": ItemState()})
    assert cold.tail is None


def test_the_best_of_many_new_items_equal_a_slow_search(engine: Engine) -> None:
    generator = np.random.default_rng(4)
    states = {
        f"n{number:03d}": of_topic(str(topic)) for number, topic in enumerate(generator.choice(list("abcdef"), 99))
    }
    engine.catalogue.change(states)
    vector = generator.standard_normal(12).astype(np.float32)
    choice = engine.catalogue.cold.choice(10, ["n003", "unheard of"])
    assert choice is not None
    tail, scores = choice.tail, choice.tail.matrix @ vector
    for k in (1, 7, 98, 200):
        expected = sorted(set(range(1, 100)) - {4}, key=lambda row: (-round(float(scores[row]), 4), tail.ids[row]))[:k]
        assert [row for row, _ in choice.best(vector, k)] == expected


def test_vectors_of_an_autoencoder_keep_their_length(engine: Engine) -> None:
    bundle: Bundle = engine.bundle
    for inputs, length in ((None, 1.0), (bundle.items, 23**0.5 / (12**0.5 + 11**0.5))):  # that of a mean
        cold = ColdItems(replace(bundle, inputs=inputs), share=0.1)
        cold.change({"x": of_topic("a")})
        assert cold.tail is not None
        assert np.linalg.norm(cold.tail.matrix[1]) == pytest.approx(length)
