"""How fast this machine prepares data and trains, on synthetic interactions.

Both steps of preparing run in fresh processes, since the peak of a process that did other work before says nothing.
"""

import multiprocessing
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from models.device import cpu_quota
from models.s3rec import S3RecPretraining
from models.sasrec import SASRecConfig
from models.zoo import build
from training.attributes import ItemAttributes
from training.config import PretrainingConfig, TrainingConfig
from training.dataset import Sequences, build_dataset
from training.fit import Batch, Task, adam
from training.interactions import read_interactions
from training.next_item import NextItem
from training.pretrain import Pretrain
from training.splits import nobody, split_by_time, split_leave_one_out

P = ParamSpec("P")
T = TypeVar("T")

_STEPS = 50  # of training after preparing: the first batch needs all that an epoch does


@dataclass(frozen=True, slots=True)
class DatasetBench:
    """Seconds per step, in the order they ran, and the peak resident memory of the process that ran them."""

    interactions: int
    users: int
    items: int
    seconds: dict[str, float]
    peak_rss_bytes: int

    def __str__(self) -> str:
        steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in self.seconds.items())
        return (
            f"{self.interactions:,} interactions of {self.users:,} users with {self.items:,} items: {steps}, together "
            f"{sum(self.seconds.values()):.1f} s, peak {self.peak_rss_bytes / 2**30:.2f} GiB"
        )


def bench_dataset(
    *, interactions: int = 10_000_000, users: int = 500_000, items: int = 100_000, seed: int = 0
) -> DatasetBench:
    """Write a synthetic Parquet log, then read it, build the 5-core data set, split it both ways and begin to train.

    Users are drawn evenly, items by a power law, times at random within a year, so the rows come in no order at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.parquet"
        _in_fresh_process(_write_log, path, interactions, users, items, seed)
        return _in_fresh_process(_prepare, path)


@contextmanager
def fresh_process() -> Iterator[ProcessPoolExecutor]:
    """A pool of one process, which is ended at once where the block ends with an error or is interrupted."""
    context = multiprocessing.get_context("spawn")
    ignoring = signal.SIGINT, signal.SIG_IGN  # Ctrl-C reaches it too, and is its parent's to answer
    with ProcessPoolExecutor(1, mp_context=context, initializer=signal.signal, initargs=ignoring) as pool:
        try:
            yield pool
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    with fresh_process() as pool:
        return pool.submit(function, *args, **kwargs).result()


def _write_log(path: Path, interactions: int, users: int, items: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    pl.DataFrame(
        {
            "user_id": pl.Series(generator.integers(users, size=interactions)).cast(pl.String),
            "item_id": pl.Series((items * generator.random(interactions) ** 3).astype(np.int64)).cast(pl.String),
            "timestamp": 1_700_000_000_000 + generator.integers(31_536_000_000, size=interactions),
            "value": generator.integers(1, 6, size=interactions).astype(np.float32),
        }
    ).write_parquet(path)


def _prepare(path: Path) -> DatasetBench:
    marks = {"start": time.perf_counter()}
    log = read_interactions([path])
    marks["read"] = time.perf_counter()
    dataset = build_dataset(log, min_user_interactions=5, min_item_interactions=5)
    marks["build"] = time.perf_counter()
    split = split_leave_one_out(dataset)
    marks["split leave-one-out"] = time.perf_counter()
    split_by_time(dataset)
    marks["split by time"] = time.perf_counter()
    torch.set_num_threads(cpu_quota())
    model = build(SASRecConfig(), dataset.vocabulary.items)
    config = TrainingConfig(loss="sampled_softmax", negatives=256, batch=256)
    task, optimiser = (
        NextItem(model, split.train, split.validation, config, seed=0),
        adam(model),
    )
    for batch in islice(task.batches(1), _STEPS):
        _step(task, optimiser, batch)
    marks[f"first {_STEPS} training steps"] = time.perf_counter()
    names, times = list(marks), list(marks.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return DatasetBench(
        interactions=log.report.rows_read,
        users=len(dataset.users),
        items=dataset.vocabulary.items,
        seconds={names[step]: times[step] - times[step - 1] for step in range(1, len(names))},
        peak_rss_bytes=peak if sys.platform == "darwin" else peak * 1024,
    )


@dataclass(frozen=True, slots=True)
class TrainingBench:
    """Training sequences a second by what is learned: the median of several rounds, which take turns.

    floor_share: how much of the time of the full softmax its three matrix products need by themselves.
    """

    rates: dict[str, float]
    floor_share: float

    def __str__(self) -> str:
        width = max(map(len, self.rates))
        lines = [f"{name:>{width}}: {rate:,.0f} sequences/s" for name, rate in self.rates.items()]
        return "\n".join([*lines, f"full softmax at {self.floor_share:.0%} of its arithmetic floor"])


def bench_training(*, users: int = 4096, items: int = 12_101, rounds: int = 3, seed: int = 0) -> TrainingBench:
    """Optimiser steps on sequences as long as Amazon Beauty's (log-normal, median 6), dim 64, 2 blocks, batch 256.

    Pre-training is of all prefixes with 637 attributes, five an item.
    """
    torch.set_num_threads(cpu_quota())
    generator = np.random.default_rng(seed)
    train = beauty_like(users, items, generator)
    starts = np.arange(-1, items + 1).clip(min=0) * 5
    known = np.arange(items + 1) > 0
    labels = ItemAttributes((("", ""),) * 637, starts, generator.integers(0, 637, 5 * items), known)
    subjects: dict[str, Callable[[], float]] = {
        "bce": lambda: _next_item_rate(train, items, loss="bce"),
        "sampled softmax, 256 negatives": lambda: _next_item_rate(train, items, loss="sampled_softmax", negatives=256),
        "full softmax": lambda: _next_item_rate(train, items, loss="softmax", precision="float32"),
        "full softmax, as it trains": lambda: _next_item_rate(train, items, loss="softmax"),
        "S3Rec pre-training": lambda: _pretraining_rate(train, items, labels),
    }
    measured: dict[str, list[float]] = {name: [] for name in subjects}
    floors: list[float] = []
    for _ in range(rounds):
        for name, rate in subjects.items():
            measured[name].append(rate())
        floors.append(measured["full softmax"][-1] / (users / _floor_s(train.interactions - users, items)))
    rates = {name: float(np.median(found)) for name, found in measured.items()}
    return TrainingBench(rates, float(np.median(floors)))


def beauty_like(users: int, items: int, generator: np.random.Generator) -> Sequences:
    """Sequences as long as Amazon Beauty's: a median of 6, nearly all below 50."""
    return synthetic(generator.lognormal(np.log(6), 0.6, users).clip(3, 200), items, generator)


def synthetic(lengths: NDArray[np.float64], items: int, generator: np.random.Generator) -> Sequences:
    """Sequences of these lengths (users,), rounded down, of items drawn evenly, so that each occurs if there is room.

    A library that counts the items it sees then has a softmax over as many as one that is told.
    """
    whole = lengths.astype(np.int64)
    ends = np.cumsum(whole)
    flat = generator.permutation(np.arange(ends[-1]) % items + 1).astype(np.int32)
    return Sequences(flat, ends - whole, ends)


def _next_item_rate(train: Sequences, items: int, **options: str | int) -> float:
    model = build(SASRecConfig(), items)
    config = TrainingConfig.model_validate({"batch": 256, **options})
    return train_epochs(model, NextItem(model, train, nobody(train), config, seed=0)).sequences_per_s


def _pretraining_rate(train: Sequences, items: int, labels: ItemAttributes) -> float:
    model = S3RecPretraining(build(SASRecConfig(), items), labels.count)
    task = Pretrain(model, labels, train, nobody(train), PretrainingConfig(batch=256), seed=0)
    return train_epochs(model, task).sequences_per_s


@dataclass(frozen=True, slots=True)
class Trained:
    """What was trained in so many seconds."""

    sequences: int
    targets: int
    seconds: float

    @property
    def sequences_per_s(self) -> float:
        return self.sequences / self.seconds

    @property
    def targets_per_s(self) -> float:
        return self.targets / self.seconds


def train_epochs(model: torch.nn.Module, task: Task[Batch], *, seconds: float = 0.0) -> Trained:
    """Optimiser steps over an epoch, and over more of them until so many seconds are over, after one that warms up.

    Making the batches is part of it; so batches of long and of short sequences count as often as they occur.
    """
    optimiser = adam(model)
    _step(task, optimiser, next(iter(task.batches(0))))
    sizes: list[tuple[int, int]] = []
    began = time.perf_counter()
    for epoch in count(1):
        sizes += [_step(task, optimiser, batch) for batch in task.batches(epoch)]
        if time.perf_counter() - began >= seconds:
            break
    taken = time.perf_counter() - began
    return Trained(sum(rows for rows, _ in sizes), sum(targets for _, targets in sizes), taken)


def _step(task: Task[Batch], optimiser: torch.optim.Optimizer, batch: Batch) -> tuple[int, int]:
    """Learn from a batch: its sequences and targets."""
    optimiser.zero_grad()
    task.loss(batch).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return task.sizes(batch)


def _floor_s(targets: int, items: int, *, rows: int = 512, dim: int = 64) -> float:
    """Seconds that the products of the full softmax take: scores, and the gradients of vectors and items."""
    vectors, matrix, scores = torch.randn(rows, dim), torch.randn(items, dim), torch.empty(rows, items)
    gradient = torch.empty(items, dim)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        torch.mm(vectors, matrix.T, out=scores)
        torch.mm(scores, matrix)
        torch.mm(scores.T, vectors, out=gradient)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * targets / rows
