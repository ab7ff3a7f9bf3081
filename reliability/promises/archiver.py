"""An archiver that is killed loses nothing: after a restart and a compaction the Parquet is what was accepted."""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from models.archive import read
from models.eventlog import LoggedEvent, connect, read_events
from reliability.programs import ROOT, archive
from reliability.promise import Finding
from service.embedded import EmbeddedStore
from service.erasure import Erasure
from service.sequences import SequenceStore, StoreSettings

TITLE = "The archiver killed at every step, and two at once: the Parquet holds exactly the accepted events"

_DAY_MS = 86_400_000
_ERASED = "user-0"
_USERS = 8
_KILLS = 8  # of the quick form
_PATIENT = StoreSettings(read_timeout_s=10, write_timeout_s=10)  # it is not the store's speed that is tried


def check(full: bool, folder: Path) -> list[Finding]:
    """Quick: some steps of a pass with a compaction; full: every step."""
    with EmbeddedStore(folder / "other") as other:
        _Traffic(other.url).send(50)
        steps = int(_killed_at(0, other.url, folder / "counted").stdout)
    target = folder / "archive"
    numbers = list(range(1, steps + 1) if full else range(5, steps, max(1, steps // _KILLS)))
    kills = missing = 0
    with EmbeddedStore(folder / "store") as store:
        traffic = _Traffic(store.url)
        for number in numbers:
            traffic.send(30)
            if number == numbers[len(numbers) // 2]:
                traffic.erase()
            kills += _killed_at(number, store.url, target).returncode == -signal.SIGKILL
            missing += len(traffic.kept - _held(store.url) - _archived(target).keys())
        _two_at_once(store.url, target, traffic)
        archive(store.url, target, "--compact")
    rows = _archived(target)
    return [
        Finding("steps of a pass with a compaction", steps, least=1),
        Finding("kills before a step", kills, least=0.75 * len(numbers)),  # a pass with less to do has fewer steps
        Finding("accepted events in neither log nor archive, after each kill", missing, most=0),
        Finding("accepted events, one user's erased", len(traffic.kept), least=1),
        Finding("of these not in the Parquet after restart and compaction", len(traffic.kept - rows.keys()), most=0),
        Finding("events there more than once", sum(count > 1 for count in rows.values()), most=0),
        Finding("events there that were erased or never accepted", len(rows.keys() - traffic.kept), most=0),
    ]


class _Traffic:
    """Sends events, and knows which must be kept."""

    def __init__(self, url: str) -> None:
        self.kept: set[str] = set()
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
        """Erase a user, of whom there is something in the archive and something in the log; later events count."""

        async def erase() -> None:
            async with SequenceStore.connect(self._url, _PATIENT) as store:
                await Erasure(store.connection, log_length=store.settings.log_max_events).erase(_ERASED)

        asyncio.run(erase())
        self.kept -= {f"event-{n}" for n in range(0, self._sent, _USERS)}


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
    """Two archivers of one store and one folder, while events come in."""
    archivers = [subprocess.Popen(_command(0, url, folder), cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]  # noqa: S603
    for _ in range(5):
        traffic.send(100)
    for archiver in archivers:
        archiver.communicate(timeout=120)
        if archiver.returncode:
            raise RuntimeError(f"one of two archivers ended with {archiver.returncode}")


def _held(url: str) -> set[str]:
    client = connect(url)
    try:
        return {event.event_id for event in read_events(client)}
    finally:
        client.close()


def _archived(folder: Path) -> Counter[str]:
    """How often every event is in the archive as it lies there."""
    return Counter(read(folder).events["event_id"].to_list()) if folder.exists() else Counter()
