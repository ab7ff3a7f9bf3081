"""The archive of the event log as service and training agree on it: Parquet files in a folder a day of the events.

    archive/dt=2026-05-01/*.parquet   events of that day (UTC), by their own time
    archive/erased/*.parquet          tombstones, kept for good: an older copy put back is cleaned by them too

A file is complete or absent, and on disk before `write` returns. The same entry may be in several files, since an
archiver that was killed starts again; models.compaction makes one file of a day in which every event is once and no
erased user is. A day by the events' own time, because then the repeats of an event meet in one folder whenever they
came, unless they have no time and got that of their arrival: of those on other days `settled` counts the first. Files
are never changed, so that readers need no lock. polars is imported by the functions that use it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from models.durable import sync
from models.eventlog import Entry, LoggedEvent, Tombstone, digest_of, position

if TYPE_CHECKING:
    import polars as pl

SCHEMA = 1  # in the metadata of every file, as _SCHEMA_KEY
SIZE_KEY = "recserve.bytes"  # there as well: what the rows take in memory, which polars tells of no file unread
ERASED = "erased"  # the folder of tombstones

_SCHEMA_KEY = "recserve.schema"
_DRAFTS = "drafts"
_LAST_DAY_MS = 253_402_300_799_999  # the end of the year 9999, behind which there are no dates
_TEXT_BYTES = 16  # of each text in a frame, beside its characters, which polars counts alone
_READ_ATTEMPTS = 5  # a file may be compacted away between listing and reading it


class ArchiveError(Exception):
    """The archive cannot be read or written; the message names the file and says what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Archived:
    """What an archive holds, repeats and erased users included until `settled` has been asked.

    events: user_id, item_id, event_id, type, recommendation_id, properties String, timestamp_ms Int64, value Float64,
    logged_ms and logged_number Int64, the entry's place in the log. tombstones: user (digest) String, upto_ms and
    upto_number Int64.
    """

    events: pl.DataFrame
    tombstones: pl.DataFrame


def frames(entries: Iterable[Entry]) -> Archived:
    """Entries of the log as an archive would hold them. Raises ArchiveError if properties are not UTF-8."""
    polars = load_polars()
    events, tombstones = [], []
    for entry in entries:
        what = entry.what
        if isinstance(what, Tombstone):
            tombstones.append((what.user, *position(what.upto)))
        else:
            events.append((*_fields(entry.id, what), *position(entry.id)))
    of_events, of_tombstones = schemas()
    return Archived(
        polars.DataFrame(events, schema=of_events, orient="row"),
        polars.DataFrame(tombstones, schema=of_tombstones, orient="row"),
    )


def write(folder: Path, entries: Sequence[Entry]) -> None:
    """Add entries. When this returns they are on disk, and stay if the machine loses power.

    Whoever writes holds `locked`. Raises ArchiveError for a disk that is full, or whatever else it cannot do.
    """
    polars = load_polars()
    new = frames(entries)
    with writing(folder):
        name = f"part-{uuid.uuid4().hex}.parquet"
        days = polars.Series("dt", [_day(ms) for ms in new.events["timestamp_ms"]], dtype=polars.String)
        for (day,), of_day in new.events.with_columns(days).group_by("dt"):
            publish(of_day.drop("dt"), folder, folder / f"dt={day}" / name)
        if len(new.tombstones):
            publish(new.tombstones, folder, folder / ERASED / name)


def read(folder: Path, columns: Collection[str] | None = None) -> Archived:
    """All that is in the archive, or these columns of its events; an empty folder holds nothing.

    Raises ArchiveError if there is no folder, or if a file is damaged or of another version.
    """
    if not folder.is_dir():
        raise ArchiveError(f"{folder}: there is no such archive; 'python -m service archive' writes one")
    of_events, of_tombstones = schemas()
    wanted = {name: kind for name, kind in of_events.items() if columns is None or name in columns}
    attempt = 1
    while True:
        try:
            return Archived(
                read_files(sorted(folder.glob("dt=*/*.parquet")), wanted),
                read_files(sorted(folder.glob(f"{ERASED}/*.parquet")), of_tombstones),
            )
        except FileNotFoundError as error:
            if attempt == _READ_ATTEMPTS:
                raise ArchiveError(f"{folder}: its files vanish while they are read ({error}); try again") from error
            attempt += 1


def settled(found: Archived) -> pl.DataFrame:
    """The events that count: each of a user once, as it was logged first, and none from before its user's erasure."""
    polars = load_polars()
    first = without_erased(found).sort("logged_ms", "logged_number").unique(["user_id", "event_id"], keep="first")
    return first.sort("timestamp_ms", polars.col("event_id").cast(polars.Binary))


def without_erased(found: Archived) -> pl.DataFrame:
    """The events that were not logged before their user was erased."""
    polars = load_polars()
    if not len(found.tombstones):
        return found.events
    users = found.events["user_id"].unique()
    digests = polars.Series("user", [digest_of(user) for user in users], dtype=polars.String)
    erased = polars.DataFrame([users, digests]).join(last_tombstones(found.tombstones), on="user")
    place, upto = ("logged_ms", "logged_number"), ("upto_ms", "upto_number")
    late = (polars.col(place[0]) > polars.col(upto[0])) | (
        (polars.col(place[0]) == polars.col(upto[0])) & (polars.col(place[1]) > polars.col(upto[1]))
    )
    joined = found.events.join(erased.drop("user"), on="user_id", how="left", maintain_order="left")
    return joined.filter(polars.col("upto_ms").is_null() | late).drop(upto)


def read_tombstones(folder: Path) -> pl.DataFrame:
    """The last tombstone of every erased user, as in Archived."""
    return last_tombstones(read_files(sorted(folder.glob(f"{ERASED}/*.parquet")), schemas()[1]))


def last_tombstones(tombstones: pl.DataFrame) -> pl.DataFrame:
    """The last tombstone of each user."""
    return tombstones.sort("upto_ms", "upto_number").unique("user", keep="last", maintain_order=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who writes to the archive; waits for another. Made if it is not there.

    What an archiver that was killed left unfinished is removed. Raises ArchiveError if the folder cannot be written to.
    """
    with writing(folder):
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # histories are nobody else's business
        for path in new:
            sync(path.parent)  # or a loss of power takes the archive with its folder's name
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with writing(folder):
            shutil.rmtree(folder / _DRAFTS, ignore_errors=True)
        yield
    finally:
        os.close(lock)


def _fields(entry_id: str, event: LoggedEvent) -> tuple[str | int | float | None, ...]:
    try:
        properties = None if event.properties is None else event.properties.decode()
    except UnicodeDecodeError as error:
        raise ArchiveError(f"log entry {entry_id} has properties that are not UTF-8: {error}") from error
    return (
        *(event.user_id, event.item_id, event.event_id, event.type),
        *(event.timestamp_ms, event.value, event.recommendation_id, properties),
    )


def _day(timestamp_ms: int) -> str:
    return datetime.fromtimestamp(min(timestamp_ms, _LAST_DAY_MS) / 1000, UTC).strftime("%Y-%m-%d")


def schemas() -> tuple[dict[str, pl.DataType], dict[str, pl.DataType]]:
    """Columns of events and of tombstones."""
    polars = load_polars()
    text, whole = polars.String(), polars.Int64()
    events = {"user_id": text, "item_id": text, "event_id": text, "type": text, "timestamp_ms": whole}
    events |= {"value": polars.Float64(), "recommendation_id": text, "properties": text}
    return events | {"logged_ms": whole, "logged_number": whole}, {
        "user": text,
        "upto_ms": whole,
        "upto_number": whole,
    }


def read_files(files: Sequence[Path], schema: dict[str, pl.DataType], predicate: pl.Expr | None = None) -> pl.DataFrame:
    """These columns of the files, of all rows or those of the predicate. A file that is gone is FileNotFoundError."""
    polars = load_polars()
    parts = [polars.DataFrame(schema=schema)]
    for file in files:
        if (schema_of_file := metadata_of(file).get(_SCHEMA_KEY)) != str(SCHEMA):
            raise ArchiveError(
                f"{file}: has schema {schema_of_file}, this version reads {SCHEMA}; read it with the version that "
                "wrote it, or a later one, or take the file out if it is none of the archive's"
            )
        rows = polars.scan_parquet(file, hive_partitioning=False).select(list(schema))
        with reading(file):
            parts.append((rows if predicate is None else rows.filter(predicate)).collect())
    found: pl.DataFrame = polars.concat(parts)
    return found


def metadata_of(file: Path) -> dict[str, str]:
    """What a file says of itself. Raises ArchiveError if it cannot be read."""
    with reading(file):
        found: dict[str, str] = load_polars().read_parquet_metadata(file)
    return found


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """What polars says of a damaged file is an ArchiveError that names it."""
    exceptions = load_polars().exceptions
    try:
        yield
    except (exceptions.PolarsError, exceptions.PanicException) as error:  # damaged pages panic
        reason = str(error).strip().split("\n", 1)[0]
        # Without a tombstone its user is back: none is to be taken out that was not given again.
        instead = "; if there is none, erase its users again before you" if file.parent.name == ERASED else ", or"
        said = f"{file}: not a readable Parquet file ({reason}); put a copy of it back{instead} take it out"
        raise ArchiveError(said) from error


def publish(frame: pl.DataFrame, folder: Path, target: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file that is complete or absent, and on disk when this returns."""
    drafts = folder / _DRAFTS
    drafts.mkdir(exist_ok=True)
    draft = drafts / uuid.uuid4().hex
    polars = load_polars()
    said = {_SCHEMA_KEY: str(SCHEMA), SIZE_KEY: str(_size_bytes(frame))}
    try:
        frame.write_parquet(draft, metadata=said | (metadata or {}))
    except polars.exceptions.PolarsError as error:  # its word for a full disk
        raise OSError(str(error)) from error
    sync(draft)
    target.parent.mkdir(exist_ok=True)
    draft.rename(target)
    sync(target.parent)
    sync(folder)  # which may have got a new folder


def _size_bytes(frame: pl.DataFrame) -> int:
    texts = frame.select(load_polars().selectors.string()).width
    return int(frame.estimated_size()) + _TEXT_BYTES * texts * len(frame)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the system refuses is an ArchiveError that names the folder."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(
            f"{folder}: the archive cannot be written: {error}; free space there, or let it be written to"
        ) from error


def load_polars() -> ModuleType:
    """polars, which not every installation has. Raises ArchiveError if this one has it not."""
    try:
        import polars  # noqa: PLC0415
    except ImportError as error:
        raise ArchiveError(
            "the archive needs polars: run './run setup serve', or in containers let the service 'archive' do it"
        ) from error
    return polars
