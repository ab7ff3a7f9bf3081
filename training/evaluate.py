"""Full-catalogue evaluation: where in the ranking of all items does the item that came next stand?

Items of the history get minus infinity before the target is looked up; padding is never a candidate; ties count
against the model, so that constant scores earn nothing. Every user with a target counts, whether or not it can be hit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.dataset import Sequences
from training.splits import Holdout, Split, open_test

CUTOFFS = (5, 10, 20)
MISS = np.iinfo(np.int64).max  # the rank of a target that filtering removed
_USERS_AT_ONCE = 256
_BOOTSTRAP_SAMPLES = 1000


class EvaluationError(ValueError):
    """Scores that cannot be ranked."""


class Scorer(Protocol):
    """Anything that scores the whole catalogue for users."""

    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        """Scores (users, items + 1) given each user's history, oldest first; column 0 is padding and ignored."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Ranks of the targets, from 1, int64 (users,), and the share of the catalogue that reached anyone's first ten."""

    ranks: NDArray[np.int64]
    strictly_later: NDArray[np.bool_]
    coverage: float

    def metrics(self) -> dict[str, float]:
        """HR and NDCG at 5, 10 and 20, MRR, coverage of the catalogue in the first ten, and the users counted.

        One target a user, so that HR@k is recall@k and NDCG@k is 1 / log2(rank + 1) within the first k.
        """
        return summarise(self.ranks) | {"coverage@10": self.coverage}

    def intervals(self, *, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Bootstrap 95 % intervals of HR@10 and NDCG@10 over users."""
        return _bootstrap({"hr@10": self.ranks <= 10, "ndcg@10": _gains(self.ranks, 10)}, seed)

    def report(self) -> dict[str, object]:
        """Metrics, their intervals, and the slice of users whose target is strictly later than their history."""
        return {
            **self.metrics(),
            "intervals": self.intervals(),
            "strictly_later": summarise(self.ranks[self.strictly_later]),
        }


def summarise(ranks: NDArray[np.int64]) -> dict[str, float]:
    """Metrics of these ranks; all 0 where there are none."""
    metrics: dict[str, float] = {}
    for cutoff in CUTOFFS:
        metrics[f"hr@{cutoff}"] = _mean(ranks <= cutoff)
        metrics[f"ndcg@{cutoff}"] = _mean(_gains(ranks, cutoff))
    return metrics | {"mrr": _mean(np.where(ranks == MISS, 0.0, 1 / ranks)), "users": len(ranks)}


def evaluate(scorer: Scorer, holdout: Holdout, items: int) -> Evaluation:
    """Rank every target of a held-out part among all `items`.

    Raises EvaluationError for scores that are not numbers or have the wrong shape.
    """
    ranks = np.empty(len(holdout), np.int64)
    recommended = np.zeros(items + 1, np.bool_)
    for begin in range(0, len(holdout), _USERS_AT_ONCE):
        rows = np.arange(begin, min(begin + _USERS_AT_ONCE, len(holdout)))
        histories = holdout.histories.take(rows)
        scores = np.array(scorer(histories), np.float32)  # a copy: it is masked below
        if scores.shape != (len(rows), items + 1):
            raise EvaluationError(f"scores have shape {scores.shape}, expected {(len(rows), items + 1)}")
        if np.isnan(scores[:, 1:]).any():
            raise EvaluationError(f"scores of users {rows[0]} to {rows[-1]} hold NaN; the model has diverged")
        mask_seen(scores, histories)
        ranks[rows] = rank_of(scores, holdout.targets[rows])
        best = np.argpartition(-scores, min(10, items) - 1, axis=1)[:, :10]
        recommended[best[np.take_along_axis(scores, best, axis=1) > -np.inf]] = True
    return Evaluation(ranks, holdout.strictly_later, float(recommended[1:].mean()))


def evaluate_test(scorer: Scorer, split: Split, items: int) -> Evaluation:
    """The same on the sealed test part, which nothing may choose by."""
    return evaluate(scorer, open_test(split), items)


def paired_interval(one: Evaluation, other: Evaluation, *, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval, over users, of the NDCG@10 of one evaluation minus that of another of the same users."""
    differences = _gains(one.ranks, 10) - _gains(other.ranks, 10)
    return _bootstrap({"difference": differences}, seed)["difference"]


def mask_seen(scores: NDArray[np.float32], histories: Sequences) -> None:
    """Set padding and each user's history to minus infinity, in place: scores (users, items + 1)."""
    compact = histories.compact()
    scores[np.repeat(np.arange(len(compact)), compact.lengths), compact.items] = -np.inf
    scores[:, 0] = -np.inf


def rank_of(scores: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.int64]:
    """Rank of each row's target, ties counted against it; MISS where it is masked. (users, items + 1) -> (users,)."""
    own = np.take_along_axis(scores, targets[:, None].astype(np.int64), axis=1)
    ranks = (scores >= own).sum(axis=1, dtype=np.int64)
    return np.where(own[:, 0] == -np.inf, MISS, ranks)


def _gains(ranks: NDArray[np.int64], cutoff: int) -> NDArray[np.float64]:
    return np.where(ranks <= cutoff, 1 / np.log2(np.minimum(ranks, cutoff) + 1.0), 0.0)


def _bootstrap(gains: dict[str, NDArray[np.bool_] | NDArray[np.float64]], seed: int) -> dict[str, tuple[float, float]]:
    """95 % intervals of the means of per-user gains (users,).

    Users of equal gain are drawn together: the same distribution as drawing users, whose counts alone would take
    8 GB for a million of them, and a gain takes a handful of values.
    """
    generator = np.random.default_rng(seed)
    intervals = {}
    for name, gain in gains.items():
        values, counts = np.unique(gain.astype(np.float64), return_counts=True)
        means = generator.multinomial(len(gain), counts / len(gain), _BOOTSTRAP_SAMPLES) @ values / len(gain)
        intervals[name] = (float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975)))
    return intervals


def _mean(values: NDArray[np.bool_] | NDArray[np.float64] | Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
