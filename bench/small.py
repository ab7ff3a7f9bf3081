"""One round at a catalogue that fits the cache: HTTP, store and Python are what costs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import servers
from bench.child import Child
from bench.load import MAX_HISTORY, Job, Load, LoadGenerator, encode, histories
from bench.machine import memory_bytes
from bench.probes import BATCH, EncoderProbe, EngineProbe, K, StoreProbe
from bench.rounds import Figures
from models.registry import Registry

_SEED = 11
_PAUSE_S = 0.001
WORKERS = {1: "one worker", 2: "two workers"}
FLOORS = (
    "no-op ASGI, at the end",
    *(
        f"{floor}, {workers}"
        for floor in ("no-op ASGI", "no-op FastAPI", "engine rows")
        for workers in WORKERS.values()
    ),
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bodies of requests, ready to send: of users whose history is stored, with histories in them, and events of
    `writers`, for whom nothing is recommended, so that every round ranks the same."""

    users: list[str]
    item_ids: list[list[str]]
    stored: list[bytes]
    given: list[bytes]
    writers: list[str]
    events: list[bytes]


def traffic(items: int, users: int) -> Traffic:
    """What so many users ask of a catalogue of bench.bundle."""
    generator = np.random.default_rng(_SEED)
    names = [f"user-{number}" for number in range(users)]
    # As many: in a run of three rounds each sends some tens of events, as a user does in a day or two.
    writers = [f"writer-{number}" for number in range(users)]
    item_ids = [[f"item-{row}" for row in history] for history in histories(users, items, generator)]
    return Traffic(
        names,
        item_ids,
        encode([{"user_id": name, "k": K} for name in names]),
        encode([{"history": ids, "k": K} for ids in item_ids]),
        writers,
        encode([{"user_id": writers[at % users], "item_id": f"item-{at % items + 1}"} for at in range(5000)]),
    )


class Small:
    """Everything that runs while rounds are taken; `round` measures each figure once."""

    def __init__(self, stack: ExitStack, artifacts: Path, store_url: str, asked: Traffic, seconds: float) -> None:
        self._seconds = seconds
        self._asked = asked
        self._artifacts, self._store_url = artifacts, store_url
        bundle = Registry(artifacts).champion()
        self._load = stack.enter_context(Child(LoadGenerator))
        self._store = stack.enter_context(Child(StoreProbe, store_url))
        self._encoder = stack.enter_context(Child(EncoderProbe, artifacts))
        self._engines = [stack.enter_context(Child(EngineProbe, artifacts)) for _ in range(2)]
        self._store.call("fill", asked.users, asked.item_ids)
        # Full from the first event on, so that none costs more than another.
        full = [f"item-{row}" for row in range(1, MAX_HISTORY + 1)]
        self._store.call("fill", asked.writers, [full] * len(asked.writers))
        counts = (1, 2) if servers.has_workers() else (1,)
        self._services = {n: stack.enter_context(servers.service(artifacts, store_url, workers=n)) for n in counts}
        self._yardsticks = {
            (name, n): stack.enter_context(servers.yardstick(name, bundle, store_url, workers=n))
            for name in ("raw", "framework", "straightforward")
            for n in (1, 2)
        }

    def round(self, say: Callable[[str], None]) -> Figures:
        """Every figure once. `say` is told what is measured."""
        found: dict[str, float] = {}
        for workers, called in WORKERS.items():
            say(called)
            found |= self._saturation(workers, called)
        say("one request at a time, and half of saturation")
        found |= self._latency(found["service, one worker"])
        found |= self._engine_and_store()
        with servers.service(self._artifacts, self._store_url) as fresh:
            found["start to ready"] = fresh.ready_s
        alone, both = (memory_bytes(self._services[n].pids) if n in self._services else None for n in WORKERS)
        if alone is not None and both is not None:
            found["second worker, bytes"] = float(both - alone)
        found["no-op ASGI, at the end"] = self._stored(self._yardsticks["raw", 1]).per_second
        return found

    def _saturation(self, workers: int, called: str) -> dict[str, float]:
        found = {}
        for name, label in (("raw", "no-op ASGI"), ("framework", "no-op FastAPI"), ("straightforward",) * 2):
            found[f"{label}, {called}"] = self._stored(self._yardsticks[name, workers]).per_second
        if workers in self._services:
            found[f"service, {called}"] = self._stored(self._services[workers]).per_second
        engines = self._engines[:workers]
        for engine in engines:
            engine.begin("rows_per_second", self._seconds / 2)
        found[f"engine rows, {called}"] = sum(engine.result() for engine in engines)
        return found

    def _latency(self, saturation: float) -> dict[str, float]:
        service, raw = self._services[1], self._yardsticks["raw", 1]
        half = self._measure(replace(self._job(service, self._asked.stored), rate=saturation / 2))
        alone = self._measure(replace(self._job(service, self._asked.stored), connections=1))
        nothing = self._measure(replace(self._job(raw, self._asked.stored), connections=1))
        return {
            "p50 at half of saturation": half.median_s,
            "p99 at half of saturation": half.p99_s,
            "single idle request, median": alone.median_s,
            "single idle no-op ASGI, median": nothing.median_s,
        }

    def _engine_and_store(self) -> dict[str, float]:
        service, briefly = self._services[1], self._seconds / 3
        found = {
            "service, one worker, histories in the body": self._measure(
                self._job(service, self._asked.given)
            ).per_second,
            "events, one a request": self._measure(
                replace(self._job(service, self._asked.events), path="/events")
            ).per_second,
            "PING through the same client": self._store.call("pings_per_second", briefly),
            "store round trip, median": self._store.call("read_s", self._asked.users, briefly),
            "engine, batch of 1": self._engines[0].call("batch_s", 1, briefly),
            # What else a request takes is time in which the core sleeps and its caches are lost.
            "engine, batch of 1 after a pause": self._engines[0].call("batch_s", 1, briefly, _PAUSE_S),
            "engine, batch of 64": self._engines[0].call("batch_s", BATCH, briefly),
        }
        for name in ("bucketed", "padded"):
            found[name] = self._encoder.call(f"{name}_s", briefly, False)
            found[f"{name} and ranked"] = self._encoder.call(f"{name}_s", briefly, True)
        return found

    def _stored(self, server: servers.Server) -> Load:
        return self._measure(self._job(server, self._asked.stored))

    def _job(self, server: servers.Server, bodies: list[bytes]) -> Job:
        return Job(server.addresses, "/recommend", bodies, self._seconds)

    def _measure(self, job: Job) -> Load:
        load: Load = self._load.call("measure", job)
        return load


@contextmanager
def small(artifacts: Path, store_url: str, asked: Traffic, seconds: float) -> Iterator[Small]:
    """Everything started and, at the end, stopped. seconds: of each load."""
    with ExitStack() as stack:
        yield Small(stack, artifacts, store_url, asked, seconds)
