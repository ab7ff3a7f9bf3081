"""`python -m service archive` as a process on a real store."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import service.archive
from models import eventlog
from models.archive import locked, read, settled, write
from models.eventlog import Entry, LoggedEvent, digest_of, log_key, partition_of, tombstones_key
from service.archive import Archiver
from service.embedded import EmbeddedStore
from tests.service.archiving import append, archive, erase
from tests.service.conftest import KillableStore
from tests.service.processes import ROOT, refused


@pytest.fixture
def server(store_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(store_url) as opened:
        yield opened


def test_the_log_moves_to_files_and_the_store_forgets_it(store_url: str, server: redis.Redis, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    append(store_url, 0, 4000)
    assert "4000 entries of the log archived" in archive(store_url, folder)
    assert len([*eventlog.read_events(server)]) < 16 * 101  # at most a node a partition
    append(store_url, 4000, 4500)
    assert "500 entries" in archive(store_url, folder, "--compact")
    assert sorted(path.name for path in folder.glob("dt=*")) == ["dt=1970-01-01", "dt=1970-01-02", "dt=1970-01-03"]
    events = read(folder).events
    assert sorted(events["event_id"]) == sorted(f"e{n}" for n in range(4500))
    assert events["value"].sum() == pytest.approx(sum(n / 7 for n in range(4500)))
    assert folder.stat().st_mode & 0o077 == 0


def test_a_log_of_large_properties_is_moved_in_more_parts(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.archive, "_BYTES_AT_ONCE", 50_000)
    for properties, parts in ((None, 1), (b'{"a": "%s"}' % (b"b" * 4000), 3)):
        folder = tmp_path / str(parts)
        append(store_url, parts * 100, parts * 100 + 30, user="ann", properties=properties)
        with Archiver(store_url, folder) as archiver:
            assert archiver.move() == 30
        assert len({path.name for path in folder.glob("dt=*/*")}) == parts  # a part has one name in all its days
        assert len(read(folder).events) == 30


def test_an_archiver_that_runs_on_follows_waits_for_the_store_and_stops_when_told(
    store_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    append(store_url, 0, 10)
    command = [sys.executable, "-m", "service", "archive", "--redis", store_url, "--to", str(folder), "--every", "0.1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            heard = ""
            while "compacted" not in heard:
                heard += process.stderr.readline()
            assert "10 entries" in heard
            append(store_url, 10, 13, user="ann")  # in one step, or a pass might find a part of them
            while "3 entries" not in heard:
                heard += process.stderr.readline()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert len(settled(read(folder))) == 13


def test_the_log_is_archived_between_the_days_of_a_compaction_too(store_url: str, tmp_path: Path) -> None:
    for part in (0, 500):
        days = (LoggedEvent("ann", "i", f"e{part + day}", "view", 86_400_000 * day) for day in range(300))
        with locked(tmp_path):
            write(tmp_path, [Entry(f"{part + number}-0", event) for number, event in enumerate(days)])
    append(store_url, 0, 10)
    command = [
        sys.executable,
        "-m",
        "service",
        "archive",
        "--redis",
        store_url,
        "--to",
        str(tmp_path),
        "--every",
        "0.1",
    ]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert "10 entries" in process.stderr.readline() + process.stderr.readline()
            append(store_url, 10, 13, user="ann")  # while it compacts, which takes a second at least
            assert "3 entries" in process.stderr.readline()
            assert "300 days compacted" in process.stderr.readline()
        finally:
            process.terminate()


def test_a_partition_that_cannot_be_read_keeps_no_other_from_being_archived(
    store_url: str, server: redis.Redis, tmp_path: Path
) -> None:
    append(store_url, 0, 200)
    damaged = partition_of("user0")
    server.xadd(log_key(damaged), {"schema": "9"})
    held = server.xlen(log_key(damaged))
    with Archiver(store_url, tmp_path) as archiver, pytest.raises(eventlog.EventLogError, match="schema '9'"):
        archiver.move()
    with Archiver(store_url, tmp_path) as archiver, pytest.raises(eventlog.EventLogError, match="schema '9'"):
        archiver.move()
    assert server.xlen(log_key(damaged)) in range(1, held + 1)
    others = {f"e{n}" for n in range(200) if partition_of(f"user{n % 40}") != damaged}
    assert others <= set(read(tmp_path).events["event_id"])


def test_a_partition_that_may_not_forget_keeps_no_other_from_being_archived(
    killable_store: KillableStore, tmp_path: Path
) -> None:
    append(killable_store.url, 0, 4000)
    first, *others = sorted({partition_of(f"user{n}") for n in range(40)})
    writable = [f"~recserve:{{{partition}}}:*" for partition in others]
    with redis.Redis.from_url(killable_store.url) as server:
        server.execute_command("ACL SETUSER", "default", "resetkeys", "%R~*", *writable)
        with Archiver(killable_store.url, tmp_path) as archiver, pytest.raises(eventlog.EventLogError, match="perm"):
            archiver.move()
        assert server.xlen(log_key(first)) > 101
        assert all(server.xlen(log_key(partition)) < 101 for partition in others)
    assert sorted(read(tmp_path).events["event_id"]) == sorted(f"e{n}" for n in range(4000))


def test_a_store_without_memory_forgets_what_is_archived(killable_store: KillableStore, tmp_path: Path) -> None:
    append(killable_store.url, 0, 4000)
    with redis.Redis.from_url(killable_store.url) as server, Archiver(killable_store.url, tmp_path) as archiver:
        server.config_set("maxmemory", 1)
        with pytest.raises(eventlog.EventLogError, match="maxmemory"):
            archiver.move()
        assert len([*eventlog.read_events(server)]) < 16 * 101
        server.config_set("maxmemory", 0)
        archiver.move()
        assert archiver.move() == 0
    assert len(settled(read(tmp_path))) == 4000


@pytest.mark.parametrize("program", [None, "/usr/bin/redis-server"])
def test_a_full_store_takes_what_it_refused_when_all_logs_have_made_room(program: str | None, tmp_path: Path) -> None:
    if program is not None and not Path(program).exists():
        pytest.skip(f"{program} is not there")
    binary = Path(program) if program else None
    with tempfile.TemporaryDirectory() as folder, EmbeddedStore(Path(folder), binary=binary) as store:
        append(store.url, 0, 8000)
        with redis.Redis.from_url(store.url) as server:
            used = server.info("memory")["used_memory"]
            server.config_set("maxmemory", used - 100_000)  # two partitions' logs, or so
            with pytest.raises(redis.ResponseError, match="maxmemory"):
                server.set("x", "y")
            assert "8000 entries of the log archived" in archive(store.url, tmp_path / "archive")
            held = {partition: server.xlen(log_key(partition)) for partition in range(16)}
            assert max(held.values()) <= 101
            for partition in (partition for partition, entries in held.items() if entries):
                assert eventlog.archived(server, partition) != eventlog.START
            server.set("x", "y")
    assert len(settled(read(tmp_path / "archive"))) == 8000


def test_a_partition_that_cannot_be_read_keeps_erased_users_from_nothing(
    store_url: str, server: redis.Redis, tmp_path: Path
) -> None:
    append(store_url, 0, 20)
    server.xadd(log_key(partition_of("user0")), {"schema": "9"})
    command = [sys.executable, "-m", "service", "archive", "--redis", store_url, "--to", str(tmp_path / "archive")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        heard = ""
        try:
            while "compacted" not in heard:
                heard += (line := process.stderr.readline())
                assert line, heard
        finally:
            process.terminate()
        assert json.loads(next(line for line in heard.splitlines() if "not all of it" in line))["level"] == "error"


def test_a_file_that_cannot_be_read_is_told_and_the_log_is_archived_all_the_same(
    store_url: str, tmp_path: Path
) -> None:
    append(store_url, 0, 6)
    with Archiver(store_url, tmp_path) as archiver:
        archiver.move()
    damaged = next(tmp_path.glob("dt=1970-01-01/*"))
    damaged.write_bytes(b"")
    append(store_url, 6, 9)
    words = ["archive", "--redis", store_url, "--to", str(tmp_path), "--every", "0.1"]
    command = [sys.executable, "-m", "service", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        heard = ""
        try:
            while damaged.name not in heard:
                heard += (line := process.stderr.readline())
                assert line, heard
            append(store_url, 9, 10)
            while "1 entries of the log archived" not in heard:
                heard += (line := process.stderr.readline())
                assert line, heard
        finally:
            process.terminate()
        assert "the archive is not compacted" in heard
        assert "stays in the store" not in heard
        assert process.wait(20) == 0


def test_an_erased_user_leaves_the_archive_with_the_next_compaction(store_url: str, tmp_path: Path) -> None:
    append(store_url, 0, 300)
    archive(store_url, tmp_path)
    erase(store_url, "user7")
    append(store_url, 300, 302, user="user7")
    archive(store_url, tmp_path)
    assert "user7" in set(read(tmp_path).events["user_id"])  # not yet, but nobody reads it
    assert settled(read(tmp_path)).filter(user_id="user7")["event_id"].to_list() == ["e300", "e301"]
    said = archive(store_url, tmp_path, "--compact")
    assert "3 days compacted: " in said
    assert " repeats and 8 events of erased users removed" in said
    assert read(tmp_path).events.filter(user_id="user7")["event_id"].sort().to_list() == ["e300", "e301"]


def test_a_full_log_that_drops_a_tombstone_keeps_nobody_in_the_archive(
    store_url: str, server: redis.Redis, tmp_path: Path
) -> None:
    partition = partition_of("canary")
    other = next(f"u{n}" for n in range(400) if partition_of(f"u{n}") == partition)
    append(store_url, 0, 3, user="canary")
    append(store_url, 0, 1, user=other)
    with Archiver(store_url, tmp_path) as archiver:
        assert archiver.move() == 4
        erase(store_url, "canary")
        append(store_url, 5, 305, user=other, log_max_events=200)
        append(store_url, 305, 307, user="canary")  # who comes back keeps what is new
        entries: Any = server.xrange(log_key(partition))
        assert not any(b"erased" in fields for _, fields in entries)
        archiver.move()
        archiver.compact()
        assert archiver.move() == 0
    assert sorted(read(tmp_path).events.filter(user_id="canary")["event_id"]) == ["e305", "e306"]
    assert read(tmp_path).tombstones["user"].to_list() == [digest_of("canary")]
    assert not server.exists(tombstones_key(partition))


def test_what_keeps_an_archiver_from_starting_is_one_sentence(tmp_path: Path) -> None:
    away = ["--redis", "redis://127.0.0.1:1", "--to", str(tmp_path)]
    assert "127.0.0.1:1" in refused("archive", *away, "--once")
    assert "--compact goes with --once" in refused("archive", *away, "--compact")
    assert "--every is 0" in refused("archive", *away, "--every", "0")
    assert "URL" in refused("archive", "--to", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("archive", "--redis", away[1], "--to", str(tmp_path / "file"))


@pytest.mark.parametrize(("package", "status", "said"), [("onnxruntime", 0, ""), ("polars", 2, "./run setup serve")])
def test_an_archiver_needs_polars_and_nothing_that_ranks(
    store_url: str, tmp_path: Path, package: str, status: int, said: str
) -> None:
    program = "import sys; sys.modules[sys.argv[1]] = None; from service.__main__ import main; exit(main(sys.argv[2:]))"
    append(store_url, 0, 5)
    words = ["archive", "--redis", store_url, "--to", str(tmp_path / "archive"), "--once"]
    command = [sys.executable, "-c", program, package, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
