"""Matrix factorisation: the same in parts as at once, and no more memory for more users."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from training.dataset import Sequences
from training.factorisation import FACTORS, _solved, tuned_factorisation
from training.ratings import Matrix
from training.splits import Holdout, Split

MEAN, PENALTY = 3.5, 0.05


def ratings(users: int, items: int, *, each: int) -> Matrix:
    """Everybody but the first user, who has none, rates so many items."""
    generator = np.random.default_rng(0)
    lengths = np.full(users, each)
    lengths[0] = 0
    pointers = np.concatenate([[0], np.cumsum(lengths)])
    columns = np.concatenate([generator.permutation(items)[:length] for length in lengths])
    values = generator.integers(1, 6, len(columns)).astype(np.float32)
    return sparse.csr_array((values, columns, pointers), shape=(users, items))


def others(items: int) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.1, (items, FACTORS + 1))


def test_every_row_is_where_its_penalised_squares_are_least() -> None:
    """A row's bias and factors are those at which the gradient vanishes; without ratings they are 0."""
    matrix, columns = ratings(9, 40, each=7), others(40)
    found = _solved(matrix, columns, MEAN, PENALTY)
    assert not found[0].any()
    for row in range(1, 9):
        at = slice(matrix.indptr[row], matrix.indptr[row + 1])
        rated, values = columns[matrix.indices[at]], matrix.data[at]
        errors = values - MEAN - rated[:, 0] - found[row, 0] - rated[:, 1:] @ found[row, 1:]
        np.testing.assert_allclose(errors.sum(), PENALTY * 7 * found[row, 0], atol=1e-9)
        np.testing.assert_allclose(errors @ rated[:, 1:], PENALTY * 7 * found[row, 1:], atol=1e-9)


@pytest.mark.parametrize("at_once", [1, 4, 9, 10])
def test_rows_solved_in_parts_are_those_solved_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, columns = ratings(9, 40, each=7), others(40)
    whole = _solved(matrix, columns, MEAN, PENALTY)
    monkeypatch.setattr("training.factorisation._ROWS_AT_ONCE", at_once)
    assert np.array_equal(_solved(matrix, columns, MEAN, PENALTY), whole)


def test_the_tuned_factorisation_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    users, each = 30, 12
    items = np.concatenate([generator.permutation(20)[:each] for _ in range(users)]).astype(np.int32) + 1
    values = generator.integers(1, 6, len(items)).astype(np.float32)
    starts = np.arange(users) * each
    train = Sequences(items, starts, starts + each - 2, values=values)
    last = starts + each - 1

    def held(at: np.ndarray) -> Holdout:
        return Holdout(np.arange(users), train, items[at], np.zeros(users, np.bool_), values[at])

    split = Split(train, held(last - 1), held(last), left_out={})
    whole = tuned_factorisation(split, 20, (1, 5), seed=0)
    monkeypatch.setattr("training.factorisation._ROWS_AT_ONCE", 7)
    parts = tuned_factorisation(split, 20, (1, 5), seed=0)
    assert np.array_equal(parts.model.users, whole.model.users)
    assert np.array_equal(parts.model.items, whole.model.items)
    assert parts.record() == whole.record()


def test_the_matrices_of_all_rows_are_never_in_memory_together() -> None:
    rows = 8000
    matrix, columns = ratings(rows, 50, each=2), others(50)
    tracemalloc.start()
    try:
        _solved(matrix, columns, MEAN, PENALTY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    all_of_them = rows * (FACTORS + 1) ** 2 * 8
    assert peak < all_of_them / 3
