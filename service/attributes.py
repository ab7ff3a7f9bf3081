"""What is known about the items of a bundle, arranged for filters and changed item by item while it serves.

A column is arranged when a filter first names it: titles, which no filter names, then cost nothing. Its entries lie in
flat arrays, one for each value of each item, so that a comparison is one pass over them and a list of genres is no
special case.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.sequence import PADDING
from service.errors import shorten
from service.filters import Mask, Order, UnknownAttribute, Value

_COMPARE: dict[Order, Callable[[NDArray[np.float64], float], Mask]] = {
    "lt": np.less,
    "lte": np.less_equal,
    "gt": np.greater,
    "gte": np.greater_equal,
}
_LISTED = 20  # names in a message
_SPARE = 1000  # words beyond the entries of a column, before it forgets those that are gone
_NOBODY = -1  # the code of a word that no item has


@dataclass(frozen=True, slots=True)
class ItemState:
    """What became known of an item after the bundle was made.

    attributes (None: those of the bundle) and availability were put; contexts, of an item that no model knew, are the
    ids of the known items that its users met just before it, for each of its first events.
    """

    attributes: Mapping[str, Any] | None = None
    available: bool = True
    contexts: tuple[tuple[str, ...], ...] = ()


AS_IN_BUNDLE = ItemState()


class ItemAttributes:
    """Attributes by item row. Safe for threads: a change waits for the filter that is being evaluated.

    columns: as in a bundle, a value, a list of them or None for each of `rows` rows; row 0 is padding. elsewhere: tells
    whether items that are not here have an attribute of a name, which a filter may name then too.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]] | None,
        rows: int,
        *,
        elsewhere: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.rows = rows
        self._elsewhere = elsewhere
        self._base = columns or {}
        self._changed: dict[int, Mapping[str, Any]] = {}  # rows with attributes of their own instead of the bundle's
        self._named: Counter[str] = Counter()  # how many of these have an attribute of a name
        self._columns: dict[str, _Column] = {}
        self._lock = threading.Lock()

    def of(self, row: int) -> dict[str, Any]:
        """An item's attributes, without those that are None."""
        if row in self._changed:
            return dict(self._changed[row])
        return {name: column[row] for name, column in self._base.items() if column[row] is not None}

    def change(self, changes: Mapping[int, Mapping[str, Any] | None]) -> None:
        """Give items other attributes, or with None those of the bundle again."""
        with self._lock:
            for row, attributes in changes.items():
                self._named.subtract(self._changed.pop(row, {}).keys())
                if attributes is not None:
                    self._changed[row] = attributes
                    self._named.update(attributes.keys())
            self._named = +self._named  # without those that none has any more
            for name, column in self._columns.items():
                column.replace({row: self.of(row).get(name) for row in changes})

    def among(self, name: str, values: tuple[Value, ...]) -> Mask:
        """See filters.Attributes."""
        with self._lock:
            return self._column(name).among(values)

    def compared(self, name: str, order: Order, bound: float) -> Mask:
        """See filters.Attributes."""
        with self._lock:
            return self._column(name).compared(order, bound)

    def _column(self, name: str) -> "_Column":
        if not (name in self._base or self._named[name] or self._elsewhere(name)):
            listed = ", ".join(sorted({*self._base, *+self._named})[:_LISTED]) or "none"
            raise UnknownAttribute(f"no item has an attribute {shorten(name)}; there are {listed}")
        if name not in self._columns:
            base = self._base.get(name, [None] * self.rows)
            values = [(row, value) for row, value in enumerate(base) if row not in self._changed]
            values += [(row, attributes.get(name)) for row, attributes in self._changed.items()]
            self._columns[name] = _Column(self.rows, values)
        return self._columns[name]


class _Column:
    """Values of one attribute: entry i belongs to item `owners[i]` and is the number `numbers[i]`, or NaN and the word
    with the code `codes[i]`."""

    def __init__(self, rows: int, values: Iterable[tuple[int, Any]]) -> None:
        self._rows = rows
        self._code_of: dict[tuple[type, Value], int] = {}  # with the type, because True == 1
        self._next = 0  # code
        self._owners, self._codes, self._numbers = self._entries(values)

    def among(self, values: tuple[Value, ...]) -> Mask:
        numbers = [value for value in values if isinstance(value, float)]
        words = [self._code_of.get((type(value), value), _NOBODY) for value in values if not isinstance(value, float)]
        found = np.isin(self._codes, [code for code in words if code != _NOBODY])
        return self._mask(found | np.isin(self._numbers, numbers) if numbers else found)

    def compared(self, order: Order, bound: float) -> Mask:
        return self._mask(_COMPARE[order](self._numbers, bound))  # never of NaN

    def replace(self, values: Mapping[int, Any]) -> None:
        kept = ~np.isin(self._owners, list(values))
        owners, codes, numbers = self._entries(values.items())
        self._owners = np.concatenate([self._owners[kept], owners])
        self._codes = np.concatenate([self._codes[kept], codes])
        self._numbers = np.concatenate([self._numbers[kept], numbers])
        if len(self._code_of) > 2 * len(self._codes) + _SPARE:  # words that no item has any more
            used = set(self._codes.tolist())
            self._code_of = {word: code for word, code in self._code_of.items() if code in used}

    def _mask(self, entries: Mask) -> Mask:
        mask = np.zeros(self._rows, np.bool_)
        mask[self._owners[entries]] = True
        mask[PADDING] = False
        return mask

    def _entries(
        self, values: Iterable[tuple[int, Any]]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
        owners, codes, numbers = [], [], []
        for row, value in values:
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, bool | str):
                    code = self._code_of.setdefault((type(one), one), self._next)
                    self._next += code == self._next
                    codes.append(code)
                    numbers.append(np.nan)
                elif isinstance(one, int | float):
                    codes.append(_NOBODY)
                    numbers.append(float(one))
                else:  # None, or something nested, which no filter can name
                    continue
                owners.append(row)
        return np.array(owners, np.int32), np.array(codes, np.int32), np.array(numbers, np.float64)
