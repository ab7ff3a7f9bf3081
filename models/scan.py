"""Which items can be among the best of a large catalogue, found without a list of all scores.

A matrix of scores over a million items costs more to write, search and read again than to compute. So the catalogue
is scored in chunks that stay in the processor's cache, and only the maximum of every GROUP neighbouring items is kept.
The k best items lie in the k groups with the largest maxima; a ranker that scores those groups alone gives the same
answer as over the whole catalogue. The groups are found in the same way, by the maxima of BLOCK groups each. What is
excluded is not masked: k groups that hold nothing excluded are looked for, and those with something excluded that rank
above the last of them come along.

Over int8 the maxima are approximate, so that more groups come along; which of their items are the best is decided by
the same exact ranker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.sequence import Indices

GROUP = 16  # items whose maximum is kept; neighbours, so that ties stay in item order
BLOCK = 32  # groups whose maximum is kept too
_UNIT = GROUP * BLOCK
_CELLS = 1 << 19  # scores of a chunk for each thread: 2 MB, written and read within the cache
_LARGEST_CHUNK = 1 << 17  # rows; a batch of one has no use for more
_QUERY_LIMIT = 63  # times 255, twice: what processors without VNNI add up in 16 bits without saturating
_ITEM_LIMIT = 127


@dataclass(frozen=True, slots=True)
class Quantised:
    """An item matrix in a byte a number: items uint8 (rows, dim), scales float32 (dim,).

    An item's value in a column is about `(items - 128) * scales`. The scales are of columns and not of items, so that
    the products of a query with all items compare as they come out.
    """

    items: NDArray[np.uint8]
    scales: NDArray[np.float32]

    @classmethod
    def of(cls, items: NDArray[np.float32]) -> "Quantised":
        """A matrix (rows, dim) rounded to 255 levels a column."""
        scales = np.maximum(np.abs(items).max(axis=0, initial=0), np.finfo(np.float32).tiny) / np.float32(_ITEM_LIMIT)
        levels = np.empty(items.shape, np.uint8)
        for begin in range(0, len(items), _LARGEST_CHUNK):  # no second float matrix
            rows = slice(begin, begin + _LARGEST_CHUNK)
            levels[rows] = np.rint(items[rows] / scales) + (_ITEM_LIMIT + 1)
        return cls(levels, scales.astype(np.float32))

    def queries(self, vectors: NDArray[np.float32]) -> NDArray[np.int8]:
        """Vectors (batch, dim) as the columns of an int8 matrix (dim, batch), each over its own largest value.

        What the items' offset adds is the same for every item of a query, so that it is left in.
        """
        scaled = vectors * self.scales
        largest = np.abs(scaled).max(axis=1, keepdims=True, initial=0)
        levels = np.rint(scaled * (_QUERY_LIMIT / np.where(largest > 0, largest, 1)))
        return np.ascontiguousarray(levels.T.astype(np.int8))


class Scan:
    """Group maxima by an onnxruntime session over a float32 or a quantised matrix. Thread-safe, as the session is."""

    def __init__(self, session: Any, items: NDArray[np.float32] | Quantised, *, threads: int) -> None:
        self._session = session
        self._items = items
        self._cells = _CELLS * threads
        self._rows = len(items.items if isinstance(items, Quantised) else items)

    @property
    def exact(self) -> bool:
        return not isinstance(self._items, Quantised)

    def candidates(self, vectors: NDArray[np.float32], excluded: Sequence[Indices], k: int) -> list[NDArray[np.int64]]:
        """Groups that hold the k best items of each row, ascending; group g is the items from g * GROUP on.

        vectors (batch, dim), excluded the items a row that do not count. The items of `rest` are in none of them.
        Where the scan is exact no other item can be among the k best, ties in item order; where not, k items that are
        not excluded are in them all the same, if there are so many.
        """
        groups, blocks = self._maxima(vectors)
        wanted = k if self.exact else k + k // 2 + 15
        marked = np.zeros(len(groups), np.bool_)
        found = []
        for row, out in enumerate(excluded):
            impure = out[out < len(groups) * GROUP] // GROUP
            marked[impure] = True
            blocked = np.zeros(len(blocks), np.bool_)
            blocked[impure // BLOCK] = True
            inside = _best(blocks[:, row], blocked, wanted)
            members = (inside[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)  # ascending, as `inside` is
            found.append(members[_best(groups[members, row], marked[members], wanted)])
            marked[impure] = False
        return found

    @property
    def rest(self) -> NDArray[np.int64]:
        """The items behind the last whole block, which are candidates always."""
        return np.arange(self._rows // _UNIT * _UNIT, self._rows)

    def _maxima(self, vectors: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The largest score of every group and of every whole block of groups, (groups, batch) and (blocks, batch).

        float32, or int32 on a scale of each row's own.
        """
        if isinstance(self._items, Quantised):
            matrix: NDArray[Any] = self._items.items
            queries: NDArray[Any] = self._items.queries(vectors)
        else:
            # The large matrix on the left is read where it lies; on the right it would be packed anew in every run.
            matrix, queries = self._items, np.ascontiguousarray(vectors.T)
        batch, whole = len(vectors), self._rows // _UNIT * _UNIT
        step = max(1, min(self._cells // batch, _LARGEST_CHUNK) // _UNIT) * _UNIT
        kind = np.float32 if self.exact else np.int32
        groups = np.empty((whole // GROUP, batch), kind)
        blocks = np.empty((whole // _UNIT, batch), kind)
        for begin in range(0, whole, step):
            end = min(begin + step, whole)
            shape = np.array([(end - begin) // _UNIT, BLOCK, GROUP, batch], np.int64)
            feeds = {"queries": queries, "items": matrix[begin:end], "shape": shape}
            of_groups, of_blocks = self._session.run(["groups", "blocks"], feeds)
            groups[begin // GROUP : end // GROUP] = of_groups.reshape(-1, batch)
            blocks[begin // _UNIT : end // _UNIT] = of_blocks
        return groups, blocks


def _best(maxima: NDArray[Any], impure: NDArray[np.bool_], wanted: int) -> NDArray[np.int64]:
    """Places of the `wanted` largest maxima that are not impure, ties in their order, and of impure ones above; sorted.

    All of them where fewer are not impure.
    """
    wanted = min(wanted, len(maxima))
    if wanted == 0:
        return np.empty(0, np.int64)
    pure = np.where(impure, -np.inf if maxima.dtype.kind == "f" else np.iinfo(maxima.dtype).min, maxima)
    pure = pure.astype(maxima.dtype, copy=False)
    least = np.partition(pure, len(pure) - wanted)[len(pure) - wanted]
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
