"""Losses on numbers worked out by hand, and gradients against torch's own."""

import math

import pytest
import torch
from torch.nn import functional

from training.losses import bce, dot, full_softmax

LN2 = math.log(2)


def test_binary_cross_entropy_of_scores_that_say_nothing_is_two_coin_flips() -> None:
    zero = torch.zeros(3)
    assert bce(zero, zero).item() == pytest.approx(2 * LN2)


def test_binary_cross_entropy_by_hand() -> None:
    # -log sigmoid(ln 3) = -log(3/4); -log(1 - sigmoid(-ln 3)) = -log(3/4); the second pair the other way round.
    three = math.log(3)
    loss = bce(torch.tensor([three, -three]), torch.tensor([-three, three]))
    assert loss.item() == pytest.approx((-2 * math.log(3 / 4) - 2 * math.log(1 / 4)) / 2)


def test_binary_cross_entropy_stays_finite_however_sure_the_scores_are() -> None:
    assert bce(torch.tensor([1e4]), torch.tensor([-1e4])).item() == 0
    assert bce(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)


def test_full_softmax_of_equal_scores_is_the_logarithm_of_the_catalogue() -> None:
    """Five items and padding: padding is no candidate, so that it is log 5 and not log 6."""
    assert full_softmax(torch.zeros(2, 3), torch.ones(6, 3), torch.tensor([1, 5])).item() == pytest.approx(math.log(5))


def test_full_softmax_by_hand() -> None:
    items = torch.tensor([[100.0], [0.0], [1.0], [2.0]])  # a padding row that would win if it were looked at
    vectors = torch.tensor([[LN2], [LN2]])  # scores 0, ln 2 and 2 ln 2: probabilities 1/7, 2/7 and 4/7
    loss = full_softmax(vectors, items, torch.tensor([1, 3]))
    assert loss.item() == pytest.approx((math.log(7) + math.log(7 / 4)) / 2)


@pytest.mark.parametrize(("targets", "items"), [(1, 1), (3, 7), (1300, 50), (600, 20_000)])
def test_full_softmax_and_its_gradient_equal_torchs_own_over_all_chunks(targets: int, items: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(targets, 4, generator=generator, requires_grad=True)
    matrix = torch.randn(items + 1, 4, generator=generator, requires_grad=True)
    wanted = torch.randint(1, items + 1, (targets,), generator=generator)
    loss = full_softmax(vectors, matrix, wanted)
    (3 * loss).backward()  # what comes back is multiplied by what comes after
    found = [tensor.grad.clone() for tensor in (vectors, matrix) if tensor.grad is not None]
    vectors.grad = matrix.grad = None
    reference = functional.cross_entropy(vectors @ matrix[1:].T, wanted - 1)
    (3 * reference).backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5, abs=1e-6)
    for grad, expected in zip(found, (vectors.grad, matrix.grad), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)
    assert matrix.grad is not None
    assert found[1][0].abs().max() == 0  # padding learns nothing


def test_full_softmax_stays_finite_with_enormous_scores() -> None:
    vectors = torch.full((2, 1), 1e4, requires_grad=True)
    loss = full_softmax(vectors, torch.tensor([[0.0], [1e4], [-1e4]]), torch.tensor([1, 1]))
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


def test_dot_scores_one_item_a_vector() -> None:
    matrix = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])
    assert dot(torch.tensor([[1.0, 10.0], [1.0, -1.0]]), matrix, torch.tensor([2, 1])).tolist() == [43.0, -1.0]
