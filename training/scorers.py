"""Runs and bundles as Scorers, over their own items or those of other data.

A run scores through torch and a bundle through onnxruntime; behind this door they are judged by the same code.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.autorec import AutoRec
from models.neighbours import Neighbours
from models.runtime import Runtime
from training.dataset import Sequences, Vocabulary
from training.evaluate import Scorer
from training.next_item import ModelScorer
from training.reconstruction import HistoryScorer
from training.run import RunError, RunFolder


class Translated:
    """A scorer of some items as one of another vocabulary's: items are matched by external id.

    An item that the scorer does not know can neither be scored nor speak for a user, and a user of whose history
    nothing is known gets what is popular, as when it serves.
    """

    def __init__(self, scorer: Scorer, rows: NDArray[np.integer[Any]], popularity: NDArray[np.float32]) -> None:
        """rows (the vocabulary's items + 1,): the scorer's row of each, 0 for one it does not know; popularity (the
        scorer's items + 1,)."""
        self._scorer = scorer
        self._popularity = popularity
        self._rows = rows.astype(np.int32)
        self._same = np.array_equal(rows, np.arange(len(popularity)))

    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        if self._same:
            return self._scorer(histories)
        known = histories.renumbered(self._rows)
        scores = np.array(self._scorer(known))
        scores[known.lengths == 0] = self._popularity
        scores = scores[:, self._rows]
        scores[:, self._rows == 0] = -np.inf
        return scores


class BundleScorer:
    """A bundle as a Scorer over a vocabulary, through onnxruntime; alone: without what neighbours add."""

    def __init__(self, runtime: Runtime, vocabulary: Vocabulary, *, alone: bool = False) -> None:
        self._runtime = runtime
        self._neighbours = None if alone else runtime.bundle.neighbours
        bundle = runtime.bundle
        self._translated = Translated(self._score, bundle.rows_of(vocabulary.ids), bundle.popularity)

    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        return self._translated(histories)

    def _score(self, histories: Sequences) -> NDArray[np.float32]:
        """Over the bundle's own rows."""
        sequences = [histories[user] for user in range(len(histories))]
        values = None
        if self._runtime.reads_values:
            values = [histories.values_of(user) for user in range(len(histories))]
        scores = self._runtime.encode(sequences, values) @ self._runtime.bundle.items.T
        return scores if self._neighbours is None else scores + self._neighbours.bonus(sequences)


class Blended:
    """A scorer of the same items with what their neighbours add."""

    def __init__(self, scorer: Scorer, neighbours: Neighbours) -> None:
        self._scorer = scorer
        self._neighbours = neighbours

    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        return self._scorer(histories) + self._neighbours.bonus([histories[user] for user in range(len(histories))])


def run_scorer(run: RunFolder, *, alone: bool = False) -> Callable[[Vocabulary], Scorer]:
    """What a run exports, its blend included, as a Scorer over any vocabulary, through torch; alone: without the blend.

    Raises RunError for an item-based AutoRec.
    """
    built, neighbours = run.model(), run.neighbours()
    if isinstance(built, AutoRec) and built.config.side == "item":
        raise RunError(
            f"{run.path} is an item-based AutoRec, which can score only the users it was trained on: `evaluate "
            f"{run.path}` and nothing else judges it on its own data, and `recommend {run.path}` scores them"
        )
    model: Scorer = HistoryScorer(built) if isinstance(built, AutoRec) else ModelScorer(built)
    scorer = model if alone or neighbours is None else Blended(model, neighbours)
    own, popularity = Vocabulary(tuple(run.ids())), run.popularity()
    return lambda vocabulary: Translated(scorer, own.encode(vocabulary.ids), popularity)
