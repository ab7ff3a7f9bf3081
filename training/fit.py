"""The training loop, the only one: what differs between models and losses is `batch -> loss`.

Every epoch ends with validation, a line of `metrics.jsonl` and a checkpoint; training stops when validation NDCG@10
has not risen for `patience` epochs, and the weights of the best epoch are kept.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.sasrec import SASRec
from models.sequence import PADDING, pad_flat
from training import checkpoint
from training.batches import Batch, NegativeSampler, Windows
from training.config import TrainingConfig
from training.dataset import Sequences
from training.evaluate import evaluate
from training.losses import bce, dot, full_softmax
from training.splits import Holdout

METRIC = "ndcg@10"


class FitError(RuntimeError):
    """Training cannot go on; the message says what to change."""


class Watcher(Protocol):
    """Who is told how training goes; a progress bar, or nobody."""

    def step(self, windows: int, loss: float) -> None:
        """Called after each step with the windows it took."""

    def epoch(self, record: dict[str, float], *, best: bool) -> None:
        """Called after each epoch with what metrics.jsonl gets."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a run went. `sequences` counts windows over all epochs, `seconds` the time they took with validation."""

    epochs: int
    best_epoch: int
    best: float
    seconds: float
    sequences: int
    stopped_early: bool


class NextItem:
    """The loss of a batch of windows: how well each position predicts the item after it."""

    def __init__(self, train: Sequences, items: int, loss: str, seed: int) -> None:
        self._softmax = loss == "softmax"
        self._sampler = NegativeSampler(train, items)
        self._generator = np.random.default_rng(seed)

    def begin(self, seed: list[int]) -> None:
        """Restart the negatives' generator, so that an epoch's draws depend on nothing before it."""
        self._generator = np.random.default_rng(seed)

    def __call__(self, model: SASRec, batch: Batch) -> Tensor:
        """Mean loss over the batch's targets, in nats."""
        device = model.item_matrix().device
        present = batch.targets != PADDING  # (batch, width)
        mask = torch.from_numpy(present).to(device)
        targets = torch.from_numpy(batch.targets[present]).to(device)  # (targets,)
        vectors = model(torch.from_numpy(batch.inputs).to(device))[mask]  # (targets, dim)
        matrix = model.item_matrix()
        if self._softmax:
            return full_softmax(vectors, matrix, targets)
        users = np.broadcast_to(batch.users[:, None], present.shape)[present]
        negatives = torch.from_numpy(self._sampler.draw(users, self._generator)).to(device)
        return bce(dot(vectors, matrix, targets), dot(vectors, matrix, negatives))


class ModelScorer:
    """A torch model as a Scorer: the newest items of each history encoded at the last position, times the items."""

    def __init__(self, model: SASRec) -> None:
        self._model = model

    @torch.no_grad()
    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        self._model.eval()
        lengths = np.minimum(histories.lengths, self._model.config.length)
        padded = pad_flat(histories.items, histories.ends - lengths, lengths)
        device = self._model.item_matrix().device
        vectors = self._model.encode(torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device))
        return (vectors @ self._model.item_matrix().T).float().cpu().numpy()


def fit(
    model: SASRec,
    train: Sequences,
    validation: Holdout,
    config: TrainingConfig,
    *,
    seed: int,
    folder: Path,
    identity: str,
    watcher: Watcher,
) -> Fitted:
    """Train until validation stops improving, and leave the best weights in `model`.

    Continues from `folder/checkpoint.safetensors` if it is there and of the same identity; the result is the same as
    without the interruption. Raises FitError if it is of another run or the loss is no longer a number.
    """
    windows = training_windows(train, model, config, seed)
    if not windows.count(0):
        raise FitError("no user has two train interactions, so there is nothing to predict; give more data")
    objective = NextItem(train, model.items, config.loss, seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    path = folder / "checkpoint.safetensors"
    if path.exists():
        progress = checkpoint.read_progress(path)
        if progress.identity != identity:
            raise FitError(f"{folder} holds another run (other data, configuration or seed); choose another --output")
        best_weights = checkpoint.restore(path, model, optimiser)
    else:
        progress = checkpoint.Progress(identity, 0, 0, -1.0, 0.0, 0, finished=False)
        best_weights = _copy(model)
    log = folder / "metrics.jsonl"
    _forget_after(log, progress.epoch)
    while not progress.finished:
        began = time.perf_counter()
        epoch = progress.epoch + 1
        objective.begin([seed, epoch, 1])
        loss, taken = _epoch(
            model, windows, objective, optimiser=optimiser, config=config, epoch=epoch, watcher=watcher
        )
        evaluation = evaluate(ModelScorer(model), validation, model.items).metrics()
        seconds = time.perf_counter() - began
        better = evaluation[METRIC] > progress.best
        if better:
            best_weights = _copy(model)
        best_epoch = epoch if better else progress.best_epoch
        progress = checkpoint.Progress(
            identity=identity,
            epoch=epoch,
            best_epoch=best_epoch,
            best=max(evaluation[METRIC], progress.best),
            seconds=progress.seconds + seconds,
            sequences=progress.sequences + taken,
            finished=epoch >= config.epochs or epoch - best_epoch >= config.patience,
        )
        record = {"epoch": epoch, "loss": loss, "seconds": seconds, "sequences_per_second": taken / seconds}
        record |= evaluation
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        checkpoint.save(path, progress, model, best_weights, optimiser)
        watcher.epoch(record, best=better)
    model.load_state_dict(best_weights)
    return Fitted(
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        best=progress.best,
        seconds=progress.seconds,
        sequences=progress.sequences,
        stopped_early=progress.epoch - progress.best_epoch >= config.patience,
    )


def training_windows(train: Sequences, model: SASRec, config: TrainingConfig, seed: int) -> Windows:
    """The windows a model is fitted on."""
    return Windows(
        train,
        length=model.config.length,
        stride=config.stride,
        shuffle_ties=config.shuffle_ties,
        batch=config.batch,
        seed=seed,
    )


def _epoch(
    model: SASRec,
    windows: Windows,
    objective: Callable[[SASRec, Batch], Tensor],
    *,
    optimiser: torch.optim.Optimizer,
    config: TrainingConfig,
    epoch: int,
    watcher: Watcher,
) -> tuple[float, int]:
    """One pass over the windows: the mean loss a target, and the windows taken."""
    model.train()
    device = model.item_matrix().device
    bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    total, targets, taken = 0.0, 0, 0
    for batch in windows.epoch(epoch):
        step = _steps(optimiser) + 1
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * min(1.0, step / max(1, config.warmup_steps))
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = objective(model, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimiser.step()
        value = loss.item()
        if not np.isfinite(value):
            raise FitError(f"the loss became {value} in epoch {epoch}; lower training.learning_rate or clip gradients")
        count = int((batch.targets != PADDING).sum())
        total, targets, taken = total + value * count, targets + count, taken + len(batch.users)
        watcher.step(len(batch.users), value)
    return total / targets, taken


def _steps(optimiser: torch.optim.Optimizer) -> int:
    """Steps taken so far: kept by the optimiser, so that a resumed run goes on counting."""
    return max((int(state["step"].item()) for state in optimiser.state.values()), default=0)


def _copy(model: SASRec) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _forget_after(log: Path, epoch: int) -> None:
    """Drop lines of epochs that were logged but not checkpointed when a run was killed between the two."""
    if log.exists():
        draft = log.with_suffix(".draft")
        # The first lines are those of epochs 1, 2, ...; a torn one can only come after them, so none need be parsed.
        lines = log.read_text(encoding="utf-8").splitlines()[:epoch]
        draft.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        draft.replace(log)
