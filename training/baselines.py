"""What a model must beat: popularity, co-visitation and sequential item-kNN, each fitted in seconds.

Each is a Scorer: histories in, scores of the whole catalogue out.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from models.neighbours import DECAY, RECENT
from training.dataset import Sequences, popularity_of
from training.evaluate import Scorer

Weight = Callable[[int], float]

_REACH = 5  # positions within which two items belong together
_SHRINKAGE = 10.0  # added to popularity, so that rare items do not win by chance


def baselines(train: Sequences, items: int) -> dict[str, Scorer]:
    """The fitted baselines by name."""
    return {
        "popularity": Popularity(train, items),
        "co-visitation": CoVisitation(train, items),
        "item-kNN": ItemKNN(train, items),
    }


class Popularity:
    """The same ranking for everybody: how often each item was interacted with."""

    def __init__(self, train: Sequences, items: int) -> None:
        self._scores = popularity_of(train, items)

    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        return np.tile(self._scores, (len(histories), 1))


class CoVisitation:
    """How often each item stood within five positions of the user's newest one, either side, in anyone's history."""

    def __init__(self, train: Sequences, items: int) -> None:
        self._matrix = _neighbours(train, items, _REACH, lambda gap: 1.0, lambda gap: 1.0)

    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        newest = recent(histories, self._matrix.shape[0], count=1)
        return np.asarray((newest @ self._matrix).todense(), np.float32)


class ItemKNN:
    """Sequential item-kNN: neighbours weighted by closeness and direction, popularity discounted on both sides.

    C[i, j] sums 1/gap over train pairs where j follows i and 0.5/gap where it precedes, within five positions,
    divided by sqrt(popularity_j + 10). A user's score sums 0.8^n / sqrt(popularity_i + 10) * C[i, j] over the newest
    twenty items i, n = 0 for the newest. `matrix` is C with both discounts, sparse (items + 1, items + 1).
    """

    def __init__(
        self,
        train: Sequences,
        items: int,
        *,
        reach: int = _REACH,
        forward: Weight = lambda gap: 1 / gap,
        backward: Weight = lambda gap: 0.5 / gap,
    ) -> None:
        """reach, forward, backward: other positions and weights of their gaps than above."""
        discount = 1 / np.sqrt(popularity_of(train, items) + _SHRINKAGE)
        pairs = _neighbours(train, items, reach, forward, backward)
        self.matrix = (sparse.diags_array(discount) @ pairs @ sparse.diags_array(discount)).tocsr()

    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        weights = recent(histories, self.matrix.shape[0], count=RECENT, decay=DECAY)
        return np.asarray((weights @ self.matrix).todense(), np.float32)


def recent(histories: Sequences, rows: int, *, count: int, decay: float = 1.0) -> sparse.csr_array:
    """Each user's newest `count` items weighted decay^n, n = 0 for the newest: sparse (users, rows)."""
    lengths = np.minimum(histories.lengths, count)
    owner = np.repeat(np.arange(len(histories)), lengths)
    back = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # 0 for the newest
    items = histories.items[histories.ends[owner] - 1 - back]
    return sparse.coo_array((decay**back, (owner, items)), shape=(len(histories), rows)).tocsr()


def _neighbours(train: Sequences, items: int, reach: int, forward: Weight, backward: Weight) -> sparse.csr_array:
    compact = train.compact()
    owner = compact.owners
    total = sparse.csr_array((items + 1, items + 1), dtype=np.float64)
    for gap in range(1, reach + 1):
        same = owner[:-gap] == owner[gap:]
        earlier, later = compact.items[:-gap][same], compact.items[gap:][same]
        pairs = sparse.coo_array((np.ones(len(earlier)), (earlier, later)), shape=total.shape).tocsr()
        total = total + forward(gap) * pairs + backward(gap) * pairs.T
    return total.tocsr()
