"""What a compaction leaves of an archive: each event once, nobody who was erased."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from models import compaction
from models.archive import ArchiveError, read, settled
from models.compaction import Compaction, compact
from models.eventlog import LoggedEvent, Tombstone, digest_of
from tests.models.test_archive import DAY_MS, add, event, files, names, spoil

DAYS = ("1970-01-01", "1970-01-02")


def test_what_is_archived_twice_is_there_once_after_a_compaction(tmp_path: Path) -> None:
    add(tmp_path, event("a"), event("b"), event("c", 1))
    add(tmp_path, event("b"), event("c", 1), event("d", 1), first=2)
    add(tmp_path, event("a", user="bob"), first=9)  # an id is a user's
    assert len(read(tmp_path).events) == 7
    assert len(settled(read(tmp_path))) == 5  # what training reads meanwhile
    assert compact(tmp_path) == Compaction(days=2, repeats=2)
    assert names(tmp_path) == ["a", "a", "b", "c", "d"]
    assert files(tmp_path) == ["dt=1970-01-01/day", "dt=1970-01-02/day"]
    assert compact(tmp_path) == Compaction()
    add(tmp_path, event("e", 1), first=20)
    assert compact(tmp_path) == Compaction(days=1)


def test_an_erased_user_is_dropped_and_stays_dropped_when_an_older_copy_is_put_back(tmp_path: Path) -> None:
    add(tmp_path, event("a"), event("b", user="bob"), event("c", 3))
    copy = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    add(tmp_path, Tombstone(digest_of("ann"), "7-0"), event("back"), first=7)  # ann returns afterwards
    assert sorted(settled(read(tmp_path))["event_id"]) == ["b", "back"]
    assert compact(tmp_path) == Compaction(days=2, erased=2)
    assert names(tmp_path) == ["b", "back"]
    assert not (tmp_path / "dt=1970-01-04").exists()
    for path, content in copy.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert compact(tmp_path) == Compaction(days=2, repeats=1, erased=2)
    assert names(tmp_path) == ["b", "back"]


def test_a_day_of_a_user_who_was_erased_and_came_back_is_written_anew_once(tmp_path: Path) -> None:
    add(tmp_path, event("a"), Tombstone(digest_of("ann"), "2-0"), event("back"), event("b", user="bob"))
    assert compact(tmp_path) == Compaction(days=1, erased=1)
    assert compact(tmp_path) == Compaction()
    add(tmp_path, Tombstone(digest_of("ann"), "3-0"), first=5)  # up to "back", that one included
    assert compact(tmp_path) == Compaction(days=1, erased=1)
    assert compact(tmp_path) == Compaction()
    assert names(tmp_path) == ["b"]


def test_tombstones_are_kept_the_last_of_each_user_and_name_nobody(tmp_path: Path) -> None:
    for upto in ("5-0", "9-3", "9-2"):
        add(tmp_path, Tombstone(digest_of("ann"), upto))
    add(tmp_path, Tombstone(digest_of("bob"), "1-0"))
    compact(tmp_path)
    assert read(tmp_path).tombstones.sort("upto_ms").rows() == [(digest_of("bob"), 1, 0), (digest_of("ann"), 9, 3)]
    assert files(tmp_path) == ["erased/part"]
    add(tmp_path, event("a"), first=9)  # 9-0 is before 9-3
    assert len(settled(read(tmp_path))) == 0


def test_what_is_archived_between_the_days_of_a_compaction_stays(tmp_path: Path) -> None:
    add(tmp_path, event("a"), event("b", 1), event("c", 2), Tombstone(digest_of("bob"), "1-0"))
    tombstone = Tombstone(digest_of("ann"), "30-0")
    later: list[LoggedEvent | Tombstone] = [event("d", 2), tombstone, event("e", user="cy")]
    assert compact(tmp_path, lambda: add(tmp_path, later.pop(0), first=20)) == Compaction(days=3, erased=2)
    assert files(tmp_path)[-1] == "erased/part"
    assert settled(read(tmp_path))["event_id"].to_list() == ["e"]
    assert compact(tmp_path) == Compaction(days=2, erased=2)
    assert names(tmp_path) == ["e"]


def test_who_is_erased_and_comes_back_between_the_days_of_a_compaction_is_there(tmp_path: Path) -> None:
    """The event that came back has the id of the erased one, and is no repeat of it."""
    add(tmp_path, event("x"), event("a", 1))
    add(tmp_path, event("y"), first=5)

    def between() -> None:
        if not (tmp_path / "erased").exists():
            add(tmp_path, Tombstone(digest_of("ann"), "9-0"), event("a", 1), first=10)

    compact(tmp_path, between)
    assert settled(read(tmp_path))["event_id"].to_list() == ["a"]
    compact(tmp_path)
    assert names(tmp_path) == ["a"]


def test_a_day_of_many_events_is_compacted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_BYTES_AT_ONCE", 5_000)
    events = [event(f"e{number}", user=f"user{number % 20}") for number in range(100)]
    add(tmp_path, *events)
    add(tmp_path, *events)
    assert compact(tmp_path) == Compaction(days=1, repeats=100)
    assert names(tmp_path) == sorted(event.event_id for event in events)
    assert len(files(tmp_path)) == 7  # 200 of some 165 bytes
    assert compact(tmp_path) == Compaction()
    next(tmp_path.rglob("*.parquet")).unlink()  # what is left is no whole compaction
    assert compact(tmp_path).days == 1


def test_the_parts_of_a_day_are_as_large_as_their_properties_and_one_user_may_have_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_BYTES_AT_ONCE", 50_000)
    events = [event(f"e{number}") for number in range(100)]
    add(tmp_path, *(replace(one, properties=b'{"a": "%s"}' % (b"b" * 4000)) for one in events))
    add(tmp_path, *(replace(one, timestamp_ms=DAY_MS) for one in events), first=101)
    assert compact(tmp_path).days == 2
    sizes = {day: [len(pl.read_parquet(path)) for path in tmp_path.glob(f"dt={day}/*")] for day in DAYS}
    assert sizes[DAYS[1]] == [100]
    assert len(sizes[DAYS[0]]) == 9  # 100 of some 4,170 bytes
    assert max(sizes[DAYS[0]]) <= 25
    assert sum(sizes[DAYS[0]]) == 100


def test_a_file_that_does_not_say_its_size_is_taken_for_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_BYTES_AT_ONCE", 100_000)
    add(tmp_path, *(event(f"e{number}") for number in range(100)))
    (path,) = tmp_path.rglob("*.parquet")
    pl.read_parquet(path).write_parquet(path, metadata={"recserve.schema": "1"})
    assert compact(tmp_path) == Compaction(days=1)
    assert len(files(tmp_path)) == 9  # 100 of at most 8,192 bytes
    assert names(tmp_path) == sorted(f"e{number}" for number in range(100))


def test_a_day_whose_users_are_all_erased_leaves_no_folder_and_can_come_again(tmp_path: Path) -> None:
    add(tmp_path, event("a"), Tombstone(digest_of("ann"), "5-0"))
    compact(tmp_path)
    assert list(tmp_path.glob("dt=*")) == []
    add(tmp_path, event("b"), first=6)
    assert names(tmp_path) == ["b"]


def test_a_stray_file_in_a_day_keeps_no_later_day_from_being_compacted(tmp_path: Path) -> None:
    add(tmp_path, event("a"), event("b", 5), event("c", 5, user="bob"), Tombstone(digest_of("ann"), "5-0"))
    stray = tmp_path / "dt=1970-01-01" / ".nfs0001"
    stray.write_text("")
    assert compact(tmp_path) == Compaction(days=2, erased=2)
    assert names(tmp_path) == ["c"]
    assert stray.exists()
    assert compact(tmp_path) == Compaction()


@pytest.mark.parametrize("damage", ["empty", "cut", "pages", "columns", "version"])
def test_a_file_that_cannot_be_read_keeps_no_other_day_from_being_compacted(tmp_path: Path, damage: str) -> None:
    add(tmp_path, event("a"), event("b", 5), event("c", 5, user="bob"))
    add(tmp_path, Tombstone(digest_of("ann"), "5-0"), event("c", 5, user="bob"), first=3)
    add(tmp_path, Tombstone(digest_of("cy"), "5-0"), first=5)
    (damaged,) = tmp_path.glob("dt=1970-01-01/*")
    spoil(damaged, damage)
    with pytest.raises(ArchiveError, match=damaged.name):
        compact(tmp_path)
    damaged.unlink()
    assert files(tmp_path) == ["dt=1970-01-06/day", "erased/part"]
    assert names(tmp_path) == ["c"]
    assert compact(tmp_path) == Compaction()
