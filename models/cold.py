"""Vectors for items that a model was not trained on, from what their attributes say.

An item is placed where the items lie that have something in common with it: each of its attribute values stands for
the mean vector of the known items that have it, and the more telling a value is, the more it counts. In that mean an
item weighs the square root of its interactions: the full softmax pushes rare items to one side, all of them, and a mean
that they dominate says that an item is rare rather than what it is about. `python -m training cold` measures it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.sequence import PADDING

LEAST = 2  # known items that must have a value: what a single one has is not shared
MOST = 0.9  # share of them beyond which a value tells nothing
_CHUNK = 1 << 16  # rows gathered at once

Value = tuple[bool, Any]  # whether it is a boolean, since True == 1, and the value
_Owners = dict[Value, NDArray[np.int32]]


class AttributeCentroids:
    """Places items by their attributes among those with vectors, items float32 (rows, dim), row 0 padding.

    columns: as in a bundle, a value, a list of them or None for each row; popularity (rows,): interactions of each.
    norm: the length that vectors are brought to, or None to leave them as long as their means are. A column is arranged
    when an item first has something in it, and a mean is taken when it is first wanted; titles, which are nobody
    else's, cost nothing. Not safe for threads.
    """

    def __init__(
        self,
        items: NDArray[np.float32],
        columns: Mapping[str, Sequence[Any]],
        popularity: NDArray[np.float32],
        *,
        norm: float | None,
    ) -> None:
        self._items = items
        self._weights = np.sqrt(popularity)
        self._columns = columns
        self._norm = norm
        self._owners: dict[str, _Owners] = {}
        self._means: dict[tuple[str, Value], NDArray[np.float64]] = {}

    def vector(self, attributes: Mapping[str, Any]) -> NDArray[np.float32] | None:
        """Where an item with these attributes belongs: float32 (dim,), or None if they tell nothing.

        A value weighs log(items / items that have it), the information in it.
        """
        known = len(self._items) - 1
        total, weights = np.zeros(self._items.shape[1]), 0.0
        for name, entry in attributes.items():
            for value in dict.fromkeys(_each(entry)):
                owners = self._column(name).get(value)
                if owners is not None and self._weights[owners].any():
                    weight = float(np.log(known / len(owners)))
                    total += weight * self._mean(name, value, owners)
                    weights += weight
        length = float(np.linalg.norm(total))
        if not (weights > 0 and length > 0):
            return None
        return (total / weights if self._norm is None else total * (self._norm / length)).astype(np.float32)

    def _column(self, name: str) -> _Owners:
        if name not in self._owners:
            self._owners[name] = _owners(self._columns.get(name, ()), MOST * (len(self._items) - 1))
        return self._owners[name]

    def _mean(self, name: str, value: Value, owners: NDArray[np.int32]) -> NDArray[np.float64]:
        key = name, value
        if key not in self._means:
            total = np.zeros(self._items.shape[1])
            for begin in range(0, len(owners), _CHUNK):
                some = owners[begin : begin + _CHUNK]
                total += self._weights[some] @ self._items[some]
            self._means[key] = total / self._weights[owners].sum(dtype=np.float64)
        return self._means[key]


def typical_norm(items: NDArray[np.float32]) -> float:
    """The median length of the vectors of items, (rows, dim): a new item is to be neither favoured nor buried by it."""
    rows = np.arange(1, len(items))
    if len(rows) > _CHUNK:  # spread evenly: enough to know a median by
        rows = np.linspace(1, len(items) - 1, _CHUNK).astype(np.int64)
    return float(np.median(np.linalg.norm(items[rows], axis=1)))


def _owners(column: Sequence[Any], most: float) -> _Owners:
    """Rows of the items that have each telling value of a column, ascending."""
    counts: Counter[Value] = Counter()
    for entry in column:
        counts.update(set(_each(entry)))
    found: dict[Value, list[int]] = {value: [] for value, count in counts.items() if LEAST <= count <= most}
    for row, entry in enumerate(column):
        for value in set(_each(entry)):
            if row != PADDING and value in found:
                found[value].append(row)
    return {value: np.array(rows, np.int32) for value, rows in found.items()}


def _each(entry: object) -> Iterator[Value]:
    """The values in an entry that can be shared: text, booleans, and numbers without a fraction."""
    for value in entry if isinstance(entry, list) else (entry,):
        if isinstance(value, bool | str) or (isinstance(value, int | float) and float(value).is_integer()):
            yield isinstance(value, bool), value
