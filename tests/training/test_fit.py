"""The training loop: what it keeps, when it stops, and that a killed run loses nothing."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from models.s3rec import S3RecConfig
from models.sasrec import SASRec
from models.zoo import build
from training import checkpoint
from training.checkpoint import CheckpointError
from training.config import Config, PretrainingConfig, S3RecRunConfig
from training.dataset import build_dataset
from training.evaluate import evaluate
from training.fit import FitError, Fitted, fit
from training.interactions import interactions_from_frame, read_interactions
from training.next_item import ModelScorer, NextItem
from training.preparation import prepare
from training.report import describe_stop
from training.run import RunFolder
from training.splits import split_leave_one_out
from training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS = 30


@dataclass
class Record:
    """A watcher that remembers, and that may stop everything at a step."""

    dies_at: int | None = None
    steps: int = 0
    windows: int = 0
    epochs: list[dict[str, float]] = field(default_factory=list)
    best: list[float] = field(default_factory=list)

    def step(self, windows: int, loss: float) -> None:
        self.steps += 1
        self.windows += windows
        if self.steps == self.dies_at:
            raise KeyboardInterrupt

    def epoch(self, record: dict[str, float], *, best: bool) -> None:
        self.epochs.append(record)
        if best:
            self.best.append(record["epoch"])


@pytest.fixture
def split(walks: Callable[..., pl.DataFrame]) -> Any:
    return split_leave_one_out(build_dataset(interactions_from_frame(walks(60, ITEMS), source="walks")))


@pytest.fixture
def run(split: Any) -> Callable[..., tuple[SASRec, Fitted, Record]]:
    """Fit in a folder; the model starts from seed 0 each time, as a restarted process would."""

    def run(
        folder: Path, config: Config, *, identity: str = "one", dies_at: int | None = None
    ) -> tuple[SASRec, Fitted, Record]:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model, record = build(config.model, ITEMS), Record(dies_at)
        fitted = fit(
            model,
            NextItem(model, split.train, split.validation, config.training, seed=0),
            config.training,
            folder=folder,
            identity=identity,
            watcher=record,
        )
        return model, fitted, record

    return run


def lines(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock decides."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if "second" not in name} for record in records]


def same(one: SASRec, two: SASRec) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("amx_bf16"), reason="the processor has no AMX for bfloat16")
def test_the_precision_float32_rounds_no_factor_and_the_default_does(split: Any) -> None:
    def loss(precision: str) -> float:
        torch.manual_seed(0)
        config = Config.model_validate({"model": {"dropout": 0.0}, "training": {"precision": precision}})
        task = NextItem(build(config.model, ITEMS), split.train, split.validation, config.training, seed=0)
        return task.loss(next(iter(task.batches(1)))).item()

    assert loss("auto") == loss("bfloat16")  # nothing but these products where fit() begins no autocast
    assert loss("auto") != loss("float32")
    assert loss("auto") == pytest.approx(loss("float32"), rel=1e-3)


EVERYTHING = {
    "dropout": 0.3,
    "loss": "bce",
    "warmup_steps": 20,
    "gradient_clip": 0.5,
    "weight_decay": 0.1,
    "batch": 8,
    "average": 0.9,
}


def test_a_model_learns_where_walks_go_and_the_log_says_how(
    tmp_path: Path, run: Callable[..., Any], split: Any, tiny_config: Callable[..., Config]
) -> None:
    model, fitted, record = run(tmp_path, tiny_config(epochs=20, batch=8))
    assert fitted.best > 0.5  # chance is below .1
    found = evaluate(ModelScorer(model), split.validation, ITEMS).metrics()
    assert found["ndcg@10"] == fitted.best == max(line["ndcg@10"] for line in lines(tmp_path))
    assert lines(tmp_path)[fitted.best_epoch - 1]["ndcg@10"] == fitted.best  # the weights are those of the best epoch
    assert [line["epoch"] for line in lines(tmp_path)] == list(range(1, fitted.epochs + 1))
    assert [line["loss"] for line in lines(tmp_path)] == [epoch["loss"] for epoch in record.epochs]
    assert lines(tmp_path)[0]["loss"] > lines(tmp_path)[-1]["loss"]
    assert fitted.sequences == record.windows
    assert record.best[-1] == fitted.best_epoch


def test_the_loss_of_an_untrained_model_is_that_of_knowing_nothing(
    tmp_path: Path, run: Callable[..., Any], tiny_config: Callable[..., Config]
) -> None:
    still = {"epochs": 1, "learning_rate": 1e-12, "dropout": 0.0, "initial_deviation": 0.001}
    run(tmp_path / "softmax", tiny_config(**still))
    run(tmp_path / "bce", tiny_config(**still, loss="bce"))
    assert lines(tmp_path / "softmax")[0]["loss"] == pytest.approx(np.log(ITEMS), abs=1e-3)  # a mean over targets
    assert lines(tmp_path / "bce")[0]["loss"] == pytest.approx(2 * np.log(2), abs=1e-3)


@pytest.mark.parametrize("dies_at", [None, 7])
def test_where_no_target_can_be_hit_the_last_weights_are_kept_and_that_is_said(
    tmp_path: Path, walks: Callable[..., pl.DataFrame], tiny_config: Callable[..., Config], dies_at: int | None
) -> None:
    frame = walks(60, ITEMS)
    whole = split_leave_one_out(build_dataset(interactions_from_frame(frame, source="walks")))
    hidden = replace(whole.validation, targets=whole.validation.histories.items[whole.validation.histories.starts])
    assert hidden.repeats == len(hidden)
    config = tiny_config(epochs=9, patience=4, average=0.9).training

    def fitted(folder: Path, dies_at: int | None = None) -> tuple[SASRec, Fitted]:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = build(tiny_config().model, ITEMS)
        task = NextItem(model, whole.train, hidden, config, seed=0)
        return model, fit(model, task, config, folder=folder, identity="x", watcher=Record(dies_at))

    if dies_at:
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path, dies_at)
    _, found = fitted(tmp_path)
    assert (found.epochs, found.best_epoch, found.best, found.stopped_early) == (5, 5, 0.0, True)
    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(kept[f"best/{name}"], kept[f"average/{name}"]) for name in ("item_embedding.weight",))
    said = describe_stop(found, config.patience, "ndcg@10")
    assert "validation chose nothing: the weights are those of the last" in said
    assert "chose nothing" not in describe_stop(found, config.patience, "rmse")


@pytest.mark.parametrize("dies_at", [1, 9, 20, 31])
def test_an_interrupted_run_continues_to_the_same_weights_bit_for_bit(
    tmp_path: Path, run: Callable[..., Any], tiny_config: Callable[..., Config], dies_at: int
) -> None:
    config = tiny_config(epochs=5, **EVERYTHING)
    whole, fitted, record = run(tmp_path / "whole", config)
    assert record.steps > 35  # seven or more an epoch: the interruptions are at different places of different epochs
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", config, dies_at=dies_at)
    torch.rand(7)  # a new process is anywhere in its random numbers
    continued, fitted_again, _ = run(tmp_path / "broken", config)
    assert same(whole, continued)
    assert lines(tmp_path / "whole") == lines(tmp_path / "broken")
    assert (fitted.epochs, fitted.best_epoch, fitted.best, fitted.sequences) == (
        fitted_again.epochs,
        fitted_again.best_epoch,
        fitted_again.best,
        fitted_again.sequences,
    )


_KILLED = """
import os, pickle, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from models.zoo import build
from training.config import Config
from training.fit import fit
from training.next_item import NextItem

folder, items = Path(sys.argv[1]), int(sys.argv[2])
split = pickle.loads((folder / "split").read_bytes())
config = Config.model_validate_json((folder / "config").read_text())

class Killer:
    steps = 0
    def step(self, windows, loss):
        self.steps += 1
        if self.steps == 19:
            os.kill(os.getpid(), signal.SIGKILL)
    def epoch(self, record, *, best):
        pass

torch.manual_seed(0)
model = build(config.model, items)
task = NextItem(model, split.train, split.validation, config.training, seed=0)
fit(model, task, config.training, folder=folder, identity="one", watcher=Killer())
"""


def test_a_process_killed_in_the_middle_of_an_epoch_loses_nothing(
    tmp_path: Path, run: Callable[..., Any], split: Any, tiny_config: Callable[..., Config]
) -> None:
    import pickle

    config = tiny_config(epochs=4, **EVERYTHING)
    whole, _, _ = run(tmp_path / "whole", config)
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "split").write_bytes(pickle.dumps(split))
    (folder / "config").write_text(config.model_dump_json())
    command = [sys.executable, "-c", _KILLED, str(folder), str(ITEMS)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint.read_progress(folder / "checkpoint.safetensors").epoch == 2  # died in the third
    continued, _, record = run(folder, config)
    assert [epoch["epoch"] for epoch in record.epochs] == [3, 4]
    assert same(whole, continued)
    assert lines(folder) == lines(tmp_path / "whole")


def test_a_line_that_was_logged_or_torn_before_its_checkpoint_is_forgotten(
    tmp_path: Path, run: Callable[..., Any], tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(epochs=3)
    run(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "torn", config, dies_at=6)
    with (tmp_path / "torn" / "metrics.jsonl").open("a") as log:
        log.write('{"epoch": 3, "lo')
    run(tmp_path / "torn", config)
    assert lines(tmp_path / "torn") == lines(tmp_path / "whole")


def test_a_finished_run_is_not_trained_further(
    tmp_path: Path, run: Callable[..., Any], tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(epochs=50, patience=4, learning_rate=0.05, batch=8)
    first, fitted, _ = run(tmp_path, config)
    assert fitted.best_epoch < fitted.epochs  # so that the last weights are not the best
    before = (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns
    again, fitted_again, record = run(tmp_path, config)
    assert (record.steps, fitted_again) == (0, fitted)
    assert same(first, again)
    assert (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns == before


def test_training_stops_when_validation_has_not_risen_and_keeps_the_best(
    tmp_path: Path, run: Callable[..., Any], split: Any, tiny_config: Callable[..., Config]
) -> None:
    # Weights barely move, so that no epoch after the first ranks anything otherwise.
    model, fitted, record = run(tmp_path / "still", tiny_config(epochs=50, patience=3, learning_rate=1e-12))
    assert (fitted.epochs, fitted.best_epoch, fitted.stopped_early) == (4, 1, True)
    assert record.best == [1]
    # And with steps far too large it soon only gets worse: what is left is the best epoch, not the last.
    model, fitted, record = run(tmp_path / "wild", tiny_config(epochs=50, patience=4, learning_rate=0.05, batch=8))
    assert fitted.best_epoch < fitted.epochs == len(record.epochs)
    assert evaluate(ModelScorer(model), split.validation, ITEMS).metrics()["ndcg@10"] == fitted.best
    assert record.epochs[-1]["ndcg@10"] <= fitted.best
    kept = build(model.config, ITEMS)
    checkpoint.load_best(tmp_path / "wild" / "checkpoint.safetensors", kept)
    assert same(model, kept)


def test_averaged_weights_are_what_is_judged_and_kept_and_training_does_not_see_them(
    tmp_path: Path, run: Callable[..., Any], split: Any, tiny_config: Callable[..., Config]
) -> None:
    model, fitted, _ = run(tmp_path / "averaged", tiny_config(epochs=6, average=0.9))
    plain, _, _ = run(tmp_path / "plain", tiny_config(epochs=6))
    losses = [[line["loss"] for line in lines(tmp_path / name)] for name in ("averaged", "plain")]
    assert losses[0] == losses[1]
    assert not same(model, plain)
    assert evaluate(ModelScorer(model), split.validation, ITEMS).metrics()["ndcg@10"] == fitted.best


def test_all_epochs_without_a_stop_are_told_apart_from_an_early_one(
    tmp_path: Path, run: Callable[..., Any], tiny_config: Callable[..., Config]
) -> None:
    _, fitted, _ = run(tmp_path, tiny_config(epochs=2, patience=10))
    assert (fitted.epochs, fitted.stopped_early) == (2, False)


def test_the_folder_of_another_run_is_refused_and_left_alone(
    tmp_path: Path, run: Callable[..., Any], tiny_config: Callable[..., Config]
) -> None:
    run(tmp_path, tiny_config(epochs=1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FitError, match=r"another run.*--output"):
        run(tmp_path, tiny_config(epochs=1), identity="two")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_loss_that_is_no_number_ends_the_run_with_advice(
    tmp_path: Path, run: Callable[..., Any], tiny_config: Callable[..., Config]
) -> None:
    with pytest.raises(FitError, match=r"loss became (nan|inf) in epoch 1; lower the learning rate"):
        run(tmp_path, tiny_config(learning_rate=1e30, epochs=3, batch=4))
    assert not (tmp_path / "checkpoint.safetensors").exists()  # nothing to continue into the same ditch


def test_data_without_a_second_interaction_teaches_nothing(tiny_config: Callable[..., Config]) -> None:
    rows = [("u", item) for item in "abc"]  # two are held out
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    split = split_leave_one_out(build_dataset(interactions_from_frame(frame, source="x")))
    config = tiny_config()
    with pytest.raises(FitError, match="nothing to predict"):
        NextItem(build(config.model, 3), split.train, split.validation, config.training, seed=0)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_checkpoint_is_named_and_without_it_the_run_begins_anew(
    tmp_path: Path, run: Callable[..., Any], tiny_config: Callable[..., Config], damage: bytes
) -> None:
    whole, _, _ = run(tmp_path, tiny_config(epochs=1))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: is damaged or not a checkpoint.*; delete it"):
        run(tmp_path, tiny_config(epochs=1))
    path.unlink()
    with pytest.raises(CheckpointError, match=r"is not there: of a retraining the bundle has the weights"):
        checkpoint.load_best(path, whole)
    anew, _, _ = run(tmp_path, tiny_config(epochs=1))
    assert same(anew, whole)


def test_best_weights_of_another_shape_are_refused(
    tmp_path: Path, run: Callable[..., Any], tiny_config: Callable[..., Config]
) -> None:
    run(tmp_path, tiny_config(epochs=1))
    with pytest.raises(CheckpointError, match="do not fit"):
        checkpoint.load_best(tmp_path / "checkpoint.safetensors", build(tiny_config().model, ITEMS + 1))


def test_a_checkpoint_is_replaced_whole(
    tmp_path: Path, run: Callable[..., Any], tiny_config: Callable[..., Config]
) -> None:
    """A draft that a killed process left is no checkpoint, and is written over."""
    (tmp_path / "checkpoint.draft").write_bytes(b"half")
    _, fitted, _ = run(tmp_path, tiny_config(epochs=1))
    assert fitted.epochs == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors", "metrics.jsonl"]


def test_a_checkpoint_is_on_disk_before_it_has_its_name_and_then_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[list[str]] = []
    fsync = os.fsync

    def told(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(
            [str(Path(f"/proc/self/fd/{descriptor}").readlink()), *sorted(path.name for path in tmp_path.iterdir())]
        )

    model = torch.nn.Linear(2, 2)
    progress = checkpoint.Progress("x", 1, 1, 0.5, 1.0, 1, finished=False)
    states, optimiser = checkpoint.generators(), torch.optim.AdamW(model.parameters())
    monkeypatch.setattr("os.fsync", told)
    checkpoint.save(tmp_path / "checkpoint.safetensors", progress, model, optimiser, best={}, average={}, states=states)
    draft = tmp_path / "checkpoint.draft"
    assert synced == [[str(draft), draft.name], [str(tmp_path), "checkpoint.safetensors"]]


def test_a_disk_without_room_for_a_checkpoint_is_named_and_the_last_one_kept(tmp_path: Path) -> None:
    model = torch.nn.Linear(100, 100)
    path, states = tmp_path / "checkpoint.safetensors", checkpoint.generators()
    optimiser = torch.optim.AdamW(model.parameters())
    progress = checkpoint.Progress("x", 1, 1, 0.5, 1.0, 1, finished=False)
    checkpoint.save(path, progress, model, optimiser, best={}, average={}, states=states)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # bytes of any file of this process
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: cannot be written .*free space"):
            checkpoint.save(path, replace(progress, epoch=2), model, optimiser, best={}, average={}, states=states)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read_progress(path).epoch == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_scorer_reads_the_newest_items_of_a_long_history(tiny_config: Callable[..., Config]) -> None:
    from training.dataset import Sequences

    torch.manual_seed(0)
    model = build(tiny_config(length=3, initial_deviation=0.5).model, 9)
    items = np.array([9, 8, 1, 2, 3, 1, 2, 3, 4], np.int32)
    histories = Sequences(items, np.array([0, 2, 8]), np.array([5, 5, 9]))
    scores = ModelScorer(model)(histories)
    assert scores.shape == (3, 10)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
    assert np.abs(scores[0] - scores[2]).max() > 0.01


def test_the_epochs_of_a_large_catalogue_are_validated_by_some_users_and_the_run_by_all(
    finished_run: RunFolder, tmp_path: Path, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    still = tiny_config(epochs=2, learning_rate=1e-9)  # so that the same users have the same figures in every epoch
    config = S3RecRunConfig(
        model=S3RecConfig(**still.model.model_dump(exclude={"name"})),
        pretraining=PretrainingConfig(batch=128, epochs=2, learning_rate=1e-9),
        training=still.training,
    )
    prepared = prepare(read_interactions(finished_run.spec().files), config, split="loo")
    spec = finished_run.spec().model_copy(update={"config": config, "attributes": None})
    said = io.StringIO()
    monkeypatch.setattr("training.evaluate._CELLS", 20 * 41)
    run = train(spec, prepared, tmp_path / "run", Console(file=said, width=200))
    for epochs in (run.epochs(), run.pretraining.epochs()):
        assert [epoch["users"] for epoch in epochs] == [19, 19]
        assert epochs[0]["mrr"] == pytest.approx(epochs[1]["mrr"], rel=1e-4)
    assert said.getvalue().count("validated by 19 of 150 users") == 1
    metrics = run.metrics()
    assert metrics["validation"]["users"] == metrics["test"]["users"] == 150


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_learn_the_same(
    finished_run: RunFolder, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config(epochs=2, dropout=0.0)
    prepared = prepare(read_interactions(finished_run.spec().files), config, split="loo")
    losses = []
    for compiled in (False, True):
        chosen = config.model_copy(update={"training": config.training.model_copy(update={"compile": compiled})})
        spec = finished_run.spec().model_copy(update={"config": chosen, "attributes": None})
        run = train(spec, prepared, tmp_path / str(compiled), Console(file=io.StringIO()))
        losses.append([epoch["loss"] for epoch in run.epochs()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
