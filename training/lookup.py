"""Rows of matrices that are learned: on CPU the gradient of an index takes three times as long as an embedding's."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def rows_of(matrix: Tensor, rows: Tensor) -> Tensor:
    """matrix (rows, dim), rows int64 of any shape -> (*shape, dim)."""
    return functional.embedding(rows, matrix)


def vectors_at(vectors: Tensor, chosen: NDArray[np.bool_]) -> Tensor:
    """The vectors of the chosen positions in order: vectors (batch, width, dim), chosen (batch, width) -> (n, dim)."""
    return rows_of(vectors.flatten(0, 1), torch.from_numpy(np.flatnonzero(chosen)).to(vectors.device))
