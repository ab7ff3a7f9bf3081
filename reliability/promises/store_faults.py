"""Every way in which a store fails: recommendations go on without it, events are refused, and both recover.

Where the store still answers reads (out of memory, read-only), recommendations need not degrade; where a fault is
repaired on the way (scripts flushed), nothing need be refused.
"""

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reliability.bundle import promoted_bundle
from reliability.ledger import Ledger, Sent, events
from reliability.load import Answer, Client, Load
from reliability.processes import Store
from reliability.promise import Finding
from reliability.proxy import Proxy
from reliability.serving import Service

TITLE = "However the store fails, recommendations go on and no event is falsely acknowledged"
_WAIT_S = 60.0
_USERS = 20
_FILLING = 30_000  # keys, which a start takes seconds to read at _LOAD_US each
_LOAD_US = "140"


@dataclass
class _World:
    store: Store
    proxy: Proxy  # on the way from the service to the store
    service: Service
    ledger: Ledger = field(default_factory=Ledger)
    events: Iterator[Sent] = field(default_factory=lambda: events(users=_USERS))


@dataclass(frozen=True, slots=True)
class _Fault:
    """broken: breaks the store while entered. reads, writes: whether the store still does them."""

    name: str
    broken: Callable[[_World], AbstractContextManager[None]]
    reads: bool = False
    writes: bool = False


def check(full: bool, folder: Path) -> list[Finding]:
    promoted_bundle(folder / "artifacts")
    with (
        Store(folder, options={"key-load-delay": _LOAD_US}) as store,
        Proxy(store.address) as proxy,
        Service(folder, redis=proxy.url) as service,
    ):
        world = _World(store, proxy, service)
        with Load(service.address, world.ledger, world.events, count=_USERS * 2) as load:
            load.wait(_WAIT_S)
        found = [line for fault in _FAULTS for line in _tried(fault, world, full)]
        found += world.ledger.audit(store.url).findings(at_least=_USERS * 2)
        surprises = len(world.ledger.surprises)
        found.append(Finding("answers to /events that were neither 200 nor 503 with Retry-After", surprises, most=0))
        found.append(Finding("restarts of the service", int(not service.alive), most=0))
    return found


def _tried(fault: _Fault, world: _World, full: bool) -> list[Finding]:
    ledger = world.ledger
    answers: list[Answer | None] = []
    with fault.broken(world):
        before = ledger.acknowledged, ledger.refused
        stop = threading.Event()
        askers = [
            threading.Thread(target=_ask, args=(world.service.address, stop, answers), daemon=True) for _ in range(2)
        ]
        with Load(world.service.address, ledger, world.events, clients=2):
            for asker in askers:
                asker.start()
            time.sleep(4.0 if full else 0.7)
            stop.set()
            for asker in askers:
                asker.join()
        acknowledged, refused = ledger.acknowledged - before[0], ledger.refused - before[1]
    recovery_s = _recovered(world)
    wrong = sum(answer is None or not _right(answer, fault) for answer in answers)
    p99_ms = float(np.quantile([answer.seconds for answer in answers if answer], 0.99)) * 1000
    # Quick forms run on machines that do much else.
    lines = [
        Finding("/recommend, answers", len(answers), least=5),
        Finding("/recommend, answers that were not 200 or said wrongly whether they are degraded", wrong, most=0),
        Finding("/recommend, 99th percentile", p99_ms, most=150 if full else 1500, unit="ms"),
        Finding("recovery", recovery_s, most=2 if full else 10, unit="s"),
    ]
    if fault.writes:
        lines.append(Finding("/events, acknowledged", acknowledged, least=1))
    else:
        lines.append(Finding("/events, refused with Retry-After", refused, least=1))
        lines.append(Finding("/events, acknowledged", acknowledged, most=0))
    return [Finding(f"{fault.name}: {line.name}", line.figure, line.least, line.most, line.unit) for line in lines]


def _right(answer: Answer, fault: _Fault) -> bool:
    """Whether it has items, and says so if it was made without the user's history."""
    if answer.status != 200 or not answer.body["items"]:
        return False
    if answer.body["degraded"] == ["state_store"]:
        return True  # also where the store answers reads: on a busy machine it may not do so in time
    return bool(fault.reads and answer.body["degraded"] == [] and answer.body["history_length"] > 0)


def _ask(address: tuple[str, int], stop: threading.Event, answers: list[Answer | None]) -> None:
    client = Client(address)
    for number in itertools.count():
        if stop.is_set():
            break
        try:
            answers.append(client.post("/recommend", {"user_id": f"user-{number % _USERS}"}))
        except (OSError, http.client.HTTPException):
            answers.append(None)
        time.sleep(0.005)
    client.close()


def _recovered(world: _World) -> float:
    """Seconds until an event is acknowledged and a recommendation is whole."""
    began = time.monotonic()
    client = Client(world.service.address)
    with Load(world.service.address, world.ledger, world.events, count=1, clients=1) as load:
        while client.post("/recommend", {"user_id": "user-0"}).body["degraded"]:
            if time.monotonic() - began > _WAIT_S:
                raise TimeoutError(f"recommendations were still degraded after {_WAIT_S:.0f} s")
            time.sleep(0.01)
        load.wait(_WAIT_S)
    client.close()
    return time.monotonic() - began


@contextmanager
def _down(world: _World) -> Iterator[None]:
    world.store.kill()
    yield
    world.store.start()


@contextmanager
def _blackholed(world: _World) -> Iterator[None]:
    world.proxy.silent = True
    yield
    world.proxy.silent = False


@contextmanager
def _slow(world: _World) -> Iterator[None]:
    world.proxy.delay_s = 0.5
    yield
    world.proxy.delay_s = 0.0


@contextmanager
def _out_of_memory(world: _World) -> Iterator[None]:
    with world.store.client() as client:
        client.config_set("maxmemory", "1")
        yield
        client.config_set("maxmemory", "0")


@contextmanager
def _read_only(world: _World) -> Iterator[None]:
    """As a primary that has become the replica of one that cannot be reached."""
    with world.store.client() as client:
        client.replicaof("127.0.0.1", 1)
        yield
        client.replicaof("NO", "ONE")


@contextmanager
def _loading(world: _World) -> Iterator[None]:
    """Restarted on files that it takes seconds to read."""
    with world.store.client() as client:
        for start in range(0, _FILLING, 1000):
            pipeline = client.pipeline(transaction=False)
            for number in range(start, start + 1000):
                pipeline.set(f"filling:{number}", "")
            pipeline.execute()
    world.store.kill()
    world.store.launch()
    yield
    world.store.wait_until_it_answers()


@contextmanager
def _scripts_flushed(world: _World) -> Iterator[None]:
    stop = threading.Event()

    def flush() -> None:
        with world.store.client() as client:
            while not stop.wait(0.02):
                client.script_flush()

    flusher = threading.Thread(target=flush, daemon=True)
    flusher.start()
    yield
    stop.set()
    flusher.join()


@contextmanager
def _no_connections_left(world: _World) -> Iterator[None]:
    with world.store.client() as client:
        client.ping()  # a connection of its own, which stays
        client.config_set("maxclients", 1)
        world.proxy.cut()
        yield
        client.config_set("maxclients", 10_000)


_FAULTS = (
    _Fault("down", _down),
    _Fault("blackholed", _blackholed),
    _Fault("500 ms slow", _slow),
    _Fault("out of memory", _out_of_memory, reads=True),
    _Fault("read-only", _read_only, reads=True),
    _Fault("no connections left", _no_connections_left),
    _Fault("scripts flushed", _scripts_flushed, reads=True, writes=True),
    _Fault("loading", _loading),
)
