"""Losses of next-item prediction: pure functions of vectors or scores, and targets."""

import torch
from torch import Tensor
from torch.nn import functional


def bce(positive: Tensor, negative: Tensor) -> Tensor:
    """Mean binary cross-entropy of one positive and one sampled negative a target, in nats.

    positive, negative (targets,): scores. Source: Kang & McAuley, ICDM 2018, equation 6.
    """
    return (functional.softplus(-positive) + functional.softplus(negative)).mean()


def full_softmax(vectors: Tensor, item_matrix: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the target among all items, in nats; the padding row is no candidate.

    vectors (targets, dim), item_matrix (items + 1, dim) with row 0 padding, targets int64 (targets,) from 1.
    """
    logits = vectors @ item_matrix[1:].T  # (targets, items)
    return functional.cross_entropy(logits.float(), targets - 1)


def dot(vectors: Tensor, item_matrix: Tensor, items: Tensor) -> Tensor:
    """Score of one item a vector: vectors (targets, dim), items (targets,) -> (targets,)."""
    return torch.einsum("td,td->t", vectors, item_matrix[items])
