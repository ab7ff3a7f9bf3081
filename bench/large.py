"""One round at a catalogue that fits no cache: memory and arithmetic are what costs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import servers
from bench.child import Child
from bench.load import Job, LoadGenerator
from bench.machine import memory_bytes
from bench.probes import EngineProbe, StoreProbe
from bench.rounds import Figures
from bench.small import Traffic
from models.registry import Registry
from models.runtime import overlap

FLOORS = ("memory bandwidth", "SGEMM")
_BATCH = 32
_LONGER = 3  # loads, in which a request of the straightforward stack waits for seconds


class Large:
    """As small.Small."""

    def __init__(
        self,
        stack: ExitStack,
        artifacts: Path,
        store_url: str,
        asked: Traffic,
        *,
        float32: Path,
        int8: Path,
        seconds: float,
    ) -> None:
        self._asked, self._seconds = asked, seconds
        self._artifacts, self._store_url = artifacts, store_url
        self._bundle = Registry(artifacts).champion()
        self._load = stack.enter_context(Child(LoadGenerator))
        self._engine = stack.enter_context(Child(EngineProbe, float32))
        self._int8 = stack.enter_context(Child(EngineProbe, int8))
        self._recall = overlap(self._int8.call("best"), self._engine.call("best"))
        stack.enter_context(Child(StoreProbe, store_url)).call("fill", asked.users, asked.item_ids)
        self._has_workers = servers.has_workers()

    def round(self, say: Callable[[str], None]) -> Figures:
        """Every figure once. `say` is told what is measured."""
        engine, seconds = self._engine, self._seconds
        say("memory, arithmetic and the engine")
        found = {
            "matrix bytes": float(engine.call("matrix_bytes")),
            "memory bandwidth": engine.call("read_bytes_per_second", seconds / 2),
            "engine, batch of 1": engine.call("batch_s", 1, seconds),
            "SGEMM": engine.call("sgemm_per_second", seconds / 2),
            f"engine, batch of {_BATCH}": engine.call("batch_s", _BATCH, seconds),
            f"int8, batch of {_BATCH}": self._int8.call("batch_s", _BATCH, seconds),
            "int8, recall@10": self._recall,
        }
        say("the straightforward stack")
        with servers.yardstick("straightforward", self._bundle, self._store_url) as plain:
            found["straightforward, one worker"] = self._saturation(plain)
        say("the service")
        with servers.service(self._artifacts, self._store_url) as one:
            found["start to ready"] = one.ready_s
            found["service, one worker"] = self._saturation(one)
            alone = memory_bytes(one.pids)
        if self._has_workers and alone is not None:
            with servers.service(self._artifacts, self._store_url, workers=2) as two:
                self._saturation(two)  # so that both have touched what they need
                both = memory_bytes(two.pids)
            if both is not None:
                found["second worker, bytes"] = float(both - alone)
        return found

    def _saturation(self, server: servers.Server) -> float:
        job = Job(server.addresses, "/recommend", self._asked.stored, self._seconds * _LONGER)
        return float(self._load.call("measure", job).per_second)


@contextmanager
def large(
    artifacts: Path, store_url: str, asked: Traffic, *, float32: Path, int8: Path, seconds: float
) -> Iterator[Large]:
    """Everything started and, at the end, stopped. float32 and int8: artifacts of the same bundle, searched so.

    seconds: of a load, a third of those it gives each.
    """
    with ExitStack() as stack:
        yield Large(stack, artifacts, store_url, asked, float32=float32, int8=int8, seconds=seconds)
