"""S3Rec's objectives on numbers worked out by hand, and their gradients against torch's own."""

import math

import pytest
import torch
from torch.nn import functional

from training import objectives
from training.objectives import (
    associated_attribute_prediction,
    masked_attribute_prediction,
    masked_item_prediction,
    segment_prediction,
)

LN2, LN3 = math.log(2), math.log(3)
ATTRIBUTE_OBJECTIVES = [associated_attribute_prediction, masked_attribute_prediction]
RANKING_OBJECTIVES = [masked_item_prediction, segment_prediction]


@pytest.mark.parametrize("objective", ATTRIBUTE_OBJECTIVES)
def test_attributes_that_say_nothing_cost_a_coin_flip_each(objective: object) -> None:
    rows, attributes = torch.tensor([0, 1]), torch.tensor([2, 0])
    loss = objective(torch.zeros(2, 4), torch.ones(3, 4), rows, attributes)  # type: ignore[operator]
    assert loss.item() == pytest.approx(2 * 3 * LN2)  # a sum over two positions and three attributes


@pytest.mark.parametrize("objective", ATTRIBUTE_OBJECTIVES)
def test_attributes_by_hand(objective: object) -> None:
    """Scores ln 3, -ln 3 and 0, of which the item has the first: probabilities 3/4, 1/4 and 1/2."""
    matrix = torch.tensor([[LN3], [-LN3], [0.0]])
    loss = objective(torch.ones(1, 1), matrix, torch.tensor([0]), torch.tensor([0]))  # type: ignore[operator]
    assert loss.item() == pytest.approx(-math.log(3 / 4) - math.log(1 - 1 / 4) - math.log(1 / 2))
    wrong = objective(torch.ones(1, 1), matrix, torch.tensor([0]), torch.tensor([1]))  # type: ignore[operator]
    assert wrong.item() == pytest.approx(-math.log(1 - 3 / 4) - math.log(1 / 4) - math.log(1 / 2))


@pytest.mark.parametrize("objective", RANKING_OBJECTIVES)
def test_what_is_sought_against_what_is_not_by_hand(objective: object) -> None:
    """Differences of ln 3 and -ln 3: it wins with probability 3/4, then 1/4."""
    vectors, sought, other = torch.ones(2, 1), torch.tensor([[2 * LN3], [0.0]]), torch.tensor([[LN3], [LN3]])
    loss = objective(vectors, sought, other, bounded=False)  # type: ignore[operator]
    assert loss.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 4))
    assert objective(vectors, vectors, vectors, bounded=False).item() == pytest.approx(2 * LN2)  # type: ignore[operator]


@pytest.mark.parametrize("objective", RANKING_OBJECTIVES)
def test_the_same_by_sigmoids_by_hand(objective: object) -> None:
    """Products of ln 3 and -ln 3 have the sigmoids 3/4 and 1/4, which are 1/2 apart."""
    vectors, sought, other = torch.ones(1, 1), torch.tensor([[LN3]]), torch.tensor([[-LN3]])
    loss = objective(vectors, sought, other, bounded=True)  # type: ignore[operator]
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1 / 2)))
    wrong = objective(vectors, other, sought, bounded=True)  # type: ignore[operator]
    assert wrong.item() == pytest.approx(math.log(1 + math.exp(1 / 2)))
    sure = torch.full((1, 1), 1e4)
    assert objective(sure, sure, -sure, bounded=True).item() == pytest.approx(math.log(1 + math.exp(-1)))  # type: ignore[operator]


@pytest.mark.parametrize("chunk", [7, 1 << 23])
def test_attribute_prediction_and_its_gradient_equal_torchs_own_over_all_chunks(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(objectives, "_CHUNK_SCORES", chunk)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(9, 4, generator=generator, requires_grad=True)
    matrix = torch.randn(5, 4, generator=generator, requires_grad=True)
    rows, attributes = torch.tensor([0, 0, 3, 4, 8, 8, 8]), torch.tensor([1, 2, 0, 4, 0, 1, 4])
    owned = torch.zeros(9, 5)
    owned[rows, attributes] = 1
    expected = functional.binary_cross_entropy_with_logits(vectors @ matrix.T, owned, reduction="sum")
    found = masked_attribute_prediction(vectors, matrix, rows, attributes)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = (torch.autograd.grad(3 * loss, [vectors, matrix]) for loss in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("objective", ATTRIBUTE_OBJECTIVES)
def test_no_position_at_all_costs_nothing(objective: object) -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    vectors = torch.zeros(0, 4, requires_grad=True)
    loss = objective(vectors, torch.ones(3, 4), nothing, nothing)  # type: ignore[operator]
    assert loss.item() == 0
    loss.backward()


def test_losses_stay_finite_however_sure_the_scores_are() -> None:
    sure = torch.full((1, 1), 1e4)
    assert masked_item_prediction(sure, sure, -sure, bounded=False).item() == 0
    assert math.isfinite(masked_item_prediction(sure, -sure, sure, bounded=False).item())
    rows = torch.tensor([0])
    assert masked_attribute_prediction(sure, torch.ones(1, 1), rows, rows).item() == pytest.approx(0)
