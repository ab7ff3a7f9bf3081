"""An item is its own vector and the mean of its attributes', and what is served of it is their sum."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attributed import AttributedItems, attribute, computed_once, fold
from models.sasrec import SASRec, SASRecConfig

STARTS = np.array([0, 0, 2, 2, 3])  # item 1 has attributes 0 and 1, item 2 none, item 3 attribute 1
FLAT = np.array([0, 1, 1])


@pytest.fixture
def model() -> SASRec:
    torch.manual_seed(0)
    made = SASRec(SASRecConfig(dim=4, heads=1, blocks=1, length=5), 3).eval()
    with torch.no_grad():
        made.item_embedding.weight[1:] = torch.arange(12.0).view(3, 4)
    return made


@pytest.fixture
def attributed(model: SASRec) -> AttributedItems:
    attribute(model, STARTS, FLAT, 2)
    items: nn.Module = model.item_embedding
    assert isinstance(items, AttributedItems)
    with torch.no_grad():
        items.attribute_embedding.weight[:] = torch.tensor([[2.0, 4.0, 6.0, 8.0], [0.0, 0.0, 20.0, 40.0]])
    return items


def test_an_item_is_its_own_vector_and_the_mean_of_its_attributes(model: SASRec, attributed: AttributedItems) -> None:
    expected = [[0, 0, 0, 0], [0 + 1, 1 + 2, 2 + 13, 3 + 24], [4, 5, 6, 7], [8, 9, 10 + 20, 11 + 40]]
    assert model.item_matrix().tolist() == expected
    assert attributed(torch.tensor([[3, 0]])).tolist() == [[expected[3], expected[0]]]


def test_padding_is_not_learned(model: SASRec, attributed: AttributedItems) -> None:
    (attributed(torch.tensor([0, 1])).sum() * 2).backward()
    own = attributed.own.weight.grad
    assert own is not None
    assert own[0].abs().max() == 0
    assert own[1].tolist() == [2.0] * 4
    shared = attributed.attribute_embedding.weight.grad
    assert shared is not None
    assert shared.tolist() == [[1.0] * 4] * 2  # half of what came to item 1 each


def test_the_gradient_of_attributes_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 5, (60,), generator=generator)
    starts = functional.pad(counts.cumsum(0), (1, 0))
    flat = torch.randint(0, 8, (int(counts.sum()),), generator=generator)
    items = AttributedItems(nn.Embedding(60, 4, padding_idx=0), starts, flat, 9, deviation=0.1)  # nobody has the last
    towards = torch.randn(60, 4, generator=generator)
    (items.weight * towards).sum().backward()
    weight = items.attribute_embedding.weight.detach().clone().requires_grad_()
    (functional.embedding_bag(flat, weight, starts[:-1], mode="mean") * towards).sum().backward()
    torch.testing.assert_close(items.attribute_embedding.weight.grad, weight.grad)
    items.zero_grad()
    items.weight.sum().backward()
    assert items.attribute_embedding.weight.grad is not None
    assert items.attribute_embedding.weight.grad.sum().item() == pytest.approx(4 * int((counts > 0).sum()), rel=1e-5)


def test_computed_once_they_are_the_same_tensor_until_the_end(model: SASRec, attributed: AttributedItems) -> None:
    with computed_once(model):
        assert model.item_matrix() is model.item_matrix()
        before = model.item_matrix().detach().clone()
    with torch.no_grad():
        attributed.own.weight += 1
    torch.testing.assert_close(model.item_matrix(), before + 1)
    fold(model)
    with computed_once(model):  # nothing to compute
        assert model.item_matrix() is model.item_embedding.weight


def encoded(model: SASRec) -> Tensor:
    return model.encode(torch.tensor([[1, 3, 2], [2, 0, 0]]), torch.tensor([3, 1])).detach()


def test_folded_items_are_the_same_and_plain(model: SASRec, attributed: AttributedItems) -> None:
    matrix, vectors = model.item_matrix().detach().clone(), encoded(model)
    fold(model)
    assert type(model.item_embedding) is nn.Embedding
    torch.testing.assert_close(model.item_matrix(), matrix)
    torch.testing.assert_close(encoded(model), vectors)
    plain = SASRec(model.config, 3)
    assert model.state_dict().keys() == plain.state_dict().keys()
    fold(model)  # nothing left to do
    torch.testing.assert_close(model.item_matrix(), matrix)


def test_the_datas_pairs_are_not_weights(attributed: AttributedItems) -> None:
    assert set(attributed.state_dict()) == {"attribute_embedding.weight", "own.weight"}
