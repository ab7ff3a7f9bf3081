"""AutoRec on numbers worked out by hand: what it reads, how it is scored, and what it must not read."""

import math

import pytest
import torch
from pydantic import ValidationError

from models.autorec import AutoRec, AutoRecConfig
from models.zoo import build


def linear(**options: object) -> AutoRec:
    """Three columns, one hidden unit that passes on what it sums, weights 1, 2, 3 in and 1, 10, 100 out, mean 3."""
    settings = {"hidden": (1,), "encoder": "identity", "centre": "mean", "presence": 0.0, "length": 9} | options
    model = AutoRec(AutoRecConfig(**settings), 3).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        model.input_embedding.weight[1:] = torch.tensor([[1.0], [2.0], [3.0]])
        model.decoder.weight[:] = torch.tensor([[1.0], [10.0], [100.0]])
        model.decoder.bias[:] = torch.tensor([0.5, 0.0, 0.0])
    return model


def outputs(model: AutoRec, items: list[int], values: list[float]) -> list[float]:
    """Outputs for the three items after a history."""
    given = torch.tensor([values]) if values else torch.full((1, 1), math.nan)
    vectors = model.encode(torch.tensor([items or [0]]), torch.tensor([len(items)]), given)
    return (vectors @ model.item_matrix().T)[0, 1:].tolist()


def test_ratings_are_read_as_differences_from_the_mean() -> None:
    # Item 1 rated 5 (2 above the mean), item 3 rated 2 (1 below): 2 * 1 - 1 * 3 = -1 in the hidden unit.
    assert outputs(linear(), [1, 3], [5, 2]) == pytest.approx([3 + 0.5 - 1, 3 - 10, 3 - 100])


def test_an_empty_history_predicts_the_mean_and_the_items_biases() -> None:
    assert outputs(linear(), [], []) == pytest.approx([3.5, 3, 3])


def test_biases_are_taken_off_before_and_put_back_after() -> None:
    model = linear(centre="biases", shrinkage=1.0)
    model.calibrate(mean=3, low=1, high=5, offsets=torch.tensor([0.5, 0.0, -1.0]))
    # Item 1 rated 5: 5 - 3 - .5 = 1.5 above its baseline; the row's own bias is 1.5 / (1 + 1) = .75, .75 is left.
    assert outputs(model, [1], [5]) == pytest.approx([3 + 0.5 + 0.75 + 0.5 + 0.75, 3 + 0.75 + 7.5, 3 - 1 + 0.75 + 75])


def test_that_an_item_was_rated_at_all_is_read_too() -> None:
    model = linear(presence=2.0)
    assert outputs(model, [2], [3]) == pytest.approx([3.5 + 4, 3 + 40, 3 + 400])  # a rating at the mean: 2 * 2
    assert outputs(model, [2], [math.nan]) == pytest.approx(outputs(model, [2], [3]))  # and none counts as one


def test_the_newest_rating_of_an_item_counts_and_an_event_without_one_does_not_replace_it() -> None:
    for options in ({}, {"presence": 1.0}):
        model = linear(**options)
        assert outputs(model, [1, 2, 1], [5, 4, 1]) == pytest.approx(outputs(model, [2, 1], [4, 1]))
        assert outputs(model, [1, 2, 1], [5, 4, math.nan]) == pytest.approx(outputs(model, [1, 2], [5, 4]))


def test_ratings_outside_the_scale_count_as_its_ends() -> None:
    assert outputs(linear(), [1, 2], [900, -900]) == pytest.approx(outputs(linear(), [1, 2], [5, 1]))


def test_implicit_feedback_counts_each_item_once_whatever_its_values() -> None:
    model = linear(centre="biases", presence=3.0, feedback="implicit")
    expected = [(1 + 3) / math.sqrt(2) * weight for weight in (1, 10, 100)]
    expected[0] += 0.5
    assert outputs(model, [1, 3, 1], [5, 1, math.nan]) == pytest.approx(expected)


@torch.no_grad()
def test_rows_and_histories_are_read_alike() -> None:
    torch.manual_seed(0)
    for feedback in ("explicit", "implicit"):
        model = AutoRec(AutoRecConfig(hidden=(5, 4), feedback=feedback, length=20), 30).eval()
        items = torch.randperm(30)[:12] + 1
        values = torch.randint(1, 6, (12,)).float()
        ratings, observed = torch.zeros(1, 30), torch.zeros(1, 30, dtype=torch.bool)
        ratings[0, items - 1], observed[0, items - 1] = values, True
        vectors = model.encode(items[None], torch.tensor([12]), values[None])
        torch.testing.assert_close(model(ratings, observed), vectors @ model.item_matrix()[1:].T)


@torch.no_grad()
def test_what_is_not_observed_is_not_read() -> None:
    torch.manual_seed(0)
    for feedback in ("explicit", "implicit"):
        model = AutoRec(AutoRecConfig(hidden=(5,), feedback=feedback), 8).eval()
        ratings, observed = torch.rand(3, 8) * 4 + 1, torch.rand(3, 8) < 0.5
        other = torch.where(observed, ratings, torch.tensor([[math.nan], [1e9], [-3.0]]))
        assert torch.equal(model(ratings, observed), model(other, observed))


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        ("identity", [-1.0, 1.0, 3.0, 5.0, 9.0]),
        ("relu", [1.0, 1.0, 3.0, 5.0, 9.0]),
        ("sigmoid", [1 + 4 / (1 + math.exp(-x)) for x in (-4, -2, 0, 2, 6)]),
    ],
)
def test_decoders_turn_outputs_into_ratings_and_keep_their_order(decoder: str, expected: list[float]) -> None:
    model = linear(decoder=decoder)
    found = model.predict(torch.tensor([-1.0, 1.0, 3.0, 5.0, 9.0]))
    assert found.tolist() == pytest.approx(expected)
    assert (found.diff() >= 0).all()


def test_predictions_are_clipped_to_the_scale() -> None:
    assert linear().clipped(torch.tensor([-7.0, 2.5, 11.0])).tolist() == [1.0, 2.5, 5.0]


@pytest.mark.parametrize(("encoder", "hidden"), [("identity", -2.0), ("relu", 0.0), ("sigmoid", 1 / (1 + math.exp(2)))])
def test_encoders_bend_what_was_summed(encoder: str, hidden: float) -> None:
    model = linear(encoder=encoder)
    assert model.encode(torch.tensor([[1]]), torch.tensor([1]), torch.tensor([[1.0]]))[0, 0].item() == pytest.approx(
        hidden
    )


def test_several_hidden_layers_follow_one_another() -> None:
    torch.manual_seed(0)
    model = AutoRec(AutoRecConfig(hidden=(6, 3), encoder="relu", centre="mean", presence=0.0), 4).eval()
    vector = model.encode(torch.tensor([[2]]), torch.tensor([1]), torch.tensor([[5.0]]))[0]
    first = torch.relu(2 * model.input_embedding.weight[2] + model.input_bias)
    second = torch.relu(model.layers[0].weight @ first + model.layers[0].bias)  # type: ignore[operator]
    torch.testing.assert_close(vector, torch.cat([second, torch.tensor([1.0, 3.0])]))
    assert model.config.dim == 5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"feedback": "implicit", "centre": "mean"}, "model.centre does nothing"),
        ({"feedback": "implicit", "presence": 1.0}, "model.presence does nothing"),
        ({"centre": "mean", "shrinkage": 1.0}, "model.shrinkage does nothing"),
        ({"side": "item", "length": 5}, "model.length does nothing"),
        ({"hidden": ()}, "at least 1"),
        ({"hidden": (0,)}, "greater than or equal to 1"),
        ({"decoder": "tanh"}, "identity"),
    ],
)
def test_an_option_that_would_be_ignored_or_cannot_be_is_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        AutoRecConfig(**options)  # type: ignore[arg-type]


def test_an_item_based_model_has_a_column_for_every_user() -> None:
    config = AutoRecConfig(side="item")
    assert build(config, 5, users=7).decoder.out_features == 7
    with pytest.raises(ValueError, match="give users"):
        build(config, 5)
