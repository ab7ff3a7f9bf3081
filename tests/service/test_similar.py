"""`GET /items/{id}/similar`, and the search behind it."""

import asyncio
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.engine import Engine, Ranking
from tests.service.test_items import put, similar


def test_similar_items_are_asked_of_an_id_that_an_item_could_have(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("v1")
    client = start_service(store_url)
    asked = {"": "too_short", "é" * 128 + "x": "too_long", "é" * 128: None}
    for item, code in asked.items():
        answer = client.get(f"/items/{item}/similar")
        found = [entry["code"] for entry in answer.json()["errors"]]
        assert (answer.status_code, found) == ((422, [code]) if code else (404, []))


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
