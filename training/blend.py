"""A model mixed with item-kNN: which, how much of it, and how many neighbours an item keeps, all by validation alone.

It reaches further than the baseline and falls off more slowly; and where users go on and do not come back, what stood
before an item says little of what comes after. On Amazon Beauty validation chose what came after alone, on
MovieLens-100K half of what stood before with it (`backward` in the records of docs/results).

The two are simply added: a model's scores are logits, so that a neighbour's gain multiplies its odds, more for a user
with many related items than for one with few. On MovieLens-100K that ranked validation as well as or better than
dividing either part by its deviation or maximum for each user, and costs a query nothing.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from models.neighbours import DECAY, RECENT, Neighbours
from training.baselines import ItemKNN, recent
from training.dataset import Sequences
from training.evaluate import Scorer, affordable, evaluate, rank_of, scored
from training.measures import METRIC, gains
from training.scorers import Blended
from training.splits import Holdout

_STRENGTHS = tuple(float(2.0**half) for half in np.arange(-4, 5.5, 0.5))  # tried, in logits of a best neighbour
_BACKWARD = (0.0, 0.5)  # tried: what an item counts that stood before, of what it counts behind
_REACH = 10  # positions within which two items belong together
_WIDTHS = (50, 100, 200)  # neighbours an item keeps; a query costs in proportion
_LOSS = 0.005  # share of validation NDCG@10 that fewer neighbours may cost


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """What validation chose: item-kNN by what it counts backward, its weight (0: none of it helps), and the neighbours
    times it.

    tried: validation NDCG@10 by weight, all neighbours kept; served: that of the blend with those it keeps.
    """

    backward: float
    weight: float
    neighbours: Neighbours | None
    tried: dict[float, float]
    served: float

    def record(self) -> dict[str, object]:
        """What metrics.json and the manifest say about it."""
        return {
            "backward": self.backward,
            "weight": self.weight,
            "width": 0 if self.neighbours is None else self.neighbours.width,
            "tried": [{"weight": weight, f"validation {METRIC}": figure} for weight, figure in self.tried.items()],
        }

    def __str__(self) -> str:
        alone = self.tried[0.0]
        if self.neighbours is None:
            return f"blend: no weight of item-kNN raised validation {METRIC} {alone:.4f}; the model stays alone"
        return (
            f"blend: item-kNN, backward {self.backward:g}, at weight {self.weight:.3g}, {self.neighbours.width} "
            f"neighbours an item, raises validation {METRIC} from {alone:.4f} to {self.served:.4f}"
        )


def partner(train: Sequences, items: int, backward: float | None) -> ItemKNN:
    """The item-kNN that counts so much backward; None is for runs judged before there was a choice: the baseline's."""
    if backward is None:
        return ItemKNN(train, items)
    return ItemKNN(
        train,
        items,
        reach=_REACH,
        forward=lambda gap: 1 / math.sqrt(gap),
        backward=lambda gap: backward / math.sqrt(gap),
    )


def choose_blend(scorer: Scorer, train: Sequences, validation: Holdout, items: int) -> Blend:
    """The item-kNN and its weight with the best validation NDCG@10 (the first and smallest of equals), then the fewest
    neighbours that keep it.

    Weights are tried in units of the median user's best neighbour, so that one grid serves every data set, and on no
    more users than `affordable` gives, 40 times.
    """
    validation = affordable(validation, items)
    partners = [partner(train, items, backward) for backward in _BACKWARD]
    units = [_best_neighbour(knn, validation) for knn in partners]
    weights = np.array([[0.0, *(strength / (unit or 1.0) for strength in _STRENGTHS)] for unit in units])
    total = np.zeros(weights.shape)
    for rows, scores, histories in scored(scorer, validation, items):
        targets = validation.targets[rows]
        for knn, of_knn, found in zip(partners, weights, total, strict=True):
            bonus = knn(histories)
            for number, weight in enumerate(of_knn):
                found[number] += gains(rank_of(scores + np.float32(weight) * bonus, targets), 10).sum()
    figures = total / max(1, len(validation))
    best, chosen = np.unravel_index(np.argmax(figures), figures.shape)
    tried = {float(weight): float(figure) for weight, figure in zip(weights[best], figures[best], strict=True)}
    backward, weight, matrix = _BACKWARD[best], float(weights[best, chosen]), partners[best].matrix
    alone = Blend(backward, 0.0, None, tried, tried[0.0])
    if weight == 0:
        return alone
    for width in _WIDTHS:
        neighbours = strongest(matrix * weight, width)
        kept = evaluate(Blended(scorer, neighbours), validation, items).metrics()[METRIC]
        if kept >= (1 - _LOSS) * tried[weight] or neighbours.width < width:
            break
    if kept <= tried[0.0]:  # it was the neighbours that are cut which helped
        return alone
    return Blend(backward, weight, neighbours, tried, kept)


def strongest(matrix: sparse.csr_array, width: int) -> Neighbours:
    """The `width` largest entries of each row, ties in item order; no wider than the longest row, and at least 1."""
    matrix = matrix.tocsr()
    matrix.sort_indices()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-matrix.data, rows))  # stable, so that ties stay in item order
    place = np.arange(len(order)) - matrix.indptr[rows]  # in its row, the strongest first
    kept = place < width
    shape = matrix.shape[0], max(1, min(width, int(np.diff(matrix.indptr).max(initial=0))))
    items, affinities = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    items[rows[kept], place[kept]] = matrix.indices[order][kept]
    affinities[rows[kept], place[kept]] = matrix.data[order][kept]
    return Neighbours(items, affinities)


def _best_neighbour(knn: ItemKNN, validation: Holdout) -> float:
    """What item-kNN gives the best item of the median user."""
    weights = recent(validation.histories, knn.matrix.shape[0], count=RECENT, decay=DECAY)
    rows = range(0, weights.shape[0], 4096)
    best = [(weights[begin : begin + 4096] @ knn.matrix).max(axis=1).toarray().ravel() for begin in rows]
    return float(np.median(np.concatenate(best))) if best else 0.0
