"""AutoRec: an autoencoder that reads one row of the rating matrix and fills in the rest of it.

Source: Sedhain, Menon, Sanner & Xie, "AutoRec: Autoencoders Meet Collaborative Filtering", WWW 2015. A row is a user
(the columns are items; what is served, for a user who comes tomorrow has a row too) or an item (the columns are users).
Only what was observed is read and only that is learned from, so a zero is never mistaken for a rating.

Ratings are centred by mean, column offset and a row's own bias, which the paper leaves to the network (on
MovieLens-100K RMSE .901 instead of .915), and a constant is added to what is read, so that an average rating still
differs from none: who rates a film at all says much about it (.876 instead of .893, both with dropout).
"""

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models.layers import Dropout
from models.sequence import PADDING

Activation = Literal["identity", "sigmoid", "relu"]

_ENCODERS: dict[str, type[nn.Module]] = {"identity": nn.Identity, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}


class AutoRecConfig(BaseModel):
    """Size and shape; `length` is the longest history that the encoder reads when it serves, training reads all."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["autorec"] = "autorec"
    side: Literal["user", "item"] = "user"  # whose row is read
    feedback: Literal["explicit", "implicit"] = "explicit"  # ratings, or that something happened at all
    # widths of the hidden layers; more than one is the paper's deep variant. TOML has lists, hence not strict
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, strict=True)], ...], Field(min_length=1, strict=False)] = (500,)
    encoder: Activation = "sigmoid"  # after every hidden layer
    decoder: Activation = "identity"  # from the output to a rating
    dropout: float = Field(0.0, ge=0, lt=1)  # share of the observed entries that a training step does not read
    centre: Literal["mean", "biases"] = "biases"  # what is taken off a rating before it is read
    presence: float = Field(3.0, ge=0)  # added to every centred rating that is read
    shrinkage: float = Field(5.0, ge=0)  # ratings at the mean added to every row and column before its bias is taken
    length: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "AutoRecConfig":
        defaults = type(self).model_fields
        for name in ("centre", "shrinkage", "presence"):
            if self.feedback == "implicit" and getattr(self, name) != defaults[name].default:
                raise ValueError(f"model.{name} does nothing with feedback 'implicit'; leave it out")
        if self.centre == "mean" and self.shrinkage != defaults["shrinkage"].default:
            raise ValueError("model.shrinkage does nothing with centre 'mean'; leave it out")
        if self.side == "item" and self.length != defaults["length"].default:
            raise ValueError("model.length does nothing with side 'item', which is not served; leave it out")
        return self

    @property
    def dim(self) -> int:
        """Width of the vectors that are served: the last hidden layer, 1 for the column's bias, the row's baseline."""
        return self.hidden[-1] + 2


class AutoRec(nn.Module):
    """Rows of a matrix in, one number for every column out: `forward` for dense rows, `encode` for histories.

    columns: items of a user-based model, users of an item-based one. Statistics of the train ratings are part of the
    model (`calibrate`), so that weights and scale cannot be mixed up.
    """

    def __init__(self, config: AutoRecConfig, columns: int) -> None:
        super().__init__()
        self.config = config
        self.items = columns  # as every model of the zoo has it; of an item-based model the columns are users
        widths = config.hidden
        self.input_embedding = nn.Embedding(columns + 1, widths[0], padding_idx=PADDING)
        self.input_bias = nn.Parameter(torch.zeros(widths[0]))
        self.layers = nn.ModuleList(nn.Linear(one, two) for one, two in pairwise(widths))
        self.dropout = Dropout(config.dropout)
        self.activation = _ENCODERS[config.encoder]()
        self.decoder = nn.Linear(widths[-1], columns)
        self.mean: Tensor
        self.low: Tensor
        self.high: Tensor
        self.offsets: Tensor
        implicit = config.feedback == "implicit"
        for name, value in (("mean", 0.0 if implicit else 3.0), ("low", 0.0 if implicit else 1.0)):
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("high", torch.tensor(1.0 if implicit else 5.0))
        self.register_buffer("offsets", torch.zeros(columns + 1))  # of each column from the mean, row 0 padding
        bound = math.sqrt(6 / (columns + widths[0]))
        nn.init.uniform_(self.input_embedding.weight, -bound, bound)
        nn.init.zeros_(self.input_embedding.weight[PADDING])
        for layer in (*self.layers, self.decoder):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def calibrate(self, *, mean: float, low: float, high: float, offsets: Tensor) -> None:
        """Set the statistics of the train ratings: their mean, their scale, and each column's offset, (columns,)."""
        self.mean.fill_(mean)
        self.low.fill_(low)
        self.high.fill_(high)
        self.offsets[1:] = offsets

    def weights(self) -> list[Tensor]:
        """What regularisation shrinks: matrices and not biases, as in the paper."""
        return [self.input_embedding.weight, *(layer.weight for layer in self.layers), self.decoder.weight]  # type: ignore[list-item]

    def forward(self, ratings: Tensor, observed: Tensor) -> Tensor:
        """Outputs for every column, before the decoder's activation: (batch, columns) float32.

        ratings (batch, columns); where observed (batch, columns), bool, is False they are not read, whatever they are.
        """
        vectors = self.read(ratings, observed)
        with torch.autocast(vectors.device.type, enabled=False):  # bfloat16 has a rating to the nearest 1/64
            return vectors.float() @ self.item_matrix()[1:].T

    def read(self, ratings: Tensor, observed: Tensor, seen: Tensor | None = None) -> Tensor:
        """Vectors of rows, as `encode` gives them of histories: (batch, columns) each -> (batch, dim).

        seen: the observed entries and those of which it is known that there is one, and not which; implicit feedback
        has none of those.
        """
        count = observed.sum(1, keepdim=True).to(self.mean.dtype)  # (batch, 1)
        baseline = self.mean + torch.zeros_like(count)
        if self.config.feedback == "implicit":
            centred = observed / torch.sqrt(count.clamp(min=1))
        else:
            zero = torch.zeros((), device=ratings.device)
            centred = torch.where(observed, ratings - self.mean - self.offsets[1:], zero)
            if self.config.centre == "biases":
                bias = centred.sum(1, keepdim=True) / (count + self._shrinkage)
                centred = torch.where(observed, centred - bias, zero)
                baseline = baseline + bias
            centred = centred + self.config.presence * (observed if seen is None else seen)
        hidden = self._hidden(self.dropout(centred) @ self.input_embedding.weight[1:])
        return torch.cat([hidden, torch.ones_like(baseline), baseline], dim=1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Ratings of outputs, any shape, through the decoder's activation; not yet clipped to the scale.

        All three agree in the middle of the scale: identity gives the output itself, ReLU nothing below the scale and
        the sigmoid nothing outside it. All rise with the output, so ranking needs none of them.
        """
        if self.config.decoder == "identity":
            return outputs
        if self.config.decoder == "relu":
            return self.low + functional.relu(outputs - self.low)
        span = self.high - self.low
        return self.low + span * torch.sigmoid(4 * (outputs - (self.low + self.high) / 2) / span)

    def clipped(self, outputs: Tensor) -> Tensor:
        """Ratings of outputs, inside the scale."""
        return torch.clamp(self.predict(outputs), self.low, self.high)

    def encode(
        self, sequences: Tensor, lengths: Tensor, values: Tensor | None = None, inputs: Tensor | None = None
    ) -> Tensor:
        """Vectors of histories: (batch, length), (batch,), (batch, length) -> (batch, dim).

        values float32: the ratings, NaN where an event has none, which counts as a rating at its baseline; outside of
        the scale they count as its ends. Without values nothing has a rating. Implicit feedback does not read them. Of
        an item with several events the newest rating counts. inputs: what `inputs` gives, for a graph that is fed it.
        An empty history is a row of nothing observed.
        """
        inputs = self.inputs() if inputs is None else inputs
        rows = inputs[sequences]  # (batch, length, hidden + 1)
        positions = torch.arange(sequences.shape[1], device=sequences.device)
        later = positions[:, None] < positions  # (length, length)
        same = (sequences[:, :, None] == sequences[:, None, :]) & later  # (batch, length, length)
        present = (positions < lengths[:, None]) & (sequences != PADDING)  # (batch, length)
        seen = (present & ~(same & present[:, None, :]).any(dim=2)).to(rows.dtype)  # once for every item
        if self.config.feedback == "implicit":
            weights = seen / torch.sqrt(seen.sum(1, keepdim=True).clamp(min=1))
            baseline = self.mean + torch.zeros_like(weights[:, :1])
        else:
            values = torch.full_like(rows[..., 0], math.nan) if values is None else values
            rated = present & ~torch.isnan(values)
            newest = rated & ~(same & rated[:, None, :]).any(dim=2)
            zero = torch.zeros_like(values)
            inside = torch.minimum(torch.maximum(torch.where(newest, values, zero), self.low), self.high)
            weights = torch.where(newest, inside - self.mean - rows[..., -1], zero)
            baseline = self.mean + torch.zeros_like(weights[:, :1])
            if self.config.centre == "biases":
                count = newest.to(rows.dtype).sum(1, keepdim=True)
                bias = weights.sum(1, keepdim=True) / (count + self._shrinkage)
                weights = torch.where(newest, weights - bias, zero)
                baseline = baseline + bias
            weights = weights + self.config.presence * seen
        summed = (weights[:, None, :] @ rows[..., :-1])[:, 0]  # (batch, hidden)
        return torch.cat([self._hidden(summed), torch.ones_like(baseline), baseline], dim=1)

    def inputs(self) -> Tensor:
        """What a history's items are read as, (columns + 1, hidden + 1): the encoder's rows, each column's offset last.

        Not the item matrix: input and output of an autoencoder have weights of their own.
        """
        return torch.cat([self.input_embedding.weight, self.offsets[:, None]], dim=1)

    def item_matrix(self) -> Tensor:
        """(columns + 1, dim), row 0 padding: vectors @ item_matrix.T are outputs before the decoder's activation.

        The decoder's bias and the column's offset are one more dimension, the row's baseline a last one.
        """
        biases = (self.decoder.bias + self.offsets[1:])[:, None]
        return functional.pad(torch.cat([self.decoder.weight, biases, torch.ones_like(biases)], dim=1), (0, 0, 1, 0))

    @property
    def _shrinkage(self) -> float:
        return max(self.config.shrinkage, 1e-6)  # an empty row divides by it

    def _hidden(self, summed: Tensor) -> Tensor:
        hidden = self.activation(summed + self.input_bias)
        for layer in self.layers:
            hidden = self.activation(layer(hidden))
        return hidden  # type: ignore[no-any-return]
