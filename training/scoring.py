"""What of a bundle's catalogue is searched: all of it at once, or by a scan over float32 or over int8.

All three find the same items. Small catalogues gain little by a scan; of large ones both are measured, and int8, which
takes a quarter more memory, is taken where it is quicker and finds what float32 finds. Graph and inverted-file indexes
are not offered: at a million trained vectors an inverted file that found nine tenths of the best items took as long as
the scan over float32.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.bundle import read_bundle
from models.draft import Content, write_bundle
from models.manifest import Scoring
from models.quantised import Quantised
from models.runtime import Runtime, overlap
from training.ranker import build_scan

Asked = Literal["auto", "float32", "int8"]

SCAN_FROM = 200_000  # items: below, a scan saves a quarter of one run over all of them at most
_BATCHES = (1, 32)
_HISTORY = 20
_ROUNDS = 5
_K = 10
_RECALL = 0.99  # of int8, at least: by its bounds it misses nothing, but for one of two items of an equal score


def with_scoring(content: Content, asked: Asked) -> Content:
    """The content with the scan that was asked for, or that is better, and the manifest saying so."""
    large = content.manifest.items >= SCAN_FROM
    exact = replace(content, scan=build_scan(quantised=False) if large else None)
    if asked == "float32" or (asked == "auto" and not large):
        return exact
    quantised = _quantised(content, Scoring(kind="int8"))
    measured = measure(exact, quantised)
    if asked == "int8" or better(measured):
        return _quantised(quantised, measured)
    recorded = measured.model_copy(update={"kind": "float32"})
    return replace(exact, manifest=content.manifest.model_copy(update={"scoring": recorded}))


def better(measured: Scoring) -> bool:
    """Whether int8 ranks a full batch in fewer milliseconds, and finds what float32 finds."""
    largest = _BATCHES[-1]
    quicker = measured.milliseconds_int8[largest] < measured.milliseconds_float32[largest]
    return quicker and measured.recall_int8 is not None and measured.recall_int8 >= _RECALL


def measure(exact: Content, quantised: Content) -> Scoring:
    """Latency and recall of a bundle with int8 beside the same bundle without.

    On histories of items drawn by their popularity, which both encode and leave out of the answer.
    """
    generator = np.random.default_rng(2)
    weights = exact.popularity[1:].astype(np.float64) + 1e-9
    drawn = generator.choice(len(weights), (_BATCHES[-1], _HISTORY), p=weights / weights.sum()) + 1
    histories = [row[: generator.integers(1, _HISTORY + 1)].astype(np.int64) for row in drawn]
    with tempfile.TemporaryDirectory() as folder:
        runtimes = [
            Runtime(read_bundle(write_bundle(Path(folder) / name, content)), device="cpu")
            for name, content in (("float32", exact), ("int8", quantised))
        ]
        vectors = runtimes[0].encode(histories)
        float32, int8 = (
            {batch: _milliseconds(runtime, vectors, histories, batch) for batch in _BATCHES} for runtime in runtimes
        )
        expected, found = (runtime.rank(vectors, histories, _K, histories)[0] for runtime in runtimes)
    recall = overlap(found, expected)
    return Scoring(kind="int8", milliseconds_float32=float32, milliseconds_int8=int8, recall_int8=recall)


def _quantised(content: Content, scoring: Scoring) -> Content:
    return replace(
        content,
        manifest=content.manifest.model_copy(update={"scoring": scoring}),
        scan=build_scan(quantised=True),
        quantised=content.quantised or Quantised.of(content.items),
    )


def _milliseconds(
    runtime: Runtime, vectors: NDArray[np.float32], histories: list[NDArray[np.int64]], batch: int
) -> float:
    """The median of a few runs."""
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        runtime.rank(vectors[:batch], histories[:batch], _K, histories[:batch])
        times.append(time.perf_counter() - began)
    return round(float(np.median(times)) * 1e3, 2)
