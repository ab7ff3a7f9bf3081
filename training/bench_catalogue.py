"""How fast a catalogue is ranked, in one run and by scans over float32 and int8, from thousands of items to millions;
and how much longer it takes where item-kNN is blended in.

Every size is measured in a process of its own, beside what the machine can do: the rate at which it reads memory and
the rate of its matrix product. The three ways of ranking take turns, so that what else runs falls on all of them.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.arrays import load_array, save_array
from models.bundle import Bundle, Golden
from models.device import cpu_quota
from models.manifest import ENCODER, ITEMS, QUANTISED, RANKER, SCAN, DataWindow, Manifest, Parity, Scoring
from models.neighbours import Neighbours
from models.quantised import Quantised
from models.runtime import Runtime, overlap
from models.sasrec import SASRecConfig
from models.zoo import build
from training.bench import fresh_process
from training.export import encoder_graph
from training.ranker import build_ranker, build_scan
from training.run import RunFolder
from training.scoring import SCAN_FROM

SIZES = (12_000, 100_000, 1_000_000)
BATCHES = (1, 32)
WAYS = ("one run", "float32 scan", "int8 scan")
BLEND_BATCHES = (1, 64)
BLEND_GOAL = 1.15  # of what a model alone takes
WIDTH = 50  # neighbours an item of a blend keeps, unless validation asks for more
_QUERIES = 128
_EXCLUDED = 16  # items a query: a usual history
_K = 10
_TURNS = 20  # of a blend and its model, in each round
_BLOCK = 1 << 16  # rows made at once
_JITTER = 0.3  # of a column's deviation: how far copies of a trained item lie apart
_FLOOR_BYTES = 256 << 20
_CACHED_BYTES = 128 << 20  # a smaller matrix may be read from a cache, which the memory's rate says nothing about


@dataclass(frozen=True, slots=True)
class CatalogueFigures:
    """One way of ranking one catalogue. Milliseconds by batch size; bytes of what is mapped and of private memory.

    bandwidth_share: of the rate at which this machine reads memory, at a batch of one; sgemm_share: of its matrix
    product's rate, at the largest batch. Both count what scoring over float32 reads and computes: there is none for
    int8, nor of bandwidth for a matrix that a cache can hold.
    """

    items: int
    dim: int
    way: str
    milliseconds: dict[int, float]
    recall_at_10: float
    bandwidth_share: float | None
    sgemm_share: float | None
    mapped_bytes: int
    private_bytes: int | None


@dataclass(frozen=True, slots=True)
class BlendFigures:
    """What a blend of WIDTH neighbours an item takes over what its model alone takes, by batch size, each in one run.

    query: of mixed histories encoded and ranked; ranking: of the second step by itself.
    """

    items: int
    query: dict[int, float]
    ranking: dict[int, float]

    def __str__(self) -> str:
        parts = ("encoded and ranked", self.query), ("ranking by itself", self.ranking)
        return "\n".join(
            f"{self.items:>11,} blend of {WIDTH} neighbours / model alone, {name}: "
            + ", ".join(f"batch {size} {ratio:.2f} ({_said(ratio)})" for size, ratio in ratios.items())
            for name, ratios in parts
        )


@dataclass(frozen=True, slots=True)
class CatalogueBench:
    """All figures, on so many threads, over vectors of a kind that `vectors` names; blends: of sizes without a scan."""

    threads: int
    vectors: str
    figures: list[CatalogueFigures]
    blends: list[BlendFigures]

    def __str__(self) -> str:
        head = f"{'items':>11} {'ranked by':<12}" + "".join(f"{f'batch {size} ms':>13}" for size in BATCHES)
        lines = [head + f"{'recall@10':>11} {'bandwidth':>10} {'SGEMM':>7} {'mapped MiB':>11} {'private MiB':>12}"]
        for one in self.figures:
            times = "".join(f"{one.milliseconds[size]:>13,.2f}" for size in BATCHES)
            shares = f"{_percent(one.bandwidth_share):>10} {_percent(one.sgemm_share):>7}"
            private = "-" if one.private_bytes is None else f"{one.private_bytes / 2**20:,.0f}"
            lines.append(
                f"{one.items:>11,} {one.way:<12}{times}{one.recall_at_10:>11.4f} {shares} "
                f"{one.mapped_bytes / 2**20:>11,.0f} {private:>12}"
            )
        lines += map(str, self.blends)
        return "\n".join([*lines, f"{self.threads} threads, {self.figures[0].dim} columns, {self.vectors}"])

    def write(self, path: Path) -> None:
        """The same as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def bench_catalogue(
    sizes: Sequence[int] = SIZES, *, run: Path | None = None, threads: int | None = None, rounds: int = 7
) -> CatalogueBench:
    """Rank catalogues of these sizes in one run of the ranker, by the scan over float32 and by that over int8.

    With the folder of a finished run its trained items, again and again with jitter, and its vectors of histories;
    without, random vectors in clusters. Raises RunError if the run is not finished.
    """
    used = threads or cpu_quota()
    items, vectors, kind = _trained(run) if run else (*_clusters(), "random vectors in clusters")
    encoder = encoder_graph(build(SASRecConfig(dim=items.shape[1]), 10))  # ranks nothing, but a bundle has one
    figures: list[CatalogueFigures] = []
    blends: list[BlendFigures] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name, fresh_process() as pool:  # so that no file outlives the process
            folder = Path(name)
            how: dict[str, Any] = {"encoder": encoder, "threads": used, "rounds": rounds}
            figures += pool.submit(_measure, folder, size, items, vectors, **how).result()
            if size < SCAN_FROM:
                blends.append(pool.submit(_blended, folder, size, items, **how).result())
    return CatalogueBench(used, kind, figures, blends)


def _trained(run: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    folder = RunFolder(run)
    model, popularity = folder.model().eval(), folder.popularity()[1:].astype(np.float64)
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, model.config.length + 1, _QUERIES)
    drawn = [generator.choice(len(popularity), length, p=popularity / popularity.sum()) + 1 for length in lengths]
    with torch.no_grad():
        vectors = [model.encode(torch.from_numpy(row)[None], torch.tensor([len(row)])) for row in drawn]
        return model.item_matrix().numpy()[1:], torch.cat(vectors).numpy(), f"items and vectors of {run}, with jitter"


def _clusters(dim: int = 64) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(500, dim))
    of = generator.integers(0, len(centres), _BLOCK)
    items = generator.lognormal(0, 0.2, (_BLOCK, 1)) * (centres[of] + 0.6 * generator.normal(size=(_BLOCK, dim)))
    near = centres[generator.integers(0, len(centres), _QUERIES)]
    vectors = near + 0.6 * generator.normal(size=near.shape)
    return items.astype(np.float32), vectors.astype(np.float32)


def _measure(
    where: Path,
    size: int,
    trained: NDArray[np.float32],
    vectors: NDArray[np.float32],
    *,
    encoder: bytes,
    threads: int,
    rounds: int,
) -> list[CatalogueFigures]:
    torch.set_num_threads(threads)
    generator = np.random.default_rng(1)
    excluded = list(generator.integers(1, size + 1, (len(vectors), _EXCLUDED)))
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        dim = trained.shape[1]
        items = _grown(folder / ITEMS, trained, size, generator)
        save_array(folder / QUANTISED, (rounded := Quantised.of(items)).items)
        quantised = replace(rounded, items=load_array(folder / QUANTISED, np.uint8, items.shape, mapped=True))
        del rounded
        runtimes, private = {}, {}
        for way in WAYS:
            before = _private_bytes()
            runtimes[way] = _runtime(
                folder / way.replace(" ", "-"), encoder, items, quantised, way=way, threads=threads
            )
            for batch in BATCHES:
                runtimes[way].rank(vectors[:batch], excluded[:batch], _K)
            private[way] = None if before is None else (_private_bytes() or 0) - before
        answers = {way: _answers(runtimes[way], vectors, excluded) for way in WAYS}
        times: dict[tuple[str, int], list[float]] = {}
        floors: dict[str, list[float]] = {"read": [], "product": []}
        for _ in range(rounds):
            floors["read"].append(_read_s_a_byte(threads))
            floors["product"].append(_product_s_a_flop())
            for way in WAYS:
                for batch in BATCHES:
                    work = partial(runtimes[way].rank, vectors[:batch], excluded[:batch], _K)
                    times.setdefault((way, batch), []).append(_seconds(work))
    read, product = (float(np.median(floors[name])) for name in ("read", "product"))
    figures = []
    for way in WAYS:
        taken_s = {batch: float(np.median(times[way, batch])) for batch in BATCHES}
        float32, largest = way != "int8 scan", BATCHES[-1]
        figures.append(
            CatalogueFigures(
                items=size,
                dim=dim,
                way=way,
                milliseconds={batch: taken * 1e3 for batch, taken in taken_s.items()},
                recall_at_10=overlap(answers[way], answers["one run"]),
                bandwidth_share=items.nbytes * read / taken_s[1] if float32 and items.nbytes > _CACHED_BYTES else None,
                sgemm_share=2 * largest * items.size * product / taken_s[largest] if float32 else None,
                mapped_bytes=items.nbytes + (0 if float32 else quantised.items.nbytes),
                private_bytes=private[way],
            )
        )
    return figures


def _blended(
    where: Path, size: int, trained: NDArray[np.float32], *, encoder: bytes, threads: int, rounds: int
) -> BlendFigures:
    """The same histories over the same catalogue with neighbours and without, in turns."""
    generator = np.random.default_rng(3)
    lengths = generator.lognormal(np.log(12), 0.76, BLEND_BATCHES[-1]).clip(1, 50).astype(np.int64)
    histories = [generator.integers(1, size + 1, length) for length in lengths]
    beside = generator.integers(1, size + 1, (size + 1, WIDTH), np.int32)  # anywhere: trained ones lie no farther apart
    affinities = generator.random(beside.shape, np.float32)
    beside[0] = affinities[0] = 0
    works: dict[str, Callable[[Runtime, list[NDArray[np.int64]], NDArray[np.float32]], object]] = {
        "query": lambda one, asked, _: one.rank(one.encode(asked), asked, _K, asked),
        "ranking": lambda one, asked, vectors: one.rank(vectors, asked, _K, asked),
    }
    quickest: dict[tuple[str, int], list[float]] = {}  # with neighbours and without: what else runs only adds to it
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        items = _grown(folder / ITEMS, trained, size, generator)
        alone = _runtime(folder / "alone", encoder, items, threads=threads)
        neighbours = Neighbours(beside, affinities)
        blend = _runtime(folder / "blend", encoder, items, threads=threads, neighbours=neighbours)
        for batch in BLEND_BATCHES:
            asked = histories[:batch]
            vectors = alone.encode(asked)
            for _ in range(rounds * _TURNS):
                for part, work in works.items():
                    taken = [_once_s(partial(work, one, asked, vectors)) for one in (blend, alone)]
                    quickest[part, batch] = list(map(min, taken, quickest.get((part, batch), taken)))
    ratios = {part: {batch: truediv(*quickest[part, batch]) for batch in BLEND_BATCHES} for part in works}
    return BlendFigures(size, **ratios)


def _grown(path: Path, trained: NDArray[np.float32], size: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """A mapped matrix of so many items: the trained ones, then copies of them with jitter; row 0 is padding."""
    dim, deviation = trained.shape[1], trained.std(axis=0) * np.float32(_JITTER)
    with path.open("wb") as file:  # not mapped: on a full disk that would end the process without a word
        file.write(np.zeros(dim, np.float32).tobytes())
        for begin in range(0, size, len(trained)):
            part = trained[: min(len(trained), size - begin)]
            jitter = generator.standard_normal(part.shape, np.float32) * deviation if begin else np.float32(0)
            file.write((part + jitter).astype(np.float32).tobytes())
    return np.asarray(np.memmap(path, np.float32, "r", shape=(size + 1, dim)))


def _runtime(
    folder: Path,
    encoder: bytes,
    items: NDArray[np.float32],
    quantised: Quantised | None = None,
    *,
    way: str = "one run",
    threads: int,
    neighbours: Neighbours | None = None,
) -> Runtime:
    """A runtime over what a bundle would hold, its list of ids aside."""
    folder.mkdir()
    rows, dim = items.shape
    (folder / ENCODER).write_bytes(encoder)
    (folder / RANKER).write_bytes(build_ranker(neighbours=0 if neighbours is None else neighbours.width))
    if way != "one run":
        (folder / SCAN).write_bytes(build_scan(quantised=way == "int8 scan"))
    manifest = Manifest(
        version="bench",
        created="",
        model="sasrec",
        items=rows - 1,
        dim=dim,
        length=50,
        config={},
        seed=0,
        data=DataWindow(files={}, users=0, items=rows - 1, interactions=0),
        metrics={},
        parity=Parity(cases=0, largest_difference=0, top_k_agreed=True),
        scoring=Scoring(kind="int8" if way == "int8 scan" else "float32"),
        files=dict.fromkeys((path.name for path in folder.iterdir()), ""),
    )
    none = np.empty((0, 0), np.int64)
    golden = Golden(none, none, none, none.astype(np.float32), none, none.astype(np.float32))
    popularity = np.zeros(rows, np.float32)
    bundle = Bundle(folder, manifest, items, [], {}, popularity, None, golden, neighbours=neighbours)
    if way == "int8 scan":
        bundle = replace(bundle, quantised=quantised)
    return Runtime(bundle, device="cpu", threads=threads)


def _answers(runtime: Runtime, vectors: NDArray[np.float32], excluded: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    parts = [slice(begin, begin + BATCHES[-1]) for begin in range(0, len(vectors), BATCHES[-1])]
    return np.concatenate([runtime.rank(vectors[part], excluded[part], _K)[0] for part in parts])


def _seconds(work: Callable[[], object]) -> float:
    """Of the quickest of as many calls as 50 ms have room for, two at least: what else runs only adds to it."""
    began, quickest, calls = time.perf_counter(), float("inf"), 0
    while calls < 2 or time.perf_counter() - began < 0.05:
        quickest = min(quickest, _once_s(work))
        calls += 1
    return quickest


def _once_s(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _read_s_a_byte(threads: int) -> float:
    """By the largest element of parts that exceed every cache, a thread each."""
    parts = np.array_split(np.ones(_FLOOR_BYTES // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return _seconds(lambda: list(pool.map(np.max, parts))) / _FLOOR_BYTES


def _product_s_a_flop(side: int = 1024) -> float:
    left, right, out = torch.ones(side, side), torch.ones(side, side), torch.empty(side, side)
    return _seconds(lambda: torch.mm(left, right, out=out)) / (2 * side**3)


def _private_bytes() -> int | None:
    """Resident memory that no file backs; None where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(found[0]) * 1024 if found else None


def _said(ratio: float) -> str:
    return f"{'met' if ratio <= BLEND_GOAL else 'not met'}: at most {BLEND_GOAL:g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
