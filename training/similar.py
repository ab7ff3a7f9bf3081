"""Which items a model takes for alike: a look at what it has learned that needs no figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Similar:
    """An item and its nearest neighbours, closest first, as rows of the item matrix, with their cosines."""

    item: int
    neighbours: tuple[int, ...]
    cosines: tuple[float, ...]


def similar_items(matrix: NDArray[np.float32], items: Sequence[int], *, count: int = 3) -> list[Similar]:
    """The `count` nearest by cosine of each item: matrix (rows, dim), row 0 padding, which is near to nothing."""
    lengths = np.linalg.norm(matrix, axis=1)
    directions = matrix / np.where(lengths > 0, lengths, 1.0)[:, None]
    found = []
    for item in items:
        cosines = directions @ directions[item]
        cosines[[0, item]] = -np.inf
        nearest = np.argsort(-cosines, kind="stable")[: min(count, len(matrix) - 2)]
        found.append(Similar(item, tuple(nearest.tolist()), tuple(cosines[nearest].tolist())))
    return found


def well_known(popularity: NDArray[np.float32], *, count: int = 10) -> list[int]:
    """Rows of the items with the most interactions, ties in item order: popularity (rows,)."""
    return (np.argsort(-popularity[1:], kind="stable")[:count] + 1).tolist()  # type: ignore[no-any-return]
