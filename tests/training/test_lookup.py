"""Rows looked up by an embedding are those of an index, and so is what they teach."""

import numpy as np
import torch

from training.lookup import rows_of, vectors_at


def test_rows_and_their_gradient_are_those_of_an_index() -> None:
    matrix = torch.randn(5, 3, requires_grad=True)
    rows = torch.tensor([[1, 4, 1], [0, 2, 2]])
    found, right = rows_of(matrix, rows), matrix[rows]
    assert found.equal(right)
    weights = torch.randn(found.shape)
    one, other = (torch.autograd.grad((taken * weights).sum(), matrix)[0] for taken in (found, right))
    torch.testing.assert_close(one, other)


def test_vectors_at_chosen_positions_come_in_order_row_by_row() -> None:
    vectors = torch.arange(12.0).view(2, 3, 2)
    chosen = np.array([[True, False, True], [False, True, False]])
    assert vectors_at(vectors, chosen).tolist() == [[0.0, 1.0], [4.0, 5.0], [8.0, 9.0]]
    assert vectors_at(vectors, np.zeros_like(chosen)).shape == (0, 2)
