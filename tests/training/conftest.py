"""Walks round a circle of items, which a model learns in seconds, and one run and bundle made of them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest


def _walks(users: int, items: int, *, seed: int = 0, shuffled: bool = False) -> pl.DataFrame:
    """After i comes i + 1, for 6 to 12 steps from anywhere; shuffled, the same items of a user in any order."""
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        walk = (generator.integers(items) + np.arange(generator.integers(6, 13))) % items
        if shuffled:
            walk = generator.permutation(walk)
        began = 1_600_000_000_000 + int(generator.integers(10**9))
        rows += [(f"u{user}", f"i{item}", began + 60_000 * step) for step, item in enumerate(walk)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture(scope="session")
def walks() -> Callable[..., pl.DataFrame]:
    """`walks(users, items, seed=, shuffled=)`: a log with columns user_id, item_id, timestamp."""
    return _walks


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """A configuration for walks: `tiny_config(dim=8, epochs=2)` sets options of the model and the training."""
    from models.sasrec import SASRecConfig
    from training.config import Config, TrainingConfig

    def config(**options: Any) -> Config:
        model: dict[str, Any] = {"dim": 16, "blocks": 1, "heads": 2, "inner": 16, "length": 8, "dropout": 0.1}
        training: dict[str, Any] = {"batch": 32, "epochs": 12, "patience": 12, "learning_rate": 0.01}
        for name, value in options.items():
            (model if name in SASRecConfig.model_fields else training)[name] = value
        return Config(model=SASRecConfig(**model), training=TrainingConfig(**training))

    return config


@pytest.fixture(scope="session")
def parts_are_the_whole() -> Callable[[Any, int], None]:
    """`parts_are_the_whole(task, count)`: the losses of a batch's parts, weighted, are its own, in sizes too."""

    def check(task: Any, count: int) -> None:
        for batch in task.batches(1):
            sequences, targets = task.sizes(batch)
            parts = [task.part(batch, number, count) for number in range(count)]
            sizes = np.array([task.sizes(part) for part in parts])
            assert sizes.sum(axis=0).tolist() == [sequences, targets]
            losses = [task.loss(part).item() * size for part, (_, size) in zip(parts, sizes, strict=True) if size]
            assert sum(losses) / targets == pytest.approx(task.loss(batch).item(), rel=1e-4)

    return check


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run `python -m training` with these words: exit status, standard output, standard error."""
    from training.__main__ import main

    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["training", *map(str, words)])
        try:
            status = main()
        except SystemExit as left:  # how typer ends a command that went well
            status = int(left.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, in `train` too, which asks what the process may use: faster for models this small."""
    with _one_thread():
        yield


class _one_thread:  # noqa: N801 - reads as a function
    def __enter__(self) -> None:
        import torch

        self._allowed, self._threads = os.sched_getaffinity(0), torch.get_num_threads()
        os.sched_setaffinity(0, {min(self._allowed)})
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        import torch

        os.sched_setaffinity(0, self._allowed)
        torch.set_num_threads(self._threads)


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, walks: Callable[..., pl.DataFrame], tiny_config: Callable[..., Any]
) -> Any:
    """RunFolder of a finished run on 150 walks over 40 items. Nothing may be written into it."""
    import io

    from rich.console import Console

    from training.interactions import Columns, read_interactions
    from training.preparation import prepare, spec_of
    from training.train import train

    folder = tmp_path_factory.mktemp("finished")
    log = folder / "walks.csv"
    walks(150, 40).write_csv(log)
    titles = folder / "titles.csv"
    pl.DataFrame({"item_id": [f"i{item}" for item in range(40)], "title": [f"Film {n}" for n in range(40)]}).write_csv(
        titles
    )
    config = tiny_config()
    prepared = prepare(read_interactions([log]), config, split="loo", attributes=titles)
    spec = spec_of(
        config, prepared, name="walks", files=[log], columns=Columns(), split="loo", seed=3, attributes=titles
    )
    with _one_thread():
        return train(spec, prepared, folder / "run", Console(file=io.StringIO()))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, finished_run: Any) -> Path:
    """The bundle of that run. Nothing may be written into it."""
    from training.export import export

    return export(finished_run, tmp_path_factory.mktemp("published"), version="walks-1")
