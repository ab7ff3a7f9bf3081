"""A part of a bundle's catalogue in the shape that the ranker takes: fewer rows, the same answer among them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.neighbours import Neighbours, recent
from models.sequence import PADDING, Indices


@dataclass(frozen=True, slots=True)
class Subset:
    """Some items: rows int64 ascending, PADDING the first, so that ties stay in item order.

    matrix float32 (rows, dim) has their vectors, where they were gathered to be used more than once.
    """

    rows: NDArray[np.int64]
    matrix: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, items: Sequence[NDArray[np.int64]], rows: int, without: NDArray[np.int64] | None = None) -> "Subset":
        """Every item that occurs in any of the arrays and not in `without`, of a catalogue with so many rows."""
        chosen = np.zeros(rows, np.bool_)
        for some in items:
            chosen[some] = True
        if without is not None:
            chosen[without] = False
        chosen[PADDING] = True
        return cls(np.flatnonzero(chosen))  # a tenth of the time of sorting

    def places(self, items: NDArray[np.integer]) -> NDArray[np.int64]:
        """Where items are among the rows; PADDING's place for those that are not, any shape."""
        found = np.minimum(np.searchsorted(self.rows, items), len(self.rows) - 1)
        return np.where(self.rows[found] == items, found, PADDING)

    def gathered(self, items: NDArray[np.float32]) -> NDArray[np.float32]:
        """Their vectors, of the whole catalogue's (any, dim)."""
        return items[self.rows] if self.matrix is None else self.matrix

    def beside(self, neighbours: Neighbours, sequences: Sequence[Indices]) -> dict[str, NDArray[np.generic]]:
        """The ranker's inputs `recent`, `neighbours` and `affinities` for these histories and this subset.

        A neighbour that is not among the rows counts for padding, which is excluded.
        """
        newest = recent(sequences)
        speakers, numbers = np.unique(newest, return_inverse=True)
        return {
            "recent": numbers.reshape(newest.shape).astype(np.int64),
            "neighbours": self.places(neighbours.items[speakers]).astype(np.int32).reshape(-1),
            "affinities": neighbours.affinities[speakers].reshape(-1),
        }


def spoken_for(neighbours: Neighbours, sequences: Sequence[Indices]) -> NDArray[np.int64]:
    """Items whose scores any of these histories raises by their neighbours."""
    return np.unique(neighbours.items[np.unique(recent(sequences))]).astype(np.int64)
