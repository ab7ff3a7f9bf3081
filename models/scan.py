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

from models.sequence import Indices

GROUP = 16  # items whose maximum is kept; neighbours, so that ties stay in item order
BLOCK = 32  # groups whose maximum is kept too
_UNIT = GROUP * BLOCK
_CELLS = (1 << 19, 1 << 21)  # scores of a chunk for each thread, 2 or 8 MB: which is quicker is the cache's to say
_LARGEST_CHUNK = 1 << 17  # rows; a batch of one has no use for more
_TRIED = 1 << 20, 32, 3  # rows, more than a cache holds, queries and rounds that they are tried with
_MOST = 8  # a query that a larger part of all groups than one in so many could answer is better ranked over everything
_LOOKED = 4  # groups for each item wanted, whose items are looked at one by one
_SURPLUS = 1e-5, 2.0**-23  # of a score's size, and for each column of it: what float32 may lose in adding it up
_MEASURED = 1 << 23  # numbers of a matrix that are measured at once
_QUERY_LIMIT = 127
_SATURATING_LIMIT = 63  # times 255, twice: what processors without VNNI add up in 16 bits and do not cut
_ITEM_LIMIT = 127


@dataclass(frozen=True, slots=True)
class Quantised:
    """An item matrix in a byte a number: items uint8 (rows, dim), scales float32 (dim,).

    An item's value in a column is about `(items - 128) * scales`. The scales are of columns and not of items, so that
    the products of a query with all items compare as they come out. longest float64 (groups,) and furthest, in scales:
    the norm of the longest row of each group, and of the largest difference between a row and the item it was rounded
    from.
    """

    items: NDArray[np.uint8]
    scales: NDArray[np.float32]
    longest: NDArray[np.float64]
    furthest: float

    @classmethod
    def of(cls, items: NDArray[np.float32]) -> "Quantised":
        """A matrix (rows, dim) rounded to 255 levels a column."""
        scales = np.maximum(np.abs(items).max(axis=0, initial=0), np.finfo(np.float32).tiny) / np.float32(_ITEM_LIMIT)
        levels = np.empty(items.shape, np.uint8)
        for begin in range(0, len(items), _LARGEST_CHUNK):  # no second float matrix
            rows = slice(begin, begin + _LARGEST_CHUNK)
            levels[rows] = np.rint(items[rows] / scales) + (_ITEM_LIMIT + 1)
        return cls.beside(items, levels, scales.astype(np.float32))

    @classmethod
    def beside(cls, items: NDArray[np.float32], levels: NDArray[np.uint8], scales: NDArray[np.float32]) -> "Quantised":
        """Levels and scales as they were stored, measured against the items, both matrices (rows, dim)."""
        norms, furthest = np.empty(len(items)), 0.0
        step = max(1, _MEASURED // items.shape[1])
        for begin in range(0, len(items), step):
            rows = slice(begin, begin + step)
            level = levels[rows].astype(np.float32) - np.float32(_ITEM_LIMIT + 1)
            norms[rows] = np.einsum("rd,rd->r", level, level)
            with np.errstate(over="ignore"):  # scales that are not of these items: endlessly far
                off = items[rows] / scales - level
                furthest = max(furthest, float(np.einsum("rd,rd->r", off, off).max(initial=0)))
        longest = np.sqrt(norms[: len(items) // GROUP * GROUP].reshape(-1, GROUP).max(axis=1, initial=0))
        return cls(levels, scales, longest, furthest**0.5)

    def queries(
        self, vectors: NDArray[np.float32], limit: int
    ) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
        """Vectors (batch, dim) as the columns of an int8 matrix (dim, batch), each with `limit` for its largest value;
        and, in units of their products, what rounding the query and the items costs: both (batch,).

        What the items' offset adds is the same for every item of a query, so that it is left in. A score is off by the
        query's rounding times a row of levels and by the query times the rounding of an item, neither more than the
        product of their norms: no more than the first figure times the norm of the row, and the second.
        """
        scaled = vectors * self.scales
        largest = np.abs(scaled).max(axis=1, keepdims=True, initial=0)
        scaled /= np.where(largest > 0, largest, 1) / limit
        levels = np.rint(scaled)
        norm, rounding = (np.linalg.norm(one, axis=1).astype(np.float64) for one in (scaled, scaled - levels))
        surplus = max(_SURPLUS[0], _SURPLUS[1] * vectors.shape[1])
        with np.errstate(invalid="ignore"):  # nothing times endlessly far is no number
            beside = norm * (self.furthest + surplus * (self.longest.max(initial=0) + self.furthest)) + 1
        # So close to nothing float32 keeps no digits: the query says which items are best, and its levels do not.
        beside[(largest[:, 0] > 0) & (largest[:, 0] < np.finfo(np.float32).tiny)] = np.inf
        return np.ascontiguousarray(levels.T.astype(np.int8)), rounding, beside


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
            for row, theirs in enumerate(excluded):
                before = counts[theirs]
                counts[theirs] = False
                maxima = groups[:, row], blocks[:, row]
                reaching.append(
                    self._reaching(queries[:, row], maxima, counts, k, None if bounds is None else bounds.of(row))
                )
                counts[theirs] = before
            return reaching
        marked = np.zeros(len(groups), np.bool_)
        found: list[NDArray[np.int64] | None] = []
        for row, theirs in enumerate(excluded):
            impure = theirs[theirs < len(groups) * GROUP] // GROUP
            marked[impure] = True
            blocked = np.zeros(len(blocks), np.bool_)
            blocked[impure // BLOCK] = True
            bound = None if bounds is None else bounds.of(row)
            off = None if bound is None else bound.of_blocks()
            inside = _best(blocks[:, row], blocked, k, off)
            members = (inside[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)  # ascending, as `inside` is
            off = None if bound is None else bound.of_groups(members)
            chosen = members[_best(groups[members, row], marked[members], k, off)]
            found.append(None if bounds is not None and len(chosen) * _MOST > len(groups) else chosen)
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
        return products - longest * max(_SURPLUS[0], _SURPLUS[1] * len(query))

    @property
    def single(self) -> bool:
        """Whether a query alone is answered sooner by the scan than by a run over the whole float32 matrix."""
        return isinstance(self._items, Quantised)

    @property
    def rest(self) -> NDArray[np.int64]:
        """The items behind the last whole block, which are candidates always."""
        return np.arange(len(self._matrix) // _UNIT * _UNIT, len(self._matrix))

    def _queries(self, vectors: NDArray[np.float32]) -> tuple[NDArray[Any], "_Bounds | None"]:
        """What the matrix is multiplied with, (dim, batch), and how far the products may be off, if they are."""
        if isinstance(self._items, Quantised):
            queries, rounding, beside = self._items.queries(vectors, self._limit)
            return queries, _Bounds(self._items.longest, self._longest_of_blocks, rounding, beside)
        return np.ascontiguousarray(vectors.T), None

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
class _Bounds:
    """How far the maxima of groups and blocks may be from what they stand for, for each query."""

    groups: NDArray[np.float64]  # the longest row of each
    blocks: NDArray[np.float64]
    rounding: NDArray[np.float64]
    beside: NDArray[np.float64]

    def of(self, row: int) -> "_Bound":
        """For one query."""
        return _Bound(self.groups, self.blocks, float(self.rounding[row]), float(self.beside[row]))


@dataclass(frozen=True, slots=True)
class _Bound:
    """The same for one query."""

    groups: NDArray[np.float64]
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
