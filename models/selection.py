"""Some of a catalogue's items, to be ranked as if there were no others.

Their rows are gathered into a matrix of their own, so that the same ranker graph finds the best among them, exactly,
for the price of that many items; k is filled whenever so many are eligible. Where nearly all are chosen, or half of a
catalogue that is scanned, the others are excluded instead and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.sequence import PADDING, Indices
from models.subset import Subset

_FEW = 500  # items left out that are cheaper to exclude from every query than to gather the rest


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Chosen items with their vectors; or in `left_out`, int64, the only ones that are not chosen."""

    subset: Subset
    left_out: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, mask: NDArray[np.bool_], items: NDArray[np.float32], *, scanned: bool = False) -> Selection:
        """The items where mask (rows,) is True; items float32 (rows, dim) is what they are gathered from.

        scanned: whether the catalogue has a scan, which passes over any number of items that are left out.
        """
        rows, others = np.flatnonzero(mask[1:]) + 1, np.flatnonzero(~mask[1:]) + 1
        if len(others) <= (len(rows) if scanned else min(_FEW, len(rows))):
            return cls(Subset(np.concatenate(([PADDING], rows))), others)
        return cls.gathered(rows, items)

    @classmethod
    def gathered(cls, rows: NDArray[np.int64], items: NDArray[np.float32]) -> Selection:
        """The items of these rows, which ascend."""
        rows = np.concatenate(([PADDING], rows))
        return cls(Subset(rows, items[rows]))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of the chosen items, int64 ascending, without padding."""
        return self.subset.rows[1:]

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        matrix = self.subset.matrix
        return sum(part.nbytes for part in (self.subset.rows, matrix, self.left_out) if part is not None)

    def holds(self, items: Indices) -> NDArray[np.bool_]:
        """Which of some items are chosen."""
        found: NDArray[np.bool_] = self.subset.places(items) != PADDING
        return found
