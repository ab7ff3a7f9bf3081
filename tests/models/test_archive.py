"""The archive as it lies in its folder: complete files, by the days of their events."""

import multiprocessing
import os
import threading
from pathlib import Path

import polars as pl
import pytest

from models.archive import ArchiveError, locked, read, write
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


def test_columns_are_read_alone_where_no_others_are_wanted(tmp_path: Path) -> None:
    add(tmp_path, FULL, Tombstone(digest_of("ann"), "7-0"))
    found = read(tmp_path, ["event_id", "user_id"])
    assert found.events.to_dicts() == [{"user_id": "bøb", "event_id": "e\0 2"}]
    assert len(found.tombstones) == 1


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
    with pytest.raises(ArchiveError, match=path.name):
        read(tmp_path)


def test_a_damaged_file_of_tombstones_is_not_to_be_taken_out_before_its_users_are_erased_again(tmp_path: Path) -> None:
    add(tmp_path, event("a"), Tombstone(digest_of("ann"), "7-0"))
    again = "; if there is none, erase its users again before you take it out"
    for folder, advice in (("erased", again), ("dt=*", ", or take it out")):
        (path,) = tmp_path.glob(f"{folder}/*.parquet")
        whole = path.read_bytes()
        spoil(path, "cut")
        with pytest.raises(ArchiveError, match=f"put a copy of it back{advice}"):
            read(tmp_path)
        path.write_bytes(whole)


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
