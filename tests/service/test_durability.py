"""What an acknowledgement outlives is checked from the start on, and a replicated event is counted where it is."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from models import eventlog
from reliability.processes import Store
from reliability.proxy import Proxy
from service.connection import Unfit
from service.durability import NotDurable, check, checked
from service.errors import Problem
from service.intake import Intake
from service.metrics import Metrics
from service.sequences import AppendResult, Event, SequenceStore, StoreSettings, StoreUnavailable
from service.settings import BadSettings, Durability
from tests.service import topologies
from tests.service.conftest import KillableStore

pytestmark = pytest.mark.anyio


def event(name: str) -> Event:
    return Event("ann", f"item-{name}", name, "view", 1)


@pytest.fixture
def store_url(killable_store: KillableStore) -> str:
    """URL of a server that is this test's alone, and may be set as it likes."""
    return killable_store.url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[SequenceStore]:
    async with SequenceStore.connect(store_url) as opened:
        yield opened


@pytest.fixture
def server(store_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(store_url) as client:
        yield client


@pytest.mark.parametrize(
    ("configured", "kept"),
    [
        (("yes", "always"), {"fast", "durable"}),
        (("yes", "everysec"), {"fast"}),
        (("yes", "no"), set()),
        (("no", "always"), set()),
    ],
)
@pytest.mark.parametrize("mode", ["fast", "durable"])
async def test_a_server_that_keeps_less_than_the_mode_promises_is_refused(
    store: SequenceStore, server: redis.Redis, mode: Durability, configured: tuple[str, str], kept: set[str]
) -> None:
    appendonly, appendfsync = configured
    server.config_set("appendonly", appendonly)
    server.config_set("appendfsync", appendfsync)
    if mode in kept:
        assert await check(store.connection, mode, 1) is None
    else:
        with pytest.raises(NotDurable, match=f"durability is {mode}.*appendonly is {appendonly}.*{appendfsync}"):
            await check(store.connection, mode, 1)


@pytest.mark.parametrize("mode", ["durable", "replicated"])
async def test_a_server_that_syncs_nothing_while_it_rewrites_its_log_is_refused(
    store: SequenceStore, server: redis.Redis, mode: Durability
) -> None:
    server.config_set("no-appendfsync-on-rewrite", "yes")
    with pytest.raises(NotDurable, match=f"durability is {mode}.*set no-appendfsync-on-rewrite no.*=fast"):
        await check(store.connection, mode, 1)
    assert await check(store.connection, "fast", 1) is None


@pytest.mark.parametrize("mode", ["fast", "durable", "replicated"])
async def test_a_server_that_evicts_when_its_memory_is_full_is_refused(
    store: SequenceStore, server: redis.Redis, mode: Durability
) -> None:
    server.config_set("maxmemory-policy", "volatile-lru")  # does nothing where there is no limit
    await check(store.connection, mode, 1)
    server.config_set("maxmemory", "100mb")
    said = f"durability is {mode}.*maxmemory is 104857600 and its maxmemory-policy volatile-lru; set .* noeviction"
    with pytest.raises(NotDurable, match=said):
        await check(store.connection, mode, 1)
    server.config_set("maxmemory-policy", "noeviction")
    await check(store.connection, mode, 1)


@pytest.mark.parametrize("name", ["cluster", "sentinels"])
async def test_every_server_that_takes_writes_is_checked(name: str, tmp_path: Path) -> None:
    with topologies.store(name, tmp_path) as url:
        async with SequenceStore.connect(url) as store:
            assert await check(store.connection, "durable", 1) is None
            *_, last = await store.connection._writes.store.primaries()
            await last.config_set("maxmemory", "100mb")
            await last.config_set("maxmemory-policy", "allkeys-lfu")
            with pytest.raises(NotDurable, match="allkeys-lfu"):
                await check(store.connection, "durable", 1)


async def test_replicas_that_are_missing_are_warned_about_and_nothing_counts_without_them(
    store_url: str, store: SequenceStore
) -> None:
    assert "until 1 replica(s)" in str(await check(store.connection, "replicated", 1))
    async with SequenceStore.connect(store_url, StoreSettings(replicas=1)) as replicated:
        for _ in range(2):  # the second time there is nothing left to write
            with pytest.raises(StoreUnavailable, match=r"0 of 1 replica\(s\)"):
                await replicated.append([event("a")])


async def test_all_who_wait_for_a_replica_that_is_missing_are_refused_together(store_url: str) -> None:
    bodies = [
        orjson.dumps({"events": [{"user_id": f"user-{user}", "item_id": f"{body}"} for user in range(50)]})
        for body in range(60)
    ]
    async with (
        SequenceStore.connect(store_url, StoreSettings(replicas=1)) as store,
        Intake(store, lambda: None, Metrics(), max_waiting=100) as intake,
    ):
        began = time.monotonic()
        taken = [intake.take(body) for body in bodies]
        await asyncio.wait([pending.future for pending in taken])
        for pending in taken:
            with pytest.raises(Problem) as refused:
                pending.told(pending.future)
            assert refused.value.code == "store_unavailable"
        assert time.monotonic() - began < 5  # one after the other, each waits a quarter of a second


async def test_a_repeated_event_counts_only_once_a_replica_has_its_first_try(tmp_path: Path) -> None:
    with Store(tmp_path, "primary") as primary, Proxy(primary.address) as link, Store(tmp_path, "replica") as replica:
        with replica.client() as client:
            client.replicaof(*link.address)
        async with SequenceStore.connect(primary.url, StoreSettings(replicas=1)) as store:
            await _until_replicated(store)
            assert await check(store.connection, "replicated", 1) is None
            with pytest.raises(NotDurable, match="a slave"):
                async with SequenceStore.connect(replica.url) as other:
                    await check(other.connection, "replicated", 1)
            link.silent = True  # the primary goes on counting the replica as online
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match=r"0 of 1 replica\(s\)"):
                    await store.append([event("b")])
            link.silent = False
            link.cut()
            assert await _until_replicated(store, "b") == AppendResult(accepted=0, duplicates=1)
        with replica.client() as client:
            assert {found.event_id for found in eventlog.read_events(client)} >= {"b"}


async def _until_replicated(store: SequenceStore, name: str = "a") -> AppendResult:
    for _ in range(60):
        try:
            return await store.append([event(name)])
        except StoreUnavailable:
            continue
    raise AssertionError("no replica has come")


async def test_what_may_not_be_checked_is_said_to_be_unknown(store_url: str, server: redis.Redis) -> None:
    server.execute_command("ACL", "SETUSER", "limited", "on", ">word", "~*", "+@all", "-config")
    try:
        async with SequenceStore.connect(store_url.replace("unix://", "unix://limited:word@")) as limited:
            await limited.append([event("a")])
            warning = str(await check(limited.connection, "durable", 1))
    finally:
        server.execute_command("ACL", "DELUSER", "limited")
    assert "could not check that the sequence store keeps acknowledged events and evicts none" in warning
    assert "word" not in warning


async def test_a_store_that_comes_later_gets_no_acknowledgement_until_it_is_set_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = Store(tmp_path, options={"appendfsync": "everysec"})
    async with SequenceStore.connect(late.url) as store, checked(store.connection, "durable", 1):
        assert "is checked when it answers" in caplog.text
        with late, late.client() as client:
            await _refused(store, because="appendfsync everysec")
            await _until(lambda: "appendfsync everysec" in caplog.text)
            client.config_set("appendfsync", "always")
            await _until(lambda: "is set to what durability durable promises" in caplog.text)
            assert await store.append([event("refused")]) == AppendResult(accepted=1, duplicates=0)
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert error.name == "service.durability"


async def test_a_store_that_restarts_with_less_gets_no_acknowledgement(tmp_path: Path) -> None:
    with Store(tmp_path) as restarted:
        async with SequenceStore.connect(restarted.url) as store, checked(store.connection, "durable", 1):
            await store.append([event("a")])  # on a connection that is left to it
            restarted.stop()
            restarted.options["appendfsync"] = "everysec"
            restarted.start()
            await _refused(store, because="appendfsync everysec")


async def test_a_store_that_is_set_to_less_while_it_runs_gets_no_acknowledgement(
    store: SequenceStore, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with checked(store.connection, "durable", 1):
        await store.append([event("a")])
        server.config_set("appendonly", "no")
        await _until(lambda: "appendonly is no" in caplog.text)
        with pytest.raises(Unfit, match="appendonly is no"):
            await store.append([event("b")])
        server.config_set("appendonly", "yes")
        await _until(lambda: "is set to what durability durable promises" in caplog.text)
        assert await store.append([event("b")]) == AppendResult(accepted=1, duplicates=0)


async def test_a_store_that_is_set_to_less_is_left_for_the_one_its_name_now_leads_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path, "old") as old, Store(tmp_path, "new") as new, Proxy(old.address) as name:
        async with SequenceStore.connect(name.url) as store, checked(store.connection, "durable", 1):
            await store.append([event("a")])
            with old.client() as client:
                client.config_set("appendfsync", "no")
            await _until(lambda: "appendfsync no" in caplog.text)
            with pytest.raises(Unfit):
                await store.append([event("b")])
            assert store.connection.refusing == "store_unfit"
            name.target = new.address
            await _until(lambda: "is set to what durability durable promises" in caplog.text)
            assert await store.append([event("b")]) == AppendResult(accepted=1, duplicates=0)


@pytest.mark.parametrize("mode", ["durable", "replicated"])
async def test_a_primary_that_answers_although_sentinels_name_another_is_left_by_reads_and_writes(
    tmp_path: Path, mode: Durability
) -> None:
    with (
        Store(tmp_path, "old") as old,
        Store(tmp_path, "new", options={"repl-diskless-sync-delay": "0"}) as new,
        Store(tmp_path, "replica") as replica,
        topologies.Sentinel(tmp_path, "sentinel", old.port) as sentinel,
    ):
        with replica.client() as client:
            client.replicaof(*new.address)
        async with SequenceStore.connect(old.url) as direct:
            await direct.append([event("a")])
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        settings = StoreSettings(replicas=int(mode == "replicated"), read_timeout_s=5)
        async with SequenceStore.connect(url, settings) as store, checked(store.connection, mode, 1):
            assert await store.histories(["ann"]) == [["item-a"]]
            sentinel.watch(new.port)
            until = time.monotonic() + 10
            while await store.histories(["ann"]) != [["item-b"]]:  # which only the new one says
                assert time.monotonic() < until
                with contextlib.suppress(StoreUnavailable):
                    await store.append([event("b")])
                await asyncio.sleep(0.05)
            assert await store.append([event("b")]) == AppendResult(accepted=0, duplicates=1)


async def test_a_sentinel_that_is_cut_off_with_the_old_primary_leads_nobody_back_to_it(tmp_path: Path) -> None:
    """It has not heard of the failover, and may be the first to answer."""
    with (
        Store(tmp_path, "old") as old,
        Store(tmp_path, "new") as new,
        topologies.Sentinel(tmp_path, "behind", old.port) as behind,
        topologies.Sentinel(tmp_path, "sentinel", new.port, epoch=1) as sentinel,
    ):
        for url in (
            f"redis+sentinel://127.0.0.1:{behind.port},127.0.0.1:{sentinel.port}/main",
            f"redis+sentinel://127.0.0.1:{sentinel.port},127.0.0.1:{behind.port}/main",
        ):
            async with SequenceStore.connect(url) as store, checked(store.connection, "durable", 0):
                for _ in range(25):
                    await store.append([event(f"{url[-20:]}{_}")])
                    await asyncio.sleep(0.1)
                sentinel.stop()  # and now it alone is left to answer
                await asyncio.sleep(2.5)
                await store.append([event("last")])
            sentinel.start()
        with old.client() as client:
            assert client.dbsize() == 0


async def _refused(store: SequenceStore, *, because: str) -> None:
    """Nothing is acknowledged, at first perhaps for want of an answer."""
    until = time.monotonic() + 20
    said = ""
    while because not in said:
        assert time.monotonic() < until, said
        with pytest.raises(StoreUnavailable) as raised:
            await store.append([event("refused")])
        said = str(raised.value)
        await asyncio.sleep(0.01)


async def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


def test_the_service_does_not_start_on_a_server_that_keeps_less(
    start_service: Callable[..., Any], store_url: str, server: redis.Redis
) -> None:
    server.config_set("appendfsync", "everysec")
    with pytest.raises(BadSettings, match=r"appendfsync everysec.*RECSERVE_DURABILITY=fast"):
        start_service(store_url)
    client = start_service(store_url, durability="fast")
    assert client.post("/events", json={"user_id": "ada", "item_id": "i1"}).status_code == 200


def test_events_are_refused_while_a_running_store_is_set_to_less(
    start_service: Callable[..., Any], store_url: str, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client = start_service(store_url)
    asked = {"json": {"user_id": "ada", "item_id": "i1", "timestamp": 1}}
    assert client.post("/events", **asked).status_code == 200
    server.config_set("appendonly", "no")
    until = time.monotonic() + 20
    while (refused := client.post("/events", **asked)).status_code == 200:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert refused.headers["retry-after"] == "1"
    assert "service.batcher" not in {record.name for record in caplog.records}  # a refusal, and no bug
    said = {r.levelname for r in caplog.records if r.getMessage().startswith("events were not stored: durability is")}
    assert said == {"ERROR"}
    server.config_set("appendonly", "yes")
    until = time.monotonic() + 20
    while client.post("/events", **asked).status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_events_that_no_replica_has_are_refused_over_http(
    start_service: Callable[..., Any], store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = start_service(store_url, durability="replicated")
    for _ in range(2):
        refused = client.post("/events", json={"user_id": "ada", "item_id": "i1", "timestamp": 1})
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert refused.headers["retry-after"] == "1"
    said = {r.levelname for r in caplog.records if r.getMessage().startswith("events were not stored: 0 of 1 replica")}
    assert said == {"ERROR"}
