"""The training loop, the only one: what differs between models and losses is a Task, batch -> loss.

Every epoch ends with validation, a line of `metrics.jsonl` and a checkpoint; training stops when the task's validation
metric has not improved for `patience` epochs, and the weights of the best epoch are kept, or of the last one where no
epoch hit anything. Where the configuration asks for averaged weights, those are what is validated and kept, and
training itself goes on with its own.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from training import checkpoint
from training.average import Average, copied
from training.config import FittingConfig
from training.measures import RMSE
from training.parallel import ALONE, Processes

Batch = TypeVar("Batch")


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


class Task(Protocol[Batch]):
    """What differs between models: the data's batches, their loss, and how good the model is."""

    metric: str
    """Which figure of `validate` steers early stopping, as people call it: the higher the better, but for an RMSE."""

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, a function of the epoch's number alone, so that a run can be resumed."""

    def part(self, batch: Batch, number: int, of: int) -> Batch:
        """Part `number` of so many parts of a batch, which together are all of it; a part may be empty."""

    def sizes(self, batch: Batch) -> tuple[int, int]:
        """Sequences in a batch, and targets: what its mean loss is a mean over."""

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the batch's targets."""

    def validate(self) -> dict[str, float]:
        """Figures of the model as it is; none where there is nothing to validate by, then the latest is best."""


def fit(
    model: nn.Module,
    task: Task[Batch],
    config: FittingConfig,
    *,
    folder: Path,
    identity: str,
    watcher: Watcher,
    processes: Processes = ALONE,
) -> Fitted:
    """Train until validation stops improving, and leave the best weights in `model`.

    Continues from `folder/checkpoint.safetensors` if it is there and of the same identity; the result is the same as
    without the interruption. With several processes each calls this, and all end with the same weights.
    Raises FitError if it is of another run, or not the same for all processes, or the loss is no longer a number.
    """
    optimiser = adam(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    average = Average(model, config.average)
    path = folder / "checkpoint.safetensors"
    resumed = path.exists()
    progress = checkpoint.Progress(identity, 0, 0, -math.inf, 0.0, 0, finished=False)
    if resumed:
        progress = checkpoint.read_progress(path)
    standing = processes.gathered((progress.identity, progress.epoch))
    if len(set(standing)) > 1:  # a machine without the leader's checkpoint would begin anew, and mix two models
        epochs = ", ".join(f"process {rank}: epoch {epoch}" for rank, (_, epoch) in enumerate(standing))
        raise FitError(
            f"{folder} is not the same run for all processes ({epochs}): all machines need the same command, the same "
            "data and the same run folder; put it on a shared disk, or copy it to each of them"
        )
    if resumed:
        if progress.identity != identity:
            raise FitError(f"{folder} holds another run (other data, configuration or seed); choose another --output")
        best_weights, average.weights = checkpoint.restore(path, model, optimiser, rank=processes.rank)
    else:
        best_weights = copied(model)
    log = folder / "metrics.jsonl"
    processes.wait()  # all have read it before one writes the next
    if processes.leader:
        _forget_after(log, progress.epoch)
    while not progress.finished:
        began = time.perf_counter()
        epoch = progress.epoch + 1
        loss, taken = _epoch(
            model, task, average, optimiser=optimiser, config=config, epoch=epoch, watcher=watcher, processes=processes
        )
        with average.instead():
            figures = processes.from_leader(task.validate() if processes.leader else None)
            score = figures.get(task.metric, math.nan) * (-1 if task.metric == RMSE else 1)
            better = not score <= progress.best  # so written, NaN is better than what was
            if better or score == progress.best == 0:  # nothing was hit so far, and what was learned longer knows more
                best_weights, best_epoch = copied(model), epoch
            else:
                best_epoch = progress.best_epoch
        seconds = time.perf_counter() - began
        progress = checkpoint.Progress(
            identity=identity,
            epoch=epoch,
            best_epoch=best_epoch,
            best=score if better else progress.best,
            seconds=progress.seconds + seconds,
            sequences=progress.sequences + taken,
            finished=False,
        )
        progress = replace(progress, finished=epoch >= config.epochs or _waited(progress) >= config.patience)
        record = {"epoch": epoch, "loss": loss, "seconds": seconds, "sequences_per_second": taken / seconds}
        record |= figures
        states = checkpoint.generators(processes.gathered)
        if processes.leader:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            checkpoint.save(path, progress, model, optimiser, best=best_weights, average=average.weights, states=states)
        watcher.epoch(record, best=better)
    model.load_state_dict(best_weights)
    return Fitted(
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        best=progress.best,
        seconds=progress.seconds,
        sequences=progress.sequences,
        stopped_early=_waited(progress) >= config.patience,
    )


def adam(model: nn.Module, *, learning_rate: float = 1e-3, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """The optimiser of all training, and of what measures its speed."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=learning_rate,
        weight_decay=weight_decay,
        betas=(0.9, 0.98),
        fused=True,  # a sixth of the time at 12,000 items, whose embedding is most of what it steps
    )


def _waited(progress: checkpoint.Progress) -> int:
    """Epochs since the last better validation figure, which a best of 0 has been from the first."""
    return progress.epoch - (1 if progress.best == 0 else progress.best_epoch)


def _epoch(
    model: nn.Module,
    task: Task[Batch],
    average: Average,
    *,
    optimiser: torch.optim.Optimizer,
    config: FittingConfig,
    epoch: int,
    watcher: Watcher,
    processes: Processes,
) -> tuple[float, int]:
    """One pass over the data: the mean loss a target, and the sequences taken."""
    model.train()
    device = next(model.parameters()).device
    bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    rate = config.learning_rate * config.decay ** (epoch - 1)
    total, targets, taken = 0.0, 0, 0
    before = _steps(optimiser)  # once: on a GPU it waits for all that was asked for
    for step, batch in enumerate(task.batches(epoch), before + 1):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, step / max(1, config.warmup_steps))
        sequences, count = task.sizes(batch)
        mine = task.part(batch, processes.rank, processes.count) if processes.several else batch
        share = task.sizes(mine)[1] / count
        optimiser.zero_grad(set_to_none=True)
        value = 0.0
        if share:
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                loss = task.loss(mine) * share
            loss.backward()  # type: ignore[no-untyped-call]
            value = loss.item()
        processes.sum_gradients(model, device)
        if config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimiser.step()
        average.update(step)
        value = processes.sum(value, device)
        if not math.isfinite(value):
            raise FitError(f"the loss became {value} in epoch {epoch}; lower the learning rate or clip gradients")
        total, targets, taken = total + value * count, targets + count, taken + sequences
        watcher.step(sequences, value)
    return total / targets, taken


def _steps(optimiser: torch.optim.Optimizer) -> int:
    """Steps taken so far: kept by the optimiser, so that a resumed run goes on counting."""
    return max((int(state["step"].item()) for state in optimiser.state.values()), default=0)


def _forget_after(log: Path, epoch: int) -> None:
    """Drop lines of epochs that were logged but not checkpointed when a run was killed between the two."""
    if log.exists():
        draft = log.with_suffix(".draft")
        # The first lines are those of epochs 1, 2, ...; a torn one can only come after them, so none need be parsed.
        lines = log.read_text(encoding="utf-8").splitlines()[:epoch]
        draft.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        draft.replace(log)
