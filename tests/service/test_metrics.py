"""What /metrics counts, from the outside."""

import asyncio
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reliability.wire import request
from service.metrics import Metrics


@pytest.fixture
def client(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> httpx.Client:
    make_bundle("v1")
    return start_service(store_url)


def values(client: httpx.Client) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_page_for_operators_has_every_metric_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    text = asyncio.run(Metrics().text(log_fill=0.0)).decode()
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }
    assert set(re.findall(r"^\| `(recserve_\w+)`", page, re.MULTILINE)) == names
    assert set(re.findall(r"recserve_\w+", page)) <= {*re.findall(r"^\| `(recserve_\w+)`", page, re.MULTILINE)}


def test_it_says_how_full_the_log_is(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("v1")
    client = start_service(store_url, log_max_events=1600)  # 100 in each part
    assert values(client)["recserve_log_fill_ratio"] == 0
    events = [{"user_id": "ann", "item_id": "i1", "event_id": f"e{number}"} for number in range(25)]
    assert client.post("/events", json={"events": events}).json()["accepted"] == 25
    assert values(client)["recserve_log_fill_ratio"] == 0.25


def test_a_log_that_cannot_be_looked_at_is_left_out(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path]
) -> None:
    make_bundle("v1")
    client = start_service("redis://127.0.0.1:1")
    assert "recserve_log_fill_ratio" not in values(client)


def test_requests_are_counted_by_route_and_status(client: httpx.Client) -> None:
    for body in ({}, {"history": ["i1"]}, {"k": 0}):
        client.post("/recommend", json=body)
    client.post("/recommend", content=b"{")
    found = values(client)
    assert found["recserve_requests_total recommend 200"] == 2
    assert found["recserve_requests_total recommend 422"] == 1
    assert found["recserve_requests_total recommend 400"] == 1
    assert found["recserve_request_seconds_count recommend"] == 4
    assert found["recserve_batch_size_sum"] == 2


def test_a_request_whose_client_left_before_it_was_complete_is_none(client: httpx.Client) -> None:
    address = client.base_url.host, client.base_url.port or 80
    for path in ("/items", "/recommend"):
        method = "PUT" if path == "/items" else "POST"
        with socket.create_connection(address) as leaving:
            leaving.sendall(request(method, path, b" " * 100)[:-99])
            time.sleep(0.2)  # it has been asked for its body
    time.sleep(0.2)
    assert client.put("/items", json={"items": [{"item_id": "i1", "available": True}]}).status_code == 200
    counted = {name: value for name, value in values(client).items() if name.startswith("recserve_requests_total")}
    assert counted == {"recserve_requests_total items 200": 1}


def test_events_are_counted_by_what_became_of_them(client: httpx.Client) -> None:
    event = {"user_id": "ada", "item_id": "i1", "timestamp": 1}
    client.post("/events", json={"events": [event, event, {"user_id": "ada"}, {**event, "timestamp": 2}]})
    found = values(client)
    outcomes = {name: found[f"recserve_events_total {name}"] for name in ("accepted", "duplicate", "rejected")}
    assert outcomes == {"accepted": 2, "duplicate": 1, "rejected": 1}


def test_the_model_that_serves_is_named(client: httpx.Client, make_bundle: Callable[..., Path]) -> None:
    (info,) = (name for name in values(client) if name.startswith("recserve_model_info"))
    assert set(info.split()[1:]) == {"v1", "last_item", "CPUExecutionProvider"}
    make_bundle("v2", promote=False)
    client.post("/models/v2/promote")
    text = client.get("/metrics").text
    assert 'version="v2"' in text
    assert 'version="v1"' not in text


def test_no_user_is_named(client: httpx.Client) -> None:
    client.post("/events", json={"user_id": "ada-lovelace", "item_id": "i1"})
    client.post("/recommend", json={"user_id": "ada-lovelace"})
    assert "ada-lovelace" not in client.get("/metrics").text
