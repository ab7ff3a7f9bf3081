"""Item vectors to begin with: items that stand near each other in histories begin near each other.

A random beginning makes the model find out first what a count of neighbours says already. On Amazon Beauty that took it
two thirds of its epochs.
Source: matrix factorisation of a matrix of co-occurrences, as in Levy & Goldberg, "Neural word embedding as implicit
matrix factorization", 2014; here the matrix of the sequential item-kNN, read in both directions.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from models.sasrec import SASRec
from training.baselines import ItemKNN
from training.dataset import Sequences

_DENSE = 1000  # rows: so few are decomposed whole
_DEVIATION = 0.05  # of all numbers together: beside 0.02 of a random beginning, and far below what they grow to
_TOLERANCE = 1e-2  # of an eigenvalue, relative: training goes on from there


def begin(model: SASRec, train: Sequences) -> None:
    """Add the vectors of `item_vectors` to those that a model's items have."""
    weight = model.item_embedding.weight
    with torch.no_grad():
        weight += torch.from_numpy(item_vectors(train, model.items, weight.shape[1])).to(weight.device)


def item_vectors(train: Sequences, items: int, dim: int) -> NDArray[np.float32]:
    """Vectors whose dot products are nearest the items' closeness in histories: float32 (items + 1, dim), row 0 zero.

    All zeros where no two items are ever near each other.
    """
    pairs = ItemKNN(train, items, backward=lambda gap: 1 / gap).matrix.astype(np.float32)  # symmetric
    found = np.zeros((items + 1, dim), np.float32)
    if not pairs.nnz:
        return found
    values, vectors = _largest(pairs, dim)
    found[:, : len(values)] = vectors * np.sqrt(np.maximum(values, 0))  # below 0 they stand for what is apart
    found[0] = 0
    return found * np.float32(_DEVIATION / found[1:].std())


def _largest(matrix: sparse.csr_array, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The largest eigenvalues of a symmetric matrix (rows, rows), at most so many, and their vectors (rows, values)."""
    rows = matrix.shape[0]
    if rows <= max(_DENSE, 2 * count):
        values, vectors = np.linalg.eigh(matrix.toarray())
        return values[-count:], vectors[:, -count:]
    # From a fixed vector, so that a run can be repeated and every process of several finds the same.
    try:
        return eigsh(matrix, k=count, which="LA", tol=_TOLERANCE, v0=np.ones(rows, np.float32))
    except ArpackNoConvergence as error:  # many are equal, as of groups that share no item: those found will do
        return error.eigenvalues, error.eigenvectors
