"""Items that share vectors through their attributes, while a model is fitted.

An item is the sum of a vector of its own and the mean of its attributes' vectors, so that what is learned of one item
tells of all that are like it; a model alone has to learn each of the many items that occur a few times from those few.
The sum is all that is served: `fold` leaves a plain embedding, and a bundle does not know the difference.
Source: feature-wise item embeddings as in Kula, "Metadata Embeddings for User and Item Cold-start Recommendations"
(LightFM), 2015, here averaged, so that an item with many attributes is not longer for it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from models.layers import initialise
from models.sasrec import SASRec
from models.sequence import PADDING


class AttributedItems(nn.Module):
    """Stands in for an item embedding: called with indices, and with a `weight` of (items + 1, dim).

    starts int64 (items + 2,) and flat int64 (pairs,): item i has the attributes flat[starts[i]:starts[i + 1]], none of
    them `attributes` or above; one without any, as padding, is its own vector alone.
    """

    def __init__(self, own: nn.Embedding, starts: Tensor, flat: Tensor, attributes: int, *, deviation: float) -> None:
        super().__init__()
        self.attribute_embedding = nn.Embedding(attributes, own.embedding_dim)
        self.apply(lambda module: initialise(module, deviation=deviation))
        self.own = own  # after the line above: it has been initialised already
        self._offsets: Tensor
        self._flat: Tensor
        self._now: Tensor | None = None
        self.register_buffer("_offsets", starts[:-1].clone(), persistent=False)  # the data's, not learned
        self.register_buffer("_flat", flat.clone(), persistent=False)
        # The same pairs by attribute, for the gradient.
        counts, order = starts.diff(), torch.argsort(flat, stable=True)
        owners, ends = torch.repeat_interleave(counts)[order], torch.bincount(flat, minlength=attributes).cumsum(0)
        self._owners: Tensor
        self._shares: Tensor
        self._begins: Tensor
        self.register_buffer("_owners", owners, persistent=False)
        self.register_buffer("_shares", 1 / counts[owners].float(), persistent=False)
        self.register_buffer("_begins", functional.pad(ends[:-1], (1, 0)), persistent=False)

    @property
    def weight(self) -> Tensor:
        """(items + 1, dim), computed anew at each use, but for those within `computed_once`."""
        if self._now is not None:
            return self._now
        weight = self.attribute_embedding.weight
        if weight.device.type == "cpu":
            by_attribute = self._owners, self._shares, self._begins
            shared: Tensor = _Means.apply(weight, self._flat, self._offsets, by_attribute)  # type: ignore[no-untyped-call]
        else:
            shared = functional.embedding_bag(self._flat, weight, self._offsets, mode="mean")
        return self.own.weight + shared

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Compute the weight now, and use that until the end."""
        self._now = self.weight
        try:
            yield
        finally:
            self._now = None

    def forward(self, sequences: Tensor) -> Tensor:
        """Vectors of items: int64 (...) -> (..., dim)."""
        return functional.embedding(sequences, self.weight, padding_idx=PADDING)


class _Means(torch.autograd.Function):
    """embedding_bag's means; their gradient is gathered by attribute, on CPU in a fifth of torch's time.

    by_attribute: for each pair, sorted by attribute, its item and 1 / that item's attributes, and where each begins.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, weight: Tensor, flat: Tensor, offsets: Tensor, by_attribute: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        ctx.save_for_backward(*by_attribute)
        return functional.embedding_bag(flat, weight, offsets, mode="mean")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        owners, shares, offsets = ctx.saved_tensors
        grad = grad.contiguous()
        return functional.embedding_bag(owners, grad, offsets, mode="sum", per_sample_weights=shares), None, None, None


def attribute(model: SASRec, starts: NDArray[np.int64], flat: NDArray[np.int64], attributes: int) -> None:
    """Let the model's items have the vectors of their attributes too; AttributedItems says which."""
    own, deviation = model.item_embedding, model.config.initial_deviation
    pairs = torch.from_numpy(starts), torch.from_numpy(flat)
    attributed = AttributedItems(own, *pairs, attributes, deviation=deviation)
    model.item_embedding = attributed.to(own.weight.device)  # type: ignore[assignment]


def computed_once(model: SASRec) -> AbstractContextManager[None]:
    """For a step of learning, or a scoring, which looks at the items several times and changes nothing between."""
    items: nn.Module = model.item_embedding
    return items.kept() if isinstance(items, AttributedItems) else nullcontext()


def attribute_vectors(model: SASRec) -> NDArray[np.float32] | None:
    """What was learned of attributes, float32 (attributes, dim), before it is folded; None if nothing was."""
    items: nn.Module = model.item_embedding
    if not isinstance(items, AttributedItems):
        return None
    vectors: NDArray[np.float32] = items.attribute_embedding.weight.detach().float().cpu().numpy().copy()
    return vectors


def fold(model: SASRec) -> None:
    """Make the model's items plain vectors again, which keep what their attributes gave them."""
    attributed: nn.Module = model.item_embedding
    if isinstance(attributed, AttributedItems):
        with torch.no_grad():
            attributed.own.weight.copy_(attributed.weight)
        model.item_embedding = attributed.own
