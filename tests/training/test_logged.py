"""What stores and archives of their logs hold together, as retraining reads it."""

import asyncio
import tempfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from models.archive import ArchiveError
from models.eventlog import LoggedEvent
from service.archive import Archiver
from service.embedded import EmbeddedStore
from service.erasure import Erasure
from service.sequences import SequenceStore, StoreSettings
from training.interactions import read_interactions
from training.logged import Logged, logged_interactions, without_erased, without_known


@pytest.fixture
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, EmbeddedStore(Path(folder)) as store:
        yield store.url


def append(url: str, *events: LoggedEvent) -> None:
    async def run() -> None:
        async with SequenceStore.connect(url, StoreSettings(write_timeout_s=5)) as store:
            await store.append(events)

    asyncio.run(run())


def erase(url: str, user: str) -> None:
    async def run() -> None:
        async with SequenceStore.connect(url, StoreSettings(write_timeout_s=5)) as store:
            await Erasure(store.connection, log_length=1000).erase(user)

    asyncio.run(run())


def move(url: str, folder: Path) -> None:
    with Archiver(url, folder) as archiver:
        archiver.move()


def event(user: str, number: int, type_: str = "view") -> LoggedEvent:
    return LoggedEvent(user, f"i{number}", f"e{number}", type_, 1_600_000_000_000 + number)


def logged(*sources: object) -> tuple[Logged, str]:
    out = StringIO()
    found = logged_interactions([str(source) for source in sources], ["view"], Console(file=out, width=200))
    return found, out.getvalue()


def items(found: Logged) -> list[str]:
    return [] if found.interactions is None else found.interactions.frame["item_id"].to_list()


def test_store_and_archive_together_hold_every_event_once_in_the_order_of_their_times(url: str, tmp_path: Path) -> None:
    append(url, event("ann", 3), event("bob", 1), event("ann", 9, "impression"))
    move(url, tmp_path)  # some of it stays in the log as well
    append(url, event("ann", 2))
    for sources in ((url, tmp_path), (tmp_path, url), (tmp_path, tmp_path, url)):
        found, said = logged(*sources)
        assert items(found) == ["i1", "i2", "i3"]
        assert "event log: 4 events, 3 of them of a type that is learned from, not impression 1 (--event-type)" in said
        assert "no longer" not in said
    assert items(logged(tmp_path)[0]) == ["i1", "i3"]


def test_a_tombstone_in_the_store_counts_for_the_archive_and_one_there_for_both(url: str, tmp_path: Path) -> None:
    append(url, event("ann", 1), event("bob", 2))
    move(url, tmp_path)
    erase(url, "ann")
    append(url, event("ann", 3))
    found, said = logged(url, tmp_path)
    assert items(found) == ["i2", "i3"]
    assert "1 users were erased" in said
    move(url, tmp_path)
    assert items(logged(tmp_path)[0]) == ["i2", "i3"]


def test_an_erased_user_counts_in_no_file_from_before(url: str, tmp_path: Path) -> None:
    erase(url, "ann")
    tombstones = logged(url)[0].tombstones
    later = 4_000_000_000_000
    timed, untimed = tmp_path / "timed.csv", tmp_path / "untimed.csv"
    timed.write_text(f"user_id,item_id,timestamp\nann,a,1600000000000\nann,b,{later}\nbob,c,1600000000000\n")
    untimed.write_text("user_id,item_id\nann,a\nbob,c\n")
    kept = without_erased(read_interactions([timed]), tombstones)
    assert kept.frame.select("user_id", "item_id").rows() == [("bob", "c"), ("ann", "b")]
    assert str(kept.report).endswith("1  user was erased")
    assert without_erased(read_interactions([untimed]), tombstones).frame["item_id"].to_list() == ["c"]


def test_what_the_files_have_too_is_in_the_log_no_second_time(url: str, tmp_path: Path) -> None:
    append(url, event("ann", 1), event("ann", 2), event("bob", 2))
    data = tmp_path / "data.csv"  # the first event twice, which is the files' own affair; another user, another time
    rows = ["ann,i1,1600000000001"] * 2 + ["ann,i2,1600000000003", "cid,i2,1600000000002"]
    data.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    log = logged(url)[0].interactions
    assert log is not None
    kept = without_known(log, known := read_interactions([data]))
    assert sorted(kept.frame.select("user_id", "item_id").rows()) == [("ann", "i2"), ("bob", "i2")]
    assert str(kept.report).endswith("1  in the files and in the event log")
    assert without_known(kept, known) is kept


def test_who_was_not_erased_keeps_everything(url: str, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("user_id,item_id,timestamp\nann,a,1600000000000\n")
    interactions = read_interactions([data])
    assert without_erased(interactions, logged(url)[0].tombstones) is interactions
    erase(url, "bob")
    assert without_erased(interactions, logged(url)[0].tombstones) is interactions


def test_an_empty_log_teaches_nothing_and_a_missing_archive_is_an_error(url: str, tmp_path: Path) -> None:
    assert logged(url)[0].interactions is None
    with pytest.raises(ArchiveError, match="no such archive"):
        logged(url, tmp_path / "none")
    assert isinstance(logged(url)[0].tombstones, pl.DataFrame)
