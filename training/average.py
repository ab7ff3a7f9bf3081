"""The running mean of a model's weights: steadier than the weights of any one step, and as a rule a little better.

Source: Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992; with exponential weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Mean over the steps so far, those long ago weighing less: `decay` to the power of the steps since.

    With a decay of None it is the weights as they are, and costs nothing.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self._model, self._decay = model, decay
        self.weights: dict[str, Tensor] = {} if decay is None else copied(model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after this step, counted from 1; the first steps count less, for they are soon far."""
        if self._decay is None:
            return
        decay = min(self._decay, (1 + step) / (10 + step))
        latest = self._model.state_dict()
        torch._foreach_lerp_(list(self.weights.values()), [latest[name] for name in self.weights], 1 - decay)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """The model has the mean for weights while the block runs."""
        if self._decay is None:
            yield
            return
        latest = copied(self._model)
        self._model.load_state_dict(self.weights)
        try:
            yield
        finally:
            self._model.load_state_dict(latest)


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights by name, which its further training leaves as they are."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
