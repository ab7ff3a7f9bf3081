"""Next-item prediction as a training task: every position of a window predicts the item after it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.attributed import computed_once
from models.sasrec import SASRec
from models.sequence import PADDING, by_length, pad_flat
from training import losses
from training.batches import Batch, NegativeSampler, Windows
from training.config import TrainingConfig
from training.dataset import Sequences
from training.evaluate import rank_targets
from training.fit import FitError
from training.lookup import vectors_at
from training.measures import METRIC, summarise
from training.splits import Holdout


@dataclass(frozen=True, slots=True, eq=False)
class SampledBatch:
    """A batch with the negatives its loss needs: int64 (targets, n) for each target its own, (n,) shared, or None."""

    windows: Batch
    negatives: NDArray[np.int64] | None


class NextItem:
    """A fit.Task: windows of the train sequences, one of the next-item losses, full-catalogue validation.

    Raises FitError if there is nothing to predict.
    """

    metric = METRIC

    def __init__(
        self, model: SASRec, train: Sequences, validation: Holdout, config: TrainingConfig, *, seed: int
    ) -> None:
        self._model, self._validation, self._config, self._seed = model, validation, config, seed
        self.windows = Windows(
            train,
            length=model.config.length,
            stride=config.stride,
            shuffle_ties=config.shuffle_ties,
            batch=config.batch,
            seed=seed,
        )
        if not self.windows.count(0):
            raise FitError("no user has two train interactions, so there is nothing to predict; give more data")
        self._sampler = NegativeSampler(train, model.items)
        self._log_draws = torch.from_numpy(self._sampler.log_expected_draws(config.negatives))

    def batches(self, epoch: int) -> Iterator[SampledBatch]:
        """Windows in the epoch's order, with negatives drawn from a generator of the epoch's own."""
        generator = np.random.default_rng([self._seed, epoch, 1])
        for batch in self.windows.epoch(epoch):
            yield SampledBatch(batch, self._negatives(batch, generator))

    def part(self, batch: SampledBatch, number: int, of: int) -> SampledBatch:
        """One window of every `of`, from `number` on, with its negatives."""
        windows, negatives = batch.windows, batch.negatives
        rows = slice(number, None, of)
        if negatives is not None and negatives.ndim == 2:
            negatives = negatives[np.nonzero(windows.targets != PADDING)[0] % of == number]
        return SampledBatch(windows.take(rows), negatives)

    def sizes(self, batch: SampledBatch) -> tuple[int, int]:
        """Windows, and positions that have a target."""
        return len(batch.windows.users), int((batch.windows.targets != PADDING).sum())

    def loss(self, batch: SampledBatch) -> Tensor:
        """Mean loss over the batch's targets, in nats."""
        with computed_once(self._model):
            return self._loss(batch)

    def _loss(self, batch: SampledBatch) -> Tensor:
        matrix = self._model.item_matrix()
        present = batch.windows.targets != PADDING  # (batch, width)
        targets = torch.from_numpy(batch.windows.targets[present]).to(matrix.device)  # (targets,)
        vectors = self._model(torch.from_numpy(batch.windows.inputs).to(matrix.device))
        vectors = vectors_at(vectors, present)  # (targets, dim)
        seen = self.windows.seen(batch.windows) if self._config.candidates == "unseen" else None
        if batch.negatives is None:
            bfloat16 = self._config.precision != "float32"
            return losses.full_softmax(vectors, matrix, targets, seen=seen, bfloat16=bfloat16)
        negatives = torch.from_numpy(batch.negatives).to(matrix.device)
        if self._config.loss == "sampled_softmax":
            log_draws = self._log_draws.to(matrix.device)
            return losses.sampled_softmax(vectors, matrix, targets, negatives, log_draws, seen=seen)
        positive, negative = losses.dots_of_both(vectors, matrix, targets, negatives)
        if self._config.loss == "gbce":
            beta = losses.gbce_beta(self._config.negatives, self._model.items, self._config.calibration)
            return losses.gbce(positive[:, 0], negative, beta=beta)
        return losses.bce(positive[:, 0], negative)

    def validate(self) -> dict[str, float]:
        """Metrics of the validation part, the full catalogue ranked; none if the part is empty."""
        if not len(self._validation):
            return {}
        return summarise(rank_targets(ModelScorer(self._model), self._validation, self._model.items))

    def _negatives(self, batch: Batch, generator: np.random.Generator) -> NDArray[np.int64] | None:
        if self._config.loss == "softmax":
            return None
        if self._config.loss == "sampled_softmax":
            return self._sampler.draw_popular(self._config.negatives, generator)
        present = batch.targets != PADDING
        users = np.broadcast_to(batch.users[:, None], present.shape)[present]
        drawn = self._sampler.draw(np.repeat(users, self._config.negatives), generator)
        return drawn.reshape(len(users), self._config.negatives)


class ModelScorer:
    """A torch model as a Scorer: the newest items of each history encoded at the last position, times the items."""

    def __init__(self, model: SASRec) -> None:
        self._model = model

    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        with torch.no_grad(), computed_once(self._model):
            return (self._encoded(histories) @ self._model.item_matrix().T).float().cpu().numpy()

    def vectors(self, histories: Sequences) -> NDArray[np.float32]:
        """What the items are multiplied with: float32 (users, dim)."""
        return self._encoded(histories).float().cpu().numpy()

    @torch.no_grad()
    def _encoded(self, histories: Sequences) -> Tensor:
        self._model.eval()
        items = self._model.item_matrix()
        lengths = np.minimum(histories.lengths, self._model.config.length)
        vectors = items.new_empty(len(lengths), items.shape[1])
        for rows in by_length(lengths):
            padded = pad_flat(histories.items, histories.ends[rows] - lengths[rows], lengths[rows])
            known = torch.from_numpy(lengths[rows]).to(items.device)
            vectors[rows] = self._model.encode(torch.from_numpy(padded).to(items.device), known)
        return vectors
