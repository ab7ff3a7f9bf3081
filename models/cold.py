"""Vectors for items that a model was not trained on, from their attributes and from the items met just before them.

By attributes an item is placed where the items lie that have something in common with it: each of its values stands for
the mean vector of the known items that have it, and the more telling a value is, the more it counts. In that mean an
item weighs the square root of its interactions: the full softmax pushes rare items to one side, all of them, and a mean
that they dominate says that an item is rare rather than what it is about. Where the model has learned vectors of
attributes themselves, as S3Rec's items do that share them, the mean of the item's own stands beside that and counts as
much: the one says where such items have ended up, the other what they have in common.

By events it is placed where the known items lie that its users met just before it, its contexts. There the popular
weigh less, since they are met before anything. The more contexts there are, the less attributes count.
`python -m training cold` measures both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.sequence import PADDING

CONTEXT = 3  # known items before an event that say what it is about; with 5 or more hidden films were found less often
FULL = 20  # contexts kept of an item: with more of them it gains little, and a training comes sooner or later
FEW = 3  # contexts that place an item without attributes: one or two may be chance, or a slip
_PRIOR = 5.0  # contexts that attributes count for

LEAST = 2  # known items that must have a value: what a single one has is not shared
MOST = 0.9  # share of them beyond which a value tells nothing
_CHUNK = 1 << 16  # rows gathered at once

Key = str | float | tuple[bool]  # a value, a boolean in a tuple


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """Vectors that a model learned of attributes: names (attributes,), a column and a value as text each, and vectors
    float32 (attributes, dim)."""

    names: Sequence[tuple[str, str]]
    vectors: NDArray[np.float32]


class Placing:
    """Places new items among those with vectors, items float32 (rows, dim), row 0 padding.

    columns: as in a bundle, a value, a list of them or None for each row; popularity (rows,): interactions of each.
    norm: the length that vectors are brought to, or None to leave them as long as their means are; learned: what the
    model knows of attributes by themselves. A column is arranged when an item first has something in it, and a mean is
    taken when it is first wanted; titles, which are nobody else's, cost nothing. Not safe for threads.
    """

    def __init__(
        self,
        items: NDArray[np.float32],
        columns: Mapping[str, Sequence[Any]],
        popularity: NDArray[np.float32],
        *,
        norm: float | None,
        learned: Learned | None = None,
    ) -> None:
        self._items = items
        self._weights = np.sqrt(popularity)
        self._columns = columns
        self._norm = norm
        self._arranged: dict[str, _Column] = {}
        self._means: dict[tuple[str, Key], NDArray[np.float64]] = {}
        self._learned = learned
        self._learned_at = {} if learned is None else {name: row for row, name in enumerate(learned.names)}

    def vector(
        self, attributes: Mapping[str, Any] | None, contexts: Sequence[Sequence[int]] = ()
    ) -> NDArray[np.float32] | None:
        """Where an item belongs: float32 (dim,), or None if too little is known of it.

        contexts: for each of its events the rows of the known items met just before, at most CONTEXT of them.
        """
        told = _sum(self._by_attributes(attributes or {}), self._by_learned(attributes or {}))
        contexts = [context for context in contexts if len(context)]
        found = told
        if contexts and (told is not None or len(contexts) >= FEW):
            about = self._scaled(np.mean([self._about(context) for context in contexts], axis=0))
            if about is not None and told is not None:
                share = len(contexts) / (len(contexts) + _PRIOR)
                found = share * about + (1 - share) * told
            elif about is not None:
                found = about
        found = None if found is None else self._scaled(found)
        return None if found is None else found.astype(np.float32)

    def _by_attributes(self, attributes: Mapping[str, Any]) -> NDArray[np.float64] | None:
        """A value weighs log(items / items that have it), the information in it."""
        known = len(self._items) - 1
        total, weights = np.zeros(self._items.shape[1]), 0.0
        for name, entry in attributes.items():
            if name not in self._columns:  # nor is anything kept of it: names are whatever anybody puts
                continue
            for key in keys_of(entry):
                owners = self._column(name).owners(key)
                if owners is not None and self._weights[owners].any():
                    weight = float(np.log(known / len(owners)))
                    total += weight * self._mean((name, key), owners)
                    weights += weight
        return self._scaled(total / weights) if weights > 0 else None

    def _by_learned(self, attributes: Mapping[str, Any]) -> NDArray[np.float64] | None:
        """The mean of the vectors that were learned of the item's own attributes, as an item was made of them."""
        if self._learned is None:
            return None
        names = ((name, text_of(key)) for name, entry in attributes.items() for key in keys_of(entry))
        rows = [self._learned_at[name] for name in names if name in self._learned_at]
        return self._scaled(self._learned.vectors[rows].mean(axis=0, dtype=np.float64)) if rows else None

    def _about(self, context: Sequence[int]) -> NDArray[np.float64]:
        """The mean of a context's items."""
        rows = np.asarray(context)
        weights = 1 / np.maximum(self._weights[rows], 1).astype(np.float64)
        mean: NDArray[np.float64] = weights @ self._items[rows] / weights.sum()
        return mean

    def _scaled(self, vector: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """At the length that was asked for; None where it has no direction."""
        length = float(np.linalg.norm(vector))
        if not length > 0:
            return None
        return vector if self._norm is None else vector * (self._norm / length)

    def _column(self, name: str) -> "_Column":
        if name not in self._arranged:
            self._arranged[name] = _Column(self._columns[name], MOST * (len(self._items) - 1))
        return self._arranged[name]

    def _mean(self, key: tuple[str, Key], owners: NDArray[np.int32]) -> NDArray[np.float64]:
        if key not in self._means:
            total = np.zeros(self._items.shape[1])
            for begin in range(0, len(owners), _CHUNK):
                some = owners[begin : begin + _CHUNK]
                total += self._weights[some] @ self._items[some]
            self._means[key] = total / self._weights[owners].sum(dtype=np.float64)
        return self._means[key]


def _sum(one: NDArray[np.float64] | None, two: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    if one is None or two is None:
        return two if one is None else one
    return one + two


def text_of(value: object) -> str:
    """A value, or its key, as training names it: 1995.0 as 1995, which it is where a column has gaps."""
    value = value[0] if isinstance(value, tuple) else value
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def typical_norm(items: NDArray[np.float32]) -> float:
    """The median length of the vectors of items, (rows, dim): a new item is to be neither favoured nor buried by it."""
    rows = np.arange(1, len(items))
    if len(rows) > _CHUNK:  # spread evenly: enough to know a median by
        rows = np.linspace(1, len(items) - 1, _CHUNK).astype(np.int64)
    return float(np.median(np.linalg.norm(items[rows], axis=1)))


class _Column:
    """Which items have each telling value of a column; in flat arrays, so that a million items take a second or two."""

    def __init__(self, entries: Sequence[Any], most: float) -> None:
        code_of: dict[Key, int] = {}
        codes: list[int] = []
        owners: list[int] = []
        for row, entry in enumerate(entries):
            if row == PADDING or entry is None:
                continue
            for key in keys_of(entry):
                codes.append(code_of.setdefault(key, len(code_of)))
                owners.append(row)
        numbers, rows = np.array(codes, np.int64), np.array(owners, np.int32)
        counts = np.bincount(numbers, minlength=len(code_of))
        telling = (counts >= LEAST) & (counts <= most)
        kept = telling[numbers]
        # Value number n belongs to the items self._rows[self._starts[n]:self._starts[n + 1]].
        self._rows = rows[kept][np.argsort(numbers[kept], kind="stable")]
        self._starts = np.concatenate(([0], np.cumsum(counts[telling])))
        place = np.cumsum(telling) - 1
        self._number_of = {key: int(place[code]) for key, code in code_of.items() if telling[code]}

    def owners(self, key: Key) -> NDArray[np.int32] | None:
        """Rows of the items that have a value, ascending; None if it tells nothing."""
        number = self._number_of.get(key)
        return None if number is None else self._rows[self._starts[number] : self._starts[number + 1]]


def keys_of(entry: object) -> list[Key]:
    """The values in an entry that can be shared: text, numbers without a fraction, and booleans, each once.

    A boolean is a tuple of itself, since True == 1.
    """
    if isinstance(entry, str):  # most entries are
        return [entry]
    found: list[Key] = []
    for value in entry if isinstance(entry, list) else (entry,):
        if isinstance(value, bool):
            found.append((value,))
        elif isinstance(value, str) or (isinstance(value, int | float) and float(value).is_integer()):
            found.append(value)
    return list(dict.fromkeys(found))
