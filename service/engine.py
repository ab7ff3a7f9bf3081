"""Queries to rankings, over one bundle: on the event loop where they are quick, else on the scoring thread.

It speaks in indices; who the user is and what an item is called is decided elsewhere.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.runtime import EXCLUDED_SCORE, Runtime
from models.sequence import PADDING

_WARM_UP_BATCHES = (1, 8, 64)  # the last is about what a busy service ranks at once
_WARM_UP_WIDTH = 40  # ids excluded: those of a usual history
_TIMED = 3  # runs of the last
_BRIEF_S = 0.01  # of a full batch: handing it to a thread and back would cost a good part of it
_BRIEF_K = 50  # what the warm-up says nothing about is not brief: more items than these for one query,
_BRIEF_WIDTH = 128  # and more ids excluded


class EngineError(Exception):
    """The model gave something that cannot be ranked."""


@dataclass(frozen=True, slots=True)
class Query:
    """A history as known item indices, oldest first, the indices that must not come back, and how many should.

    values: beside the sequence, NaN where an event has none; for an engine that reads them.
    """

    sequence: NDArray[np.int64]
    excluded: NDArray[np.int64]
    k: int
    values: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Item indices, best first, and their scores; fewer than k where fewer are eligible."""

    indices: list[int]
    scores: list[float]


class Engine:
    """Ranks with one bundle. Nothing to close: its sessions go with the last batch that refers to it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        popularity = self.bundle.popularity[1:]
        self.batch_s = float("inf")  # what the warm-up measured for its largest batch
        self._by_popularity: NDArray[np.int64] = np.argsort(-popularity, kind="stable") + 1  # ties in item order

    @property
    def bundle(self) -> Bundle:
        return self._runtime.bundle

    @property
    def version(self) -> str:
        return self.bundle.manifest.version

    @property
    def reads_values(self) -> bool:
        """Whether what an event was worth, as a rating, makes a difference."""
        return self._runtime.reads_values

    @property
    def scoring(self) -> Literal["exact", "approximate"]:
        """How the model's rankings are found; what is popular is exact always."""
        return self._runtime.scoring

    @property
    def provider(self) -> str:
        return self._runtime.provider

    def rank(self, queries: Sequence[Query]) -> list[Ranking]:
        """One ranking for each query, in one run of the ranker. Raises EngineError if the model gives no numbers."""
        if not queries:
            return []
        sequences = [query.sequence for query in queries]
        values = None
        if self.reads_values:
            values = [_no_values(query) if query.values is None else query.values for query in queries]
        vectors = self._runtime.encode(sequences, values)
        if not np.isfinite(vectors).all():
            raise EngineError(f"{self.version} gave a vector that is not finite")
        most = max(query.k for query in queries)
        indices, scores = self._runtime.rank(vectors, [query.excluded for query in queries], most, sequences)
        eligible = (scores > EXCLUDED_SCORE).sum(axis=1)  # sorted, so that these come first
        counts = [min(query.k, int(found)) for query, found in zip(queries, eligible, strict=True)]
        return [
            Ranking(indices[row, :count].tolist(), scores[row, :count].tolist()) for row, count in enumerate(counts)
        ]

    def popular(self, excluded: NDArray[np.int64], k: int) -> Ranking:
        """The k most popular items that are not excluded, ties in item order; the score is the popularity."""
        head = self._by_popularity[: k + len(excluded)]
        chosen = head[~np.isin(head, excluded)][:k] if len(excluded) else head
        return Ranking(chosen.tolist(), self.bundle.popularity[chosen].tolist())

    @property
    def brief(self) -> bool:
        """Whether a usual batch is so quick that the event loop can wait for it; not known before the warm-up.

        Never with several threads: those it would wait for may be waiting for a core themselves.
        """
        return self.batch_s <= _BRIEF_S and (self._runtime.threads == 1 or not self.on_cpu)

    def brief_for(self, queries: Sequence[Query]) -> bool:
        """Whether that is so of these queries: none asks for more than the warm-up tried."""
        return (
            self.brief
            and len(queries) <= _WARM_UP_BATCHES[-1]
            and all(query.k <= _BRIEF_K and len(query.excluded) <= _BRIEF_WIDTH for query in queries)
        )

    @property
    def on_cpu(self) -> bool:
        return self.provider == "CPUExecutionProvider"

    def warm_up(self) -> None:
        """Run every path at several batch sizes, so that the first request finds memory and kernels ready; time it."""
        items, length = self.bundle.manifest.items, self.bundle.manifest.length
        excluded = np.full(_WARM_UP_WIDTH, PADDING, np.int64)
        for batch in _WARM_UP_BATCHES:
            lengths = np.linspace(length, 0, batch).round().astype(int)
            sequences = [(np.arange(row_length) + row) % items + 1 for row, row_length in enumerate(lengths)]
            queries = [Query(sequence, excluded, 10) for sequence in sequences]
            self.batch_s = self._timed(queries)
        for _ in range(_TIMED - 1 if self.batch_s <= 10 * _BRIEF_S else 0):  # whatever else runs only adds to it
            self.batch_s = min(self.batch_s, self._timed(queries))

    def _timed(self, queries: Sequence[Query]) -> float:
        # A promotion is timed beside a service at work, which makes a thread wait but not compute for longer.
        clock = time.thread_time if self.on_cpu and self._runtime.threads == 1 else time.perf_counter
        began = clock()
        self.rank(queries)
        return clock() - began


def _no_values(query: Query) -> NDArray[np.float32]:
    return np.full(len(query.sequence), np.nan, np.float32)
