"""What the items of a history have beside them: a sparse matrix that is added to a model's scores.

A model generalises and item-kNN remembers; their sum ranks better than either. The rows of the matrix are cut to one
width, so that a query gathers its neighbours without a loop and processes share the mapped files. The older an item
of the history, the less it counts and the fewer of its neighbours are asked: a seventh of the work, as good a ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.sequence import Indices

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

    @property
    def width(self) -> int:
        """Neighbours an item keeps at most."""
        return int(self.items.shape[1])

    def bonus(self, sequences: Sequence[Indices]) -> NDArray[np.float32]:
        """What every item's score gains from each history, oldest first: float32 (batch, rows).

        The ranker graph computes the same without a dense matrix; this is for evaluation, and what it is tested by.
        """
        ages, ranks = asked(self.width)
        newest = recent(sequences)[:, ages]  # (batch, asked)
        rows = len(self.items)
        cells = self.items[newest, ranks] + rows * np.arange(len(newest))[:, None]
        gains = self.affinities[newest, ranks] * weights(ages)
        total = np.bincount(cells.ravel(), gains.ravel(), minlength=rows * len(newest))
        return total.reshape(len(newest), rows).astype(np.float32)


def asked(width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which neighbours speak, as pairs of age (0: the newest item) and rank (0: its strongest), both int64 (asked,).

    All `width` of the newest item, and of each older one DECAY squared times as many, at least 1: what its weaker
    neighbours would gain is lost among those of newer items.
    """
    counts = np.maximum(1, np.round(width * DECAY ** (2 * np.arange(RECENT)))).astype(np.int64)
    ages = np.repeat(np.arange(RECENT), counts)
    return ages, np.arange(len(ages)) - np.repeat(np.cumsum(counts) - counts, counts)


def weights(ages: NDArray[np.int64]) -> NDArray[np.float32]:
    """How much items of these ages count: float32, shaped as `ages`."""
    return (DECAY**ages).astype(np.float32)


def recent(sequences: Sequence[Indices]) -> NDArray[np.int64]:
    """The newest RECENT items of each history, newest first, padded with 0: int64 (batch, RECENT)."""
    matrix = np.zeros((len(sequences), RECENT), np.int64)
    for row, sequence in zip(matrix, sequences, strict=True):  # a few microseconds less than padding for one query
        newest = sequence[: -RECENT - 1 : -1]
        row[: len(newest)] = newest
    return matrix
