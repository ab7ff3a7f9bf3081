"""Transformer blocks for item sequences: pre-norm, causal, with a form that computes the last position only.

Attention is written out (matmul, bias, softmax, matmul): at these sizes it exports leaner and runs faster on CPU than
the fused operator. Sequences are padded on the right, so that a causal mask hides the padding by itself.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_FADING = 0.7  # of a filter's average: what an item counts, of what the one after it does
_FADED = 200  # positions
MASKED = -1e9  # finite: a softmax over nothing but minus infinity is NaN, and runtimes disagree on infinities

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Dropout(nn.Module):
    """Inverted dropout; on CPU its random bits come four elements to a draw, to 16 bits of the probability.

    torch's own draws one number an element on one thread, which took a third of a training step.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements with the probability and scale the rest so that the mean stays; identity in evaluation."""
        if not self.training or self.probability == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.probability)
        count = x.numel()
        draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[:count].view(x.shape)  # even over -32768 to 32767
        kept = torch.ge(bits, round(self.probability * 2**16) - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
        return x * kept.mul_(1 / (1 - self.probability))


class Linear(nn.Linear):
    """The same over rows (..., features), laid under each other while it computes.

    So it is exported as one Gemm, which adds the bias too: a tenth of a whole encoder's time in onnxruntime.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in features) -> (..., out features)."""
        return super().forward(x.flatten(0, -2)).reshape(*x.shape[:-1], self.out_features)


class Attention(nn.Module):
    """Multi-head self-attention over (batch, length, dim)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(dim, dim)
        self.key_value = Linear(dim, 2 * dim)
        self.output = Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        """queries (batch, q, dim) attend to keys (batch, k, dim); bias broadcasts to (batch, heads, q, k)."""
        query = self._split(self.query(queries))
        key, value = self.key_value(keys).chunk(2, dim=-1)
        logits = query @ self._split(key).transpose(2, 3) / math.sqrt(query.shape[-1])  # (batch, heads, q, k)
        weights = self.dropout(torch.softmax(logits + bias, dim=-1))
        mixed = (weights @ self._split(value)).transpose(1, 2)  # (batch, q, heads, head_dim)
        return self.output(mixed.flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)  # (batch, heads, length, head_dim)


class Filter(nn.Module):
    """A moving average of the past and, rescaled in each column, what differs from it: (batch, length, dim).

    That the newest items tell the most, and slow changes of taste more than single items, is what attention has to
    learn from each log anew. Source: the frequency rescaler of Shin et al., AAAI 2024 (BSARec), whose low frequencies
    are taken from the whole sequence; here from what came before, so that every position can be learned from.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rescale = nn.Parameter(torch.full((dim,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        """At every position."""
        positions = torch.arange(x.shape[1], device=x.device)
        return self._filtered(_fading(positions[:, None], positions) @ x, x)

    def last(self, x: Tensor, newest: Tensor, lengths: Tensor) -> Tensor:
        """At each row's last position, where x is newest (batch, dim): (batch, dim)."""
        positions = torch.arange(x.shape[1], device=x.device)
        shares = _fading(last_positions(lengths)[:, None], positions)  # (batch, length)
        return self._filtered((shares[:, None] @ x)[:, 0], newest)

    def _filtered(self, low: Tensor, x: Tensor) -> Tensor:
        return low + self.rescale**2 * (x - low)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with dropout and a residual; filtered: the share that is a filter's."""

    def __init__(
        self, dim: int, heads: int, inner: int, *, dropout: float, activation: str, filtered: float = 0.0
    ) -> None:
        super().__init__()
        self.filtered = filtered
        self.filter = Filter(dim) if filtered else None
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            Linear(dim, inner), ACTIVATIONS[activation](), Dropout(dropout), Linear(inner, dim)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (batch, length, dim), bias broadcasts to (batch, heads, length, length) -> (batch, length, dim)."""
        normed = self.attention_norm(x)
        mixed = self.attention(normed, normed, bias)
        if self.filter is not None:
            mixed = self.filtered * self.filter(normed) + (1 - self.filtered) * mixed
        return self._feed(x + self.dropout(mixed))

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """What `forward` gives at each row's last position, computing one query a row: (batch, dim)."""
        normed = self.attention_norm(x)
        last = last_positions(lengths)  # (batch,)
        rows = torch.arange(x.shape[0], device=x.device)
        newest = normed[rows, last]  # (batch, dim)
        mixed = self.attention(newest[:, None], normed, padding_bias(lengths, x.shape[1]))[:, 0]
        if self.filter is not None:
            mixed = self.filtered * self.filter.last(normed, newest, lengths) + (1 - self.filtered) * mixed
        return self._feed(x[rows, last] + self.dropout(mixed))

    def _feed(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]


def last_positions(lengths: Tensor) -> Tensor:
    """Index of each row's last item, (batch,); 0 for an empty row, whose padding then stands for it."""
    return lengths.sub(1).clamp(min=0)


def _fading(newest: Tensor, positions: Tensor) -> Tensor:
    """What each position counts in the average up to the newest: (..., length), 0 beyond it, together 1."""
    gaps = newest - positions
    # What is as good as nothing is nothing: products with numbers too small for float32 take five times as long.
    weights = torch.where((gaps >= 0) & (gaps < _FADED), _FADING ** gaps.clamp(0, _FADED).float(), 0.0)
    return weights / weights.sum(dim=-1, keepdim=True)


def causal_bias(length: int, device: torch.device) -> Tensor:
    """0 where a position may look, MASKED where it would look ahead: float (length, length)."""
    positions = torch.arange(length, device=device)
    return torch.where(positions <= positions[:, None], 0.0, MASKED)


def padding_bias(lengths: Tensor, length: int) -> Tensor:
    """0 at a row's items, MASKED at its padding: lengths (batch,) -> float (batch, 1, 1, length).

    An empty row sees its first position, so that its softmax is over something.
    """
    positions = torch.arange(length, device=lengths.device)
    return torch.where(positions <= last_positions(lengths)[:, None], 0.0, MASKED)[:, None, None, :]


def initialise(module: nn.Module, *, deviation: float) -> None:
    """Set weights by module type: truncated normal for matrices and embeddings, 0 for biases, 1 for norms.

    Call through `Module.apply`; `deviation` is the normal's standard deviation, cut at two of them.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
