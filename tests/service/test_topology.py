"""What clusters and sentinels are for: slots that move and primaries that die, while the service goes on."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from bench.servers import free_port
from models import eventlog
from models.storeurl import several
from reliability.processes import Store
from reliability.proxy import Proxy
from service.sequences import AppendResult, Event, SequenceStore, StoreSettings, StoreUnavailable, history_key
from service.topology import opened, slot_of
from tests.service import topologies
from tests.service.tls import Encrypted, certificate

pytestmark = pytest.mark.anyio


def event(name: str, user: str = "ann") -> Event:
    return Event(user, f"item-{name}", name, "view", 1)


async def test_slots_are_those_of_the_server_and_a_user_has_one_with_its_log(tmp_path: Path) -> None:
    with topologies.store("cluster", tmp_path) as url:
        async with SequenceStore.connect(url) as store:
            users = ["ann", "{bob}", "c}a{r}l", "é"]
            await store.append([event("a", user) for user in users])
            assert await store.histories([*users, "nobody"]) == [["item-a"]] * 4 + [[]]
        found = several(url)
        assert found is not None
        with contextlib.closing(eventlog.connect(url)) as cluster, redis.Redis(port=found.addresses[0][1]) as node:
            keys = list(cluster.scan_iter("*"))
            for key in [*keys, b"", b"{}x", b"a{b", b"a}b{c}", b"{{a}}"]:
                assert slot_of(key) == node.execute_command("CLUSTER", "KEYSLOT", key), key
        for user in users:
            own = {slot_of(key) for key in keys if key.endswith(b":" + user.encode())}
            assert own == {slot_of(eventlog.log_key(eventlog.partition_of(user)).encode())}


@pytest.mark.parametrize("name", ["cluster", "sentinels"])
async def test_an_address_that_never_answers_holds_nobody_up_although_it_is_the_first(
    name: str, tmp_path: Path
) -> None:
    with topologies.store(name, tmp_path) as url, socket.create_server(("127.0.0.1", 0)) as silent:
        scheme, _, hosts = url.partition("://")
        longer = f"{scheme}://127.0.0.1:{silent.getsockname()[1]},{hosts}"
        async with SequenceStore.connect(longer, StoreSettings(read_timeout_s=0.5)) as store:
            assert await store.append([event("a")]) == AppendResult(accepted=1, duplicates=0)
            assert await store.histories(["ann"]) == [["item-a"]]


@pytest.mark.parametrize("name", ["cluster by TLS", "sentinels by TLS"])
async def test_several_servers_are_spoken_to_by_tls_and_only_if_their_certificates_are_vouched_for(
    name: str, tmp_path: Path
) -> None:
    patient = StoreSettings(read_timeout_s=5, write_timeout_s=5)
    users = [f"user-{number}" for number in range(12)]  # on every node
    with topologies.store(name, tmp_path) as url:
        async with SequenceStore.connect(url, patient) as store:
            await store.append([event("a", user) for user in users])
            assert await store.histories(users) == [["item-a"]] * len(users)
        with contextlib.closing(eventlog.connect(url)) as client:
            assert sorted(logged.user_id for logged in eventlog.read_events(client)) == sorted(users)
        async with SequenceStore.connect(url.partition("?")[0], patient) as store:
            with pytest.raises(StoreUnavailable, match="certificate"):
                await store.histories(users)
        with pytest.raises(eventlog.EventLogError, match=r"certificate|no sentinel that can be reached"):
            list(eventlog.read_events(eventlog.connect(url.partition("?")[0])))


@pytest.mark.parametrize("name", ["server", "cluster by TLS", "sentinels by TLS"])
async def test_no_connection_reads_the_authorities_again_which_takes_as_long_as_a_read_may(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ssl.SSLContext] = []
    default = ssl.create_default_context

    def kept(*given: Any) -> ssl.SSLContext:
        made.append(default(*given))
        return made[-1]

    with contextlib.ExitStack() as stack:
        url = stack.enter_context(topologies.store(name, tmp_path))
        if name == "server":
            url = stack.enter_context(_by_tls(url, tmp_path))
        monkeypatch.setattr(ssl, "create_default_context", kept)
        async with SequenceStore.connect(url, StoreSettings(read_timeout_s=5, write_timeout_s=5)) as store:
            before = len(made)
            assert before
            users = [f"user-{number}" for number in range(12)]  # on every node
            await asyncio.gather(*(store.append([event("a", user)]) for user in users))  # several connections
            store.connection._reads.store.forget()
            assert await store.histories(users) == [["item-a"]] * len(users)
            assert len(made) == before


@pytest.mark.parametrize(
    "url",
    [
        "rediss://a:1?ssl_ca_cert=s3cret",
        "redis://a:1?ssl_ca_certs=s3cret",  # which would be spoken to without TLS
        "rediss://a:1?ssl_cert_reqs=s3cret",
        "redis://a:1?password=p&s3cret=t",
        "rediss://a:1?ssl_ciphers=s3cret",
    ],
)
async def test_options_that_the_client_does_not_take_are_refused_before_it_connects(url: str) -> None:
    with pytest.raises(ValueError, match=r"behind its '\?'") as raised:
        opened(url, 1)
    assert "s3cret" not in str(raised.value)
    if "ssl_ciphers" not in url:  # which a batch job hears of when it connects
        with pytest.raises(eventlog.EventLogError, match=r"behind its '\?'") as said:
            eventlog.connect(url)
        assert "s3cret" not in str(said.value)


async def test_a_certificate_of_the_client_that_is_renewed_is_shown_by_the_next_connection(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(topologies.store("server", tmp_path))
        own, stranger = tmp_path / "own.pem", tmp_path / "stranger"
        stranger.mkdir()
        shutil.copy(certificate(stranger), own)
        url = stack.enter_context(_by_tls(plain, tmp_path, asked=True))
        store = opened(f"{url}&ssl_certfile={own}", 5)
        async with contextlib.aclosing(store), asyncio.timeout(30):
            client = await store.at(b"")
            with pytest.raises(redis.ConnectionError):
                await client.ping()
            shutil.copy(tmp_path / "store.pem", own)
            assert await client.ping()


@contextlib.contextmanager
def _by_tls(url: str, folder: Path, *, asked: bool = False) -> Iterator[str]:
    """URL of a server as it is reached by TLS; asked: by who has the server's own certificate."""
    pem = certificate(folder)
    known = Path(f"{pem}.crt")
    with Encrypted(int(url.rpartition(":")[2]), pem, known if asked else None) as found:
        yield f"rediss://127.0.0.1:{found.address[1]}?ssl_ca_certs={known}"


async def test_a_cluster_whose_nodes_do_not_say_where_they_are_is_asked_where_its_url_says(tmp_path: Path) -> None:
    with topologies.store("cluster", tmp_path) as url:
        nodes = several(url)
        assert nodes is not None
        for _, port in nodes.addresses:
            with redis.Redis(port=port) as node:
                node.config_set("cluster-preferred-endpoint-type", "unknown-endpoint")
        async with SequenceStore.connect(url) as store:
            users = [f"user-{number}" for number in range(12)]  # on every node
            await store.append([event("a", user) for user in users])
            assert await store.histories(users) == [["item-a"]] * len(users)
            fullest = max(Counter(map(eventlog.partition_of, users)).values())
            assert await store.log_fill() == fullest / store.settings.log_max_events


async def test_a_slot_that_moves_is_followed(tmp_path: Path) -> None:
    with topologies.store("cluster", tmp_path) as url:
        async with SequenceStore.connect(url) as store:
            await store.append([event("a", "before")])  # which primary has what is known from here on
            slot = slot_of(eventlog.log_key(eventlog.partition_of("ann")).encode())
            _move(url, slot)
            assert await store.histories(["ann"]) == [[]]
            assert await store.append([event("a")]) == AppendResult(accepted=1, duplicates=0)
            assert await store.histories(["ann"]) == [["item-a"]]


async def test_while_a_slot_moves_its_users_are_read_where_they_are_and_only_they_are_not_written(
    tmp_path: Path,
) -> None:
    with topologies.store("cluster", tmp_path) as url:
        partition = eventlog.partition_of("ann")
        same = (f"user-{number}" for number in range(1000) if eventlog.partition_of(f"user-{number}") == partition)
        stays, nobody = next(same), next(same)
        other = next(user for user in ("bob", "eve", "zoe") if eventlog.partition_of(user) != partition)
        async with SequenceStore.connect(url) as store:
            await store.append([event("a", user) for user in ("ann", stays, other)])
            slot = slot_of(history_key("ann"))
            owner, receiver, _ = _ports(url, slot)
            with redis.Redis(port=owner) as source, redis.Redis(port=receiver) as target:
                names = [client.execute_command("CLUSTER", "MYID") for client in (source, target)]
                target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
                source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
                source.migrate("127.0.0.1", receiver, history_key("ann"), 0, 5000)
            assert await store.histories(["ann", stays, nobody, other]) == [["item-a"], ["item-a"], [], ["item-a"]]
            assert await store.histories(["ann", nobody]) == [["item-a"], []]
            assert [found.event_id for found in await store.history("ann")] == ["a"]
            refused, stored = await store.append_each([[event("b", "ann")], [event("b", other)]])
            assert isinstance(refused, StoreUnavailable)
            assert stored == AppendResult(accepted=1, duplicates=0)


async def test_a_primary_that_is_cut_off_from_its_cluster_is_left_for_the_replica_that_took_over(
    tmp_path: Path,
) -> None:
    with topologies.store("cluster", tmp_path) as url:
        port, *others = _ports(url, slot_of(history_key("ann")))
        bus = free_port()
        with (
            topologies.cluster_node(tmp_path, "replica", bus) as replica,
            replica.client() as successor,
            redis.Redis(port=port) as primary,
        ):
            primary.execute_command("CLUSTER", "MEET", "127.0.0.1", replica.port, bus)
            name = primary.execute_command("CLUSTER", "MYID")
            await _until(lambda: name in successor.execute_command("CLUSTER", "NODES"))
            successor.execute_command("CLUSTER", "REPLICATE", name)
            for other in others:
                with redis.Redis(port=other) as client:
                    await _until(lambda client=client: b"slave" in client.execute_command("CLUSTER", "NODES"))  # type: ignore[misc]
            async with SequenceStore.connect(url, StoreSettings(read_timeout_s=5, write_timeout_s=5)) as store:
                assert await store.append([event("a")]) == AppendResult(accepted=1, duplicates=0)
                assert primary.wait(1, 5000) == 1  # replication is not what this is about
                primary.execute_command("DEBUG", "DROP-CLUSTER-PACKET-FILTER", "-2")
                await _until(lambda: successor.info("replication")["role"] == "master")
                await _until(lambda: b"cluster_state:fail" in primary.execute_command("CLUSTER", "INFO"))
                until = time.monotonic() + 5
                while True:  # until the other nodes have heard of it
                    try:
                        assert await store.histories(["ann"]) == [["item-a"]]
                        assert await store.append([event("b")]) == AppendResult(accepted=1, duplicates=0)
                        break
                    except StoreUnavailable:
                        assert time.monotonic() < until
                        await asyncio.sleep(0.05)
                assert await store.histories(["ann"]) == [["item-a", "item-b"]]


async def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


def _ports(url: str, slot: int) -> list[int]:
    """Of the primaries, that which has a slot first."""
    with contextlib.closing(eventlog.connect(url)) as cluster:
        owner = cluster.nodes_manager.slots_cache[slot][0].port  # type: ignore[attr-defined]
        return sorted((node.port for node in cluster.get_primaries()), key=lambda port: port != owner)  # type: ignore[attr-defined]


def _move(url: str, slot: int) -> None:
    """Give an empty slot to another node."""
    owner, receiver, other = _ports(url, slot)
    with redis.Redis(port=receiver) as client:
        name = client.execute_command("CLUSTER", "MYID")
    for port in (receiver, owner, other):
        with redis.Redis(port=port) as client:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", name)


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[tuple[Store, Store, Proxy]]:
    """Two servers, and a name that leads to the first."""
    quickly = {"repl-diskless-sync-delay": "0"}
    with (
        Store(folder, "old", options=quickly) as old,
        Store(folder, "new", options=quickly) as new,
        Proxy(old.address) as name,
    ):
        yield old, new, name


async def test_a_primary_that_loses_its_role_is_left_for_the_one_its_name_now_leads_to(tmp_path: Path) -> None:
    with _named(tmp_path) as (old, new, name):
        patient = StoreSettings(read_timeout_s=2, write_timeout_s=2)
        async with SequenceStore.connect(name.url, patient) as store:
            await asyncio.gather(*(store.append([event(f"{number}")]) for number in range(8)))  # several connections
            await asyncio.gather(*(store.histories(["ann"]) for _ in range(8)))
            with old.client() as demoted:
                demoted.replicaof(*new.address)
            for _ in range(2):  # while the name still leads to it
                with pytest.raises(StoreUnavailable, match=r"^Redis refused: .* read only"):
                    await store.append([event("b")])
            name.target = new.address
            results = await asyncio.gather(*(store.append([event(f"b{number}")]) for number in range(16)))
            assert results == [AppendResult(accepted=1, duplicates=0)] * 16
            with old.client() as demoted:
                demoted.replicaof("NO", "ONE")  # what is read there from now on is old
            await store.append([event("c")])
            assert len((await store.histories(["ann"]))[0]) == 17
        with new.client() as client:
            assert len(list(eventlog.read_events(client))) == 17


async def _read_under_way(store: SequenceStore, server: redis.Redis) -> tuple["asyncio.Task[Any]", str]:
    """A read that waits on a server until it is unblocked, and the id of its connection there."""
    waits = store.connection.read(b"", lambda client: client.xread({"nothing": "0"}, block=10_000))
    reading = asyncio.create_task(waits)
    while True:
        await asyncio.sleep(0.01)
        for one in server.client_list():
            if "b" in one["flags"]:
                return reading, one["id"]


async def test_nothing_more_is_read_where_a_primary_has_lost_its_role_although_a_read_was_under_way(
    tmp_path: Path,
) -> None:
    with _named(tmp_path) as (old, new, name):
        patient = StoreSettings(read_timeout_s=10, write_timeout_s=10)
        async with SequenceStore.connect(name.url, patient) as store:
            await store.append([event("a")])
            with old.client() as demoted:
                demoted.replicaof(*new.address)
                reading, blocked = await _read_under_way(store, demoted)
                name.target = new.address
                await store.append([event("b")])
                assert await store.histories(["ann"]) == [["item-b"]]
                demoted.client_unblock(blocked)
                await reading
                demoted.replicaof("NO", "ONE")  # what is read there from now on is old
                await store.append([event("c")])
                assert await store.histories(["ann"]) == [["item-b", "item-c"]]
                left = [client["addr"] for client in demoted.client_list(_type="normal")]
                assert len(left) == 1  # which is ours


async def test_a_connection_under_way_to_a_primary_that_sentinels_have_replaced_is_not_used_again(
    tmp_path: Path,
) -> None:
    with (
        Store(tmp_path, "old") as old,
        Store(tmp_path, "new") as new,
        topologies.Sentinel(tmp_path, "sentinel", old.port) as sentinel,
        old.client() as left,
    ):
        for server, name in ((old, "a"), (new, "b")):
            async with SequenceStore.connect(server.url) as direct:
                await direct.append([event(name)])
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        async with SequenceStore.connect(url, StoreSettings(read_timeout_s=10)) as store:
            reading, blocked = await _read_under_way(store, left)
            sentinel.watch(new.port)
            assert await store.histories(["ann"]) == [["item-b"]]  # on a connection of its own
            left.client_unblock(blocked)
            await reading
            assert await asyncio.gather(*(store.histories(["ann"]) for _ in range(4))) == [[["item-b"]]] * 4


async def test_no_sentinel_is_left_with_a_connection(tmp_path: Path) -> None:
    with topologies.store("sentinels", tmp_path) as url, contextlib.ExitStack() as stack:
        found = several(url)
        assert found is not None
        sentinels = [stack.enter_context(redis.Redis(port=port)) for _, port in found.addresses]

        def ours() -> list[str]:
            clients = [client for sentinel in sentinels for client in sentinel.client_list()]
            return [client["addr"] for client in clients if client["cmd"] == "sentinel|masters"]

        async with SequenceStore.connect(url, StoreSettings(read_timeout_s=5)) as store:
            assert await store.histories(["ann"]) == [[]]
            assert ours()
        until = time.monotonic() + 10
        while ours():
            assert time.monotonic() < until
            await asyncio.sleep(0.01)


async def test_a_primary_that_sentinels_replace_is_followed(tmp_path: Path) -> None:
    with topologies.store("sentinels", tmp_path) as url:
        async with SequenceStore.connect(url) as store:
            assert (await store.append([event("a")])).accepted == 1
            with contextlib.closing(eventlog.connect(url)) as primary:
                assert primary.wait(1, 5000) == 1  # replication is not what this is about
                os.kill(primary.info("server")["process_id"], signal.SIGKILL)
            with pytest.raises(StoreUnavailable):
                await store.append([event("b")])
            until = time.monotonic() + 30
            while True:
                try:
                    await store.append([event("b")])
                    assert await store.histories(["ann"]) == [["item-a", "item-b"]]
                    break
                except StoreUnavailable:
                    assert time.monotonic() < until
                    await asyncio.sleep(0.05)
        with contextlib.closing(eventlog.connect(url)) as primary:
            assert [found.event_id for found in eventlog.read_events(primary)] == ["a", "b"]
