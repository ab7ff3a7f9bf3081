"""Layers whose behaviour no model shows from outside."""

import pytest
import torch

from models.layers import Attention, Block, Dropout, Filter, causal_bias, initialise


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9])
def test_dropout_zeroes_the_share_it_is_given_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    out = Dropout(probability).train()(torch.ones(257, 401))
    kept = out[out != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - probability)))
    spread = (probability * (1 - probability)) ** 0.5
    assert (out == 0).float().mean().item() == pytest.approx(probability, abs=5 * spread / out.numel() ** 0.5)


def test_elements_are_dropped_independently_although_four_share_a_draw() -> None:
    torch.manual_seed(0)
    dropped = (Dropout(0.5).train()(torch.ones(400_000)) == 0).float() - 0.5
    for distance in (*range(1, 9), 100_000, 200_000, 300_000):
        covariance = (dropped[:-distance] * dropped[distance:]).mean().item()
        assert abs(covariance) < 5 * 0.25 / 400_000**0.5


def test_dropout_is_nothing_in_evaluation_and_at_zero() -> None:
    x = torch.rand(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_dropout_follows_torchs_seed_and_passes_gradients_of_what_it_keeps() -> None:
    layer = Dropout(0.5).train()
    x = torch.ones(7, 3, requires_grad=True)
    torch.manual_seed(1)
    one = layer(x)
    torch.manual_seed(1)
    two = layer(x)
    assert torch.equal(one, two)
    assert not torch.equal(one, layer(x))
    one.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, one.detach())


def test_attention_equals_torchs_own_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3, 0.0), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    x = torch.randn(2, 5, 12)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = theirs(x, x, x, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(ours(x, x, causal_bias(5, x.device)), expected, atol=1e-6, rtol=1e-5)


def test_a_filter_is_a_fading_average_and_a_part_of_what_differs_from_it() -> None:
    layer = Filter(2)
    with torch.no_grad():
        layer.rescale.copy_(torch.tensor([0.0, 0.5]))
    x = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]])
    low = [1.0, (2 + 0.7) / 1.7, (4 + 0.7 * 2 + 0.49) / (1 + 0.7 + 0.49)]
    expected = [[one, one + 0.25 * (own - one)] for one, own in zip(low, [1.0, 2.0, 4.0], strict=True)]
    torch.testing.assert_close(layer(x), torch.tensor([expected]))
    last = layer.last(x, x[:, 1], torch.tensor([2]))  # what stands behind the last position does not count
    torch.testing.assert_close(last, torch.tensor([expected[1]]))


def test_a_block_mixes_by_its_filter_for_the_share_it_is_given() -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(3, 5, 8), causal_bias(5, torch.device("cpu"))
    mixed = Block(8, 2, 8, dropout=0.0, activation="gelu", filtered=0.25)
    for weights in (*mixed.attention.output.parameters(), *mixed.feed_forward[3].parameters()):
        torch.nn.init.zeros_(weights)  # attention and feed-forward give nothing
    assert mixed.filter is not None
    torch.testing.assert_close(mixed(x, bias), x + 0.25 * mixed.filter(mixed.attention_norm(x)))
    lengths = torch.tensor([1, 3, 5])
    torch.testing.assert_close(mixed.last(x, lengths), mixed(x, bias)[torch.arange(3), lengths - 1])
    assert Block(8, 2, 8, dropout=0.0, activation="gelu").filter is None


def test_weights_are_initialised_by_the_type_of_their_module() -> None:
    torch.manual_seed(0)
    embedding, linear, norm = torch.nn.Embedding(50, 40, padding_idx=0), torch.nn.Linear(40, 40), torch.nn.LayerNorm(40)
    torch.nn.Sequential(embedding, linear, norm).apply(lambda module: initialise(module, deviation=0.5))
    assert embedding.weight[0].abs().max() == 0
    for weight in (embedding.weight[1:], linear.weight):
        assert weight.abs().max() <= 1
        assert weight.std().item() == pytest.approx(0.44, rel=0.05)  # a normal of .5 cut at two deviations
    assert linear.bias.abs().max() == 0
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
