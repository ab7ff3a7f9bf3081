"""How a bundle's catalogue is searched: all at once, by an exact scan, or by int8 with the best ranked exactly.

Small catalogues need no scan and up to a million items an exact one is quick; beyond, both are measured, and int8 is
taken where it is quicker and finds nearly the same. Graph and inverted-file indexes are not offered: at a million
trained vectors an inverted file that found nine tenths of the best items took as long as the exact scan.
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
from models.runtime import Runtime, overlap
from models.scan import Quantised
from training.ranker import build_scan

Asked = Literal["auto", "exact", "int8"]

SCAN_FROM = 200_000  # items: below, one run over all of them is as quick
EXACT_UP_TO = 1_000_000
LEAST_RECALL = 0.99
_BATCHES = (1, 32)
_QUERIES = 256
_HISTORY = 20
_ROUNDS = 5
_K = 10


class ScoringError(Exception):
    """The scoring that was asked for does not find what it should; the message says how much it finds."""


def with_scoring(content: Content, asked: Asked) -> Content:
    """The content with the scan that was asked for, or that is best, and the manifest saying so.

    Raises ScoringError if int8 was asked for and finds too few of the exact first ten.
    """
    items = content.manifest.items
    scan = build_scan(quantised=False) if items >= SCAN_FROM else None
    exact = replace(content, scan=scan)
    if asked == "exact" or (asked == "auto" and items <= EXACT_UP_TO):
        return exact
    quantised = _approximate(content, Scoring(kind="approximate"))
    measured = measure(exact, quantised)
    kind = chosen(asked, measured)
    recorded = measured.model_copy(update={"kind": kind})
    if kind == "approximate":
        return _approximate(quantised, recorded)
    return replace(exact, manifest=content.manifest.model_copy(update={"scoring": recorded}))


def chosen(asked: Asked, measured: Scoring) -> Literal["exact", "approximate"]:
    """What these measurements speak for: int8 where it finds enough and, unless it was asked for, is quicker.

    Raises ScoringError if int8 was asked for and finds too few of the exact first ten.
    """
    recall, largest = measured.recall_at_10 or 0.0, _BATCHES[-1]
    if asked == "int8":
        if recall < LEAST_RECALL:
            raise ScoringError(
                f"int8 finds {recall:.4f} of the exact first {_K} items (at least {LEAST_RECALL} is needed); export "
                "with --scoring exact"
            )
        return "approximate"
    quicker = measured.milliseconds_int8[largest] < measured.milliseconds_exact[largest]
    return "approximate" if recall >= LEAST_RECALL and quicker else "exact"


def measure(exact: Content, quantised: Content) -> Scoring:
    """Recall and latency of a bundle with int8 beside the same bundle without.

    On histories of items drawn by their popularity, which both encode and leave out of the answer.
    """
    generator = np.random.default_rng(2)
    weights = exact.popularity[1:].astype(np.float64) + 1e-9
    drawn = generator.choice(len(weights), (_QUERIES, _HISTORY), p=weights / weights.sum()) + 1
    histories = [row[: generator.integers(1, _HISTORY + 1)].astype(np.int64) for row in drawn]
    with tempfile.TemporaryDirectory() as folder:
        runtimes = [
            Runtime(read_bundle(write_bundle(Path(folder) / name, content)), device="cpu")
            for name, content in (("exact", exact), ("int8", quantised))
        ]
        vectors = runtimes[0].encode(histories)
        answers = [_ranked(runtime, vectors, histories) for runtime in runtimes]
        times = [
            {batch: _milliseconds(runtime, vectors, histories, batch) for batch in _BATCHES} for runtime in runtimes
        ]
    return Scoring(
        kind="approximate",
        recall_at_10=overlap(answers[1], answers[0]),
        milliseconds_exact=times[0],
        milliseconds_int8=times[1],
    )


def _approximate(content: Content, scoring: Scoring) -> Content:
    return replace(
        content,
        manifest=content.manifest.model_copy(update={"scoring": scoring}),
        scan=build_scan(quantised=True),
        quantised=content.quantised or Quantised.of(content.items),
    )


def _ranked(runtime: Runtime, vectors: NDArray[np.float32], histories: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    step = _BATCHES[-1]
    parts = [slice(begin, begin + step) for begin in range(0, len(vectors), step)]
    return np.concatenate([runtime.rank(vectors[part], histories[part], _K, histories[part])[0] for part in parts])


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
