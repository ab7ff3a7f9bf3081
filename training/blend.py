"""A model mixed with item-kNN: which, how much of it, and how many neighbours an item keeps, all by validation alone.

It reaches further than the baseline and falls off more slowly; and where users go on and do not come back, what stood
before an item says little of what comes after. On Amazon Beauty validation chose what came after alone, on
MovieLens-100K half of what stood before with it (`backward` in the records of docs/results).

The two are simply added: a model's scores are logits, so that a neighbour's gain multiplies its odds, more for a user
with many related items than for one with few. On MovieLens-100K that ranked validation as well as or better than
dividing either part by its deviation or maximum for each user, and costs a query nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from models.neighbours import DECAY, RECENT, Neighbours
from training.baselines import ItemKNN, recent
from training.dataset import Sequences
from training.evaluate import Scorer, affordable, rank_of, rank_targets, scored
from training.measures import METRIC, gains, summarise
from training.scorers import Blended
from training.splits import Holdout

_STRENGTHS = tuple(float(2.0**half) for half in np.arange(-4, 5.5, 0.5))  # tried, in logits of a best neighbour
_BACKWARD = (0.0, 0.5)  # tried: what an item counts that stood before, of what it counts behind
_REACH = 10  # positions within which two items belong together
_WIDTHS = (50, 100, 200)  # neighbours an item keeps; a query costs in proportion
_LOSS = 0.005  # share of validation NDCG@10 that fewer neighbours may cost

_Candidate = tuple[float, float]  # an item-kNN by what it counts backward, and its weight


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
    partners = {backward: partner(train, items, backward) for backward in _BACKWARD}
    candidates: list[_Candidate] = []
    for backward, knn in partners.items():
        unit = _best_neighbour(knn, validation) or 1.0
        candidates += [(backward, weight) for weight in (0.0, *(strength / unit for strength in _STRENGTHS))]
    figures = _validated(scorer, partners, candidates, validation, items)
    backward, weight = candidates[int(np.argmax(figures))]
    tried = {one: figure for (of, one), figure in zip(candidates, figures, strict=True) if of == backward}
    alone = Blend(backward, 0.0, None, tried, tried[0.0])
    if weight == 0:
        return alone
    enough = (1 - _LOSS) * tried[weight]
    neighbours, served = _fewest(scorer, partners[backward].matrix * weight, validation, items, enough=enough)
    if served <= tried[0.0]:  # it was the neighbours that are cut which helped
        return alone
    return Blend(backward, weight, neighbours, tried, served)


def _validated(
    scorer: Scorer, partners: Mapping[float, ItemKNN], candidates: list[_Candidate], validation: Holdout, items: int
) -> list[float]:
    """Validation NDCG@10 of the scorer with as much of an item-kNN as each candidate says."""
    total = np.zeros(len(candidates))
    for rows, scores, histories in scored(scorer, validation, items):
        bonus = {backward: knn(histories) for backward, knn in partners.items()}
        for number, (backward, weight) in enumerate(candidates):
            ranks = rank_of(scores + np.float32(weight) * bonus[backward], validation.targets[rows])
            total[number] += gains(ranks, 10).sum()
    return [float(one) for one in total / max(1, len(validation))]


def _fewest(
    scorer: Scorer, matrix: sparse.csr_array, validation: Holdout, items: int, *, enough: float
) -> tuple[Neighbours, float]:
    """The fewest neighbours an item with which validation NDCG@10 is enough, else the most tried; and that figure."""
    for width in _WIDTHS:
        neighbours = strongest(matrix, width)
        figure = summarise(rank_targets(Blended(scorer, neighbours), validation, items))[METRIC]
        if figure >= enough or neighbours.width < width:
            return neighbours, figure
    return neighbours, figure


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
