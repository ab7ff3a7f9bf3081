"""Which items can be among the best of a large catalogue, found without a list of all scores.

A matrix of scores over a million items costs more to write, search and read again than to compute. So the catalogue
is scored in chunks that stay in the processor's cache, and only the maximum of every GROUP neighbouring items is kept.
The k best items lie in the k groups with the largest maxima; a ranker that scores those groups alone gives the same
answer as over the whole catalogue. The groups are found in the same way, by the maxima of BLOCK groups each. What is
excluded is not masked: k groups that hold nothing excluded are looked for, and those with something excluded that rank
above the last of them come along. Where items are out for everybody, as in a shop those that are sold, hardly a group
may be left that holds none: then the products of single items are looked at, until k that are not out are known, and
all groups come along that reach the k-th of them.

Over int8 the maxima are off by what rounding did, which is bounded: by how far any item is from its int8 copy, and the
query from its own. Groups that could hold one of the best by that bound come along and the same ranker decides, so that
int8 gives the same answer too, from a quarter of the bytes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.quantised import GROUP, SURPLUS, Quantised
from models.sequence import Indices

BLOCK = 32  # groups whose maximum is kept too
_UNIT = GROUP * BLOCK
_CELLS = (1 << 19, 1 << 21)  # scores of a chunk for each thread, 2 or 8 MB: which is quicker is the cache's to say
_LARGEST_CHUNK = 1 << 17  # rows; a batch of one has no use for more
_TRIED = 1 << 20, 32, 3  # rows, more than a cache holds, queries and rounds that they are tried with
_MOST = 8  # a query that a larger part of all groups than one in so many could answer is better ranked over everything
_LOOKED = 4  # groups for each item wanted, whose items are looked at one by one
_QUERY_LIMIT = 127
_SATURATING_LIMIT = 63  # times 255, twice: what processors without VNNI add up in 16 bits and do not cut


class Scan:
    """Group maxima by an onnxruntime session over a float32 or a quantised matrix. Thread-safe, as the session is."""

    group = GROUP

    def __init__(self, session: Any, items: NDArray[np.float32] | Quantised, *, threads: int) -> None:
        self._session = session
        self._items = items
        self._matrix: NDArray[Any] = items.items if isinstance(items, Quantised) else items
        self._kind = np.int32 if isinstance(items, Quantised) else np.float32
        self._longest_of_blocks = np.empty(0)
        if isinstance(items, Quantised):
            whole = len(self._matrix) // _UNIT * BLOCK
            self._longest_of_blocks = items.longest[:whole].reshape(-1, BLOCK).max(axis=1, initial=0)
        self._limit = self._finest()
        self._cells = self._quickest([cells * threads for cells in _CELLS])

    def candidates(
        self, vectors: NDArray[np.float32], excluded: Sequence[Indices], k: int, out: NDArray[np.int64] | None = None
    ) -> list[NDArray[np.int64] | None]:
        """Groups that hold the k best items of each row, ascending; group g is the items from g * GROUP on.

        vectors (batch, dim), excluded the items a row that do not count, out those that count for none. The items of
        `rest` are in none of them. No other item can be among the k best, ties in item order. None for a row that so
        many groups could answer that they are better all ranked.
        """
        queries, bounds = self._queries(vectors)
        groups, blocks = self._maxima(queries, len(self._matrix))
        if out is not None:
            counts = np.ones(len(self._matrix), np.bool_)
            counts[out] = False
            reaching = []
            for row, (theirs, bound) in enumerate(zip(excluded, bounds, strict=True)):
                before = counts[theirs]
                counts[theirs] = False
                maxima = groups[:, row], blocks[:, row]
                reaching.append(self._reaching(queries[:, row], maxima, counts, k, bound))
                counts[theirs] = before
            return reaching
        marked = np.zeros(len(groups), np.bool_)
        found: list[NDArray[np.int64] | None] = []
        for row, (theirs, bound) in enumerate(zip(excluded, bounds, strict=True)):
            impure = theirs[theirs < len(groups) * GROUP] // GROUP
            marked[impure] = True
            blocked = np.zeros(len(blocks), np.bool_)
            blocked[impure // BLOCK] = True
            off = None if bound is None else bound.of_blocks()
            inside = _best(blocks[:, row], blocked, k, off)
            members = (inside[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)  # ascending, as `inside` is
            off = None if bound is None else bound.of_groups(members)
            chosen = members[_best(groups[members, row], marked[members], k, off)]
            found.append(None if bound is not None and len(chosen) * _MOST > len(groups) else chosen)
            marked[impure] = False
        return found

    def _reaching(
        self,
        query: NDArray[Any],
        maxima: tuple[NDArray[Any], NDArray[Any]],
        counts: NDArray[np.bool_],
        k: int,
        bound: "_Bound | None",
    ) -> NDArray[np.int64] | None:
        """Of one query (dim,), the groups that reach the k-th best of the items that count, as far as the best groups
        show it; None if they are too many. maxima: of groups and of blocks, (groups,) and (blocks,); counts (items,).
        """
        groups, blocks = maxima
        looked = _LOOKED * k
        while looked * _MOST <= len(groups):
            best = np.argpartition(blocks, max(0, len(blocks) - looked))[-looked:]
            members = (best[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
            members = members[np.argpartition(groups[members], len(members) - looked)[-looked:]]
            items = (members[:, None] * GROUP + np.arange(GROUP)).reshape(-1)
            items = items[counts[items]]
            if len(items) >= k:
                lowest = self._products(items, query)
                if bound is not None:
                    lowest = lowest - bound.of_groups(items // GROUP)
                least = np.partition(lowest, len(lowest) - k)[len(lowest) - k]
                # So written, what is off by no number comes along.
                inside = np.flatnonzero(~(blocks + (0 if bound is None else bound.of_blocks()) < least))
                members = (inside[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
                below = groups[members] + (0 if bound is None else bound.of_groups(members)) < least
                return None if (~below).sum() * _MOST > len(groups) else members[~below]
            looked *= 4
        return None

    def _products(self, items: NDArray[np.int64], query: NDArray[Any]) -> NDArray[np.float64]:
        """What the session would give for single items, (items,), or a little less where it rounds otherwise."""
        rows = self._matrix[items].astype(np.float64)
        products: NDArray[np.float64] = rows @ query.astype(np.float64)  # of bytes exact
        if isinstance(self._items, Quantised):
            return products
        longest = float(np.sqrt(np.einsum("rd,rd->r", rows, rows).max(initial=0) * (query @ query)))
        return products - longest * max(SURPLUS[0], SURPLUS[1] * len(query))

    @property
    def single(self) -> bool:
        """Whether a query alone is answered sooner by the scan than by a run over the whole float32 matrix."""
        return isinstance(self._items, Quantised)

    @property
    def rest(self) -> NDArray[np.int64]:
        """The items behind the last whole block, which are candidates always."""
        return np.arange(len(self._matrix) // _UNIT * _UNIT, len(self._matrix))

    def _queries(self, vectors: NDArray[np.float32]) -> tuple[NDArray[Any], "list[_Bound | None]"]:
        """What the matrix is multiplied with, (dim, batch), and how far each one's products may be off, if any."""
        if isinstance(self._items, Quantised):
            queries, rounding, beside = self._items.queries(vectors, self._limit)
            longest = self._items.longest, self._longest_of_blocks
            return queries, [_Bound(*longest, *off) for off in zip(rounding.tolist(), beside.tolist(), strict=True)]
        return np.ascontiguousarray(vectors.T), [None] * len(vectors)

    def _maxima(self, queries: NDArray[Any], rows: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The largest product of every group and of every whole block of groups in the first `rows` items,
        (groups, batch) and (blocks, batch): float32, or int32 on a scale of each query's own.
        """
        # The large matrix on the left is read where it lies; on the right it would be packed anew in every run.
        batch, whole = queries.shape[1], rows // _UNIT * _UNIT
        step = max(1, min(self._cells // batch, _LARGEST_CHUNK) // _UNIT) * _UNIT
        groups = np.empty((whole // GROUP, batch), self._kind)
        blocks = np.empty((whole // _UNIT, batch), self._kind)
        for begin in range(0, whole, step):
            end = min(begin + step, whole)
            shape = np.array([(end - begin) // _UNIT, BLOCK, GROUP, batch], np.int64)
            feeds = {"queries": queries, "items": self._matrix[begin:end], "shape": shape}
            of_groups, of_blocks = self._session.run(["groups", "blocks"], feeds)
            groups[begin // GROUP : end // GROUP] = of_groups.reshape(-1, batch)
            blocks[begin // _UNIT : end // _UNIT] = of_blocks
        return groups, blocks

    def _finest(self) -> int:
        """The largest number of a query that this machine multiplies with bytes and does not cut."""
        most = np.full((_UNIT, self._matrix.shape[1]), 255, self._matrix.dtype)
        queries = np.full((most.shape[1], 1), _QUERY_LIMIT, np.int8 if self.single else np.float32)
        feeds = {"items": most, "queries": queries, "shape": np.array([1, BLOCK, GROUP, 1], np.int64)}
        (products,) = self._session.run(["groups"], feeds)
        return _QUERY_LIMIT if (products == 255 * _QUERY_LIMIT * most.shape[1]).all() else _SATURATING_LIMIT

    def _quickest(self, sizes: Sequence[int]) -> int:
        """The size of a chunk, in scores, that takes a part of the catalogue the least time."""
        rows, batch, rounds = _TRIED
        queries, _ = self._queries(np.zeros((batch, self._matrix.shape[1]), np.float32))
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(1 + rounds):  # the first reads the file
            for size, taken in times.items():
                self._cells = size
                began = time.perf_counter()
                self._maxima(queries, min(len(self._matrix), rows))
                taken.append(time.perf_counter() - began)
        return min(sizes, key=lambda size: min(times[size][1:]))


@dataclass(frozen=True, slots=True)
class _Bound:
    """How far the maxima of groups and blocks may be from what they stand for, for one query."""

    groups: NDArray[np.float64]  # the longest row of each
    blocks: NDArray[np.float64]
    rounding: float
    beside: float

    def of_blocks(self) -> NDArray[np.float64]:
        """Of every block: (blocks,)."""
        return self.blocks * self.rounding + self.beside

    def of_groups(self, members: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of these groups: (members,)."""
        return self.groups[members] * self.rounding + self.beside


def _best(
    maxima: NDArray[Any], impure: NDArray[np.bool_], wanted: int, off: NDArray[np.float64] | None
) -> NDArray[np.int64]:
    """Places of the `wanted` largest maxima that are not impure, ties in their order, and of impure ones above; sorted.

    off: how far each may be from the truth, by which all that could be among them come along. All of them where fewer
    are not impure.
    """
    wanted = min(wanted, len(maxima))
    if wanted == 0:
        return np.empty(0, np.int64)
    lowest = maxima if off is None else maxima - off  # float64, which holds every int32
    pure = np.where(impure, lowest.dtype.type(-np.inf), lowest)
    least = np.partition(pure, len(pure) - wanted)[len(pure) - wanted]
    if off is not None:
        return np.flatnonzero(~(maxima + off < least))  # so written, what is off by no number comes along
    found = np.flatnonzero(maxima >= least)
    if len(found) == wanted:
        return found
    surplus = int(impure.sum())
    if len(found) <= wanted + surplus:
        return found
    # So many share the least maximum that their order decides. Among the first of them are enough that are pure.
    above = maxima[found] > least
    ties = wanted - int((pure > least).sum()) + surplus
    return np.sort(np.concatenate([found[above], found[~above][:ties]]))
