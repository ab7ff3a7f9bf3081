"""Item vectors to begin with: items that stand near each other in histories begin near each other.

A random beginning makes the model find out first what a count of neighbours says already. On Amazon Beauty, with twice
the learning rate, such a run was done in a third of the epochs and ended a little below.
Source: matrix factorisation of a matrix of co-occurrences, as in Levy & Goldberg, "Neural word embedding as implicit
matrix factorization", 2014; here the matrix of the sequential item-kNN, read in both directions.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.baselines import ItemKNN
from training.dataset import Sequences

_DEVIATION = 0.05  # of the numbers of items with neighbours: beside 0.02 at random, and far below what they become
_SPARE = 32  # directions that are looked for beyond those wanted, so that those come out right
_ROUNDS = 8


def item_vectors(train: Sequences, items: int, dim: int) -> NDArray[np.float32]:
    """Vectors whose dot products are nearest the items' closeness in histories: float32 (items + 1, dim), row 0 zero.

    So is an item's that is never near another. The same for the same data on the same machine.
    """
    pairs = ItemKNN(train, items, backward=lambda gap: 1 / gap).matrix.astype(np.float32)  # symmetric
    found = np.zeros((items + 1, dim), np.float32)
    near = np.diff(pairs.indptr) > 0
    if not near.any():
        return found
    values, vectors = _largest(pairs, dim)
    found[:, : len(values)] = vectors * np.sqrt(np.maximum(values, 0))  # below 0 they stand for what is apart
    found[~near] = 0
    return found * np.float32(_DEVIATION / found[near].std())


def _largest(matrix: sparse.csr_array, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The largest eigenvalues of a symmetric matrix (rows, rows), at most so many, and their vectors (rows, values).

    By subspace iteration: Halko, Martinsson & Tropp, "Finding structure with randomness", 2011, algorithm 4.4.
    """
    rows = matrix.shape[0]
    drawn = np.random.default_rng(0).standard_normal((rows, min(rows, count + _SPARE)), np.float32)
    basis, _ = np.linalg.qr(matrix @ drawn)
    rough = np.abs(np.linalg.eigvalsh(basis.T @ (matrix @ basis)))
    shift = np.sort(rough)[-count:][0]  # so that values below 0 do not come up beside those wanted
    for _ in range(_ROUNDS):
        basis, _ = np.linalg.qr(matrix @ basis + shift * basis)
    values, vectors = np.linalg.eigh(basis.T @ (matrix @ basis))
    return values[-count:], basis @ vectors[:, -count:]
