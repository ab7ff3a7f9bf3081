"""S3Rec's four self-supervised objectives: pure functions of vectors and what they should be close to.

Each is a sum over its targets, in nats, as in the published code: the published weights presume it. What stands on
either side is already projected: `vectors` come from a model's head for the objective.
Source: Zhou et al., CIKM 2020, equations 5 to 8.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

_CHUNK_SCORES = 1 << 23  # at most 32 MiB of scores at once, however many attributes there are


def associated_attribute_prediction(
    vectors: Tensor, attribute_matrix: Tensor, rows: Tensor, attributes: Tensor
) -> Tensor:
    """AAP: which of all attributes the item has that is seen at a position, each a binary question.

    vectors (positions, dim), attribute_matrix (attributes, dim); rows and attributes int64 (pairs,): the item at
    position rows[p] has attribute attributes[p].
    """
    return _attribute_cross_entropy(vectors, attribute_matrix, rows, attributes)


def masked_item_prediction(vectors: Tensor, positive: Tensor, negative: Tensor, *, bounded: bool) -> Tensor:
    """MIP: the item that is hidden at a position scores above a negative: -log sigmoid of the difference.

    All (positions, dim); positive and negative are rows of the item matrix. bounded: a score is the sigmoid of the dot
    product, as published, so that no pair is worth being made surer and surer of; otherwise it is the product itself.
    """
    return _ranked_above(vectors, positive, negative, bounded=bounded)


def masked_attribute_prediction(vectors: Tensor, attribute_matrix: Tensor, rows: Tensor, attributes: Tensor) -> Tensor:
    """MAP: the attributes of the item that is hidden at a position. Shapes as associated_attribute_prediction."""
    return _attribute_cross_entropy(vectors, attribute_matrix, rows, attributes)


def segment_prediction(contexts: Tensor, positive: Tensor, negative: Tensor, *, bounded: bool) -> Tensor:
    """SP: the segment that was cut out of a sequence scores above one of another: -log sigmoid of the difference.

    All (sequences, dim): contexts are of sequences without their segment, the others of segments by themselves.
    bounded: as in masked_item_prediction.
    """
    return _ranked_above(contexts, positive, negative, bounded=bounded)


def _ranked_above(vectors: Tensor, positive: Tensor, negative: Tensor, *, bounded: bool) -> Tensor:
    if not bounded:
        return functional.softplus(((negative - positive) * vectors).sum(-1)).sum()
    better, worse = ((vectors * one).sum(-1).sigmoid() for one in (positive, negative))
    return functional.softplus(worse - better).sum()


def _attribute_cross_entropy(vectors: Tensor, attribute_matrix: Tensor, rows: Tensor, attributes: Tensor) -> Tensor:
    with torch.autocast(vectors.device.type, enabled=False):  # sums over all attributes need all of float32
        loss: Tensor = _ChunkedSigmoid.apply(  # type: ignore[no-untyped-call]
            vectors.float(), attribute_matrix.float(), rows, attributes
        )
    return loss


class _ChunkedSigmoid(torch.autograd.Function):
    """Binary cross-entropy over vectors @ attributes.T, summed; its gradient is ready when the forward pass is.

    So the (positions, attributes) scores are never all in memory. rows must ascend.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, vectors: Tensor, matrix: Tensor, rows: Tensor, attributes: Tensor) -> Tensor:
        step = max(1, _CHUNK_SCORES // len(matrix))
        vectors_grad, matrix_grad = torch.empty_like(vectors), torch.zeros_like(matrix)
        total = vectors.new_zeros(())
        begins = range(0, len(vectors), step)
        bounds = torch.searchsorted(rows, torch.tensor([*begins, len(vectors)], device=rows.device)).tolist()
        for number, begin in enumerate(begins):
            pairs = slice(bounds[number], bounds[number + 1])
            owner, attribute = rows[pairs] - begin, attributes[pairs]
            chunk = vectors[begin : begin + step]
            scores = chunk @ matrix.T  # (rows, attributes)
            total += functional.softplus(scores).sum() - scores[owner, attribute].sum()
            grad = scores.sigmoid_()
            grad[owner, attribute] -= 1
            torch.mm(grad, matrix, out=vectors_grad[begin : begin + step])
            matrix_grad.addmm_(grad.T, chunk)
        ctx.save_for_backward(vectors_grad, matrix_grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        vectors_grad, matrix_grad = ctx.saved_tensors
        return vectors_grad * grad, matrix_grad * grad, None, None
