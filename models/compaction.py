"""Compaction of an archive: one file of a day in which every event is once and no erased user is.

A large day becomes several files, each a share of its events: a day need not fit into memory. Repeats of an event meet
in one share, while one user's events may be in all of them, who may have most of a day. The archive is locked for a day
at a time: who moves the log there has to wait no longer, or it would fill.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.archive import (
    ERASED,
    SIZE_KEY,
    Archived,
    ArchiveError,
    load_polars,
    locked,
    metadata_of,
    publish,
    read_files,
    read_tombstones,
    schemas,
    settled,
    without_erased,
    writing,
)

if TYPE_CHECKING:
    import polars as pl

_COMPACTION_KEY = "recserve.compaction"
_BYTES_AT_ONCE = 128 * 2**20  # of a day's events, as polars holds them; in passing they take three times as much
_LARGEST_ROW_BYTES = 8192  # its properties are 4 KiB at most, its five ids 256 bytes each


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did: days that were written anew, events dropped as repeats and as those of erased users."""

    days: int = 0
    repeats: int = 0
    erased: int = 0


def compact(folder: Path, between: Callable[[], None] = lambda: None) -> Compaction:
    """Make one file of each day that has several, repeats or erased users. `between` is called after each day.

    A day that cannot be read keeps no other from being compacted: ArchiveError comes at the end.
    """
    failure: ArchiveError | None = None
    done = Compaction()
    known: tuple[list[Path], pl.DataFrame] | None = None
    for day in sorted(folder.glob("dt=*")):
        with locked(folder), writing(folder):
            # More may have come between the days, and with them events of theirs from after the erasure, which would be
            # taken for repeats of what is erased.
            files = sorted(folder.glob(f"{ERASED}/*.parquet"))
            if known is None or known[0] != files:
                known = files, read_tombstones(folder)
            try:
                of_day = _compact_day(folder, day, known[1])
            except ArchiveError as error:
                failure = failure or error
            else:
                done = Compaction(done.days + of_day.days, done.repeats + of_day.repeats, done.erased + of_day.erased)
        between()
    with locked(folder), writing(folder):
        files = sorted(folder.glob(f"{ERASED}/*.parquet"))
        if len(files) > 1:
            publish(read_tombstones(folder), folder, folder / ERASED / f"part-{uuid.uuid4().hex}.parquet")
            _remove(files)
    if failure is not None:
        raise failure
    return done


def _compact_day(folder: Path, day: Path, tombstones: pl.DataFrame) -> Compaction:
    files = sorted(day.glob("*.parquet"))
    if not files or (_is_compact(files) and not _has_erased(files, tombstones)):
        return Compaction()
    shares = max(1, -(-sum(map(_size_bytes, files)) // _BYTES_AT_ONCE))
    compaction = uuid.uuid4().hex
    counts = [0, 0, 0]  # events kept, repeats, events of erased users
    new = []
    for share in range(shares):
        new.append(day / f"day-{compaction}-{share:04d}.parquet")
        events, kept, final = _share(files, share, shares, tombstones)
        publish(final, folder, new[-1], {_COMPACTION_KEY: f"{compaction}/{shares}"})
        counts = [a + b for a, b in zip(counts, (len(final), kept - len(final), events - kept), strict=True)]
        del final  # or it is there beside the next
    _remove(files if counts[0] else files + new)
    if not counts[0]:
        with suppress(OSError):  # something that is not ours may be left in it
            day.rmdir()
    return Compaction(1, *counts[1:])


def _share(files: Sequence[Path], share: int, shares: int, tombstones: pl.DataFrame) -> tuple[int, int, pl.DataFrame]:
    """How many events a share of the files has, how many of them nobody erased, and each of these once."""
    polars = load_polars()
    place = polars.col("user_id").hash(0) ^ polars.col("event_id").hash(1)
    events = read_files(files, schemas()[0], place % shares == share)
    kept = without_erased(Archived(events, tombstones))
    return len(events), len(kept), settled(Archived(kept, tombstones.clear()))


def _is_compact(files: Sequence[Path]) -> bool:
    """Whether these are all the files of one compaction, and nothing else."""
    marks = {metadata_of(file).get(_COMPACTION_KEY, "") for file in files}
    return len(marks) == 1 and marks.pop().partition("/")[2] == str(len(files))


def _has_erased(files: Sequence[Path], tombstones: pl.DataFrame) -> bool:
    """Whether a file has events that a tombstone does away with, which may be later than it."""
    if not len(tombstones):
        return False
    columns = {name: schemas()[0][name] for name in ("user_id", "logged_ms", "logged_number")}
    parts = (read_files([file], columns) for file in files)
    return any(len(without_erased(Archived(part, tombstones))) < len(part) for part in parts)


def _size_bytes(file: Path) -> int:
    """What a file's rows take in memory: what it says, or the most there can be if it is older than its saying so."""
    said = metadata_of(file).get(SIZE_KEY, "")
    if said.isdecimal():
        return int(said)
    return _LARGEST_ROW_BYTES * len(read_files([file], {"logged_ms": schemas()[0]["logged_ms"]}))


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
