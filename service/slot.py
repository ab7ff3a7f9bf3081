"""The live bundle: loaded and tested beside the one that serves, then swapped in between two batches.

Whoever needs the bundle takes `engine` once and keeps that reference for its whole batch; the old one's sessions and
mapped files go when the last such reference does. So a swap needs no lock, and no request can see half of one.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from models.bundle import Bundle, read_bundle
from models.device import Device, DeviceError
from models.manifest import BundleError
from models.registry import CURRENT, Registry, RegistryError
from models.runtime import Runtime
from service.engine import Engine, EngineError
from service.scoring import ScoringThread
from service.tasks import ended, every

logger = logging.getLogger(__name__)

LOADING = "loading"  # name of a thread that loads a version
_EXPECTED = (BundleError, RegistryError, DeviceError, EngineError, OSError)  # their messages say all
_RETRY_S = 30.0  # before a refused version is tried again: it may have been repaired, and loading it costs CPU


@dataclass(frozen=True, slots=True)
class Refused:
    """A champion that does not serve, and why; CURRENT, where it cannot be told who it is."""

    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a promotion or rollback did."""

    champion: str
    before: str | None


class Slot:
    """The bundle that serves, kept equal to the champion while entered.

    threads: of one ranking; by default 1 where that is brief, else `cpus`, this process's share of the machine.
    float16: see Runtime; max_batch: the most queries that come together; cold_share: see Catalogue.
    `prepare` is called, on a thread, with every engine that passed, before it serves.
    `on_load` is told of every engine that starts to serve, `on_refuse` of every one that may not.
    """

    def __init__(
        self,
        artifacts: Path,
        *,
        device: Device,
        float16: bool = False,
        threads: int | None = None,
        cpus: int,
        poll_s: float,
        max_batch: int = 64,
        cold_share: float = 0.0,
        prepare: Callable[[Engine], None] = lambda engine: None,
        on_load: Callable[[Engine], None] = lambda engine: None,
        on_refuse: Callable[[Refused], None] = lambda refused: None,
    ) -> None:
        self.registry = Registry(artifacts)
        self.engine: Engine | None = None
        self._before: Engine | None = None  # which a request may still ask for by its version
        self.refused: Refused | None = None
        self._device = device
        self._float16 = float16
        self._threads = threads
        self._cpus = cpus
        self._poll_s = poll_s
        self._max_batch = max_batch
        self._cold_share = cold_share
        self._prepare = prepare
        self._on_load = on_load
        self._on_refuse = on_refuse
        self._changing = asyncio.Lock()
        self._retry_at = 0.0
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Load the champion, if there is one, and watch for the next.

        One that must not serve is refused and the watch goes on: a rollback mends it without a restart, and until then
        readiness says why. Raises DeviceError if the device is not there.
        """
        champion = None
        try:
            champion = await asyncio.to_thread(self.registry.current)
            engine = await self._loaded(champion) if champion else None
        except DeviceError:
            raise
        except Exception as error:  # noqa: BLE001 - as in `refresh`
            self._refuse(champion or CURRENT, error)
        else:
            if engine is None:
                logger.warning("no version is promoted in %s: nothing is ranked until one is", self.registry.artifacts)
            else:
                self._swap(engine)
        self._watcher = asyncio.create_task(
            every(self._poll_s, self.refresh, "looking for a new champion failed"), name="slot"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await ended(self._watcher)
        finally:
            self.engine = None

    def resident(self) -> dict[str, Engine]:
        """Engines in memory by version: the one that serves and the one before it."""
        return {engine.version: engine for engine in (self._before, self.engine) if engine is not None}

    async def promote(self, version: str) -> Promoted:
        """Test a version, make it the champion and serve it; when this returns, the next batch uses it.

        Raises RegistryError if there is no such version, BundleError, EngineError or DeviceError if it must not serve,
        OSError if the artifacts folder cannot be written.
        """
        async with self._changing:
            engine = await self._loaded(version)
            before = await asyncio.to_thread(self.registry.promote, version)
            self._swap(engine)
        return Promoted(version, before)

    async def rollback(self) -> Promoted:
        """Test the champion's predecessor, make it the champion and serve it.

        Raises as `promote`, and RegistryError too if there is none or another champion has come meanwhile.
        """
        # Before its turn comes: of two at once the second would go back one further than anybody asked for.
        before, champion = prepared = await asyncio.to_thread(self.registry.last_two)
        async with self._changing:
            engine = await self._loaded(champion)
            await asyncio.to_thread(self.registry.rollback, prepared)
            self._swap(engine)
        return Promoted(champion, before)

    async def refresh(self) -> None:
        """Serve the champion, if another version serves now.

        A damaged one, or that it cannot be told who it is, is reported once, and the old one kept.
        """
        async with self._changing:
            try:
                champion = await asyncio.to_thread(self.registry.current)
                if champion is None and self.engine is not None:  # at a restart nothing would serve
                    raise RegistryError(
                        f"{self.registry.artifacts / CURRENT} is missing or empty; promote {self.engine.version} "
                        "again, or put a copy of it back"
                    )
            except (RegistryError, OSError) as error:
                if self.refused is None or self.refused.reason != str(error):
                    self._refuse(CURRENT, error)
                return
            if champion is None or (self.engine is not None and self.engine.version == champion):
                self.refused = None
                return
            if self.refused is not None and self.refused.version == champion and time.monotonic() < self._retry_at:
                return
            try:
                engine = await self._loaded(champion)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and not loaded again at every look
                self._refuse(champion, error)
            else:
                self._swap(engine)

    async def _loaded(self, version: str) -> Engine:
        """As `_load`, on a thread that the end of the service does not wait for: a load may outlast the drain."""
        thread = ScoringThread(LOADING)
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, self._load, version)
        finally:
            thread.shutdown(wait=False)

    def _load(self, version: str) -> Engine:
        """Verify, open, replay and warm up; on a thread, since it takes from milliseconds to seconds.

        Where nothing else is set, one thread ranks if that is brief, for threads that wait for each other at every
        operator make small batches slower; else as many as the CPUs it may count on.
        """
        started = time.perf_counter()
        bundle = read_bundle(self.registry.folder(version))
        alone = bundle.scan is None  # a catalogue that is scanned is too large to be ranked briefly
        engine = self._tested(bundle, self._threads or (1 if alone else self._cpus))
        if alone and engine.on_cpu and not (engine.brief or self._threads) and self._cpus > 1:
            del engine  # or both would be in memory
            engine = self._tested(bundle, self._cpus)
        self._prepare(engine)
        where = "on the event loop" if engine.brief else "on the scoring thread"
        logger.info(
            "loaded %s on %s in %.2f s; it ranks a batch in %.1f ms, %s",
            *(version, engine.provider, time.perf_counter() - started, engine.batch_s * 1e3, where),
        )
        return engine

    def _tested(self, bundle: Bundle, threads: int) -> Engine:
        runtime = Runtime(bundle, device=self._device, threads=threads, float16=self._float16)
        try:
            runtime.replay_golden()
            engine = Engine(runtime, cold_share=self._cold_share)
            engine.warm_up(self._max_batch)
        except (BundleError, EngineError):
            raise
        except Exception as error:  # onnxruntime's own errors share no other base class
            raise BundleError(f"{bundle.folder}: its graphs do not run: {error}") from error
        return engine

    def _swap(self, engine: Engine) -> None:
        before = self.engine
        if before is None or before.version != engine.version:
            self._before = before
        self.engine = engine
        self.refused = None
        self._on_load(engine)
        logger.info("%s serves now (before: %s)", engine.version, before.version if before else "none")

    def _refuse(self, version: str, error: Exception) -> None:
        expected = isinstance(error, _EXPECTED)
        self.refused = refused = Refused(version, str(error) if expected else repr(error))
        self._retry_at = time.monotonic() + _RETRY_S
        self._on_refuse(refused)
        serving = self.engine.version if self.engine else "none"
        logger.error(
            "%s may not serve, %s goes on: %s",
            *(version, serving, refused.reason),
            exc_info=None if expected else error,
        )
