"""When a part is down: reads degrade, writes refuse, and both recover by themselves."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import redis

from models.eventlog import read_events
from service.breaker import Breaker
from service.connection import Connection, Script, StoreUnavailable
from tests.service.sockets import PLAIN


@pytest.fixture
def client(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], killable_store: Any
) -> httpx.Client:
    make_bundle("v1")
    client = start_service(killable_store.url)
    assert client.post("/events", json={"user_id": "ada", "item_id": "i7", "timestamp": 1}).status_code == 200
    return client


def timed(client: httpx.Client, **body: Any) -> tuple[float, dict[str, Any]]:
    started = time.perf_counter()
    response = client.post("/recommend", json=body)
    assert response.status_code == 200, response.text
    return time.perf_counter() - started, response.json()


def recovers(client: httpx.Client) -> None:
    started = time.monotonic()
    event = {"user_id": "ada", "item_id": "i8", "timestamp": 2}
    while client.post("/events", json=event).status_code != 200 or timed(client, user_id="ada")[1]["degraded"]:
        assert time.monotonic() - started < 2
        time.sleep(0.02)
    answer = timed(client, user_id="ada", k=1)[1]
    assert (answer["history_length"], answer["items"][0]["item_id"]) == (2, "i9")


@pytest.mark.parametrize("way", ["kill", "pause"])
def test_without_the_store_reads_degrade_within_150_ms_writes_refuse_and_both_recover(
    client: httpx.Client, killable_store: Any, way: str
) -> None:
    getattr(killable_store, way)()
    try:
        for _ in range(5):
            seconds, answer = timed(client, user_id="ada", k=1)
            assert seconds < 0.15
            assert (answer["degraded"], answer["source"]) == (["state_store"], "popular")
            seconds, answer = timed(client, user_id="ada", history=["i3"], history_mode="append", k=1)
            assert seconds < 0.15
            assert (answer["degraded"], answer["items"][0]["item_id"]) == (["state_store"], "i4")
            seconds, answer = timed(client, history=["i3"])
            assert seconds < 0.15
            assert (answer["degraded"], answer["source"]) == ([], "model")
            time.sleep(0.15)  # so that the rounds fall inside and outside of the pause after a failed read
        refused = client.post("/events", json={"user_id": "ada", "item_id": "i7", "timestamp": 1})
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert refused.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["events_refused"] == "store_unreachable"
        text = client.get("/metrics").text
        assert 'recserve_store_errors_total{call="write"} 1.0' in text
        assert 'recserve_degraded_answers_total{missing="state_store"} 10.0' in text
    finally:
        (killable_store.start if way == "kill" else killable_store.resume)()
    recovers(client)
    assert client.get("/readyz").json()["events_refused"] is None


@pytest.mark.anyio
async def test_a_probe_that_breaks_is_said_once_and_made_again(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[ValueError | bool] = [ValueError("a reply of another shape"), ValueError("again"), False, True]

    async def probe() -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, ValueError):
            raise outcome
        return outcome

    breaker = Breaker("reads", probe)
    breaker.open("it did not answer")
    until = time.monotonic() + 5
    while breaker.reason is not None:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    await breaker.aclose()
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "another shape" in str(error.exc_info)


@pytest.mark.anyio
async def test_a_call_under_way_when_its_connection_is_closed_leaves_no_probe_behind(killable_store: Any) -> None:
    connection = Connection(killable_store.url, read_timeout_s=0.5, write_timeout_s=0.5, max_connections=4)
    await connection.values([b"x"])
    killable_store.pause()
    try:
        call = asyncio.create_task(connection.values([b"x"]))
        await asyncio.sleep(0.05)
        await connection.aclose()
        with pytest.raises(StoreUnavailable):
            await call
        assert "breaker" not in {task.get_name() for task in asyncio.all_tasks()}
    finally:
        killable_store.resume()


@pytest.mark.anyio
async def test_waiting_for_a_connection_takes_no_time_from_the_call_and_is_no_silence_of_the_store(
    store_url: str,
) -> None:
    def connected(client: Any) -> Any:
        return client.client_id()

    def slow(client: Any) -> Any:
        return asyncio.sleep(1.5)

    connection = Connection(store_url, read_timeout_s=2, write_timeout_s=2, max_connections=1)
    try:
        before = await connection.read(b"", connected)
        calls = [asyncio.create_task(connection.read(b"", slow)) for _ in range(4)]
        assert [await call for call in calls[:3]] == [None] * 3
        with pytest.raises(StoreUnavailable, match="all connections were busy for 4000 ms"):
            await calls[3]
        assert await connection.read(b"", connected) == before
    finally:
        await connection.aclose()


def test_many_callers_at_once_do_not_wait_for_each_others_timeouts(client: httpx.Client, killable_store: Any) -> None:
    killable_store.pause()
    try:
        slowest: list[float] = []

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, timeout=10, verify=PLAIN) as own:
                own.get("/healthz")  # connecting is not what is measured
                slowest.append(max(timed(own, user_id="ada")[0] for _ in range(20)))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        killable_store.resume()
    assert max(slowest) < 0.3  # two of the store's timeouts, and eight clients in Python on shared cores


def test_a_service_may_start_before_its_store(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], killable_store: Any
) -> None:
    make_bundle("v1")
    killable_store.kill()
    client = start_service(killable_store.url)
    assert timed(client, user_id="ada")[1]["degraded"] == ["state_store"]
    killable_store.start()
    until = time.monotonic() + 2
    while timed(client, user_id="ada")[1]["degraded"]:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_overload_is_refused_at_once_and_everyone_gets_an_answer(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], killable_store: Any
) -> None:
    make_bundle("v1")
    client = start_service(killable_store.url, max_batch=1, max_waiting=2)
    client.post("/recommend", json={"user_id": "ada"})

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=10) as clients:
            await asyncio.gather(*(clients.get("/healthz") for _ in range(16)))  # connected
            killable_store.pause()  # the batch under way now takes 100 ms
            return await asyncio.gather(*(clients.post("/recommend", json={"user_id": "ada"}) for _ in range(16)))

    try:
        answers = asyncio.run(ask_all())
    finally:
        killable_store.resume()
    assert {(answer.status_code, answer.headers.get("retry-after")) for answer in answers} == {(200, None), (503, "1")}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 503} == {"overloaded"}


def test_a_flood_of_large_bodies_of_events_is_refused_before_it_is_parsed_and_what_is_taken_is_stored(
    start_service: Callable[..., httpx.Client],
    make_bundle: Callable[..., Path],
    killable_store: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.intake._MOST_BYTES", 10_000)
    make_bundle("v1")
    client = start_service(killable_store.url)
    bodies = [  # of 5,000 bytes
        orjson.dumps({"events": [{"user_id": f"{body}-{n}", "item_id": "i1", "timestamp": n} for n in range(100)]})
        for body in range(60)
    ]

    async def send_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=10) as clients:
            await asyncio.gather(*(clients.get("/healthz") for _ in bodies))  # connected
            with redis.Redis.from_url(killable_store.url) as store:
                store.client_pause(150, all=False)  # writes
            return await asyncio.gather(*(clients.post("/events", content=body) for body in bodies))

    answers = asyncio.run(send_all())
    taken = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert taken
    assert len(refused) > 10
    assert {(answer.status_code, answer.json()["code"], answer.headers["retry-after"]) for answer in refused} == {
        (503, "overloaded", "1")
    }
    with redis.Redis.from_url(killable_store.url) as store:
        assert len([*read_events(store)]) == 100 * len(taken)
    assert client.post("/events", content=bodies[0]).status_code == 200


def test_a_batch_that_breaks_is_a_500_for_its_members_and_nothing_for_the_next(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    import numpy as np

    table = np.ones((201, 200))
    table[150] = np.nan  # passes its golden inputs and the warm-up
    make_bundle("v1", table=table)
    client = start_service(store_url)
    response = client.post("/recommend", json={"history": ["i150"]})
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "finite" not in response.text
    assert client.post("/recommend", json={"history": ["i4"]}).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_beside_events_that_wait_a_body_of_the_largest_size_is_taken_and_a_larger_one_is_too_large(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], killable_store: Any
) -> None:
    make_bundle("v1")
    client = start_service(killable_store.url)
    small = orjson.dumps({"user_id": "ada", "item_id": "i1"})
    events = [{"user_id": f"user {n}", "item_id": "i1", "properties": {"text": "x" * 900}} for n in range(1000)]
    large = orjson.dumps({"events": events}).ljust(1 << 20)

    async def send() -> list[int]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=10) as clients:
            await asyncio.gather(*(clients.get("/healthz") for _ in range(3)))  # connected
            with redis.Redis.from_url(killable_store.url) as store:
                store.client_pause(150, all=False)  # writes
            bodies = (small, large, large + b" ")
            answers = await asyncio.gather(*(clients.post("/events", content=body) for body in bodies))
            return [answer.status_code for answer in answers]

    assert asyncio.run(send()) == [200, 200, 413]


@pytest.mark.anyio
async def test_whoever_answers_after_a_failure_is_vetted_anew(killable_store: Any) -> None:
    vetted = 0

    async def vet() -> None:
        nonlocal vetted
        vetted += 1

    connection = Connection(killable_store.url, read_timeout_s=1, write_timeout_s=1, max_connections=4)
    connection.vet = vet
    script = Script(b"return 1", keys=1)
    try:
        await connection.run(script, [(b"{1}",)])
        before = vetted
        await connection.run(script, [(b"{1}",)])
        assert vetted == before
        connection._writes.forget()  # as after a failed attempt: of a cluster, a replica that was known may take over
        await connection.run(script, [(b"{1}",)])
        assert vetted > before
    finally:
        await connection.aclose()
