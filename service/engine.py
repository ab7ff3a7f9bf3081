"""Queries to rankings, over one bundle: on the event loop where they are quick, else on the scoring thread.

It speaks in indices; who the user is and what an item is called is decided elsewhere.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.device import CPU
from models.runtime import EXCLUDED_SCORE, Runtime
from models.selection import Selection
from models.sequence import PADDING
from service.catalogue import Catalogue
from service.cold import ColdChoice

_WARM_UP_BATCHES = (1, 8, 64)  # the last is about what a busy service ranks at once
_WARM_UP_WIDTH = 40  # ids excluded: those of a usual history
_TIMED = 3  # runs of the last
_BRIEF_S = 0.025  # of a full batch: handing it to a thread and back would cost a good part of it
_BRIEF_K = 50  # what the warm-up says nothing about is not brief: more items than these for one query,
_BRIEF_WIDTH = 128  # more ids excluded,
_BRIEF_TAIL = 1000  # and more items that are newer than the model
_RARE = 16  # times fewer than all: items that are sorted by themselves
_REASONS = 3  # events told of an item
_NONE: NDArray[np.int64] = np.empty(0, np.int64)


class EngineError(Exception):
    """The model gave something that cannot be ranked."""


@dataclass(frozen=True, slots=True)
class Query:
    """A history as known item indices, oldest first, the indices that must not come back, and how many should.

    values: beside the sequence, NaN where an event has none; for an engine that reads them. among: the only items that
    may come back, of the engine's catalogue; None for any. cold: those newer than it that may come back too.
    """

    sequence: NDArray[np.int64]
    excluded: NDArray[np.int64]
    k: int
    values: NDArray[np.float32] | None = None
    among: Selection | None = None
    cold: ColdChoice | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Item indices, best first, and their scores; fewer than k where fewer are eligible.

    An index below 0 is minus the row of a cold item, in the tail of the query.
    """

    indices: list[int]
    scores: list[float]


NOTHING = Ranking([], [])


@dataclass(frozen=True, slots=True)
class Reason:
    """An event of a query's sequence, by its place there, and what it adds to an item's score."""

    place: int
    effect: float


class Engine:
    """Ranks with one bundle. Nothing to close: its sessions go with the last batch that refers to it."""

    def __init__(self, runtime: Runtime, *, cold_share: float = 0.0) -> None:
        self._runtime = runtime
        self.catalogue = Catalogue(runtime.bundle, cold_share=cold_share, scanned=runtime.scans)
        self._norms: NDArray[np.float32] | None = None
        popularity = self.bundle.popularity[1:]
        self.batch_s = float("inf")  # what the warm-up measured for its largest batch,
        self._tried = 0  # and how many queries that had
        by_popularity = np.argsort(-popularity, kind="stable") + 1  # ties in item order
        self._by_popularity = by_popularity.astype(np.int32)

    @property
    def bundle(self) -> Bundle:
        """What it ranks with."""
        return self._runtime.bundle

    @property
    def version(self) -> str:
        """Name of the bundle's folder."""
        return self.bundle.manifest.version

    @property
    def reads_values(self) -> bool:
        """Whether what an event was worth, as a rating, makes a difference."""
        return self._runtime.reads_values

    @property
    def provider(self) -> str:
        """Where onnxruntime computes, in its words."""
        return self._runtime.provider

    def rank(self, queries: Sequence[Query]) -> list[Ranking]:
        """One ranking for each query, in one run of the ranker for all that choose among the same items.

        Raises EngineError if the model gives no numbers.
        """
        if not queries:
            return []
        vectors = self._encode(queries)
        alike: dict[int, list[int]] = {}
        for number, query in enumerate(queries):
            alike.setdefault(id(query.among), []).append(number)
        rankings = [NOTHING] * len(queries)
        if len(alike) == 1:
            rankings = self._ranked(queries, vectors)
        else:
            for rows in alike.values():
                for row, ranking in zip(rows, self._ranked([queries[row] for row in rows], vectors[rows]), strict=True):
                    rankings[row] = ranking
        for row, query in enumerate(queries):
            if query.cold is not None:
                rankings[row] = _beside(rankings[row], query.cold, vectors[row], query.k)
        return rankings

    def _encode(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        values = None
        if self.reads_values:
            values = [_no_values(query) if query.values is None else query.values for query in queries]
        vectors = self._runtime.encode([query.sequence for query in queries], values)
        if not np.isfinite(vectors).all():
            raise EngineError(f"{self.version} gave a vector that is not finite")
        return vectors

    def _ranked(self, queries: Sequence[Query], vectors: NDArray[np.float32]) -> list[Ranking]:
        """Rankings of queries that choose among the same items."""
        among = queries[0].among
        if among is not None and not len(among):
            return [NOTHING] * len(queries)
        most = max(query.k for query in queries)
        indices, scores = self._runtime.rank(
            vectors,
            [query.excluded for query in queries],
            most,
            [query.sequence for query in queries],
            among=among,
        )
        if not scores.max(initial=0) < np.inf:  # so written, a NaN fails too
            raise EngineError(f"{self.version} gave a score that is not finite")
        eligible = (scores > EXCLUDED_SCORE).sum(axis=1)  # sorted, so that these come first
        counts = [min(query.k, found) for query, found in zip(queries, eligible.tolist(), strict=True)]
        rows = zip(indices.tolist(), scores.tolist(), counts, strict=True)
        return [Ranking(best[:count], theirs[:count]) for best, theirs, count in rows]

    def popular(self, query: Query) -> Ranking:
        """What a query gets without a usable history: the most popular items, ties in item order, with how popular
        they are for a score; where these do not suffice, cold ones in the order of their ids."""
        excluded, among = query.excluded, query.among
        order: NDArray[np.signedinteger[Any]] = self._by_popularity
        size = query.k + len(excluded)
        if among is not None and len(among) * _RARE < len(order):  # they would be found late in the order of all
            order = among.rows[np.argsort(-self.bundle.popularity[among.rows], kind="stable")]
        while True:
            chosen = order[:size]
            if len(excluded):
                chosen = chosen[~np.isin(chosen, excluded)]
            if among is not None:
                chosen = chosen[among.holds(chosen)]
            if len(chosen) >= query.k or size >= len(order):
                chosen = chosen[: query.k]
                cold = [] if query.cold is None else query.cold.first(query.k - len(chosen))
                return Ranking(
                    chosen.tolist() + [-row for row in cold],
                    self.bundle.popularity[chosen].tolist() + [0.0] * len(cold),
                )
            size *= 8

    def reasons(self, query: Query, ranking: Ranking) -> list[list[Reason]]:
        """For every item that a query got, the events that moved the item's score most; none where it has no history.

        An event's effect is what the score loses when that event alone is left out; of the newest events the model
        reads, each is left out once, all encoded together.
        """
        length = len(query.sequence)
        places = range(max(0, length - self.bundle.manifest.length), length)
        variants = [_without(query, place) for place in places]
        if not (ranking.indices and variants):
            return [[] for _ in ranking.indices]
        vectors = self._encode(variants)
        items = np.array(ranking.indices, np.int64)
        without = np.empty((len(variants), len(items)))  # scores
        without[:, items > 0] = self._rescored(variants, vectors, items[items > 0])
        if query.cold is not None:
            without[:, items < 0] = np.einsum("vd,nd->vn", vectors, query.cold.tail.matrix[-items[items < 0]])
        effects = np.array(ranking.scores) - without
        order = np.argsort(-np.abs(effects), axis=0, kind="stable")[:_REASONS]
        return [
            [Reason(places[row], float(effects[row, column])) for row in order[:, column]]
            for column in range(len(items))
        ]

    def _rescored(
        self, queries: Sequence[Query], vectors: NDArray[np.float32], items: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """What each of some items of the bundle scores for each query: (queries, items)."""
        if not len(items):
            return np.empty((len(queries), 0), np.float32)
        among = Selection.gathered(np.sort(items), self.bundle.items)
        nothing, sequences = [_NONE] * len(queries), [query.sequence for query in queries]
        indices, scores = self._runtime.rank(vectors, nothing, len(items), sequences, among=among)
        by_item = np.take_along_axis(scores, np.argsort(indices, axis=1), axis=1)
        return by_item[:, np.searchsorted(among.rows, items)]

    def similar(self, index: int, k: int) -> Ranking:
        """The k available items that are nearest an item in the model's item space, by the cosine of the angle."""
        items = self.bundle.items
        if self._norms is None:
            # np.linalg.norm would square a copy of the matrix; in float32 the very large and small have no squares.
            norms = np.sqrt(np.einsum("rd,rd->r", items, items, dtype=np.float64)).astype(np.float32)
            self._norms = np.maximum(norms, np.finfo(np.float32).tiny)
        cosines = (items @ (items[index] / self._norms[index])) / self._norms
        np.clip(cosines, -1, 1, out=cosines)  # what rounding adds is no cosine
        among = self.catalogue.selection(None)
        rows = np.arange(1, len(items)) if among is None else among.rows
        rows = rows[rows != index]
        if len(rows) > k:  # with all that tie with the last of them
            rows = rows[cosines[rows] >= np.partition(cosines[rows], -k)[-k]]
        nearest = rows[np.argsort(-cosines[rows], kind="stable")][:k]
        return Ranking(nearest.tolist(), cosines[nearest].tolist())

    @property
    def brief(self) -> bool:
        """Whether a usual batch is so quick that the event loop can wait for it; not known before the warm-up.

        Never with several threads: those it would wait for may be waiting for a core themselves. Nor by way of float16,
        where a query that is better ranked over everything takes a hundred times as long as others.
        """
        alone = not self._runtime.float16 and (self._runtime.threads == 1 or not self.on_cpu)
        return self.batch_s <= _BRIEF_S and alone

    def brief_for(self, queries: Sequence[Query]) -> bool:
        """Whether that is so of these queries: none asks for more than the warm-up tried."""
        return (
            self.brief
            and len(queries) <= self._tried
            and all(
                query.k <= _BRIEF_K
                and len(query.excluded) <= _BRIEF_WIDTH
                and query.among is None
                and (query.cold is None or len(query.cold.tail) <= _BRIEF_TAIL)
                for query in queries
            )
        )

    @property
    def on_cpu(self) -> bool:
        return self.provider == CPU

    def warm_up(self, most: int = _WARM_UP_BATCHES[-1]) -> None:
        """Run every path at several batch sizes, so that the first request finds memory and kernels ready; time it.

        most: the largest batch that will come; onnxruntime keeps memory for what it has once computed.
        """
        items, length = self.bundle.manifest.items, self.bundle.manifest.length
        excluded = np.full(_WARM_UP_WIDTH, PADDING, np.int64)
        for batch in sorted({min(batch, most) for batch in _WARM_UP_BATCHES}):
            self._tried = batch
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


def _beside(ranking: Ranking, cold: ColdChoice, vector: NDArray[np.float32], k: int) -> Ranking:
    """The k best of a ranking and of the cold items, of which no more than may be unless the ranking is too short."""
    found = cold.best(vector, max(cold.most, k - len(ranking.indices)))
    if not found:
        return ranking
    entries = list(zip(ranking.indices, ranking.scores, strict=True)) + [(-row, score) for row, score in found]
    entries.sort(key=lambda entry: -entry[1])  # stable: in a tie, what the model knows comes first
    indices, scores = zip(*entries[:k], strict=True)
    return Ranking(list(indices), list(scores))


def _without(query: Query, place: int) -> Query:
    values = None if query.values is None else np.delete(query.values, place)
    return replace(query, sequence=np.delete(query.sequence, place), values=values)


def _no_values(query: Query) -> NDArray[np.float32]:
    return np.full(len(query.sequence), np.nan, np.float32)
