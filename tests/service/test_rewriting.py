"""After an erasure the store's own files are written anew, on every server that has some."""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import redis

from bench.servers import free_port
from models import eventlog
from models.eventlog import digest_of, log_key, partition_of, tombstones_key
from models.rewriting import Asked, RewriteRefusedError, rewrite
from reliability.processes import Store
from service.archive import Archiver
from tests.service import topologies
from tests.service.archiving import append, archive, erase, wait_until
from tests.service.conftest import KillableStore
from tests.service.test_users import ERASED_KEYS, begin_to_erase_canary


def in_files(folder: Path) -> int:
    found = 0
    for file in folder.rglob("appendonly.aof.*"):
        with contextlib.suppress(FileNotFoundError):  # the store has just put another in its place
            found += b"canary" in file.read_bytes()
    return found


def test_every_node_of_a_cluster_writes_its_files_anew_and_a_cluster_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with topologies.store("cluster", tmp_path / "store") as url, Archiver(url, tmp_path / "archive") as archiver:
        with contextlib.closing(eventlog.connect(url)) as client:
            client.config_set("rdbcompression", "no")
            pids = [node["process_id"] for node in client.info("server", target_nodes="primaries").values()]
        append(url, 0, 100)
        append(url, 100, 103, user="canary")
        erase(url, "canary")
        assert in_files(tmp_path / "store") == 1
        archiver.move()
        wait_until(lambda: in_files(tmp_path / "store") == 0)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(eventlog.EventLogError):
            archiver.move()


@pytest.mark.parametrize("name", ["named by its primary", "named by sentinels", "of a cluster's node"])
def test_a_replica_writes_its_files_anew_too_and_one_that_is_silent_is_waited_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog, "_PAGE_TIMEOUT_S", 3)
    files = tmp_path / "store"
    with contextlib.ExitStack() as stack:
        url, port = with_replica(stack, name, files)
        archiver = stack.enter_context(Archiver(url, tmp_path / "archive"))
        replica = stack.enter_context(redis.Redis(port=port))
        replica.config_set("slowlog-log-slower-than", 0)
        append(url, 0, 40)
        wait_until(lambda: any(replica.scan_iter("*:h:*")))
        user = next(key.decode().rpartition(":")[2] for key in replica.scan_iter("*:h:*"))
        append(url, 40, 41, user=user, properties=b'{"a": "canary"}')
        wait_until(lambda: in_files(files) == 2)
        assert any(b":h:" in slow["command"] for slow in replica.slowlog_get(1000))
        pid = replica.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            erase(url, user)
            assert archiver.move() > 0
            wait_until(lambda: in_files(files) == 1)
        finally:
            os.kill(pid, signal.SIGCONT)
        with contextlib.closing(eventlog.connect(url)) as client:
            assert client.exists(tombstones_key(partition_of(user)))
            wait_until(lambda: archiver.move() == 0 and not client.exists(tombstones_key(partition_of(user))))
            primaries = client.info("persistence", **({"target_nodes": "primaries"} if "cluster" in name else {}))
        wait_until(lambda: in_files(files) == 0)
        assert not any(b":h:" in slow["command"] for slow in replica.slowlog_get(1000))
        assert '"aof_rewrites": 2' not in json.dumps(primaries)  # what has begun is not asked again


@pytest.mark.parametrize("away", [False, True])
def test_files_that_were_written_anew_while_a_user_was_being_erased_are_once_more(
    away: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a replica could not be asked then, so that the archiver is not done with the first tombstone yet."""
    monkeypatch.setattr(eventlog, "_PAGE_TIMEOUT_S", 1)
    with contextlib.ExitStack() as stack:
        url, port = with_replica(stack, "named by its primary", tmp_path / "store")
        archiver = stack.enter_context(Archiver(url, tmp_path / "archive"))
        primary = stack.enter_context(redis.Redis.from_url(url))
        replica = stack.enter_context(redis.Redis(port=port))
        for server in (primary, replica):
            server.config_set("rdbcompression", "no")
        append(url, 0, 3, user="canary")
        newest: Any = primary.xrevrange(log_key(partition_of("canary")), count=1)
        upto = begin_to_erase_canary(primary)
        wait_until(lambda: primary.wait(1, 100) == 1)
        pid = replica.info("server")["process_id"]
        if away:
            os.kill(pid, signal.SIGSTOP)
        try:
            archiver.move()
            assert primary.exists(tombstones_key(partition_of("canary"))) == away
            wait_until(lambda: not primary.info("persistence")["aof_rewrite_in_progress"])
            assert in_files(tmp_path / "store") == 2
            swept = [*ERASED_KEYS[2:], "canary", digest_of("canary"), upto, newest[0][0], 200]
            assert primary.eval(Path("service/sweep.lua").read_text(), 3, *swept) == [3, 1]
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: archiver.move() == 0 and not primary.exists(tombstones_key(partition_of("canary"))))
        wait_until(lambda: in_files(tmp_path / "store") == 0)


def with_replica(stack: contextlib.ExitStack, name: str, folder: Path) -> tuple[str, int]:
    """URL of a store of which one server has a replica, and the replica's port."""
    if name != "of a cluster's node":
        url = stack.enter_context(topologies.store("sentinels", folder))
        with contextlib.closing(eventlog.connect(url)) as client:
            own = client.info()
            port = own["slave0"]["port"]
            return (f"redis://127.0.0.1:{own['tcp_port']}" if name == "named by its primary" else url), port
    url = stack.enter_context(topologies.store("cluster", folder))
    options = {"cluster-enabled": "yes", "cluster-port": str(free_port()), "repl-diskless-sync-delay": "0"}
    replica = stack.enter_context(Store(folder, "replica", options=options))
    with contextlib.closing(eventlog.connect(url)) as cluster, replica.client() as client:
        node: Any = cluster.get_primaries()[0]  # type: ignore[attr-defined]
        with redis.Redis(port=node.port) as primary:
            primary_id = primary.execute_command("CLUSTER", "MYID")
            primary.execute_command("CLUSTER", "MEET", "127.0.0.1", replica.port, int(options["cluster-port"]))
            wait_until(lambda: primary_id in client.execute_command("CLUSTER", "NODES"))
            client.execute_command("CLUSTER", "REPLICATE", primary_id)
            wait_until(lambda: primary.wait(1, 100) == 1)
        wait_until(lambda: b",fail" not in cluster.execute_command("CLUSTER", "NODES", target_nodes=node))
    return url, replica.port


def test_a_node_that_refuses_new_files_keeps_no_other_from_writing_them(tmp_path: Path) -> None:
    with topologies.store("cluster", tmp_path) as url, contextlib.closing(eventlog.connect(url)) as client:
        first, *others = client.get_primaries()  # type: ignore[attr-defined]
        client.execute_command("ACL SETUSER", "default", "-bgrewriteaof", target_nodes=first)
        with pytest.raises(RewriteRefusedError):
            rewrite(client, Asked())
        for node in others:
            wait_until(lambda node=node: client.info("persistence", target_nodes=node)["aof_rewrites"] == 1)  # type: ignore[misc]


def test_a_store_that_tells_nothing_of_itself_is_asked_all_the_same(killable_store: KillableStore) -> None:
    with redis.Redis.from_url(killable_store.url) as server:
        before = server.info("persistence")["aof_rewrites"]
        server.execute_command("ACL SETUSER", "default", "-info")
        try:
            assert rewrite(server, Asked()) == []
            server.execute_command("ACL SETUSER", "default", "-bgrewriteaof")
            with pytest.raises(RewriteRefusedError, match="bgrewriteaof"):
                rewrite(server, Asked())
        finally:
            server.execute_command("ACL SETUSER", "default", "+info", "+bgrewriteaof")
        wait_until(lambda: server.info("persistence")["aof_rewrites"] > before)


def test_files_that_are_being_written_anew_since_before_an_erasure_are_once_more(
    killable_store: KillableStore, tmp_path: Path
) -> None:
    with redis.Redis.from_url(killable_store.url) as server, Archiver(killable_store.url, tmp_path) as archiver:
        append(killable_store.url, 0, 3, user="canary")
        server.config_set("rdbcompression", "no")
        server.config_set("rdb-key-save-delay", 10**8)  # for as long as the test may take
        server.bgrewriteaof()
        wait_until(lambda: bool(server.info("persistence")["aof_rewrite_in_progress"]))
        erase(killable_store.url, "canary")
        archiver.move()
        assert server.info("persistence")["aof_rewrite_in_progress"]
        server.config_set("rdb-key-save-delay", 0)
        pid = server.info("server")["process_id"]
        os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text()), signal.SIGUSR1)
        wait_until(lambda: not server.info("persistence")["aof_rewrite_in_progress"])
        assert in_files(killable_store.folder) > 0
        with Archiver(killable_store.url, tmp_path) as other:
            other.move()
        wait_until(lambda: in_files(killable_store.folder) == 0)


def test_a_store_that_may_not_be_asked_for_new_files_is_a_warning_that_says_what_to_do(
    killable_store: KillableStore, tmp_path: Path
) -> None:
    append(killable_store.url, 0, 3, user="canary")
    erase(killable_store.url, "canary")
    with redis.Redis.from_url(killable_store.url) as server:
        server.execute_command("ACL", "SETUSER", "default", "-bgrewriteaof", "-slowlog")
        said = archive(killable_store.url, tmp_path, "--compact")
        assert "BGREWRITEAOF" in said
        assert "days compacted" in said
        assert not server.exists(tombstones_key(partition_of("canary")))  # said once
