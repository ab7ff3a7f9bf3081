"""What the items of a history have beside them: a sparse matrix that is added to a model's scores.

A model generalises and item-kNN remembers; their sum ranks better than either. The rows of the matrix are cut to one
width, so that a query gathers its rows without a loop and processes share the mapped files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.sequence import Indices, pad

RECENT = 20  # newest items of a history that speak
DECAY = 0.8  # weight of each over that of the next newer one


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The strongest neighbours of every item: items int32 (rows, width), affinities float32 (rows, width).

    An affinity is what a neighbour's score gains when the item is the newest of a history. A row with fewer
    neighbours is filled up with item 0, padding, at affinity 0; row 0 holds nothing else.
    """

    items: NDArray[np.int32]
    affinities: NDArray[np.float32]

    def bonus(self, sequences: Sequence[Indices]) -> NDArray[np.float32]:
        """What every item's score gains from each history, oldest first: float32 (batch, rows).

        The ranker graph computes the same without a dense matrix; this is for evaluation, and what it is tested by.
        """
        newest = recent(sequences)
        rows = len(self.items)
        cells = self.items[newest] + rows * np.arange(len(newest))[:, None, None]  # (batch, RECENT, width)
        gains = self.affinities[newest] * decay()[:, None]
        total = np.bincount(cells.ravel(), gains.ravel(), minlength=rows * len(newest))
        return total.reshape(len(newest), rows).astype(np.float32)


def recent(sequences: Sequence[Indices]) -> NDArray[np.int64]:
    """The newest RECENT items of each history, newest first, padded with 0: int64 (batch, RECENT)."""
    matrix, _ = pad([sequence[: -RECENT - 1 : -1] for sequence in sequences])
    return np.pad(matrix, ((0, 0), (0, RECENT - matrix.shape[1])))


def decay() -> NDArray[np.float32]:
    """Weight of each of the newest items, newest first: float32 (RECENT,)."""
    return (DECAY ** np.arange(RECENT)).astype(np.float32)
