"""How fast this machine prepares data and trains, on synthetic interactions.

Both steps of preparing run in fresh processes, since the peak of a process that did other work before says nothing.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import polars as pl
import torch

from models.runtime import cpu_quota
from models.sasrec import SASRecConfig
from models.zoo import build
from training.config import TrainingConfig
from training.dataset import Sequences, build_dataset
from training.interactions import read_interactions
from training.next_item import NextItem
from training.splits import Holdout, split_by_time, split_leave_one_out

P = ParamSpec("P")
T = TypeVar("T")


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
    """Write a synthetic Parquet log, then read it, build the 5-core data set and split it both ways, and time that.

    Users are drawn evenly, items by a power law, times at random within a year, so the rows come in no order at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.parquet"
        _in_fresh_process(_write_log, path, interactions, users, items, seed)
        return _in_fresh_process(_prepare, path)


def _in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
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
    split_leave_one_out(dataset)
    marks["split leave-one-out"] = time.perf_counter()
    split_by_time(dataset)
    marks["split by time"] = time.perf_counter()
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
    """Training windows a second by loss: the median of several rounds, the losses taking turns."""

    rates: dict[str, float]

    def __str__(self) -> str:
        return "\n".join(f"{loss:>8}: {rate:,.0f} sequences/s" for loss, rate in self.rates.items())


def bench_training(*, users: int = 4096, items: int = 12_101, rounds: int = 3, seed: int = 0) -> TrainingBench:
    """Optimiser steps on sequences as long as Amazon Beauty's (log-normal, median 6), dim 64, 2 blocks, batch 256."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(np.log(6), 0.6, users).astype(np.int64), 3, 200)
    ends = np.cumsum(lengths)
    flat = generator.integers(1, items + 1, int(ends[-1])).astype(np.int32)
    train = Sequences(flat, ends - lengths, ends)
    losses: dict[str, list[float]] = {"bce": [], "softmax": []}
    for _ in range(rounds):
        for loss, rates in losses.items():
            rates.append(_training_rate(train, items, loss))
    return TrainingBench({loss: float(np.median(rates)) for loss, rates in losses.items()})


def _training_rate(train: Sequences, items: int, loss: str) -> float:
    torch.set_num_threads(cpu_quota())
    torch.manual_seed(0)
    model = build(SASRecConfig(), items)
    nobody = Holdout(
        np.empty(0, np.int64), train.take(np.empty(0, np.int64)), np.empty(0, np.int32), np.empty(0, np.bool_)
    )
    config = TrainingConfig.model_validate({"loss": loss, "batch": 256})
    task = NextItem(model, train, nobody, config, seed=0)
    optimiser = torch.optim.AdamW(model.parameters())
    began, taken = time.perf_counter(), 0
    for batch in task.batches(1):
        optimiser.zero_grad()
        task.loss(batch).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        taken += task.sizes(batch)[0]
    return taken / (time.perf_counter() - began)
