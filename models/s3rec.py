"""S3Rec: a SASRec that first learns what belongs together, in sequences, segments and item attributes.

Source: Zhou et al., "S3-Rec: Self-Supervised Learning for Sequential Recommendation with Mutual Information
Maximization", CIKM 2020. What serves is the encoder alone; what the objectives need beside it ends with pre-training.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from models.layers import initialise, padding_bias
from models.sasrec import EncoderConfig, SASRec


class S3RecConfig(EncoderConfig):
    """The same encoder as SASRec's; a run with it has a section on pre-training."""

    name: Literal["s3rec"] = "s3rec"
    item_attributes: bool = False  # an item has the vectors of its attributes too, where they are known


class S3RecPretraining(nn.Module):
    """An encoder that reads in both directions, with a vector for what is masked and one for every attribute.

    Its four projections turn a position's vector into what each objective compares with attributes, items or segments.
    """

    def __init__(self, encoder: SASRec, attributes: int) -> None:
        super().__init__()
        dim = encoder.config.dim
        self.mask = nn.Embedding(1, dim)
        self.attribute_embedding = nn.Embedding(attributes, dim)
        self.associated_attribute = nn.Linear(dim, dim)
        self.masked_item = nn.Linear(dim, dim)
        self.masked_attribute = nn.Linear(dim, dim)
        self.segment = nn.Linear(dim, dim)
        self.apply(lambda module: initialise(module, deviation=encoder.config.initial_deviation))
        self.encoder = encoder  # after the line above: it has been initialised already

    def everywhere(self, sequences: Tensor, lengths: Tensor, masked: Tensor) -> Tensor:
        """Vectors at every position, each of which sees all of its row: (batch, length, dim).

        sequences int64 (batch, length), right-padded; lengths (batch,); masked bool (batch, length): True where hidden.
        """
        return self.encoder.everywhere(self._items(sequences, masked), padding_bias(lengths, sequences.shape[1]))

    def last(
        self, sequences: Tensor, lengths: Tensor, masked: Tensor | None = None, begins: Tensor | None = None
    ) -> Tensor:
        """The vector at each row's last position, as above: (batch, dim).

        begins (batch,): the position of each row's first item in the history that it is a segment of.
        """
        bias = padding_bias(lengths, sequences.shape[1])
        return self.encoder.last(self._items(sequences, masked), bias, lengths, begins)

    def _items(self, sequences: Tensor, masked: Tensor | None) -> Tensor:
        items: Tensor = self.encoder.item_embedding(sequences)
        return items if masked is None else torch.where(masked[..., None], self.mask.weight, items)
