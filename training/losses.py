"""Losses of next-item prediction: pure functions of vectors or scores, and targets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.layers import MASKED
from training.batches import Seen
from training.lookup import rows_of

_CHUNK_ROWS = 512  # targets scored at once: enough for the matrix products to run at full speed
_CHUNK_SCORES = 1 << 23  # and at most 32 MiB of scores, whatever the catalogue
_ALL_ITEMS = 150  # times as many items as are asked for: up to there all scores take less time than rows laid out
_FEW = 8  # items a vector whose products are not worth a matrix product
_ROUNDED_ROWS = 128  # targets whose products are rounded come in multiples of this, or of a chunk


def bce(positive: Tensor, negative: Tensor) -> Tensor:
    """Mean over targets of the binary cross-entropy of the positive and of its sampled negatives together, in nats.

    positive (targets,), negative (targets, n): scores. Source: Kang & McAuley, ICDM 2018, equation 6, n = 1.
    """
    return gbce(positive, negative, beta=1.0)


def gbce(positive: Tensor, negative: Tensor, *, beta: float) -> Tensor:
    """Generalised binary cross-entropy: the positive's sigmoid to the power of beta, in nats; beta 1 is `bce`.

    positive (targets,), negative (targets, n): scores. Raises ValueError if beta is not in (0, 1].
    Source: Petrov & Macdonald, RecSys 2023 (gSASRec), equation 8.
    """
    if not 0 < beta <= 1:
        raise ValueError(f"beta is {beta}; it must be above 0 and at most 1")
    return (beta * functional.softplus(-positive) + functional.softplus(negative).sum(-1)).mean()


def gbce_beta(negatives: int, items: int, calibration: float) -> float:
    """The beta of `gbce` for a sampling rate and a calibration t from 0 (as `bce`) to 1 (fully calibrated).

    Source: Petrov & Macdonald, RecSys 2023, equation 10: beta = a (t (1 - 1/a) + 1/a), a = negatives / (items - 1).
    """
    rate = negatives / max(1, items - 1)
    return min(1.0, rate * (calibration * (1 - 1 / rate) + 1 / rate)) if rate < 1 else 1.0


def sampled_softmax(
    vectors: Tensor,
    item_matrix: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_draws: Tensor,
    *,
    seen: Seen | None = None,
) -> Tensor:
    """Mean cross-entropy of the target among itself and negatives, in nats.

    vectors (targets, dim), item_matrix (items + 1, dim), targets (targets,), negatives (n,) shared by the batch or
    (targets, n) for each target its own; log_draws (items + 1,) is the logarithm of how often each item is expected
    among n, which is taken off their scores (logQ correction), so that the loss estimates the full softmax. A negative
    that is the target does not count against it, nor does one that it does not compete with; seen goes with shared
    negatives.
    Source: Bengio & Senecal 2008; Yi et al., RecSys 2019.
    """
    if negatives.ndim == 1:
        positive = dots(vectors, item_matrix, targets[:, None])  # (targets, 1)
        scores = vectors @ rows_of(item_matrix, negatives).T  # (targets, n)
    else:
        positive, scores = dots_of_both(vectors, item_matrix, targets, negatives)
    negative = scores - log_draws[negatives]
    negative = negative.masked_fill(negatives == targets[:, None], MASKED)
    if seen is not None:
        negative = negative.masked_fill(_among(negatives, seen), MASKED)
    logits = torch.cat([positive, negative], dim=1).float()
    return functional.cross_entropy(logits, torch.zeros_like(targets))


def _among(negatives: Tensor, seen: Seen) -> Tensor:
    """Which negatives (n,) each target has seen: bool (targets, n)."""
    drawn, order = negatives.cpu().sort()
    found = np.zeros((len(seen.begins), len(drawn)), np.bool_)
    for begin in range(0, len(found), _CHUNK_ROWS):
        rows, items = seen.pairs(slice(begin, begin + _CHUNK_ROWS))
        first, last = (np.searchsorted(drawn.numpy(), items, side) for side in ("left", "right"))
        rows, first, last = (each[last > first] for each in (rows, first, last))
        for row, low, high in zip(rows.tolist(), first.tolist(), last.tolist(), strict=True):
            found[begin + row, order[low:high]] = True
    return torch.from_numpy(found).to(negatives.device)


def full_softmax(
    vectors: Tensor,
    item_matrix: Tensor,
    targets: Tensor,
    *,
    seen: Seen | None = None,
    bfloat16: bool = False,
) -> Tensor:
    """Mean cross-entropy of the target among the items that it competes with, in nats; the padding row is none of them.

    vectors (targets, dim), item_matrix (items + 1, dim) with row 0 padding, targets int64 (targets,) from 1.
    With `bfloat16` what its matrix products multiply is rounded to that and summed in float32, on a CPU that has AMX to
    do it faster; elsewhere it changes nothing.
    Computed in chunks of targets together with its gradient, so that the (targets, items) scores are never all in
    memory. Not twice differentiable.
    """
    rounded = bfloat16 and _has_amx(vectors.device)
    # Sums over a catalogue need all of float32, and keep it.
    with torch.autocast(vectors.device.type, enabled=False), _products(bfloat16=rounded):
        loss: Tensor = _ChunkedSoftmax.apply(  # type: ignore[no-untyped-call]
            vectors.float(), item_matrix[1:].float(), targets - 1, seen, rounded
        )
    return loss


def _has_amx(device: torch.device) -> bool:
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))


@contextmanager
def _products(*, bfloat16: bool) -> Iterator[None]:
    """Products of float32 matrices on CPU by numbers rounded to bfloat16, while the block runs."""
    if not bfloat16:
        yield
        return
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before


class _ChunkedSoftmax(torch.autograd.Function):
    """Cross-entropy over vectors @ items.T whose gradient is ready when the forward pass is."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch calls it by position
        ctx: Any, vectors: Tensor, items: Tensor, targets: Tensor, seen: Seen | None, rounded: bool
    ) -> Tensor:
        count = len(vectors)
        rows = max(1, min(_CHUNK_ROWS, _CHUNK_SCORES // len(items)))
        if rounded:  # by a library that makes code for each shape of a product: few, by targets that weigh nothing
            unit = min(rows, _ROUNDED_ROWS)
            rows, spare = rows // unit * unit, -count % unit
            vectors, targets = functional.pad(vectors, (0, 0, 0, spare)), functional.pad(targets, (0, spare))
        weights = (torch.arange(len(vectors), device=vectors.device)[:, None] < count).float()  # (targets, 1)
        vectors_grad, items_grad = torch.empty_like(vectors), torch.zeros_like(items)
        total = vectors.new_zeros(())
        memory = vectors.new_empty(min(rows, len(vectors)), len(items))  # one for all: new pages cost more than sums
        for begin in range(0, len(vectors), rows):
            part = slice(begin, begin + rows)
            chunk, target, weight = vectors[part], targets[part, None], weights[part]
            scores = torch.mm(chunk, items.T, out=memory[: len(chunk)])  # (rows, items)
            own = scores.gather(1, target)
            if seen is not None:  # as high as the target for now: exponentials of all but minus infinity take long
                row, item = (torch.from_numpy(each).to(scores.device) for each in seen.pairs(part))
                cells, flat = row * len(items) + item - 1, scores.view(-1)
                flat.scatter_(0, cells, own.view(-1)[row])
            largest = scores.amax(1, keepdim=True)
            exponentials = scores.sub_(largest).exp_()
            if seen is not None:
                flat.index_fill_(0, cells, 0.0)
                exponentials.scatter_(1, target, (own - largest).exp())  # it may have been met before
            normaliser = exponentials.sum(1, keepdim=True)
            total += ((normaliser.log() + largest - own) * weight).sum()
            grad = exponentials.mul_(weight / normaliser)
            grad.scatter_add_(1, target, -weight)
            torch.mm(grad, items, out=vectors_grad[part])
            items_grad.addmm_(grad.T, chunk)
        # The mean is taken after the products: -1 is a number in bfloat16, most shares of a count are none.
        ctx.count = count
        ctx.save_for_backward(vectors_grad[:count], items_grad)
        return total / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        vectors_grad, items_grad = ctx.saved_tensors
        share = grad / ctx.count
        return vectors_grad * share, items_grad * share, None, None, None


def dots_of_both(vectors: Tensor, item_matrix: Tensor, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """`dots` of targets (targets,) and negatives (targets, n), taken together: (targets, 1) and (targets, n)."""
    scores = dots(vectors, item_matrix, torch.cat([targets[:, None], negatives], dim=1))
    return scores[:, :1], scores[:, 1:]


def dots(vectors: Tensor, item_matrix: Tensor, items: Tensor) -> Tensor:
    """Scores of n items a vector: vectors (targets, dim), item_matrix (items, dim), items (targets, n) -> (targets, n).

    Where n is a good part of the catalogue all scores are computed, in chunks, and those of the items picked: to lay
    out n rows a target is much memory that is written and read again.
    """
    if len(item_matrix) <= _ALL_ITEMS * items.shape[1]:
        with torch.autocast(vectors.device.type, enabled=False):
            picked: Tensor = _Picked.apply(vectors.float(), item_matrix.float(), items)  # type: ignore[no-untyped-call]
        return picked
    rows = rows_of(item_matrix, items)  # (targets, n, dim)
    if items.shape[1] <= _FEW:
        return (vectors[:, None] * rows).sum(-1)
    return torch.einsum("td,tnd->tn", vectors, rows)


class _Picked(torch.autograd.Function):
    """Some scores of each row of vectors @ matrix.T, which is never all in memory; nor is its gradient."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, matrix: Tensor, items: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, matrix, items)
        picked = vectors.new_empty(items.shape)
        for part, scores in _chunks(vectors, matrix):
            torch.mm(vectors[part], matrix.T, out=scores)
            torch.gather(scores, 1, items[part], out=picked[part])
        return picked

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        vectors, matrix, items = ctx.saved_tensors
        vectors_grad, matrix_grad = torch.empty_like(vectors), torch.zeros_like(matrix)
        for part, scores in _chunks(vectors, matrix):
            scores.zero_().scatter_add_(1, items[part], grad[part])
            torch.mm(scores, matrix, out=vectors_grad[part])
            matrix_grad.addmm_(scores.T, vectors[part])
        return vectors_grad, matrix_grad, None


def _chunks(vectors: Tensor, matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Parts of the vectors, each with memory for its scores (part, items): the same for all."""
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_SCORES // len(matrix)))
    memory = vectors.new_empty(min(rows, len(vectors)), len(matrix))
    for begin in range(0, len(vectors), rows):
        part = slice(begin, min(begin + rows, len(vectors)))
        yield part, memory[: part.stop - begin]
