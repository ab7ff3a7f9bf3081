"""The running mean of weights, against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from training.average import Average


def _weight(model: nn.Linear) -> float:
    return float(model.weight.item())


def _set(model: nn.Linear, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


def test_the_mean_forgets_by_its_decay_and_the_first_steps_sooner() -> None:
    model = nn.Linear(1, 1, bias=False)
    _set(model, 1.0)
    average = Average(model, 0.5)
    _set(model, 3.0)
    average.update(1)  # decay 2/11: the weights have gone far from where they were drawn
    assert average.weights["weight"].item() == pytest.approx(1.0 * 2 / 11 + 3.0 * 9 / 11)
    _set(model, 5.0)
    average.update(1000)  # decay 1/2
    assert average.weights["weight"].item() == pytest.approx((2.6363636 + 5.0) / 2)


def test_the_model_has_the_mean_only_while_it_is_asked_for_even_when_that_fails() -> None:
    model = nn.Linear(1, 1, bias=False)
    _set(model, 1.0)
    average = Average(model, 0.5)
    _set(model, 3.0)
    with average.instead():
        assert _weight(model) == 1.0
    assert _weight(model) == 3.0
    with pytest.raises(RuntimeError, match="no more"), average.instead():
        raise RuntimeError("no more")
    assert _weight(model) == 3.0
    assert average.weights["weight"].item() == 1.0  # and is not the model's own memory


def test_without_a_decay_nothing_is_kept_and_the_weights_are_as_they_are() -> None:
    model = nn.Linear(1, 1, bias=False)
    _set(model, 2.0)
    average = Average(model, None)
    average.update(1)
    with average.instead():
        assert _weight(model) == 2.0
    assert average.weights == {}
