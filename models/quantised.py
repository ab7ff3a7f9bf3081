"""An item matrix in a byte a number, and how far a score made of it may be from the item's own.

Data alone, which bundles hold and training writes; models.scan finds the best items by it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = 16  # items whose maximum a scan keeps; neighbours, so that ties stay in item order
SURPLUS = 1e-5, 2.0**-23  # of a score's size, and for each column of it: what float32 may lose in adding it up
_ROWS_AT_ONCE = 1 << 17
_MEASURED = 1 << 23  # numbers of a matrix that are measured at once
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
        for begin in range(0, len(items), _ROWS_AT_ONCE):  # no second float matrix
            rows = slice(begin, begin + _ROWS_AT_ONCE)
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
        surplus = max(SURPLUS[0], SURPLUS[1] * vectors.shape[1])
        with np.errstate(invalid="ignore"):  # nothing times endlessly far is no number
            beside = norm * (self.furthest + surplus * (self.longest.max(initial=0) + self.furthest)) + 1
        # So close to nothing float32 keeps no digits: the query says which items are best, and its levels do not.
        beside[(largest[:, 0] > 0) & (largest[:, 0] < np.finfo(np.float32).tiny)] = np.inf
        return np.ascontiguousarray(levels.T.astype(np.int8)), rounding, beside
