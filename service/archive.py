"""`python -m service archive`: moves the event log out of the store into Parquet files.

First the files are on disk, then the log may forget: an archiver that is killed at any moment loses nothing, and what
it did twice is there once after the compaction. Two archivers of one archive take turns.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

from models.archive import ArchiveError, locked, write
from models.compaction import Compaction, compact
from models.eventlog import (
    PARTITIONS,
    START,
    Entry,
    EventLogError,
    LoggedEvent,
    Tombstone,
    acknowledge,
    archived,
    connect,
    forget_tombstones,
    read_partition,
)
from models.rewriting import Asked, RewriteRefusedError, rewrite

logger = logging.getLogger(__name__)

_COMPACT_EVERY_S = 24 * 3600.0
_BYTES_AT_ONCE = 50_000_000  # of entries as objects; in passing they take four times as much
_ENTRY_BYTES = 1_000  # of one, without its properties


class Archiver:
    """Moves the log of the store at `url` to `folder`, one archive for each store. Close it by `with`."""

    def __init__(self, url: str, folder: Path) -> None:
        """Raises EventLogError if the URL is not one."""
        self._client = connect(url)
        self._folder = folder
        self._erased: set[Tombstone] = set()  # of the last pass
        self._asked = Asked()  # of the store's servers for these

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def move(self) -> int:
        """Archive what the log holds, and give how many entries those were.

        A partition that cannot be read, or may not forget, keeps no other from being archived: EventLogError comes at
        the end. Raises ArchiveError if the files cannot be written; the log then keeps what was not.
        """
        moved = 0
        erased: dict[int, list[Tombstone]] = {}
        unforgotten: dict[int, str] = {}  # of partitions whose log still has what is archived, the last such entry
        failures: list[EventLogError] = []
        with locked(self._folder):
            for batch in _batches(self._log(failures)):
                write(self._folder, [entry for _, entry in batch])
                logged = [(partition, entry.id) for partition, entry in batch if entry.id != START]
                unforgotten |= logged
                self._acknowledge(unforgotten, dict(logged))
                for partition, entry in batch:
                    if isinstance(entry.what, Tombstone) and entry.id == START:  # those in the log tell no more
                        erased.setdefault(partition, []).append(entry.what)
                moved += len(logged)
            # Once more: where memory was short the others have made room.
            failures += self._acknowledge(unforgotten, list(unforgotten))
        if erased and self._rewritten({tombstone for of_one in erased.values() for tombstone in of_one}):
            for partition, tombstones in erased.items():
                forget_tombstones(self._client, partition, tombstones)
        if failures:
            raise failures[0]
        return moved

    def compact(self, between: Callable[[], None] = lambda: None) -> Compaction:
        """Bring every event of the archive down to one row, and those of erased users to none. Raises ArchiveError.

        `between` is called after each day, when the archive is free to be written to.
        """
        return compact(self._folder, between)

    def run(self, every_s: float) -> None:
        """Move every `every_s` seconds, also between the days of a compaction; compact at first and every day.

        For good, until interrupted. A store that is away, a file that cannot be read and later a disk that is full are
        waited for. Raises ArchiveError if the first files cannot be written, for then something is set up wrongly.
        """
        move_at = compact_at = -math.inf

        def keep_up() -> None:
            nonlocal move_at
            if time.monotonic() < move_at:
                return
            try:
                _say_moved(self.move())
            except EventLogError as error:  # compaction, which erases, does not wait for the log
                logger.error("the log was not archived, or not all of it; trying again: %s", error)
            except ArchiveError as error:
                if move_at == -math.inf:
                    raise
                logger.error("the log is not archived, and stays in the store: %s", error)
            move_at = time.monotonic() + every_s

        while True:
            keep_up()
            if time.monotonic() >= compact_at:
                try:
                    _say_compacted(self.compact(keep_up))
                    compact_at = time.monotonic() + _COMPACT_EVERY_S
                except ArchiveError as error:
                    logger.error("the archive is not compacted, and may still hold erased users: %s", error)
            time.sleep(max(0.0, move_at - time.monotonic()))

    def _acknowledge(self, unforgotten: dict[int, str], partitions: Iterable[int]) -> list[EventLogError]:
        """Let the log forget what these have, and drop those that it has forgotten; what kept it from the others."""
        failures = []
        for partition in partitions:
            try:
                acknowledge(self._client, partition, unforgotten[partition])
            except EventLogError as error:
                failures.append(error)
            else:
                del unforgotten[partition]
        return failures

    def _rewritten(self, erased: set[Tombstone]) -> bool:
        """Whether nothing more is to be asked of the store, whose files still have what was erased."""
        if erased != self._erased:
            self._erased, self._asked = erased, Asked()
        try:
            waiting = rewrite(self._client, self._asked)
        except RewriteRefusedError as error:
            logger.warning(
                "the store's files keep erased users until they are written anew, which it refuses the archiver (%s): "
                "send it and its replicas BGREWRITEAOF, or ask its provider how long it keeps them",
                error,
            )
            return True
        if waiting:
            logger.warning(
                "files of the store keep erased users until it can be asked to write them anew, which is tried again "
                "with the next pass: %s",
                "; ".join(waiting),
            )
        return not waiting

    def _log(self, failures: list[EventLogError]) -> Iterator[tuple[int, Entry]]:
        """What is not archived yet, with its partition; failures get what kept partitions from being read."""
        for partition in range(PARTITIONS):
            try:
                for entry in read_partition(self._client, partition, after=archived(self._client, partition)):
                    yield partition, entry
            except EventLogError as error:
                failures.append(error)


def _batches(log: Iterable[tuple[int, Entry]]) -> Iterator[list[tuple[int, Entry]]]:
    """Entries in lists that are small enough to be turned into columns."""
    batch: list[tuple[int, Entry]] = []
    size = 0
    for partition, entry in log:
        batch.append((partition, entry))
        size += _ENTRY_BYTES
        if isinstance(entry.what, LoggedEvent):
            size += len(entry.what.properties or b"")
        if size >= _BYTES_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def archive(url: str, folder: Path, *, once: bool, compacting: bool, every_s: float) -> None:
    """Run an archiver: for good, or `once`, with a compaction if that is asked for.

    Raises EventLogError if the store cannot be read, and ArchiveError if the files cannot be written.
    """
    with Archiver(url, folder) as archiver:
        if not once:
            logger.info("archiving to %s every %g s", folder, every_s)
            archiver.run(every_s)
        _say_moved(archiver.move())
        if compacting:
            _say_compacted(archiver.compact())


def _say_moved(entries: int) -> None:
    if entries:
        logger.info("%d entries of the log archived", entries)


def _say_compacted(done: Compaction) -> None:
    logger.info(
        "%d days compacted: %d repeats and %d events of erased users removed", done.days, done.repeats, done.erased
    )
