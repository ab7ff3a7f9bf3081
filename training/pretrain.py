"""S3Rec's pre-training as a task: what is hidden in the prefixes of the train sequences is to be found again.

Every prefix is read twice in both directions: once with items hidden, once with a segment cut out. A segment is
encoded by itself, at the places it was cut from, rather than among the masks around it: half a row at most.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.attributed import computed_once
from models.s3rec import S3RecPretraining
from models.sequence import by_length, pad_flat
from training import objectives
from training.attributes import ItemAttributes
from training.batches import NegativeSampler, Ties, bucketed
from training.config import PretrainingConfig
from training.dataset import Sequences
from training.evaluate import rank_targets
from training.fit import FitError
from training.lookup import rows_of, vectors_at
from training.measures import METRIC, summarise
from training.splits import Holdout

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Segments cut out of sequences, and others to tell them from.

    rows int64 (n,): which sequences of the batch; begins (n,): where in them; lengths (n,); items and others
    (n, width), right-padded; cut bool (n, batch width), True where the sequence lacks its segment.
    """

    rows: Indices
    begins: Indices
    lengths: Indices
    items: Indices
    others: Indices
    cut: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class PrefixBatch:
    """Prefixes with what is hidden in them.

    sequences int64 (batch, width), right-padded; lengths (batch,); masked bool (batch, width), True where an item is
    hidden; negatives int64 (hidden,), one for each hidden item in row order; segments of those that have two items.
    """

    sequences: Indices
    lengths: Indices
    masked: NDArray[np.bool_]
    negatives: Indices
    segments: Segments


class Prefixes:
    """Every train sequence up to each of its items, at most the newest `length` of them, never laid out together.

    With `most`, a user with more of them gives that many in an epoch, drawn anew in each.
    The order and all draws are a function of (seed, epoch) alone, so that a run can be resumed.
    """

    def __init__(self, sequences: Sequences, items: int, config: PretrainingConfig, *, length: int, seed: int) -> None:
        self._sequences = sequences.compact()
        self._sampler = NegativeSampler(sequences, items)
        self._config, self._length, self._seed = config, length, seed
        self._ties = Ties(self._sequences) if config.shuffle_ties else None

    def count(self) -> int:
        """Prefixes in an epoch."""
        lengths, most = self._sequences.lengths, self._config.prefixes
        return int(lengths.sum() if most is None else np.minimum(lengths, most).sum())

    def epoch(self, epoch: int) -> Iterator[PrefixBatch]:
        """All batches of one epoch."""
        generator = np.random.default_rng([self._seed, epoch, 2])
        users, ends = self._drawn(generator)
        begins = np.maximum(self._sequences.starts[users], ends - self._length)
        items = self._sequences.items if self._ties is None else self._ties.shuffled(generator)
        for rows in bucketed(ends - begins, self._config.batch, generator):
            yield self._hidden(items, users[rows], begins[rows], ends[rows], generator)

    def _drawn(self, generator: np.random.Generator) -> tuple[Indices, Indices]:
        """Owner and flat end of every prefix of this epoch."""
        users = self._sequences.owners
        ends = np.arange(1, len(users) + 1)
        most = self._config.prefixes
        if most is None:
            return users, ends
        order = np.argsort(users + generator.random(len(users)))  # each user's in random order
        place = np.arange(len(users)) - self._sequences.starts[users]
        kept = order[place < most]
        return users[kept], ends[kept]

    def _hidden(
        self,
        items: NDArray[np.int32],
        users: Indices,
        begins: Indices,
        ends: Indices,
        generator: np.random.Generator,
    ) -> PrefixBatch:
        lengths = ends - begins
        sequences = pad_flat(items, begins, lengths)
        inside = np.arange(sequences.shape[1]) < lengths[:, None]
        masked = (generator.random(sequences.shape, np.float32) < self._config.mask_probability) & inside
        masked[np.arange(len(lengths)), lengths - 1] = True
        owners = np.broadcast_to(users[:, None], masked.shape)[masked]
        return PrefixBatch(
            sequences,
            lengths,
            masked,
            self._sampler.draw(owners, generator),
            _cut(items, begins, lengths, generator),
        )


def _cut(items: NDArray[np.int32], begins: Indices, lengths: Indices, generator: np.random.Generator) -> Segments:
    """A segment of each sequence of two or more, half of it at most, and as long a piece of anybody's history."""
    rows = np.flatnonzero(lengths >= 2)
    sizes = generator.integers(1, lengths[rows] // 2 + 1)
    places = generator.integers(0, lengths[rows] - sizes + 1)
    elsewhere = generator.integers(0, len(items) - sizes + 1)
    columns = np.arange(lengths.max(initial=1))
    return Segments(
        rows=rows,
        begins=places,
        lengths=sizes,
        items=pad_flat(items, begins[rows] + places, sizes),
        others=pad_flat(items, elsewhere, sizes),
        cut=(columns >= places[:, None]) & (columns < (places + sizes)[:, None]),
    )


class Pretrain:
    """A fit.Task: the weighted sum of the objectives, divided by the sequences of the batch.

    It is validated by ranking the validation items at a hidden position behind the train sequence, in the whole
    catalogue. Raises FitError if there is nothing to learn from.
    """

    metric = METRIC

    def __init__(
        self,
        model: S3RecPretraining,
        attributes: ItemAttributes | None,
        train: Sequences,
        validation: Holdout,
        config: PretrainingConfig,
        *,
        seed: int,
    ) -> None:
        self._model, self._config, self._validation, self._attributes = model, config, validation, attributes
        encoder = model.encoder
        self.prefixes = Prefixes(train, encoder.items, config, length=encoder.config.length, seed=seed)
        if not self.prefixes.count():
            raise FitError("there is no train interaction to learn from; give more data")

    def batches(self, epoch: int) -> Iterator[PrefixBatch]:
        """Prefixes in the epoch's order."""
        return self.prefixes.epoch(epoch)

    def part(self, batch: PrefixBatch, number: int, of: int) -> PrefixBatch:
        """One prefix of every `of`, from `number` on, with what is hidden in it."""
        rows, segments = slice(number, None, of), batch.segments
        chosen = segments.rows % of == number
        return PrefixBatch(
            sequences=batch.sequences[rows],
            lengths=batch.lengths[rows],
            masked=batch.masked[rows],
            negatives=batch.negatives[np.nonzero(batch.masked)[0] % of == number],
            segments=Segments(
                rows=segments.rows[chosen] // of,
                begins=segments.begins[chosen],
                lengths=segments.lengths[chosen],
                items=segments.items[chosen],
                others=segments.others[chosen],
                cut=segments.cut[chosen],
            ),
        )

    def sizes(self, batch: PrefixBatch) -> tuple[int, int]:
        """Prefixes, which the loss is a mean over."""
        return len(batch.lengths), len(batch.lengths)

    def loss(self, batch: PrefixBatch) -> Tensor:
        """Weighted sum of the objectives over the batch, in nats a sequence."""
        with computed_once(self._model.encoder):
            return self._loss(batch)

    def _loss(self, batch: PrefixBatch) -> Tensor:
        config = self._config
        # A batch of nothing but first items has no segment; its loss of 0 needs a gradient all the same.
        total = 0.0 * self._model.mask.weight.sum()
        if config.masked_items or config.masked_attributes or config.associated_attributes:
            total = total + self._of_items(batch)
        if config.segments and len(batch.segments.rows):
            total = total + config.segments * self._of_segments(batch)
        return total / len(batch.lengths)

    def validate(self) -> dict[str, float]:
        """Metrics of the validation part; none if it is empty."""
        if not len(self._validation):
            return {}
        return summarise(rank_targets(MaskedItemScorer(self._model), self._validation, self._model.encoder.items))

    def _of_items(self, batch: PrefixBatch) -> Tensor:
        """AAP, MIP and MAP, which share one reading of the sequences."""
        model, config = self._model, self._config
        vectors = model.everywhere(self._to(batch.sequences), self._to(batch.lengths), self._to(batch.masked))
        total = vectors.new_zeros(())
        if config.masked_items:
            items = model.encoder.item_matrix()
            total = total + config.masked_items * objectives.masked_item_prediction(
                model.masked_item(vectors_at(vectors, batch.masked)),  # (hidden, dim)
                *rows_of(items, self._to(np.stack([batch.sequences[batch.masked], batch.negatives]))),
                bounded=config.bounded,
            )
        if self._attributes is None:
            return total
        told = self._attributes.known[batch.sequences]  # of the others nothing is known, which is not to have none
        if config.masked_attributes:
            where = batch.masked & told
            total = total + config.masked_attributes * objectives.masked_attribute_prediction(
                model.masked_attribute(vectors_at(vectors, where)),
                model.attribute_embedding.weight,
                *map(self._to, self._attributes.of(batch.sequences[where])),
            )
        if config.associated_attributes:
            where = told & ~batch.masked
            total = total + config.associated_attributes * objectives.associated_attribute_prediction(
                model.associated_attribute(vectors_at(vectors, where)),
                model.attribute_embedding.weight,
                *map(self._to, self._attributes.of(batch.sequences[where])),
            )
        return total

    def _of_segments(self, batch: PrefixBatch) -> Tensor:
        model, segments = self._model, batch.segments
        lengths, begins = self._to(segments.lengths), self._to(segments.begins)
        contexts = model.last(
            self._to(batch.sequences[segments.rows]), self._to(batch.lengths[segments.rows]), self._to(segments.cut)
        )
        both = model.last(
            self._to(np.concatenate([segments.items, segments.others])), lengths.repeat(2), begins=begins.repeat(2)
        )
        positive, negative = both.chunk(2)
        return objectives.segment_prediction(model.segment(contexts), positive, negative, bounded=self._config.bounded)

    def _to(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._model.mask.weight.device)


class MaskedItemScorer:
    """A model in pre-training as a Scorer: what it takes a hidden item behind each history for."""

    def __init__(self, model: S3RecPretraining) -> None:
        self._model = model

    @torch.no_grad()
    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        self._model.eval()
        with computed_once(self._model.encoder):
            return self._scores(histories)

    def _scores(self, histories: Sequences) -> NDArray[np.float32]:
        items = self._model.encoder.item_matrix()
        # One place more than the history has, for the mask: whatever item stands under it, nothing reads it.
        lengths = np.minimum(histories.lengths + 1, self._model.encoder.config.length)
        vectors = items.new_empty(len(lengths), items.shape[1])
        for rows in by_length(lengths):
            known = lengths[rows] - 1
            padded = np.pad(pad_flat(histories.items, histories.ends[rows] - known, known), ((0, 0), (0, 1)))
            masked = np.arange(padded.shape[1]) == known[:, None]
            inputs = (torch.from_numpy(array).to(items.device) for array in (padded, lengths[rows], masked))
            vectors[rows] = self._model.last(*inputs)
        return (self._model.masked_item(vectors) @ items.T).float().cpu().numpy()  # type: ignore[no-any-return]
