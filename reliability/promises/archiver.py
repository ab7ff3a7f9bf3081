"""An archiver that is killed loses nothing and brings nobody back: after a restart and a compaction the Parquet is what
was accepted and not erased.
"""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl

from bench.servers import ROOT
from models.archive import Archived, frames, read, settled
from models.eventlog import PARTITIONS, LoggedEvent, connect, read_partition
from reliability.programs import archive
from reliability.promise import Finding
from service.embedded import EmbeddedStore
from service.erasure import Erasure
from service.sequences import SequenceStore, StoreSettings

TITLE = "The archiver killed at every step, and two at once: the Parquet holds exactly what was accepted and not erased"

_DAY_MS = 86_400_000
_USERS = 8
_KILLS = 8  # of the quick form
_ERASED_EVERY = 2  # kills
_PATIENT = StoreSettings(read_timeout_s=10, write_timeout_s=10)  # it is not the store's speed that is tried


def check(full: bool, folder: Path) -> list[Finding]:
    """Quick: some steps of a pass with a compaction; full: every step."""
    with EmbeddedStore(folder / "other") as other:
        traffic = _Traffic(other.url)
        traffic.send(50)
        traffic.erase()
        steps = int(_killed_at(0, other.url, folder / "counted").stdout)
    target = folder / "archive"
    numbers = list(range(1, steps + 1) if full else range(5, steps, max(1, steps // _KILLS)))
    kills = missing = back = 0
    with EmbeddedStore(folder / "store") as store:
        traffic = _Traffic(store.url)
        for place, number in enumerate(numbers):
            traffic.send(30)
            if place % _ERASED_EVERY == 0:
                traffic.erase()
            kills += _killed_at(number, store.url, target).returncode == -signal.SIGKILL
            counted = _counted(store.url, target)
            missing += len(traffic.kept - counted)
            back += len(traffic.gone & counted)
        _two_at_once(store.url, target, traffic)
        archive(store.url, target, "--compact")
    rows = Counter(read(target).events["event_id"].to_list())
    return [
        Finding("steps of a pass with an erasure and a compaction", steps, least=1),
        Finding("kills before a step", kills, least=0.75 * len(numbers)),  # a pass with less to do has fewer steps
        Finding("users erased meanwhile", traffic.erasures, least=len(numbers) // _ERASED_EVERY),
        Finding("accepted events in neither log nor archive, after each kill", missing, most=0),
        Finding("erased events that log and archive together still count, after each kill", back, most=0),
        Finding("accepted events that were not erased", len(traffic.kept), least=1),
        Finding("of these not in the Parquet after restart and compaction", len(traffic.kept - rows.keys()), most=0),
        Finding("events there more than once", sum(count > 1 for count in rows.values()), most=0),
        Finding("erased events", len(traffic.gone), least=1),
        Finding("of these there", len(traffic.gone & rows.keys()), most=0),
        Finding("events there that were never accepted", len(rows.keys() - traffic.kept - traffic.gone), most=0),
    ]


class _Traffic:
    """Sends events and erases users, and knows what must be kept and what gone."""

    def __init__(self, url: str) -> None:
        self.kept: set[str] = set()
        self.gone: set[str] = set()
        self.erasures = 0
        self._url = url
        self._sent = 0

    def send(self, count: int) -> None:
        """Events of two days and a few users, the last ten of them twice. Raises RuntimeError if one is refused."""
        events = [
            LoggedEvent(f"user-{n % _USERS}", f"item-{n % 20}", f"event-{n}", "view", (20_000 + n % 2) * _DAY_MS + n)
            for n in range(self._sent, self._sent + count)
        ]
        self._sent += count

        async def send() -> int:
            async with SequenceStore.connect(self._url, _PATIENT) as store:
                return (await store.append([*events, *events[-10:]])).accepted

        if (accepted := asyncio.run(send())) != count:
            raise RuntimeError(f"{accepted} of {count} events were accepted")
        self.kept |= {event.event_id for event in events}

    def erase(self) -> None:
        """Erase the next user, of whom there may be something in the archive, and in the log; later events count."""
        number = self.erasures % _USERS

        async def erase() -> None:
            async with SequenceStore.connect(self._url, _PATIENT) as store:
                await Erasure(store.connection, log_length=store.settings.log_max_events).erase(f"user-{number}")

        asyncio.run(erase())
        self.erasures += 1
        erased = {f"event-{n}" for n in range(number, self._sent, _USERS)}
        self.kept -= erased
        self.gone |= erased


def _command(number: int, url: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "reliability.kill_at", str(number), url, str(folder)]


def _killed_at(number: int, url: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(  # noqa: S603 - our own program
        _command(number, url, folder), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the archiver failed: {done.stderr[-2000:]}")
    return done


def _two_at_once(url: str, folder: Path, traffic: _Traffic) -> None:
    """Two archivers of one store and one folder, while events come in and users are erased."""
    archivers = [subprocess.Popen(_command(0, url, folder), cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]  # noqa: S603
    for _ in range(5):
        traffic.send(100)
        traffic.erase()
    for archiver in archivers:
        archiver.communicate(timeout=120)
        if archiver.returncode:
            raise RuntimeError(f"one of two archivers ended with {archiver.returncode}")


def _counted(url: str, folder: Path) -> set[str]:
    """The events that a training on the log and the archive together would count."""
    client = connect(url)
    try:
        parts = [frames(entry for partition in range(PARTITIONS) for entry in read_partition(client, partition))]
    finally:
        client.close()
    if folder.exists():
        parts.append(read(folder))
    found = Archived(pl.concat([part.events for part in parts]), pl.concat([part.tombstones for part in parts]))
    return set(settled(found)["event_id"])
