"""What ranks are worth: metrics, their bootstrap intervals, a paired test, and several seeds put together.

Pure functions of ranks and figures, so that a run, a bundle and a recorded folder are all judged by the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (5, 10, 20)
METRIC, RMSE = "ndcg@10", "rmse"  # what chooses a model that ranks, and one that predicts ratings
MISS = np.iinfo(np.int64).max  # the rank of a target that filtering removed
_SAMPLES = 1000  # of an interval
_DRAWS_AT_ONCE = 1 << 20  # 8 MiB of users, whose sums and counts are different for each
_TEST_SAMPLES = 10_000  # of a test, so that p is resolved to a ten-thousandth


def summarise(ranks: NDArray[np.int64]) -> dict[str, float]:
    """HR, which is recall with one target a user, and NDCG at 5, 10 and 20, MRR and the users counted.

    NDCG@k is 1 / log2(rank + 1) within the first k. All are 0 where there are no users.
    """
    metrics: dict[str, float] = {}
    for cutoff in CUTOFFS:
        metrics[f"hr@{cutoff}"] = _mean(hits(ranks, cutoff))
        metrics[f"ndcg@{cutoff}"] = _mean(gains(ranks, cutoff))
    return metrics | {"mrr": _mean(np.where(ranks == MISS, 0.0, 1 / ranks)), "users": len(ranks)}


def hits(ranks: NDArray[np.int64], cutoff: int) -> NDArray[np.float64]:
    """1 for every user whose target is within the first `cutoff`, else 0: (users,)."""
    return (ranks <= cutoff).astype(np.float64)


def gains(ranks: NDArray[np.int64], cutoff: int) -> NDArray[np.float64]:
    """What every user adds to NDCG at a cutoff: (users,)."""
    return np.where(ranks <= cutoff, 1 / np.log2(np.minimum(ranks, cutoff) + 1.0), 0.0)


def intervals(ranks: NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """Bootstrap 95 % intervals of HR@10 and NDCG@10 over users."""
    generator = np.random.default_rng(0)
    values = {"hr@10": hits(ranks, 10), METRIC: gains(ranks, 10)}
    return {name: _interval(_bootstrap(value, _SAMPLES, generator)) for name, value in values.items()}


def rmse_interval(errors: NDArray[np.float64], users: NDArray[np.int64]) -> tuple[float, float]:
    """Bootstrap 95 % interval of the RMSE over users: errors (ratings,), and whose each of them is.

    Users are drawn with all their ratings: what one user's errors have in common is chance too.
    """
    _, rows = np.unique(users, return_inverse=True)
    counts = np.bincount(rows)
    sums = np.bincount(rows, errors**2)
    if not counts.size:
        return 0.0, 0.0
    generator = np.random.default_rng(0)
    at_once = max(1, _DRAWS_AT_ONCE // counts.size)
    means = np.empty(_SAMPLES)
    for begin in range(0, _SAMPLES, at_once):
        drawn = generator.integers(counts.size, size=(min(at_once, _SAMPLES - begin), counts.size))
        means[begin : begin + at_once] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return _interval(np.sqrt(means))


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean per-user difference with its bootstrap 95 % interval, and p of the two-sided paired bootstrap test."""

    mean: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f}, 95 % interval {self.low:+.4f} to {self.high:+.4f}, p = {self.p:.4f}"


def paired_difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> Difference:
    """How much better `one` is than `other`: gains (users,) of the same users in the same order.

    p is the share of resamples whose difference, moved to mean 0, is at least as far from 0 as the one found, and no
    less than chance gives n users who differ all one way, 2 / 2^n: resamples of a few alike are nearly all the same.
    Raises ValueError if the two do not have the same number of users, or none.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16.
    """
    if one.shape != other.shape or not one.size:
        raise ValueError(f"{one.size} and {other.size} users cannot be paired; judge both on the same users")
    differences = one - other
    mean = float(differences.mean())
    means = _bootstrap(differences, _TEST_SAMPLES, np.random.default_rng(0))
    # A hair's breadth against rounding: a constant difference must not lose against itself.
    further = int((np.abs(means - mean) >= abs(mean) - 1e-12).sum())
    least = min(1.0, 0.5 ** (np.count_nonzero(differences) - 1.0))
    return Difference(mean, *_interval(means), p=max(least, (1 + further) / (1 + _TEST_SAMPLES)))


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several seeds: mean and standard deviation (of n - 1; None with one seed)."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if self.deviation is None else f" ± {self.deviation:.4f}")


def spread(figures: Sequence[float]) -> Spread:
    """The same figure of several seeds put together. Raises ValueError if there are none."""
    if not figures:
        raise ValueError("there are no figures to put together; give at least one run")
    deviation = float(np.std(figures, ddof=1)) if len(figures) > 1 else None
    return Spread(float(np.mean(figures)), deviation)


def novelty_of_items(popularity: NDArray[np.floating]) -> NDArray[np.float64]:
    """Self-information of every item in bits, -log2 of its share of the train interactions: (items + 1,).

    An item never interacted with counts as one interacted with once: it is as novel as can be told from the data.
    Source: Zhou et al., PNAS 2010.
    """
    counts = np.maximum(popularity.astype(np.float64), 1.0)
    return -np.log2(counts / max(1.0, float(popularity[1:].sum())))


def head_items(popularity: NDArray[np.floating]) -> NDArray[np.bool_]:
    """True for the most popular items that together make up half of the train interactions: bool (items + 1,).

    The fewest that reach half; ties in item order. Padding is none of them.
    """
    order = np.argsort(-popularity[1:], kind="stable") + 1
    before = np.cumsum(popularity[order], dtype=np.float64) - popularity[order]  # interactions of more popular items
    head = np.zeros(len(popularity), np.bool_)
    head[order] = before < popularity[1:].sum() / 2
    return head


def _bootstrap(values: NDArray[np.float64], samples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Means of resampled users: float64 (samples,).

    Users of equal value are drawn together: the same distribution as drawing users, whose counts alone would take
    8 GB for a million of them, and a gain takes a handful of values.
    """
    if not values.size:
        return np.zeros(samples)
    distinct, counts = np.unique(values, return_counts=True)
    drawn = generator.multinomial(values.size, counts / values.size, samples)
    return np.asarray(drawn @ distinct / values.size, np.float64)


def _interval(means: NDArray[np.float64]) -> tuple[float, float]:
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0
