"""What the service stands on, measured without it: its engine in a process by itself, the store through its client,
and the machine's memory and arithmetic.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import redis.asyncio
import uvloop
from numpy.typing import NDArray

from bench.load import CONNECTIONS, MAX_HISTORY, histories
from bench.yardsticks import LIST_KEY
from models.bundle import read_bundle
from models.device import CPU, cpu_quota, load_onnxruntime
from models.registry import Registry
from models.runtime import Runtime
from service.engine import Engine, Query
from service.sequences import Event, SequenceStore, StoreSettings
from service.slot import Slot

PADDED = "padded.onnx"  # beside the bundle, whose own folder takes no other file; see bench.bundle
BATCH = 64
K = 10
_SEED = 7
_SQUARE = 2048  # rows of a product that shows what the processor can do; 16 MB each
_PATIENT = StoreSettings(read_timeout_s=10, write_timeout_s=10)  # a slow answer is a figure, and no reason to stop
_FILLED = 50  # users at once: every write waits for the disk


class EngineProbe:
    """The engine as the service would load it from a folder of artifacts. Made in a Child."""

    def __init__(self, artifacts: Path) -> None:
        self._engine = asyncio.run(_live(artifacts))
        found = histories(16 * BATCH, self._engine.bundle.manifest.items, np.random.default_rng(_SEED))
        self._queries = [Query(sequence, sequence, K) for sequence in found]
        self._at = 0

    def rows_per_second(self, seconds: float) -> float:
        """Histories ranked a second, in full batches of mixed ones."""
        return BATCH / _median_s(lambda: self._engine.rank(self._next(BATCH)), seconds)

    def batch_s(self, size: int, seconds: float, pause_s: float = 0.0) -> float:
        """Median time of a batch, with a pause before each."""
        return _median_s(lambda: self._engine.rank(self._next(size)), seconds, pause_s)

    def best(self) -> NDArray[np.int64]:
        """The first ten of each of the histories, (histories, 10)."""
        found = [self._engine.rank(self._queries[at : at + BATCH]) for at in range(0, len(self._queries), BATCH)]
        return np.array([ranking.indices for rankings in found for ranking in rankings])

    def matrix_bytes(self) -> int:
        return int(self._engine.bundle.items.nbytes)

    def read_bytes_per_second(self, seconds: float) -> float:
        """Memory bandwidth: the item matrix read once, by as many threads as the CPU quota allows."""
        flat = np.ascontiguousarray(self._engine.bundle.items).reshape(-1)
        parts = np.array_split(flat, cpu_quota())
        with ThreadPoolExecutor(len(parts)) as threads:
            # Of what NumPy can do with every value once, taking the maximum came closest to what memory gives.
            return float(flat.nbytes / _median_s(lambda: list(threads.map(np.max, parts)), seconds))

    def sgemm_per_second(self, seconds: float) -> float:
        """Floating-point operations a second of a matrix product that suits the cache, by NumPy's BLAS."""
        left, right = np.random.default_rng(_SEED).standard_normal((2, _SQUARE, _SQUARE)).astype(np.float32)
        product = np.empty_like(left)
        return 2 * _SQUARE**3 / _median_s(lambda: np.matmul(left, right, out=product), seconds)

    def _next(self, size: int) -> list[Query]:
        self._at = (self._at + size) % (len(self._queries) - size + 1)
        return self._queries[self._at : self._at + size]


class EncoderProbe:
    """Two ways to encode the same histories, on one thread each. Made in a Child."""

    def __init__(self, artifacts: Path) -> None:
        bundle = read_bundle(Registry(artifacts).champion())
        self._runtime = Runtime(bundle, device="cpu", threads=1)
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._padded = onnxruntime.InferenceSession(artifacts / PADDED, options, providers=[CPU])
        self._histories = histories(BATCH, bundle.manifest.items, np.random.default_rng(_SEED))

    def bucketed_s(self, seconds: float, rank: bool) -> float:
        """Median time of a batch by length buckets and the last position alone; with ranking behind it or without."""
        return _median_s(lambda: self._ranked(self._runtime.encode(self._histories), rank=rank), seconds)

    def padded_s(self, seconds: float, rank: bool) -> float:
        """The same with every history padded to 50 and every position computed."""
        return _median_s(lambda: self._ranked(self._everywhere(), rank=rank), seconds)

    def _everywhere(self) -> NDArray[np.float32]:
        sequences = np.zeros((BATCH, MAX_HISTORY), np.int64)
        for row, history in enumerate(self._histories):
            sequences[row, : len(history)] = history
        vectors = self._padded.run(["vectors"], {"sequences": sequences})[0]
        last = np.array([len(history) for history in self._histories]) - 1
        return vectors[np.arange(BATCH), last]  # type: ignore[no-any-return]

    def _ranked(self, vectors: NDArray[np.float32], *, rank: bool) -> object:
        return self._runtime.rank(vectors, self._histories, K) if rank else vectors


class StoreProbe:
    """The sequence store through the service's own client. Made in a Child."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._store = SequenceStore.connect(url, _PATIENT)

    def fill(self, users: Sequence[str], item_ids: Sequence[list[str]]) -> None:
        """Store a history for each user, for the service and for the straightforward stack."""
        self._runner.run(self._fill(users, item_ids))

    def read_s(self, users: Sequence[str], seconds: float) -> float:
        """Median time of one history read, alone."""
        return float(np.median(self._runner.run(self._alone(users, seconds))))

    def pings_per_second(self, seconds: float) -> float:
        """PING by as many callers as there are connections of the load."""
        return self._runner.run(self._pings(seconds))

    async def _fill(self, users: Sequence[str], item_ids: Sequence[list[str]]) -> None:
        plain = redis.asyncio.Redis.from_url(self._url)
        given = list(zip(users, item_ids, strict=True))
        for start in range(0, len(given), _FILLED):
            part = given[start : start + _FILLED]
            await self._store.append(
                [
                    Event(user, item, f"{user}-{at}", "interaction", at)
                    for user, ids in part
                    for at, item in enumerate(ids, 1)
                ]
            )
            async with plain.pipeline(transaction=False) as pipeline:
                for user, ids in part:
                    pipeline.rpush(LIST_KEY % user, *ids)
                await pipeline.execute()
        await plain.aclose()

    async def _alone(self, users: Sequence[str], seconds: float) -> list[float]:
        times: list[float] = []
        deadline = time.perf_counter() + seconds
        while True:
            began = time.perf_counter()
            await self._store.histories([users[len(times) % len(users)]])
            ended = time.perf_counter()
            times.append(ended - began)
            if ended > deadline:
                return times

    async def _pings(self, seconds: float) -> float:
        began = time.perf_counter()

        async def caller() -> int:
            count = 0
            while time.perf_counter() < began + seconds:
                await self._store.connection.read(b"", lambda client: client.ping())
                count += 1
            return count

        counts = await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
        return sum(counts) / (time.perf_counter() - began)


def _median_s(run: Callable[[], object], seconds: float, pause_s: float = 0.0) -> float:
    """Median time of a call, after one that does not count, with a pause before each."""
    run()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while True:
        if pause_s:
            time.sleep(pause_s)
        began = time.perf_counter()
        run()
        ended = time.perf_counter()
        times.append(ended - began)
        if ended > deadline:
            return float(np.median(times))


async def _live(artifacts: Path) -> Engine:
    async with Slot(artifacts, device="cpu", cpus=cpu_quota(), poll_s=60) as slot:
        if slot.engine is None:
            raise RuntimeError(f"{artifacts} has no bundle that may serve: {slot.refused}")
        return slot.engine
