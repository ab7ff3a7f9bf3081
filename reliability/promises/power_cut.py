"""A power cut, emulated: kill -9 leaves what was written, so the store's files are cut back to what was synced.

A library preloaded into the server notes how long each file was when it was last synced. That `fast` loses something
shows that the emulation bites.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reliability.ledger import Audit, Ledger, Sent, events, logged
from reliability.load import Load, wait_for
from reliability.processes import Store
from reliability.promise import Finding
from reliability.serving import Service
from reliability.shims import compiled

TITLE = "A power cut loses nothing where every write is synced, and about a second where not"
_WAIT_S = 60.0


def check(full: bool, folder: Path) -> list[Finding]:
    cuts = 5 if full else 1
    library = compiled("fsync_shim", folder)
    chance = random.Random(2)
    durable = _cuts(folder, library, "durable", cuts, chance)
    seconds = max(cuts, 2)  # one may come right after a sync
    fast = _cuts(folder, library, "fast", seconds, chance)
    # The server puts writes off for up to two seconds while a sync runs, which a busy machine makes long.
    window_s = 1.1 if full else 5.0
    return [
        Finding("power cuts, every write synced", cuts),
        *durable.audit.findings(at_least=cuts * 100),
        Finding("power cuts, synced once a second", seconds),
        Finding("events acknowledged", fast.audit.acknowledged, least=seconds * 100),
        Finding("acknowledged events lost, which shows that the cuts bite", fast.audit.lost, least=1),
        Finding("age of the oldest lost event at its power cut", fast.oldest_s, most=window_s, unit="s"),
        Finding("events stored twice", fast.audit.doubled, most=0),
        Finding("histories that differ from the log", fast.audit.wrong_histories, most=0),
        Finding(
            "answers that were neither 200 nor 503 with Retry-After, of both",
            durable.surprises + fast.surprises,
            most=0,
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Found:
    audit: Audit
    oldest_s: float  # how long before its cut a lost event was acknowledged, at most
    surprises: int


def _cuts(folder: Path, library: Path, durability: str, cuts: int, chance: random.Random) -> _Found:
    folder /= durability
    folder.mkdir()
    notes = folder / "synced"
    sync = "everysec" if durability == "fast" else "always"
    ledger, stream, oldest_s = Ledger(), events(users=400), 0.0
    store = Store(
        folder, options={"appendfsync": sync}, environment={"LD_PRELOAD": str(library), "FSYNC_SHIM_LOG": str(notes)}
    )
    with store, Service(folder, redis=store.url, durability=durability) as service:
        for _ in range(cuts):
            known = len(ledger.lost(logged(store.url)))
            at = _cut_under_load(store, service, ledger, stream, chance)
            _cut_back(store.data, notes)
            store.start()
            lost = ledger.lost(logged(store.url))
            if len(lost) > known:
                oldest_s = max(oldest_s, at - lost[known])  # those of earlier cuts come first
        return _Found(ledger.audit(store.url), oldest_s, len(ledger.surprises))


def _cut_under_load(
    store: Store, service: Service, ledger: Ledger, stream: Iterator[Sent], chance: random.Random
) -> float:
    """Kill the store at a random moment, and give that moment."""
    with Load(service.address, ledger, stream, retry=False):
        wait_for(ledger.acknowledged + 100, ledger, _WAIT_S)
        time.sleep(1.2 + chance.random())  # past the first sync, and anywhere between two
        at = time.monotonic()
        store.kill()
    return at


def _cut_back(data: Path, notes: Path) -> None:
    """Take from every file what was not synced when the power went."""
    synced = {int(inode): int(size) for inode, size in map(str.split, notes.read_text().splitlines())}
    for path in data.rglob("*"):
        if path.is_file():
            found = path.stat()
            with path.open("r+b") as file:
                file.truncate(min(found.st_size, synced.get(found.st_ino, 0)))
