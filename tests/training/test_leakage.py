"""What is held out teaches nothing: runs on logs that differ in it alone learn the same, to the last bit.

Of each model and split there are three runs. `test` has other events in the test part, which nothing but the test
figures may show. `both` has others in the validation part too, which may choose an epoch and how much of item-kNN is
blended in; so one epoch is all there is of pre-training, and of the blend what it is a multiple of is compared.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from training.assessment import assess
from training.baselines import baselines
from training.evaluate import rank_targets
from training.fitting import train_command
from training.measures import summarise
from training.run import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS = 30
CONFIGS = {
    # Everything that reads train sequences: the vectors items begin with, draws of negatives, the blend.
    "sasrec": """
        [model]
        name = "sasrec"
        dim = 8
        inner = 8
        heads = 2
        blocks = 1
        length = 8
        [training]
        beginning = "neighbours"
        loss = "sampled_softmax"
        negatives = 5
        batch = 16
        epochs = 2
        patience = 2
        learning_rate = 0.001
        [blend]
        neighbours = true
    """,
    "s3rec": """
        [model]
        name = "s3rec"
        dim = 8
        inner = 8
        heads = 2
        blocks = 1
        length = 8
        item_attributes = true
        [pretraining]
        epochs = 1
        batch = 64
        [training]
        epochs = 2
        patience = 2
        batch = 16
        [blend]
        neighbours = true
    """,
}
Part = Literal["nothing", "test", "both"]
Runs = dict[Part, RunFolder]


def log(split: str, changed: Part) -> pl.DataFrame:
    """Walks round a circle of items, in which what is held out in a part is not the next item but the third after it.

    Steps are moments, so that a split by time holds out the ends of the longer walks. One more user had every item
    before everybody else, so that items have the same numbers in every log.
    """
    generator = np.random.default_rng(0)
    rows = [("first", item, item) for item in range(ITEMS)]
    for user in range(60):
        begin, length = generator.integers(ITEMS), generator.integers(6, 13)
        rows += [(f"u{user}", int(begin + step) % ITEMS, 1000 * (step + 1) + user) for step in range(length)]
    frame = pl.DataFrame(rows, schema=["user_id", "item", "timestamp"], orient="row").sort("timestamp")
    if split == "loo":
        from_end = pl.int_range(pl.len()).reverse().over("user_id")
        test, validation = from_end == 0, from_end == 1
    else:
        place = pl.int_range(pl.len()) / pl.len()
        test, validation = place >= 0.9, (place >= 0.8) & (place < 0.9)
    held_out = {"nothing": pl.lit(value=False), "test": test, "both": test | validation}[changed]
    other = pl.when(held_out & (pl.col("user_id") != "first")).then((pl.col("item") + 3) % ITEMS).otherwise("item")
    return frame.select("user_id", pl.format("i{}", other).alias("item_id"), "timestamp")


@pytest.fixture(scope="module", params=[(model, split) for model in CONFIGS for split in ("loo", "time")], ids="-".join)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The three runs of a model and a split, each by the train command."""
    model, split = request.param
    folder = tmp_path_factory.mktemp("leakage")
    (folder / "tiny.toml").write_text(CONFIGS[model])
    colours = pl.DataFrame({"item_id": [f"i{n}" for n in range(ITEMS)], "colour": [f"c{n // 3}" for n in range(ITEMS)]})
    colours.write_csv(folder / "colours.csv")
    found: Runs = {}
    for changed in ("nothing", "test", "both"):
        log(split, changed).write_csv(folder / f"{changed}.csv")
        train_command(
            str(folder / "tiny.toml"),
            data=[folder / f"{changed}.csv"],
            attributes=folder / "colours.csv",
            split=split,
            output=folder / changed,
        )
        found[changed] = RunFolder(folder / changed)
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds but the best epoch's weights, which validation chooses."""
    kept = load_file(folder / "checkpoint.safetensors")
    return {name: tensor for name, tensor in kept.items() if not name.startswith("best/")}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def of_lists(figures: dict[str, Any]) -> tuple[float, float]:
    """What the first ten were like, whatever was sought among them."""
    return figures["coverage@10"], figures["novelty@10"]


def unweighted(run: RunFolder) -> NDArray[np.float64]:
    """The matrix of the item-kNN that is blended in: (items + 1, items + 1)."""
    neighbours = run.neighbours()
    assert neighbours is not None
    matrix = np.zeros((ITEMS + 1, ITEMS + 1))
    rows = np.arange(ITEMS + 1)[:, None]
    np.add.at(matrix, (rows, neighbours.items), neighbours.affinities / run.metrics()["blend"]["weight"])
    return matrix


def test_the_logs_differ_in_what_is_held_out(runs: Runs) -> None:
    """Else the others would prove nothing."""
    targets = {}
    for changed, run in runs.items():
        prepared = run.data()
        targets[changed] = prepared.split.validation.targets.tolist()
        assert prepared.dataset.vocabulary.ids == runs["nothing"].data().dataset.vocabulary.ids
        assert len(targets[changed]) > 10
    assert targets["nothing"] == targets["test"]
    assert targets["nothing"][1:] != targets["both"][1:]
    figures = [run.metrics()["test"]["mrr"] for run in runs.values()]
    assert len(set(figures)) == 3


@pytest.mark.parametrize("changed", ["test", "both"])
def test_weights_are_those_without_what_is_held_out(runs: Runs, changed: Part) -> None:
    one, other = runs["nothing"], runs[changed]
    assert_same(tensors(one.path), tensors(other.path))
    assert [epoch["loss"] for epoch in one.epochs()] == [epoch["loss"] for epoch in other.epochs()]
    if one.pretraining.path.exists():
        assert_same(tensors(one.pretraining.path), tensors(other.pretraining.path))
        assert one.pretraining.epochs()[0]["loss"] == other.pretraining.epochs()[0]["loss"]


@pytest.mark.parametrize("changed", ["test", "both"])
def test_popularity_is_that_without_what_is_held_out(runs: Runs, changed: Part) -> None:
    assert runs["nothing"].popularity().tolist() == runs[changed].popularity().tolist()


@pytest.mark.parametrize("changed", ["test", "both"])
def test_the_neighbours_that_are_blended_in_are_those_without_what_is_held_out(runs: Runs, changed: Part) -> None:
    one, other = runs["nothing"].metrics()["blend"], runs[changed].metrics()["blend"]
    assert one["backward"] == other["backward"]  # there is nothing backward in these walks
    np.testing.assert_allclose(unweighted(runs["nothing"]), unweighted(runs[changed]), rtol=1e-6)


@pytest.mark.parametrize("changed", ["test", "both"])
def test_what_baselines_know_is_that_without_what_is_held_out(runs: Runs, changed: Part) -> None:
    """Those of the other log's train part rank this one's validation as the run recorded of its own."""
    recorded, validation = runs[changed].metrics()["baselines"], runs[changed].data().split.validation
    assert set(recorded) == {"popularity", "co-visitation", "item-kNN"}
    for name, baseline in baselines(runs["nothing"].data().split.train, ITEMS).items():
        found = summarise(rank_targets(baseline, validation, ITEMS))
        assert found == {figure: recorded[name]["validation"][figure] for figure in found}, name


def test_the_test_part_shows_in_nothing_but_its_figures(runs: Runs) -> None:
    """Neither in the best epoch nor in the weight of the blend, and in no list that is recommended."""

    def shown(run: RunFolder) -> dict[str, Any]:
        metrics = run.metrics()
        kept = {name: metrics[name] for name in ("validation", "blend", "best_epoch", "epochs")}
        kept["alone"] = metrics["alone"]["validation"]
        judged = {"served": metrics, "alone": metrics["alone"], **metrics["baselines"]}
        kept["lists"] = {name: of_lists(figures["test"]) for name, figures in judged.items()}
        kept["baselines"] = {name: figures["validation"] for name, figures in metrics["baselines"].items()}
        kept["epochs of it"] = [{**epoch, "seconds": 0, "sequences_per_second": 0} for epoch in run.epochs()]
        return kept

    one, other = runs["nothing"], runs["test"]
    assert json.dumps(shown(one)) == json.dumps(shown(other))
    for name in ("neighbours.npy", "affinities.npy", "popularity.npy"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
    assert_same(*(load_file(run.path / "checkpoint.safetensors") for run in (one, other)))


@pytest.mark.parametrize("changed", ["test", "both"])
def test_baselines_that_evaluate_fits_know_no_more_than_those_of_training(runs: Runs, changed: Part) -> None:
    """A run that is judged on another log has them fitted there, as the run that was made from that log had."""
    found = assess(runs["nothing"].path, data=[runs[changed].path.with_suffix(".csv")])
    recorded = {name: figures["test"] for name, figures in runs[changed].metrics()["baselines"].items()}
    assert json.loads(json.dumps(found.baselines)) == recorded
