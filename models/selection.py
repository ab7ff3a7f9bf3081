"""Some of a catalogue's items, to be ranked as if there were no others.

Their rows are gathered into a matrix of their own, so that the same ranker graph finds the best among them, exactly,
for the price of that many items; k is filled whenever so many are eligible. Where nearly all are chosen, the few others
are excluded instead and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.neighbours import Neighbours
from models.sequence import PADDING, Indices

_FEW = 500  # items left out that are cheaper to exclude from every query than to gather the rest


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Chosen item rows, int64 ascending, without padding; `left_out` is how it is said by exclusion, else None.

    matrix float32 (chosen + 1, dim) has their vectors, row 0 padding; None with `left_out`.
    """

    rows: NDArray[np.int64]
    matrix: NDArray[np.float32] | None
    left_out: NDArray[np.int64] | None

    @classmethod
    def of(cls, mask: NDArray[np.bool_], items: NDArray[np.float32]) -> Selection:
        """The items where mask (rows,) is True; items float32 (rows, dim) is what they are gathered from."""
        others = np.flatnonzero(~mask[1:]) + 1
        rows = np.flatnonzero(mask[1:]) + 1
        if len(others) <= min(_FEW, len(rows)):
            return cls(rows, None, others)
        return cls.gathered(rows, items)

    @classmethod
    def gathered(cls, rows: NDArray[np.int64], items: NDArray[np.float32]) -> Selection:
        """The items of these rows, which ascend."""
        return cls(rows, items[np.concatenate(([PADDING], rows))], None)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.rows.nbytes + (0 if self.matrix is None else self.matrix.nbytes)

    def holds(self, items: Indices) -> NDArray[np.bool_]:
        """Which of some items are chosen."""
        found: NDArray[np.bool_] = self.place(items) != PADDING
        return found

    def place(self, items: Indices) -> NDArray[np.int64]:
        """The row of each item in `matrix`, PADDING if it is not there."""
        if not len(self.rows):
            return np.full(items.shape, PADDING, np.int64)
        at = np.minimum(np.searchsorted(self.rows, items), len(self.rows) - 1)
        return np.where(self.rows[at] == items, at + 1, PADDING)

    def items_at(self, places: Indices) -> NDArray[np.int64]:
        """The items that lie in these rows of `matrix`: what `place` undoes."""
        return np.concatenate(([PADDING], self.rows))[places]

    def neighbours_of(self, recent: Indices, neighbours: Neighbours) -> tuple[NDArray[np.int64], Neighbours]:
        """Recent items (batch, any) renumbered, and their neighbours alone, those that are not chosen as padding."""
        known, renumbered = np.unique(recent, return_inverse=True)
        items = self.place(neighbours.items[known]).astype(np.int32)
        return renumbered.reshape(recent.shape), Neighbours(items, neighbours.affinities[known])
