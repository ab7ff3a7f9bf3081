"""Limits of keys: what passes, what is said, and what holds while the store is away."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import msgpack
import pytest
import redis

from service.connection import Connection
from service.errors import Problem
from service.keyfile import SCOPES, KeyFolder, Limit
from service.limits import Limits
from tests.service.conftest import KillableStore
from tests.service.test_auth import PUBLIC, as_holder, eventually

pytestmark = pytest.mark.anyio
PATIENT_S = 20.0  # where the store is there, however busy the machine
HOURLY = 10  # so few an hour that none comes back while a test runs


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[str], Connection]]:
    opened: list[Connection] = []

    def open_(url: str) -> Connection:
        opened.append(Connection(url, read_timeout_s=0.05, write_timeout_s=0.5, max_connections=16))
        return opened[-1]

    yield open_
    for connection in opened:
        await connection.aclose()


async def admitted(limits: Limits, limit: Limit, attempts: int, key_id: str = "0" * 12) -> int:
    """How many of so many requests, one after the other, pass."""
    passed = 0
    for _ in range(attempts):
        try:
            await limits.admit(key_id, limit)
            passed += 1
        except Problem as problem:
            if problem.code != "rate_limited":
                raise
    return passed


def asked(url: str) -> int:
    """How often Redis ran a script since `reset`."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


def reset(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_resetstat()


async def test_workers_share_a_limit_exactly(store_url: str, connect: Callable[[str], Connection]) -> None:
    limit = Limit(requests=HOURLY, seconds=3600)
    one, other = (Limits(connect(store_url), ask_s=PATIENT_S) for _ in range(2))
    assert await admitted(one, limit, 6) == 6
    assert await admitted(other, limit, 9) == 4
    assert await admitted(one, limit, 3) == 0
    assert await admitted(one, limit, 3, "1" * 12) == 3  # each key has a bucket of its own


@pytest.mark.parametrize("unfit", [None, "its appendonly is no"])
async def test_a_limit_is_shared_although_a_replica_is_away_or_the_store_keeps_less_than_promised(
    store_url: str, unfit: str | None
) -> None:
    limit = Limit(requests=HOURLY, seconds=3600)
    connection = Connection(store_url, read_timeout_s=5, write_timeout_s=5, max_connections=16, replicas=1)
    async with contextlib.aclosing(connection):
        connection.refuse(unfit)
        one, other = (Limits(connection, ask_s=PATIENT_S) for _ in range(2))
        assert await admitted(one, limit, 6) == 6
        assert await admitted(other, limit, 9) == 4


async def test_of_requests_that_come_at_once_as_many_pass_as_may(
    store_url: str, connect: Callable[[str], Connection]
) -> None:
    limit = Limit(requests=HOURLY, seconds=3600)
    limits = Limits(connect(store_url), ask_s=PATIENT_S)
    reset(store_url)
    found = await asyncio.gather(*(admitted(limits, limit, 1) for _ in range(50)))
    assert sum(found) == HOURLY
    assert asked(store_url) <= 4  # and not once for each; the first time it has to be sent twice


async def test_a_busy_worker_asks_for_lots_and_a_refused_request_for_nothing(
    store_url: str, connect: Callable[[str], Connection]
) -> None:
    limits = Limits(connect(store_url), ask_s=PATIENT_S, clock=Clock())
    limit = Limit(requests=1000, seconds=1)
    assert await admitted(limits, limit, 10) == 10
    reset(store_url)
    assert await admitted(limits, limit, 900) == 900
    assert asked(store_url) <= 25  # lots of up to 50

    slow = Limit(requests=HOURLY, seconds=3600)
    assert await admitted(limits, slow, HOURLY + 1, "1" * 12) == HOURLY
    reset(store_url)
    assert await admitted(limits, slow, 100, "1" * 12) == 0
    assert asked(store_url) == 0


async def test_a_lot_that_was_not_used_is_given_up(store_url: str, connect: Callable[[str], Connection]) -> None:
    clock = Clock()
    limits = Limits(connect(store_url), ask_s=PATIENT_S, clock=clock)
    limit = Limit(requests=72_000, seconds=3600)  # lots of one; but who waits gets one each
    await asyncio.gather(*(admitted(limits, limit, 1) for _ in range(20)))
    clock.now += 2
    reset(store_url)
    assert await admitted(limits, limit, 1) == 1
    assert asked(store_url) == 1


async def test_without_redis_each_worker_keeps_to_its_share(connect: Callable[[str], Connection]) -> None:
    clock = Clock()
    limits = Limits(connect("redis://127.0.0.1:1"), workers=2, clock=clock)
    limit = Limit(requests=HOURLY, seconds=3600)
    assert await admitted(limits, limit, HOURLY) == HOURLY // 2
    clock.now += 730  # a little more than what a token takes
    assert await admitted(limits, limit, HOURLY) == 1
    clock.now += 36_000
    assert await admitted(limits, limit, HOURLY) == HOURLY // 2


async def test_without_redis_what_is_said_is_true_of_the_share(connect: Callable[[str], Connection]) -> None:
    limits = Limits(connect("redis://127.0.0.1:1"), workers=2, clock=Clock())
    limit = Limit(requests=HOURLY, seconds=3600)
    said = [(await limits.admit("0" * 12, limit))["RateLimit"] for _ in range(HOURLY // 2)]
    assert said == [f'"key";r={left};t=720' for left in (4, 3, 2, 1, 0)]  # two workers get one each in so long
    with pytest.raises(Problem) as refused:
        await limits.admit("0" * 12, limit)
    assert refused.value.headers["Retry-After"] == "720"
    assert refused.value.headers["RateLimit"] == '"key";r=0;t=720'


async def test_when_redis_goes_what_was_left_is_shared_and_when_it_is_back_it_counts_again(
    killable_store: KillableStore, connect: Callable[[str], Connection], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    limits = Limits(connect(killable_store.url), workers=2, ask_s=PATIENT_S, clock=clock)
    limit = Limit(requests=HOURLY, seconds=3600)
    assert await admitted(limits, limit, 6) == 6
    killable_store.kill()
    assert await admitted(limits, limit, HOURLY) == 2  # of the 4 that were left
    assert len([line for line in caplog.messages if "limits requests by itself" in line]) == 1
    killable_store.start()
    passed = 0
    for _ in range(100):
        clock.now += 0.05  # it asks now and then, and waits for no answer
        await asyncio.sleep(0.01)
        passed += await admitted(limits, limit, 1)
    assert passed == 2  # the others have passed while it was away


async def test_what_passed_while_one_worker_was_alone_is_owed_but_shuts_nobody_out(
    killable_store: KillableStore, connect: Callable[[str], Connection]
) -> None:
    clock = Clock()
    limit = Limit(requests=6000, seconds=60)
    alone, other = (Limits(connect(killable_store.url), workers=2, ask_s=PATIENT_S, clock=clock) for _ in range(2))
    killable_store.kill()
    assert await admitted(alone, limit, 3500) == 3000
    killable_store.start()
    assert await admitted(other, limit, 5900) == 5900
    clock.now += 1
    await alone.admit("0" * 12, limit)  # a token of the second that has passed; it gives account aside

    def left() -> float:
        with redis.Redis.from_url(killable_store.url) as client:
            return float(msgpack.unpackb(client.get("recserve:{limit:" + "0" * 12 + "}"))[0])

    for _ in range(500):
        await asyncio.sleep(0.01)
        if left() < 0:
            break
    assert left() == -100  # a second's


async def test_a_store_that_refuses_to_write_is_as_good_as_none(
    killable_store: KillableStore, connect: Callable[[str], Connection]
) -> None:
    limits = Limits(connect(killable_store.url), workers=2, clock=Clock())
    with redis.Redis.from_url(killable_store.url) as client:
        client.config_set("maxmemory", 1)
    assert await admitted(limits, Limit(requests=HOURLY, seconds=3600), HOURLY) == HOURLY // 2


async def test_a_clock_that_was_set_back_shuts_nobody_out(store_url: str, connect: Callable[[str], Connection]) -> None:
    key, limit = "recserve:{limit:" + "0" * 12 + "}", Limit(requests=1000, seconds=1)
    with redis.Redis.from_url(store_url) as client:
        client.set(key, msgpack.packb([0.5, int((time.time() + 3600) * 1000)]), ex=3600)
        limits = Limits(connect(store_url), ask_s=PATIENT_S)
        assert await admitted(limits, limit, 1) == 0
        assert client.pttl(key) <= 1000
        await asyncio.sleep(0.1)
        assert await admitted(limits, limit, 10) == 10


async def test_a_bucket_is_kept_no_longer_than_it_takes_to_fill(
    store_url: str, connect: Callable[[str], Connection]
) -> None:
    limits = Limits(connect(store_url), ask_s=PATIENT_S)
    await limits.admit("0" * 12, Limit(requests=HOURLY, seconds=3600))
    await limits.admit("1" * 12, Limit(requests=1_000_000, seconds=1))
    with redis.Redis.from_url(store_url) as client:
        assert 0 < client.pttl("recserve:{limit:" + "0" * 12 + "}") <= 3_600_000 / HOURLY
        assert client.pttl("recserve:{limit:" + "1" * 12 + "}") <= 1


def limited_client(
    start_service: Callable[..., httpx.Client], store_url: str, artifacts: Path, limit: Limit
) -> httpx.Client:
    _, key = KeyFolder(artifacts / "keys").create("limited", list(SCOPES), limit)
    client = start_service(store_url)
    client.headers.update(as_holder(key))
    return client


def test_over_http_what_is_left_is_said_and_what_is_too_much_refused(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, artifacts: Path
) -> None:
    make_bundle("v1")
    client = limited_client(start_service, store_url, artifacts, Limit(requests=3, seconds=3600))
    for left in (2, 1, 0):
        answer = client.post("/recommend", json={"history": ["i1"]})
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == '"key";q=3;w=3600'
        said = re.fullmatch(r'"key";r=([0-9]);t=([0-9]+)', answer.headers["ratelimit"])
        assert said
        assert int(said[1]) == left
        assert 1190 <= int(said[2]) <= 1200  # until it is one more
    for method, path in (("POST", "/recommend"), ("POST", "/events"), ("GET", "/models")):
        answer = client.request(method, path, content=b"{")
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert 1190 <= int(answer.headers["retry-after"]) <= 1200
        said = re.fullmatch(r'"key";r=0;t=([0-9]+)', answer.headers["ratelimit"])
        assert said
        assert int(said[1]) <= int(answer.headers["retry-after"])
    _, unlimited = KeyFolder(artifacts / "keys").create("free", ["recommend"])

    def asked() -> httpx.Response:
        return client.post("/recommend", headers=as_holder(unlimited), json={"history": ["i1"]})

    eventually(lambda: asked().status_code == 200)
    assert "ratelimit" not in asked().headers


def test_requests_that_are_refused_at_their_head_count_too(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, artifacts: Path
) -> None:
    make_bundle("v1")
    client = limited_client(start_service, store_url, artifacts, Limit(requests=3, seconds=3600))
    answers = [client.post("/recommend?x=1", json={}) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [422, 422, 422, 429, 429]
    assert [answer.headers["ratelimit"][:9] for answer in answers] == [f'"key";r={left}' for left in (2, 1, 0, 0, 0)]
    assert client.post("/events", content=b"x" * ((1 << 20) + 1)).status_code == 429


@pytest.mark.parametrize("call", ["POST /recommend", "GET /models"])
def test_requests_that_the_key_has_no_scope_for_count_too(
    start_service: Callable[..., httpx.Client],
    make_bundle: Callable[..., Path],
    store_url: str,
    artifacts: Path,
    call: str,
) -> None:
    make_bundle("v1")
    _, key = KeyFolder(artifacts / "keys").create("limited", ["events"], Limit(requests=2, seconds=3600))
    client = start_service(store_url)
    answers = [client.request(*call.split(), headers=as_holder(key)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [403, 403, 429]
    assert [answer.headers["ratelimit"][:9] for answer in answers] == [f'"key";r={left}' for left in (1, 0, 0)]


def test_every_route_but_the_probes_counts(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, artifacts: Path
) -> None:
    make_bundle("v1")
    client = limited_client(start_service, store_url, artifacts, Limit(requests=1000, seconds=86_400))
    left = 1000
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            answer = client.request(method, re.sub(r"\{\w+\}", "x", path))
            said = re.match('"key";r=([0-9]+);', answer.headers.get("ratelimit", ""))
            assert (said is None) == (path in PUBLIC), (method, path)
            if said:
                assert int(said[1]) < left, (method, path)
                left = int(said[1])
