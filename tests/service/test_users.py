"""GET /users/{id}/history and DELETE /users/{id}, over HTTP, and what an erasure leaves in a real store."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from models import eventlog
from models.eventlog import LoggedEvent, Tombstone, digest_of, log_key, partition_of, tombstones_key
from service.archive import Archiver
from service.connection import StoreUnavailable
from service.erasure import Erased, Erasure
from service.sequences import SequenceStore, StoreSettings

USER = "canary/é?x=1 #\n"  # what a path has to carry
URL = "/users/canary%2F%C3%A9%3Fx%3D1%20%23%0A"
ERASED_KEYS = [
    f"recserve:{{{partition_of('canary')}}}:{name}" for name in ("h:canary", "d:canary", "log", "erasing", "tombstones")
]


@pytest.fixture
def server(store_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(store_url) as opened:
        yield opened


def post(client: httpx.Client, *events: dict[str, Any]) -> None:
    answer = client.post("/events", json={"events": list(events)})
    assert answer.json()["accepted"] == len(events), answer.text


def holding(server: redis.Redis, text: str) -> list[bytes]:
    """Keys that have it in their name or in the memory of their value."""
    return [key for key in server.scan_iter("*") if text.encode() in key + (server.dump(key) or b"")]


async def append(url: str, *events: LoggedEvent, **settings: Any) -> int:
    async with SequenceStore.connect(url, StoreSettings(write_timeout_s=5, **settings)) as store:
        return (await store.append(events)).accepted


async def erase(url: str, user: str) -> Erased:
    async with SequenceStore.connect(url, StoreSettings(write_timeout_s=5)) as store:
        return await Erasure(store.connection, log_length=1000).erase(user)


def event(user: str, number: int) -> LoggedEvent:
    return LoggedEvent(user, f"item{number}", f"e{number}", "view", 1000 + number)


def test_a_history_comes_back_oldest_first_with_what_was_said(client: httpx.Client) -> None:
    assert client.get(f"{URL}/history").json() == {"user_id": USER, "events": []}
    post(
        client,
        {"user_id": USER, "item_id": "i2", "event_id": "b", "timestamp": 20, "type": "rating", "value": 4.5},
        {"user_id": USER, "item_id": "new", "event_id": "a", "timestamp": 10},
        {"user_id": USER, "item_id": "i9", "event_id": "c", "timestamp": 30, "type": "impression"},
    )
    assert client.get(f"{URL}/history").json() == {
        "user_id": USER,
        "events": [
            {"event_id": "a", "item_id": "new", "type": "interaction", "timestamp": 10, "value": None},
            {"event_id": "b", "item_id": "i2", "type": "rating", "timestamp": 20, "value": 4.5},
        ],
    }


def test_deleting_a_user_removes_everything_and_says_how_much(client: httpx.Client, server: redis.Redis) -> None:
    post(client, *({"user_id": USER, "item_id": f"i{n}", "timestamp": n} for n in range(1, 4)))
    post(client, {"user_id": USER, "item_id": "i1", "timestamp": 9, "type": "impression"})
    post(client, {"user_id": "bob", "item_id": "i5", "timestamp": 1})
    assert len(holding(server, "canary")) == 3
    removed = {"history_events": 3, "event_ids": 4, "logged_events": 4}
    assert client.delete(URL).json() == {"user_id": USER, "removed": removed}
    assert holding(server, "canary") == []
    assert client.get(f"{URL}/history").json()["events"] == []
    assert client.post("/recommend", json={"user_id": USER}).json()["history_length"] == 0
    assert [one.user_id for one in eventlog.read_events(server)] == ["bob"]
    nothing = dict.fromkeys(removed, 0)
    again = client.delete(URL)
    assert (again.status_code, again.json()["removed"]) == (200, nothing)
    assert client.delete("/users/nobody").json() == {"user_id": "nobody", "removed": nothing}
    assert "canary" not in client.get("/metrics").text


def test_a_user_who_returns_is_new(client: httpx.Client, server: redis.Redis) -> None:
    one = {"user_id": USER, "item_id": "i1", "event_id": "same", "timestamp": 1}
    post(client, one)
    client.delete(URL)
    post(client, one)
    assert len(client.get(f"{URL}/history").json()["events"]) == 1
    assert [entry.event_id for entry in eventlog.read_events(server)] == ["same"]


def test_an_id_that_no_event_can_have_is_refused(client: httpx.Client) -> None:
    for method, path in (("GET", "/history"), ("DELETE", "")):
        assert client.request(method, f"/users/{'x' * 256}{path}").status_code == 200
        refused = client.request(method, f"/users/{'x' * 257}{path}")
        empty = client.request(method, f"/users/{path}")
        for answer, code in ((refused, "too_long"), (empty, "too_short")):
            (entry,) = answer.json()["errors"]
            assert (answer.status_code, entry["field"], entry["code"]) == (422, "user_id", code)


def kept(client: httpx.Client, path: str) -> int:
    """Events that are stored of the user at a path."""
    return len(client.get(f"{path}/history").json()["events"])


def test_a_slash_of_an_id_is_escaped_and_another_parts_the_path(client: httpx.Client) -> None:
    paths = {"ada/history": "/users/ada%2Fhistory", "ada%2Fhistory": "/users/ada%252Fhistory", "%": "/users/%25"}
    for user, path in paths.items():
        post(client, {"user_id": user, "item_id": "i1"})
        assert client.get(f"{path}/history").json()["user_id"] == user
    refused = client.delete("/users/ada/history")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    assert client.delete("/users/ada/history/history").status_code == 404
    assert client.get("/users/ada/history/history").status_code == 404
    for user, path in paths.items():
        assert kept(client, path) == 1
        assert client.delete(path.replace("%2F", "%2f")).json()["user_id"] == user
        assert kept(client, path) == 0


@pytest.mark.parametrize("path", ["/users/%ff", "/users/%fe", "/users/%ed%a0%80", "/users/%c0%af", "/users/a%2F%f0%9f"])
def test_a_path_that_is_not_utf_8_is_no_user(client: httpx.Client, path: str) -> None:
    post(client, *({"user_id": user, "item_id": "i1"} for user in ("\ufffd", "a/\ufffd", "\ufffd" * 3)))
    for answer in (client.delete(path), client.get(f"{path}/history")):
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert answer.json()["errors"][0]["field"] == "path"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert [kept(client, f"/users/{user}") for user in ("\ufffd", "a%2F\ufffd", "\ufffd" * 3)] == [1, 1, 1]


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/users/ada"), ("GET", "/users/ada/history")])
def test_what_would_be_ignored_is_refused_and_nothing_erased(client: httpx.Client, method: str, path: str) -> None:
    post(client, {"user_id": "ada", "item_id": "i1"})
    for query in ("?before=1", "?user_id=ada", "?before", "?before=1&before=2"):
        answer = client.request(method, path + query)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert query.strip("?").split("=")[0] in answer.json()["detail"]
    for body in (b'{"before": 1}', b"[]", b"null"):
        assert client.request(method, path, content=body).status_code == 422
    assert client.request(method, path, content=b"{").status_code == 400
    assert kept(client, "/users/ada") == 1
    assert client.request(method, path, content=b"{}").status_code == 200  # what some clients always send


def test_both_calls_refuse_while_the_store_is_away_and_work_when_it_is_back(
    start_service: Callable[..., httpx.Client],
    make_bundle: Callable[..., Path],
    killable_store: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_bundle("v1")
    client = start_service(killable_store.url)
    post(client, {"user_id": USER, "item_id": "i1"})
    killable_store.kill()
    for answer in (client.get(f"{URL}/history"), client.delete(URL)):
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert "canary" not in answer.text
    for said in ("a history was not read: ", "a user was not erased: "):
        assert [record.levelname for record in caplog.records if record.getMessage().startswith(said)] == ["WARNING"]
    assert "canary" not in caplog.text
    killable_store.start()
    deadline = time.monotonic() + 10  # the store's return is noticed a moment later
    while (answer := client.delete(URL)).status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert answer.json()["removed"]["history_events"] == 1


def test_erasing_leaves_the_events_of_others_and_a_tombstone_that_names_nobody(
    store_url: str, server: redis.Redis
) -> None:
    partition = partition_of("canary")
    others = [f"u{n}" for n in range(400) if partition_of(f"u{n}") == partition]
    events = [event(others[n % len(others)], n) for n in range(1500)]
    mine = [event("canary", n) for n in (0, 1, 2)]
    asyncio.run(append(store_url, *events[:700], mine[0], *events[700:702], mine[1], *events[702:], mine[2]))
    before = {key: server.dump(key) for key in server.scan_iter("*:[hd]:*") if b"canary" not in key}
    assert asyncio.run(erase(store_url, "canary")) == Erased(3, 3, 3)
    assert holding(server, "canary") == []
    assert holding(server, "erasing") == []
    assert {key: server.dump(key) for key in before} == before
    entries = list(eventlog.read_partition(server, partition))
    kept = [entry.what for entry in entries if isinstance(entry.what, LoggedEvent)]
    assert sorted(one.event_id for one in kept) == sorted(one.event_id for one in events)
    assert {entry.what.user for entry in entries if isinstance(entry.what, Tombstone)} == {digest_of("canary")}


def begin_to_erase_canary(server: redis.Redis) -> str:
    """What a service does that dies after the first step, and up to where the user is erased then."""
    return begin_to_erase(server, "canary")


def begin_to_erase(server: redis.Redis, user: str) -> str:
    """The same for any user of the canary's partition."""
    script = Path("service/erase.lua").read_text()
    own = [key.replace("canary", user) for key in ERASED_KEYS]
    reply: Any = server.eval(script, len(own), *own, user, digest_of(user), 1000, 0)
    return str(reply[2].decode())


def test_whoever_erases_finishes_what_another_left_half_done(store_url: str, server: redis.Redis) -> None:
    """A service that died after the first step of an erasure: the next sweep of that log does not carry it along."""
    partition = partition_of("canary")
    other = next(f"u{n}" for n in range(400) if partition_of(f"u{n}") == partition)
    asyncio.run(append(store_url, event("canary", 1), event(other, 2)))
    begin_to_erase_canary(server)
    assert holding(server, "canary") == [log_key(partition).encode()]  # what keeps it in mind names nobody
    for key in server.scan_iter("*"):
        if server.ttl(key) >= 0:
            server.delete(key)  # as it would be long afterwards
    assert asyncio.run(erase(store_url, other)).logged_events == 1
    assert list(eventlog.read_events(server)) == []
    assert holding(server, "canary") == []
    assert holding(server, "erasing") == []
    assert asyncio.run(erase(store_url, "canary")) == Erased(0, 0, 0)
    assert holding(server, "canary") == []


def test_erasures_that_were_cut_off_are_kept_in_mind_as_long_as_the_log_has_something_of_theirs(
    store_url: str, server: redis.Redis
) -> None:
    partition = partition_of("canary")
    second, third, fourth = [f"u{n}" for n in range(400) if partition_of(f"u{n}") == partition][:3]
    asyncio.run(append(store_url, event("canary", 1)))
    begin_to_erase_canary(server)
    upto = begin_to_erase(server, second)
    begin_to_erase(server, third)
    assert server.hlen(ERASED_KEYS[3]) == 3
    server.xtrim(log_key(partition), minid=upto, approximate=False)  # which the log still has, and nothing before it
    begin_to_erase(server, fourth)
    pending: Any = server.hkeys(ERASED_KEYS[3])
    digests = [hashlib.sha1(user.encode(), usedforsecurity=False) for user in (second, third, fourth)]
    assert set(pending) == {digest.hexdigest().encode() for digest in digests}
    server.delete(log_key(partition))
    time.sleep(0.002)  # in the same millisecond a log that is new would begin before them
    begin_to_erase_canary(server)
    assert server.hlen(ERASED_KEYS[3]) == 1


def test_the_archiver_hears_of_an_erasure_when_it_has_ended_too(
    store_url: str, server: redis.Redis, tmp_path: Path
) -> None:
    """The server's files that are written anew before then still have what the sweep had yet to reach."""
    asyncio.run(append(store_url, event("canary", 1)))
    tombstones = tombstones_key(partition_of("canary"))
    newest: Any = server.xrevrange(log_key(partition_of("canary")), count=1)
    upto = begin_to_erase_canary(server)
    with Archiver(store_url, tmp_path) as archiver:
        archiver.move()
    assert not server.exists(tombstones)
    swept = [*ERASED_KEYS[2:], "canary", digest_of("canary"), upto, newest[0][0], 200]
    assert server.eval(Path("service/sweep.lua").read_text(), 3, *swept) == [1, 1]
    assert server.zrange(tombstones, 0, -1) == [f"{digest_of('canary')} {upto.replace('-', '-0')}".encode()]


def test_events_that_come_while_a_user_is_erased_are_kept(store_url: str, server: redis.Redis) -> None:
    asyncio.run(append(store_url, *(event("canary", n) for n in range(900))))

    async def both() -> None:
        async with SequenceStore.connect(store_url, StoreSettings(write_timeout_s=5)) as store:
            erasing = asyncio.create_task(Erasure(store.connection, log_length=1000).erase("canary"))
            for _ in range(10_000):  # until the first step is done
                if await store.histories(["canary"]) == [[]]:
                    break
                await asyncio.sleep(0.001)
            await store.append([event("canary", n) for n in range(2000, 2050)])
            await erasing

    asyncio.run(both())
    assert {one.event_id for one in eventlog.read_events(server)} == {f"e{n}" for n in range(2000, 2050)}


def test_erasures_at_the_same_time_hinder_none_of_each_other(store_url: str, server: redis.Redis) -> None:
    partition = partition_of("canary")
    first, second, third = [f"u{n}" for n in range(400) if partition_of(f"u{n}") == partition][:3]
    asyncio.run(append(store_url, *(event(("canary", first, second, third)[n % 4], n) for n in range(2000))))

    async def together() -> None:
        async with SequenceStore.connect(store_url, StoreSettings(write_timeout_s=5)) as store:
            erasure = Erasure(store.connection, log_length=10_000)
            erasing = [asyncio.create_task(erasure.erase(user)) for user in ("canary", first, "canary", second)]
            for number in range(2000, 2020):  # of a user who returns, and goes again
                await store.append([event("canary", number)])
            await asyncio.gather(*erasing, erasure.erase("canary"))

    asyncio.run(together())
    assert holding(server, "canary") == []
    assert holding(server, "erasing") == []
    assert {one.event_id for one in eventlog.read_events(server)} == {f"e{n}" for n in range(3, 2000, 4)}


def test_of_a_user_who_came_last_no_more_of_the_log_is_looked_through_than_its_end(
    store_url: str, server: redis.Redis
) -> None:
    others = [user for user in (f"user {n}" for n in range(400)) if partition_of(user) == partition_of("ada")]
    asyncio.run(append(store_url, *(event(others[n % len(others)], n) for n in range(1200)), event("ada", 1200)))
    server.config_resetstat()
    assert asyncio.run(erase(store_url, "ada")).logged_events == 1
    calls = server.info("commandstats")
    # By the client once; sweep.lua's are XRANGE.
    assert calls["cmdstat_xrevrange"]["calls"] == 1
    assert len([*eventlog.read_events(server)]) == 1200


def test_a_damaged_history_is_erased_too(store_url: str, server: redis.Redis) -> None:
    asyncio.run(append(store_url, event("canary", 1)))
    server.set(next(server.scan_iter("*:h:canary")), b"\xc1 canary")
    assert asyncio.run(erase(store_url, "canary")) == Erased(0, 1, 1)
    assert holding(server, "canary") == []


def test_of_tombstones_that_no_archiver_fetches_the_newest_are_kept(store_url: str, server: redis.Redis) -> None:
    partition = partition_of("canary")
    users = [user for user in (f"u{n}" for n in range(400)) if partition_of(user) == partition][:7]

    async def erase_all() -> None:
        async with SequenceStore.connect(store_url, StoreSettings(write_timeout_s=5)) as store:
            for user in users:
                await Erasure(store.connection, log_length=5).erase(user)

    asyncio.run(erase_all())
    server.delete(log_key(partition))
    kept = [entry.what for entry in eventlog.read_partition(server, partition)]
    assert {one.user for one in kept if isinstance(one, Tombstone)} == set(map(digest_of, users[-5:]))


def test_a_store_without_memory_erases_nothing_rather_than_half(store_url: str, server: redis.Redis) -> None:
    asyncio.run(append(store_url, event("canary", 1)))
    before = sorted(holding(server, "canary"))
    server.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            asyncio.run(erase(store_url, "canary"))
    finally:
        server.config_set("maxmemory", "0")
    assert sorted(holding(server, "canary")) == before


def test_a_log_that_is_full_of_young_events_refuses_and_takes_more_once_they_are_archived(
    store_url: str, server: redis.Redis
) -> None:
    keeps = {"log_max_events": 200, "log_min_s": 3600.0}
    assert asyncio.run(append(store_url, *(event("canary", n) for n in range(200)), **keeps)) == 200
    with pytest.raises(StoreUnavailable, match="LOGFULL"):
        asyncio.run(append(store_url, event("canary", 200), **keeps))
    assert asyncio.run(append(store_url, event("canary", 199), **keeps)) == 0  # a repeat needs no room
    partition = partition_of("canary")
    last = list(eventlog.read_partition(server, partition))[-1].id
    eventlog.acknowledge(server, partition, last)
    assert asyncio.run(append(store_url, event("canary", 200), **keeps)) == 1
    assert eventlog.archived(server, partition) == last


def test_expiry_and_minimum_retention_are_settings(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, server: redis.Redis
) -> None:
    make_bundle("v1")
    client = start_service(store_url, history_days=0.5, log_min_days=1, log_max_events=17_600)  # 1,100 a partition
    post(client, {"user_id": "ada", "item_id": "i1", "timestamp": 1})
    assert server.ttl(next(server.scan_iter("*:h:ada"))) == 43_200
    impressions = [{"user_id": "ada", "item_id": "i1", "type": "shown", "timestamp": at} for at in range(1099)]
    for begin in (0, 1000):
        assert client.post("/events", json={"events": impressions[begin : begin + 1000]}).status_code == 200
    full = client.post("/events", json={"user_id": "ada", "item_id": "i2", "timestamp": 2})
    assert (full.status_code, full.json()["code"], full.headers["retry-after"]) == (503, "store_unavailable", "1")
    assert len(client.get("/users/ada/history").json()["events"]) == 1


def test_old_events_of_a_full_log_make_room(store_url: str, server: redis.Redis) -> None:
    key = log_key(partition_of("canary"))
    for number in range(300):  # of the year 2001
        flat = eventlog.encode(event("canary", number))
        server.xadd(key, dict(zip(flat[::2], flat[1::2], strict=True)), id=f"{1_000_000_000_000 + number}-0")
    later = [event("canary", number) for number in range(1000, 1100)]
    assert asyncio.run(append(store_url, *later, log_max_events=200, log_min_s=3600.0)) == 100
    assert 200 <= server.xlen(key) < 300
    assert {one.event_id for one in later} <= {one.event_id for one in eventlog.read_events(server)}


def test_a_log_that_is_to_be_shorter_than_it_was_gets_there_by_and_by(store_url: str, server: redis.Redis) -> None:
    key = log_key(partition_of("canary"))
    fields = eventlog.encode(event("canary", 0))
    pipeline = server.pipeline(transaction=False)
    for number in range(5000):  # of the year 2001
        pipeline.xadd(key, dict(zip(fields[::2], fields[1::2], strict=True)), id=f"{1_000_000_000_000 + number}-0")
    pipeline.execute()
    keeps = {"log_max_events": 1000, "log_min_s": 3600.0}
    lengths = [5000]
    for number in range(1000, 1006):
        assert asyncio.run(append(store_url, event("canary", number), **keeps)) == 1
        lengths.append(server.xlen(key))
    dropped = [before - after for before, after in pairwise(lengths)]
    assert max(dropped) <= 1000  # no more than were looked at
    assert min(dropped[:4]) >= 900  # whole nodes
    assert 1000 <= lengths[-1] <= 1100


def test_a_log_that_is_to_be_shorter_than_it_was_keeps_what_is_young(store_url: str, server: redis.Redis) -> None:
    assert asyncio.run(append(store_url, *(event("canary", n) for n in range(500)))) == 500
    keeps = {"log_max_events": 100, "log_min_s": 3600.0}
    with pytest.raises(StoreUnavailable, match="LOGFULL"):
        asyncio.run(append(store_url, event("canary", 500), **keeps))

    async def erase_another() -> None:
        async with SequenceStore.connect(store_url) as store:
            other = next(name for name in map(str, range(1000)) if partition_of(name) == partition_of("canary"))
            await Erasure(store.connection, log_length=100, log_min_s=3600.0).erase(other)

    asyncio.run(erase_another())
    assert server.xlen(log_key(partition_of("canary"))) == 501  # with the tombstone


def test_erasures_alone_keep_a_log_bounded_by_dropping_what_is_old_enough(store_url: str, server: redis.Redis) -> None:
    key, fields = log_key(partition_of("canary")), eventlog.encode(event("canary", 0))
    for number in range(1000):  # of the year 2001
        server.xadd(key, dict(zip(fields[::2], fields[1::2], strict=True)), id=f"{1_000_000_000_000 + number}-0")

    async def erase_others() -> None:
        others = [name for name in map(str, range(200)) if partition_of(name) == partition_of("canary")][:3]
        async with SequenceStore.connect(store_url) as store:
            for other in others:
                await Erasure(store.connection, log_length=100, log_min_s=3600.0).erase(other)

    asyncio.run(erase_others())
    assert 200 <= server.xlen(key) <= 303  # whole nodes, down to twice the length
