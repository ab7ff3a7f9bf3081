"""Reconstruction as a task: what counts in the loss, what is learned, and that a resumed run ends the same."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.autorec import AutoRec, AutoRecConfig
from models.zoo import build
from training.config import AutoRecRunConfig, ReconstructionConfig
from training.evaluate import evaluate_test, evaluate_test_ratings
from training.factorisation import BiasOnly, GlobalMean, tuned_factorisation
from training.fit import fit
from training.interactions import Interactions, interactions_from_frame
from training.preparation import Prepared, default_split, prepare
from training.ratings import biases_of, matrix_of
from training.reconstruction import Reconstruction, Rows, observed_errors

pytestmark = pytest.mark.usefixtures("one_thread")


class Silent:
    def step(self, windows: int, loss: float) -> None: ...

    def epoch(self, record: dict[str, float], *, best: bool) -> None: ...


def tastes(users: int = 120, items: int = 60, *, shuffled: bool = False, seed: int = 0) -> Interactions:
    """Ratings from 1 to 5 that two tastes of users and items decide, a third of them known; shuffled, none does."""
    generator = np.random.default_rng(seed)
    exact = 3 + generator.normal(size=(users, 2)) @ generator.normal(size=(2, items))
    known = np.argwhere(generator.random(exact.shape) < 1 / 3)
    known = generator.permutation(known)
    values = exact[known[:, 0], known[:, 1]].clip(1, 5).round()
    if shuffled:
        values = generator.permutation(values)
    frame = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in known[:, 0]],
            "item_id": [f"i{item}" for item in known[:, 1]],
            "value": values,
            "timestamp": 1_600_000_000_000 + np.arange(len(known)),
        }
    )
    return interactions_from_frame(frame, source="tastes")


def settings(**options: Any) -> AutoRecRunConfig:
    model: dict[str, Any] = {"hidden": (16,), "presence": 1.0}
    training: dict[str, Any] = {"batch": 16, "epochs": 25, "patience": 25, "learning_rate": 0.01, "l2": 3.0}
    for name, value in options.items():
        (model if name in AutoRecConfig.model_fields else training)[name] = value
    if model.get("feedback") == "implicit":
        model.pop("presence")
    return AutoRecRunConfig(model=AutoRecConfig(**model), training=ReconstructionConfig(**training))


def task_of(config: AutoRecRunConfig, prepared: Prepared, *, seed: int = 0) -> tuple[AutoRec, Reconstruction]:
    torch.manual_seed(seed)
    items = prepared.dataset.vocabulary.items
    model = build(config.model, items, users=len(prepared.dataset.users))
    return model, Reconstruction(model, prepared.split, items, config, seed=seed)


def fitted(config: AutoRecRunConfig, prepared: Prepared, folder: Path, *, seed: int = 0) -> Reconstruction:
    model, task = task_of(config, prepared, seed=seed)
    fit(model, task, config.training, folder=folder, identity="x", watcher=Silent())
    return task


def rmse(predict: Any, prepared: Prepared) -> float:
    return evaluate_test_ratings(predict, prepared.split, prepared.dataset.vocabulary.items).metrics()["rmse"]


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_loss_is_the_mean_square_over_observed_entries_and_the_papers_penalty(bfloat16: bool) -> None:
    """To five digits in training with bfloat16 too, which has three."""
    rows = [("a", "x", 1), ("a", "y", 5), ("b", "x", 3), ("b", "z", 3), ("c", "y", 2), ("c", "z", 4)] * 1
    rows += [(f"v{n}", item, 3) for n in range(8) for item in "xyz"]  # for validation and test to take from
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "value"], orient="row")
    config = settings(hidden=(1,), encoder="identity", centre="mean", presence=0.0, l2=7.0, validation_share=0.1)
    prepared = prepare(interactions_from_frame(frame, source="x"), config, split="random", held_out=0.1)
    model, task = task_of(config, prepared)
    with torch.no_grad():
        for weight in model.weights():
            weight.zero_()
        model.decoder.bias.fill_(0.25)
    everything = Rows(np.arange(task.matrix.shape[0]), None)

    def loss() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return task.loss(everything).item()

    ratings, mean = task.matrix.data, task.matrix.data.mean()
    assert loss() == pytest.approx(np.mean((mean + 0.25 - ratings) ** 2), rel=1e-5)
    with torch.no_grad():
        model.decoder.weight.fill_(2.0)  # times a hidden unit of 0: predictions stay, the penalty does not
    assert loss() == pytest.approx(np.mean((mean + 0.25 - ratings) ** 2) + 7 / (2 * len(ratings)) * 12, rel=1e-5)
    assert task.sizes(everything) == (len(prepared.dataset.users), len(ratings))


def test_an_unobserved_entry_has_no_part_in_loss_or_gradient() -> None:
    predictions = torch.randn(3, 4, requires_grad=True)
    counted = torch.tensor([[True, False, True, False], [False, False, True, True], [True, True, False, False]])
    one = observed_errors(predictions, torch.zeros(3, 4), counted)
    two = observed_errors(predictions, torch.where(counted, 0.0, torch.tensor(math.nan)), counted)
    assert torch.equal(one, two)
    two.square().sum().backward()
    assert predictions.grad is not None
    assert torch.equal(predictions.grad != 0, counted)


def test_held_out_ratings_change_nothing_that_is_learned(tmp_path: Path) -> None:
    config = settings(epochs=2)
    log = tastes()
    weights = []
    for changed in (False, True):
        prepared = prepare(log, config, split="random")
        _, task = task_of(config, prepared)
        if changed:  # whatever the validation part says, each of its ratings the other way round
            assert prepared.split.validation.values is not None
            prepared.split.validation.values[:] = 6 - prepared.split.validation.values
        folder = tmp_path / str(changed)
        folder.mkdir()
        model, task = task_of(config, prepared)
        fit(
            model,
            task,
            config.training.model_copy(update={"patience": 99}),
            folder=folder,
            identity="x",
            watcher=Silent(),
        )
        weights.append(torch.cat([p.flatten() for p in last_weights(folder)]))
    assert torch.equal(*weights)


def last_weights(folder: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    tensors = load_file(folder / "checkpoint.safetensors")
    return [tensors[name] for name in sorted(tensors) if name.startswith("model/")]


@pytest.mark.parametrize("side", ["user", "item"])
def test_tastes_are_learned_better_than_biases_tell_and_shuffled_ratings_are_not(side: str, tmp_path: Path) -> None:
    config = settings(side=side)
    for shuffled in (False, True):
        prepared = prepare(tastes(shuffled=shuffled), config, split="random")
        folder = tmp_path / str(shuffled)
        folder.mkdir()
        found = rmse(fitted(config, prepared, folder).predictor(), prepared)
        items = prepared.dataset.vocabulary.items
        biases = biases_of(matrix_of(prepared.split.train, items), 5.0)
        of_biases, of_mean = (rmse(one, prepared) for one in (BiasOnly(biases, (1, 5)), GlobalMean(biases.mean)))
        if shuffled:
            assert found > of_mean - 0.03  # nothing but the mean can be known
        else:
            assert found < 0.75 * of_biases


def test_a_tuned_factorisation_learns_tastes_and_says_what_was_tried() -> None:
    prepared = prepare(tastes(), settings(), split="random")
    items = prepared.dataset.vocabulary.items
    tuned = tuned_factorisation(prepared.split, items, (1, 5), seed=0)
    biases = biases_of(matrix_of(prepared.split.train, items), 5.0)
    assert rmse(tuned.model, prepared) < 0.75 * rmse(BiasOnly(biases, (1, 5)), prepared)
    assert tuned.tried[tuned.penalty] == min(tuned.tried.values())


@pytest.mark.parametrize("side", ["user", "item"])
def test_implicit_feedback_ranks_better_than_chance(side: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [  # users of ten groups take items of their own group's six
        (f"u{user}", f"i{user % 10}-{item}") for user in range(120) for item in generator.permutation(6)[:5]
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    # Dropout, or it learns to copy what it reads.
    config = settings(side=side, feedback="implicit", l2=0.1, dropout=0.5, epochs=40, patience=40)
    prepared = prepare(interactions_from_frame(frame, source="groups"), config, split="loo")
    task = fitted(config, prepared, tmp_path)
    found = evaluate_test(task.scorer(), prepared.split, 60).metrics()
    assert found["users"] == 120
    assert found["ndcg@10"] > 0.3  # the last item of six is left when five are known; chance has .08


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    config = settings(epochs=6, dropout=0.3)
    prepared = prepare(tastes(), config, split="random")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    fitted(config, prepared, straight)

    class Stop(Silent):
        def epoch(self, record: dict[str, float], *, best: bool) -> None:
            if record["epoch"] == 3:
                raise KeyboardInterrupt

    model, task = task_of(config, prepared)
    with pytest.raises(KeyboardInterrupt):
        fit(model, task, config.training, folder=broken, identity="x", watcher=Stop())
    fitted(config, prepared, broken, seed=0)
    for one, two in zip(last_weights(straight), last_weights(broken), strict=True):
        assert torch.equal(one, two)


OPTIONS: dict[str, Any] = {
    "side": "item",
    "feedback": "implicit",
    "hidden": (8,),
    "encoder": "relu",
    "decoder": "sigmoid",
    "dropout": 0.5,
    "centre": "mean",
    "presence": 0.0,
    "shrinkage": 50.0,
    "batch": 8,
    "epochs": 1,
    "learning_rate": 0.02,
    "warmup_steps": 50,
    "decay": 0.5,
    "weight_decay": 0.5,
    "gradient_clip": 0.01,
    "precision": "bfloat16",
    "l2": 60.0,
    "validation_share": 0.2,
}
ELSEWHERE = {"name", "length", "patience", "average", "negatives", "scale"}  # conformance, test_config.py


def test_every_option_changes_what_is_learned(tmp_path: Path) -> None:
    assert {*OPTIONS, *ELSEWHERE} == {*AutoRecConfig.model_fields, *ReconstructionConfig.model_fields}

    def outcome(**options: Any) -> torch.Tensor:
        config = settings(**{"epochs": 2} | options)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        split = "loo" if options.get("feedback") == "implicit" else "random"
        fitted(config, prepare(tastes(30, 20), config, split=split), folder)  # type: ignore[arg-type]
        return torch.cat([weight.flatten().float() for weight in last_weights(folder)])

    usual = outcome()
    assert torch.equal(usual, outcome())
    for name, value in OPTIONS.items():
        found = outcome(**{name: value})
        assert found.shape != usual.shape or not torch.equal(found, usual), name
    implicit = outcome(feedback="implicit")
    assert not torch.equal(implicit, outcome(feedback="implicit", negatives=2))
    assert not torch.equal(usual, outcome(scale=(0.0, 6.0)))


def test_an_unseen_user_or_item_is_predicted_by_the_biases_and_counted() -> None:
    rows = [(f"u{user}", f"i{item}", 1 + (user + item) % 5) for user in range(10) for item in range(6)]
    train = pl.DataFrame(rows, schema=["user_id", "item_id", "value"], orient="row")
    test = pl.DataFrame(
        [("u0", "new", 5), ("stranger", "i0", 1), ("stranger", "new", 2)],
        schema=["user_id", "item_id", "value"],
        orient="row",
    )
    config = settings()
    held_out = interactions_from_frame(test, source="test")
    prepared = prepare(interactions_from_frame(train, source="train"), config, split="file", test=held_out)
    _, task = task_of(config, prepared)
    found = evaluate_test_ratings(task.predictor(), prepared.split, prepared.dataset.vocabulary.items)
    assert (len(found.errors), found.unseen) == (3, 3)
    biases = task.biases
    users, items = prepared.dataset.users, prepared.dataset.vocabulary
    u0 = biases.rows[users.index("u0")]
    i0 = biases.columns[(items.index_of("i0") or 0) - 1]
    assert found.errors.tolist() == pytest.approx(
        [biases.mean + u0 - 5, biases.mean + i0 - 1, biases.mean - 2], abs=1e-5
    )


def test_the_log_of_epochs_has_train_validation_and_test_errors(tmp_path: Path) -> None:
    import json

    config = settings(epochs=3)
    fitted(config, prepare(tastes(), config, split="random"), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert all({"train_rmse", "rmse", "mae", "test_rmse", "loss"} <= record.keys() for record in records)


@pytest.mark.parametrize("feedback", ["explicit", "implicit"])
@pytest.mark.parametrize("count", [2, 3, 40])
def test_the_parts_of_a_batch_are_all_of_it(
    feedback: str, count: int, parts_are_the_whole: Callable[[Any, int], None]
) -> None:
    """Their losses weighted by their entries are the loss of the whole, with fewer rows than parts too."""
    config = settings(feedback=feedback)
    _, task = task_of(config, prepare(tastes(), config, split=default_split(config)))
    parts_are_the_whole(task, count)
