"""The store's disk fills up under load, with a write cut short, and has room again later.

A server that syncs every write ends when it cannot, and whoever supervises it, here we, starts it again; one that
syncs every second refuses writes by itself until it can.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reliability.ledger import Ledger, events
from reliability.load import Load, wait_for
from reliability.processes import Store
from reliability.promise import Finding
from reliability.serving import Service
from reliability.shims import compiled

TITLE = "A full disk loses nothing that was acknowledged, and all is well when there is room"
_WAIT_S = 60.0
_BETWEEN = 200  # events acknowledged before, between and after times without room


def check(full: bool, folder: Path) -> list[Finding]:
    times = 5 if full else 1
    library = compiled("disk_full_shim", folder)
    return [
        Finding(f"{durability}: {line.name}", line.figure, line.least, line.most, line.unit)
        for durability, sync in (("durable", "always"), ("fast", "everysec"))
        for line in _filled(folder / durability, library, durability, sync, times=times)
    ]


def _filled(folder: Path, library: Path, durability: str, sync: str, *, times: int) -> list[Finding]:
    no_room = folder / "no-room"
    variables = {"LD_PRELOAD": str(library), "DISK_SHIM_FULL": str(no_room)}
    ledger, stream, acknowledged = Ledger(), events(users=200), 0
    store = Store(folder, options={"appendfsync": sync}, environment=variables)
    with store, Service(folder, redis=store.url, durability=durability) as service:
        with _supervised(store), Load(service.address, ledger, stream):
            for _ in range(times):
                wait_for(ledger.acknowledged + _BETWEEN, ledger, _WAIT_S)
                no_room.touch()
                _until_refused(ledger)  # what was on its way is rightly acknowledged
                before = ledger.acknowledged
                time.sleep(0.7)
                acknowledged += ledger.acknowledged - before
                no_room.unlink()
                wait_for(ledger.acknowledged + 1, ledger, _WAIT_S)
            wait_for(ledger.acknowledged + _BETWEEN, ledger, _WAIT_S)
        alive = service.alive
        if durability == "durable":
            store.kill()
        else:
            store.stop()  # killed, it may lose what a slow disk has made it put off, which is promised nobody
        store.start()  # from what is in the files
        audit = ledger.audit(store.url)
    return [
        Finding("times without room", times),
        *audit.findings(at_least=times * _BETWEEN),
        Finding("events refused", ledger.refused, least=times),
        Finding("events acknowledged while there was no room", acknowledged, most=0),
        Finding("answers that were neither 200 nor 503 with Retry-After", len(ledger.surprises), most=0),
        Finding("restarts of the service", int(not alive), most=0),
    ]


def _until_refused(ledger: Ledger) -> None:
    """Until every client has met the lack of room."""
    enough, until = ledger.refused + 20, time.monotonic() + _WAIT_S
    while ledger.refused < enough:
        if time.monotonic() > until:
            raise TimeoutError("events were not refused")
        time.sleep(0.01)


@contextmanager
def _supervised(store: Store) -> Iterator[None]:
    """Start the store again whenever it has ended, until left."""
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(0.05):
            if not store.alive:
                store.launch()

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()
