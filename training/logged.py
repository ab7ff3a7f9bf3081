"""What the service has logged, as interactions: from stores, from archives of their logs, or from both together.

Both hold an event for a while, and an archive may hold it twice; it counts once. Erased users count nowhere: neither in
an archive that has not been compacted since, nor in the files that history comes from.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
from rich.console import Console

from models import archive
from models.archive import Archived
from models.eventlog import PARTITIONS, Entry, connect, digest_of, gone, read_partition
from training.interactions import Interactions, interactions_from_frame

_PAGE = 10_000  # entries turned into columns together: as Python objects they take ten times the memory
# Not properties, which may be most of a log, nor recommendation_id: nothing is learned from them.
_COLUMNS = ("user_id", "item_id", "event_id", "type", "timestamp_ms", "value", "logged_ms", "logged_number")


@dataclass(frozen=True, slots=True, eq=False)
class Logged:
    """Logged interactions, None if there are none to learn from, and the last tombstone of each erased user."""

    interactions: Interactions | None
    tombstones: pl.DataFrame


def logged_interactions(sources: Sequence[str], event_types: Collection[str], console: Console) -> Logged:
    """What stores (URLs) and archives (folders) hold, each event once, those of erased users not at all.

    What an event was accepted with may still be nothing to learn from, a blank id or a time before 1970: counted, not
    refused, since whoever may post events must not be able to stop retraining. Raises EventLogError if a store cannot
    be read, and ArchiveError if an archive cannot.
    """
    stores = [source for source in sources if "://" in source]
    archives = [Path(source) for source in sources if "://" not in source]
    older = sum(map(_gone, stores))
    # Stores first: what an archiver moves meanwhile is then found twice, and never missed.
    parts = [part for url in stores for part in _stored(url)] + [archive.read(one, _COLUMNS) for one in archives]
    found = Archived(pl.concat([part.events for part in parts]), pl.concat([part.tombstones for part in parts]))
    log = archive.settled(found)
    tombstones = archive.last_tombstones(found.tombstones)
    rows = log.filter(pl.col("type").is_in(list(event_types)))
    said = f"event log: {len(log):,} events, {len(rows):,} of them of a type that is learned from"
    if others := _by_type(log, event_types):
        said += f", not {others} (--event-type)"
    if older and not archives:
        said += f", {older:,} older ones no longer in the store"
    if len(tombstones):
        said += f"; {len(tombstones):,} users were erased"
    console.print(said)
    if not len(rows):
        return Logged(None, tombstones)
    value = pl.col("value").cast(pl.Float32)
    frame = rows.select(
        "user_id",
        "item_id",
        pl.col("timestamp_ms").cast(pl.Datetime("ms")).alias("timestamp"),  # milliseconds, whatever they look like
        pl.when(value.is_finite()).then(value).alias("value"),
    )
    source = "event log of " + ", ".join(source.rpartition("@")[2] for source in sources)
    interactions = interactions_from_frame(frame, source=source, max_dropped=1.0)
    if not len(interactions.frame):
        console.print(str(interactions.report))
        return Logged(None, tombstones)
    return Logged(interactions, tombstones)


def without_known(logged: Interactions, known: Interactions) -> Interactions:
    """Logged interactions without those that are known from elsewhere: the same user, item and time."""
    frame = logged.frame.join(known.frame, on=["user_id", "item_id", "timestamp"], how="anti", maintain_order="left")
    report, repeats = logged.report, len(logged.frame) - len(frame)
    if not repeats:
        return logged
    dropped = {**report.dropped, "in the files and in the event log": repeats}
    return replace(logged, frame=frame, report=replace(report, rows_kept=len(frame), dropped=dropped))


def without_erased(interactions: Interactions, tombstones: pl.DataFrame) -> Interactions:
    """Interactions from elsewhere, without those of erased users that are older than the erasure or have no time."""
    frame = interactions.frame
    users = frame["user_id"].unique() if len(tombstones) else frame["user_id"].clear()
    digests = pl.Series("user", [digest_of(user) for user in users], dtype=pl.String)
    erased = pl.DataFrame([users, digests]).join(tombstones, on="user").select("user_id", "upto_ms")
    if not len(erased):
        return interactions
    joined = frame.join(erased, on="user_id", how="left", maintain_order="left")
    later = pl.col("timestamp") > pl.col("upto_ms")
    kept = joined.filter(pl.col("upto_ms").is_null() | later.fill_null(False)).drop("upto_ms")
    report = interactions.report
    dropped = {**report.dropped, "user was erased": len(frame) - len(kept)}
    return replace(interactions, frame=kept, report=replace(report, rows_kept=len(kept), dropped=dropped))


def _by_type(log: pl.DataFrame, learned: Collection[str]) -> str:
    """How many events are of each type that is not learned from, the commonest first."""
    others = log.filter(~pl.col("type").is_in(list(learned)))["type"].value_counts(sort=True)
    return ", ".join(f"{type_[:40]} {count:,}" for type_, count in others.head(5).rows())


def _stored(url: str) -> list[Archived]:
    """What the log of a store holds of _COLUMNS, in parts."""
    client = connect(url)
    try:
        entries = (entry for partition in range(PARTITIONS) for entry in read_partition(client, partition))
        pages = itertools.chain([[]], _pages(entries))
        return [Archived(part.events.select(_COLUMNS), part.tombstones) for part in map(archive.frames, pages)]
    finally:
        client.close()


def _gone(url: str) -> int:
    client = connect(url)
    try:
        return gone(client)
    finally:
        client.close()


def _pages(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries in lists of up to _PAGE."""
    entries = iter(entries)
    while page := list(itertools.islice(entries, _PAGE)):
        yield page
