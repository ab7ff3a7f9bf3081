"""The archive as it lies in its folder: complete files, each event once after a compaction, nobody who was erased."""

import multiprocessing
import os
import threading
from pathlib import Path

import polars as pl
import pytest

from models import archive
from models.archive import ArchiveError, Compaction, compact, locked, read, settled, write
from models.eventlog import Entry, LoggedEvent, Tombstone, digest_of

DAY_MS = 86_400_000
FULL = LoggedEvent("bøb", "日本", "e\0 2", "rating", 2 * DAY_MS, 1 / 3, "rec-1", '{"a": ["é", null]}'.encode())


def event(name: str, day: int = 0, *, user: str = "ann") -> LoggedEvent:
    return LoggedEvent(user, f"item-{name}", name, "interaction", day * DAY_MS + 5)


def entries(*events: LoggedEvent | Tombstone, first: int = 1) -> list[Entry]:
    return [Entry(f"{first + number}-0", what) for number, what in enumerate(events)]


def add(folder: Path, *events: LoggedEvent | Tombstone, first: int = 1) -> None:
    with locked(folder):
        write(folder, entries(*events, first=first))


def compacted(folder: Path) -> Compaction:
    with locked(folder):
        return compact(folder)


def names(folder: Path) -> list[str]:
    return sorted(read(folder).events["event_id"])


def files(folder: Path) -> list[str]:
    return sorted(f"{path.parent.name}/{path.name.partition('-')[0]}" for path in folder.rglob("*.parquet"))


def test_an_event_comes_back_as_it_was_logged_from_the_day_it_happened_on(tmp_path: Path) -> None:
    add(tmp_path, FULL, event("a"), event("b"))
    assert files(tmp_path) == ["dt=1970-01-01/part", "dt=1970-01-03/part"]
    (row,) = read(tmp_path).events.filter(pl.col("user_id") == "bøb").iter_rows()
    properties = (FULL.properties or b"").decode()
    assert row == ("bøb", "日本", "e\0 2", "rating", 2 * DAY_MS, 1 / 3, "rec-1", properties, 1, 0)
    assert pl.read_parquet_metadata(next(tmp_path.rglob("*.parquet")))["recserve.schema"] == "1"


def test_what_is_archived_twice_is_there_once_after_a_compaction(tmp_path: Path) -> None:
    add(tmp_path, event("a"), event("b"), event("c", 1))
    add(tmp_path, event("b"), event("c", 1), event("d", 1), first=2)
    add(tmp_path, event("a", user="bob"), first=9)  # an id is a user's
    assert len(read(tmp_path).events) == 7
    assert len(settled(read(tmp_path))) == 5  # what training reads meanwhile
    assert compacted(tmp_path) == Compaction(days=2, repeats=2)
    assert names(tmp_path) == ["a", "a", "b", "c", "d"]
    assert files(tmp_path) == ["dt=1970-01-01/day", "dt=1970-01-02/day"]
    assert compacted(tmp_path) == Compaction()
    add(tmp_path, event("e", 1), first=20)
    assert compacted(tmp_path) == Compaction(days=1)


def test_an_erased_user_is_dropped_and_stays_dropped_when_an_older_copy_is_put_back(tmp_path: Path) -> None:
    add(tmp_path, event("a"), event("b", user="bob"), event("c", 3))
    copy = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    add(tmp_path, Tombstone(digest_of("ann"), "7-0"), event("back"), first=7)  # ann returns afterwards
    assert sorted(settled(read(tmp_path))["event_id"]) == ["b", "back"]
    assert compacted(tmp_path) == Compaction(days=2, erased=2)
    assert names(tmp_path) == ["b", "back"]
    assert not (tmp_path / "dt=1970-01-04").exists()
    for path, content in copy.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert compacted(tmp_path) == Compaction(days=2, repeats=1, erased=2)
    assert names(tmp_path) == ["b", "back"]


def test_tombstones_are_kept_the_last_of_each_user_and_name_nobody(tmp_path: Path) -> None:
    for upto in ("5-0", "9-3", "9-2"):
        add(tmp_path, Tombstone(digest_of("ann"), upto))
    add(tmp_path, Tombstone(digest_of("bob"), "1-0"))
    compacted(tmp_path)
    assert read(tmp_path).tombstones.sort("upto_ms").rows() == [(digest_of("bob"), 1, 0), (digest_of("ann"), 9, 3)]
    assert files(tmp_path) == ["erased/part"]
    add(tmp_path, event("a"), first=9)  # 9-0 is before 9-3
    assert len(settled(read(tmp_path))) == 0


def test_a_day_of_many_rows_is_compacted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_ROWS_AT_ONCE", 30)
    events = [event(f"e{number}", user=f"user{number % 20}") for number in range(100)]
    add(tmp_path, *events)
    add(tmp_path, *events)
    assert compacted(tmp_path) == Compaction(days=1, repeats=100)
    assert names(tmp_path) == sorted(event.event_id for event in events)
    assert len(files(tmp_path)) == 7
    assert compacted(tmp_path) == Compaction()
    next(tmp_path.rglob("*.parquet")).unlink()  # what is left is no whole compaction
    assert compacted(tmp_path).days == 1


def test_a_day_whose_users_are_all_erased_leaves_no_folder_and_can_come_again(tmp_path: Path) -> None:
    add(tmp_path, event("a"), Tombstone(digest_of("ann"), "5-0"))
    compacted(tmp_path)
    assert list(tmp_path.glob("dt=*")) == []
    add(tmp_path, event("b"), first=6)
    assert names(tmp_path) == ["b"]


def test_a_stray_file_in_a_day_keeps_no_later_day_from_being_compacted(tmp_path: Path) -> None:
    add(tmp_path, event("a"), event("b", 5), event("c", 5, user="bob"), Tombstone(digest_of("ann"), "5-0"))
    stray = tmp_path / "dt=1970-01-01" / ".nfs0001"
    stray.write_text("")
    assert compacted(tmp_path) == Compaction(days=2, erased=2)
    assert names(tmp_path) == ["c"]
    assert stray.exists()
    assert compacted(tmp_path) == Compaction()


def test_a_time_beyond_the_calendar_has_a_day_all_the_same(tmp_path: Path) -> None:
    add(tmp_path, LoggedEvent("ann", "i", "e", "view", 2**53 - 1))
    assert files(tmp_path) == ["dt=9999-12-31/part"]


def spoil(path: Path, damage: str) -> None:
    """Leave of a file what cannot be read."""
    content = path.read_bytes()
    if damage == "version":
        pl.DataFrame({"user_id": ["a"]}).write_parquet(path, metadata={"recserve.schema": "2"})
    elif damage == "pages":
        path.write_bytes(content[:4] + bytes(100) + content[104:])
    elif damage == "columns":  # what the metadata say beside is whole
        at = content.index(b"ARROW:schema") + 60
        path.write_bytes(content[:at] + b"!!!!" + content[at + 4 :])
    else:
        path.write_bytes(content[:-9] if damage == "cut" else b"")


@pytest.mark.parametrize("damage", ["empty", "cut", "pages", "columns", "version"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    add(tmp_path, event("a"))
    (path,) = tmp_path.rglob("*.parquet")
    spoil(path, damage)
    for call in (read, compacted):
        with pytest.raises(ArchiveError, match=path.name):
            call(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "columns"])
def test_a_file_that_cannot_be_read_keeps_no_other_day_from_being_compacted(tmp_path: Path, damage: str) -> None:
    add(tmp_path, event("a"), event("b", 5), event("c", 5, user="bob"))
    add(tmp_path, Tombstone(digest_of("ann"), "5-0"), event("c", 5, user="bob"), first=3)
    add(tmp_path, Tombstone(digest_of("cy"), "5-0"), first=5)
    (damaged,) = tmp_path.glob("dt=1970-01-01/*")
    spoil(damaged, damage)
    with pytest.raises(ArchiveError, match=damaged.name):
        compacted(tmp_path)
    damaged.unlink()
    assert files(tmp_path) == ["dt=1970-01-06/day", "erased/part"]
    assert names(tmp_path) == ["c"]
    assert compacted(tmp_path) == Compaction()


def test_an_archive_that_is_not_there_or_not_writable_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no such archive"):
        read(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveError, match="cannot be written"), locked(tmp_path / "file"):
        pass


def test_a_new_archive_is_on_disk_with_its_name_before_anything_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    for _ in range(2):  # the second time it is there
        with locked(tmp_path / "new" / "archive"):
            assert set(synced) == {tmp_path.stat().st_ino, (tmp_path / "new").stat().st_ino}
    assert len(synced) == 2


def test_what_a_killed_archiver_left_unfinished_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / "half").write_bytes(b"PAR1")
    add(tmp_path, event("a"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and "half" in path.name] == []
    assert names(tmp_path) == ["a"]


def test_a_second_archiver_waits_for_the_first(tmp_path: Path) -> None:
    second = multiprocessing.get_context("spawn").Process(target=add, args=(tmp_path, event("b")))
    with locked(tmp_path):
        second.start()
        threading.Event().wait(1.5)
        assert not list(tmp_path.rglob("*.parquet"))
    second.join(30)
    assert second.exitcode == 0
    assert names(tmp_path) == ["b"]
