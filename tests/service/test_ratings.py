"""Ratings served: events with a `value` steer a user-based AutoRec over HTTP, and nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from models.autorec import AutoRecConfig
from models.draft import Content, write_bundle
from models.manifest import DataWindow, Manifest, Parity
from models.registry import Registry
from models.zoo import build
from service.sequences import SequenceStore

ITEMS = 6


def publish(artifacts: Path, version: str = "ratings-1") -> None:
    """Items 1, 3 and 5 are liked together, and so are 2, 4 and 6; who likes one kind does not like the other."""
    from training.export import encoder_graph, golden
    from training.ranker import build_ranker

    model = build(AutoRecConfig(hidden=(1,), encoder="identity", presence=0.0, length=20), ITEMS).eval()
    kinds = torch.tensor([1.0, -1.0] * 3)
    with torch.no_grad():
        model.input_embedding.weight[1:] = kinds[:, None]
        model.decoder.weight[:] = 0.1 * kinds[:, None]
        model.decoder.bias[:] = -0.001 * torch.arange(ITEMS)  # ties break by item
    content = Content(
        manifest=Manifest(
            version=version,
            created="2026-01-01T00:00:00Z",
            model="autorec",
            items=ITEMS,
            dim=model.config.dim,
            length=20,
            config={},
            seed=0,
            data=DataWindow(files={}, users=1, items=ITEMS, interactions=1),
            metrics={},
            parity=Parity(cases=1, largest_difference=0, top_k_agreed=True),
        ),
        encoder=encoder_graph(model),
        ranker=build_ranker(),
        items=model.item_matrix().detach().numpy(),
        ids=["", *(f"i{item}" for item in range(1, ITEMS + 1))],
        popularity=np.ones(ITEMS + 1, np.float32),
        attributes=None,
        golden=golden(model),
        inputs=model.inputs().detach().numpy(),
    )
    write_bundle(artifacts, content)
    Registry(artifacts).promote(version)


@pytest.fixture
def client(artifacts: Path, store_url: str, start_service: Callable[..., httpx.Client]) -> httpx.Client:
    publish(artifacts)
    return start_service(store_url)


def rate(client: httpx.Client, user: str, *ratings: tuple[str, float | None]) -> None:
    events = [
        {"user_id": user, "item_id": item, "timestamp": at} | ({} if value is None else {"value": value})
        for at, (item, value) in enumerate(ratings, 1)
    ]
    assert client.post("/events", json={"events": events}).json()["accepted"] == len(events)


def items(client: httpx.Client, **body: Any) -> list[str]:
    response = client.post("/recommend", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["source"] == "model"
    return [item["item_id"] for item in response.json()["items"]]


def test_the_list_follows_what_was_liked_and_turns_from_what_was_not(client: httpx.Client) -> None:
    rate(client, "fan", ("i1", 5), ("i2", 1))
    rate(client, "critic", ("i1", 1), ("i2", 5))
    assert items(client, user_id="fan", k=4) == ["i3", "i5", "i4", "i6"]
    assert items(client, user_id="critic", k=4) == ["i4", "i6", "i3", "i5"]


def test_a_changed_mind_counts(client: httpx.Client) -> None:
    rate(client, "ada", ("i1", 5), ("i2", 1), ("i1", 1), ("i2", 5))
    assert items(client, user_id="ada", k=2) == ["i4", "i6"]


def test_events_without_a_rating_do_not_speak_for_or_against(client: httpx.Client) -> None:
    rate(client, "ada", ("i1", 1), ("i2", 5), ("i1", None), ("unknown", 5.0), ("i3", None))
    assert items(client, user_id="ada", k=2) == ["i4", "i6"]
    rate(client, "bob", ("i1", None))
    assert items(client, user_id="bob", k=2) == ["i2", "i3"]  # by the items' biases alone


def test_a_history_in_the_request_has_no_ratings_and_continues_one_that_has(client: httpx.Client) -> None:
    rate(client, "ada", ("i1", 1), ("i2", 5))
    assert items(client, user_id="ada", history=["i4"], history_mode="append", k=2) == ["i6", "i3"]
    assert items(client, history=["i2"], k=2) == ["i1", "i3"]


def test_users_with_and_without_ratings_share_a_batch(client: httpx.Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    users = {f"u{number}": ("i1", 5.0 if number % 2 else 1.0) for number in range(24)}
    for user, rating in users.items():
        rate(client, user, rating, ("i2", 3.0))
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda user: items(client, user_id=user, k=1), users))
    assert found == [["i3"] if value == 5 else ["i4"] for _, value in users.values()]


@pytest.mark.anyio
async def test_values_are_read_beside_their_items(store_url: str) -> None:
    from service.sequences import Event

    async with SequenceStore.connect(store_url) as store:
        for number, value in enumerate((4.5, None, 0.0)):
            event = Event("ada", f"i{number}", f"e{number}", "interaction", 1_000 + number, value, None, None)
            await store.append([event])
        (ids, values), nobody = await store.rated_histories(["ada", "nobody"])
    assert ids == ["i0", "i1", "i2"]
    assert values[0] == 4.5
    assert np.isnan(values[1])
    assert values[2] == 0.0
    assert nobody == ([], [])
