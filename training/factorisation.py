"""Biased matrix factorisation, what AutoRec must beat: mean + user + item + the product of their factors.

Fitted by alternating least squares, each user's and item's penalty in proportion to its ratings, and tuned: penalty and
rounds by validation.
Source: Zhou, Wilkinson, Schreiber & Pan, AAIM 2008 (ALS-WR); biases as one more factor that the other side has at 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.evaluate import evaluate_ratings
from training.measures import RMSE
from training.ratings import Biases, Matrix, biases_of, matrix_of
from training.splits import Holdout, Split

FACTORS = 32
PENALTIES = (0.02, 0.03, 0.045, 0.07, 0.1)  # tried; on MovieLens the best is inside
_ROUNDS = 15  # at most, each of users and items; validation says after which to stop
_SHRINKAGE = 5.0
_ROWS_AT_ONCE = 1024  # solved together: 9 MB of matrices, where those of a million users would be 9 GB


@dataclass(frozen=True, slots=True, eq=False)
class MatrixFactorisation:
    """A RatingPredictor: biases and factors of users and items, inside the scale."""

    mean: float
    users: NDArray[np.float64]  # (users, factors + 1), the bias first
    items: NDArray[np.float64]  # (items, factors + 1)
    scale: tuple[float, float]

    def __call__(self, holdout: Holdout) -> NDArray[np.float32]:
        user, item = self.users[holdout.users], self.items[holdout.targets - 1]
        products = np.einsum("nf,nf->n", user[:, 1:], item[:, 1:])
        return np.asarray(np.clip(self.mean + user[:, 0] + item[:, 0] + products, *self.scale), np.float32)


class BiasOnly:
    """A RatingPredictor: mean, user and item alone."""

    def __init__(self, biases: Biases, scale: tuple[float, float]) -> None:
        self._biases, self._scale = biases, scale

    def __call__(self, holdout: Holdout) -> NDArray[np.float32]:
        return np.clip(self._biases(holdout.users, holdout.targets - 1), *self._scale).astype(np.float32)


class GlobalMean:
    """A RatingPredictor: the train mean for everything."""

    def __init__(self, mean: float) -> None:
        self._mean = mean

    def __call__(self, holdout: Holdout) -> NDArray[np.float32]:
        return np.full(len(holdout), self._mean, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The factorisation that validation chose, its penalty and rounds, and validation RMSE by penalty."""

    model: MatrixFactorisation
    penalty: float
    rounds: int
    tried: dict[float, float]

    def record(self) -> dict[str, object]:
        """What metrics.json says about it."""
        return {"factors": FACTORS, "penalty": self.penalty, "rounds": self.rounds, "tried": self.tried}


def tuned_factorisation(split: Split, items: int, scale: tuple[float, float], *, seed: int) -> Tuned:
    """The penalty and the number of rounds with the lowest validation RMSE."""
    matrix = matrix_of(split.train, items)
    found = []
    for penalty in PENALTIES:
        lowest = np.inf
        for rounds, model in enumerate(_rounds(matrix, penalty, scale, seed), 1):
            figure = evaluate_ratings(model, split.validation, split.train, items).metrics()[RMSE]
            if figure > lowest - 1e-4:  # from here on it fits noise
                break
            lowest, kept = figure, (rounds, model)
        found.append((lowest, penalty, *kept))
    _, penalty, rounds, model = min(found, key=lambda one: one[0])
    return Tuned(model, penalty, rounds, {one[1]: one[0] for one in found})


def _rounds(matrix: Matrix, penalty: float, scale: tuple[float, float], seed: int) -> Iterator[MatrixFactorisation]:
    """The factorisation after each round."""
    generator = np.random.default_rng([seed, 3])
    biases = biases_of(matrix, _SHRINKAGE)
    by_item = matrix.T.tocsr()
    users = np.zeros((matrix.shape[0], FACTORS + 1))
    items = generator.normal(0, 0.1, (matrix.shape[1], FACTORS + 1))
    users[:, 0], items[:, 0] = biases.rows, biases.columns
    for _ in range(_ROUNDS):
        users = _solved(matrix, items, biases.mean, penalty)
        items = _solved(by_item, users, biases.mean, penalty)
        yield MatrixFactorisation(biases.mean, users, items, scale)


def _solved(matrix: Matrix, others: NDArray[np.float64], mean: float, penalty: float) -> NDArray[np.float64]:
    """Bias and factors of every row, given those of the columns; 0 for a row without ratings."""
    design = others.copy()
    design[:, 0] = 1
    width = design.shape[1]
    diagonal = np.eye(width) * penalty

    def part(bounds: NDArray[np.integer]) -> NDArray[np.float64]:
        grams = np.empty((len(bounds) - 1, width, width))
        sides = np.empty((len(bounds) - 1, width))
        for row, (begin, end) in enumerate(pairwise(bounds)):
            columns = matrix.indices[begin:end]
            known = design[columns]  # (ratings, width)
            grams[row] = known.T @ known + diagonal * max(1, end - begin)
            sides[row] = (matrix.data[begin:end] - mean - others[columns, 0]) @ known
        return np.asarray(np.linalg.solve(grams, sides[..., None])[..., 0], np.float64)

    firsts = range(0, matrix.shape[0], _ROWS_AT_ONCE)
    return np.concatenate([part(matrix.indptr[first : first + _ROWS_AT_ONCE + 1]) for first in firsts])
