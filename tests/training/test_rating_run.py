"""AutoRec through the commands that a person types, from training to a bundle and a table of activations."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest

from models.bundle import read_bundle
from models.manifest import BundleError, sealed
from models.runtime import Runtime
from training.results import results_page
from training.run import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = """
[model]
name = "autorec"
{model}
hidden = [8]

[training]
batch = 16
epochs = 12
learning_rate = 0.02
l2 = 2.0
"""

Command = Callable[..., str]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """80 users, 40 films, two tastes: 1 to 5 stars, most of them at the ends."""
    generator = np.random.default_rng(0)
    tastes = 3 + 2 * np.sign(generator.normal(size=(80, 1)) * generator.normal(size=(1, 40)))
    known = generator.permutation(np.argwhere(generator.random(tastes.shape) < 0.5))
    frame = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in known[:, 0]],
            "item_id": [f"film-{item}" for item in known[:, 1]],
            "rating": tastes[known[:, 0], known[:, 1]],
            "timestamp": 1_600_000_000 + 60 * np.arange(len(known)),
        }
    )
    frame.write_csv(tmp_path / "log.csv")
    return tmp_path / "log.csv"


@pytest.fixture
def command(command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command("train", ..., status=0)`: what was printed, errors included."""
    monkeypatch.chdir(tmp_path)
    for side in ("user", "item"):
        (tmp_path / f"{side}.toml").write_text(CONFIG.format(model=f'side = "{side}"'))
    (tmp_path / "implicit.toml").write_text(CONFIG.format(model='feedback = "implicit"'))

    def run(*words: str, status: int = 0) -> str:
        found, out, error = command(*words)
        assert found == status, error
        return out + error

    return run


def train(command: Command, log: Path, name: str, *more: str) -> tuple[str, dict[str, Any]]:
    out = command("train", f"{name}.toml", "--data", str(log), "--value-column", "rating", "--output", name, *more)
    return out, json.loads(Path(name, "metrics.json").read_text())


def test_a_bundle_is_judged_as_its_run_where_a_film_was_rated_twice(command: Command, log: Path) -> None:
    first = pl.read_csv(log).head(30).with_columns(rating=3.0, timestamp=pl.lit(1_500_000_000, pl.Int64))
    pl.concat([first, pl.read_csv(log)]).write_csv(log)
    train(command, log, "user", "--split", "loo")
    command("export", "user", "--version", "v1")
    own = command("evaluate", "user")
    given = command("evaluate", "artifacts/v1", "--data", str(log), "--value-column", "rating")
    figures = json.loads(Path("user", "metrics.json").read_text())["test"]
    for printed in (own, given):
        assert f"{figures['ndcg@10']:.4f}" in printed


def test_a_bundle_predicts_through_onnxruntime_what_its_run_does_through_torch(command: Command, log: Path) -> None:
    rows = log.read_text().splitlines()
    Path("base.csv").write_text("\n".join(rows[:1200]) + "\n")
    Path("test.csv").write_text("\n".join([rows[0], *rows[1200:]]) + "\n")
    for name, data, more, again in (
        ("random", log, (), ("--split", "random")),
        ("file", Path("base.csv"), ("--test", "test.csv"), ("--test", "test.csv")),
    ):
        train(command, data, "user", *more)
        shutil.move("user", name)
        command("export", name, "--version", name)
        judged = command("evaluate", f"artifacts/{name}", "--data", str(data), "--value-column", "rating", *again)
        by_torch = re.findall(r"\d\.\d{4}", command("evaluate", name))
        assert re.findall(r"\d\.\d{4}", judged) == by_torch
        assert len(by_torch) > 10
    ranked = ("--data", "base.csv", "--test", "test.csv", "--value-column", "rating", "--sampled", "5")
    assert "are not ranked" in command("evaluate", "artifacts/file", *ranked, status=1)
    flattered = command(
        "evaluate", "artifacts/file", "--data", str(log), "--value-column", "rating", "--split", "random"
    )
    assert "it may have learned them" in " ".join(flattered.split())


def test_ratings_of_other_items_were_not_held_out_from_a_bundle(command: Command, log: Path) -> None:
    train(command, log, "user")
    command("export", "user", "--version", "v1")
    words = ("--value-column", "rating", "--split", "random")
    pl.read_csv(log).filter(pl.col("item_id") != "film-3").write_csv("fewer.csv")
    assert "made from other items" in command("evaluate", "artifacts/v1", "--data", "fewer.csv", *words, status=1)
    assert "name the files with --data" in command("evaluate", "artifacts/v1", *words, status=1)


def test_a_model_that_reads_ratings_asks_for_them(command: Command, log: Path) -> None:
    train(command, log, "user")
    command("export", "user", "--version", "v1")
    refusal = command("recommend", "v1", "--data", str(log), "--output", "top.csv", status=1)
    assert "v1 reads ratings and the data has none; name their column with --value-column" in refusal
    assert not Path("top.csv").exists()


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_run_has_ratings_beside_three_baselines_and_its_curves(command: Command, log: Path, side: str) -> None:
    out, metrics = train(command, log, side)
    assert "matrix factorisation" in out
    assert "no ranking figures" in out
    assert set(metrics["baselines"]) == {"global mean", "bias only", "matrix factorisation"}
    for figures in (metrics, *metrics["baselines"].values()):
        assert {"rmse", "mae"} <= figures["test"].keys() & figures["validation"].keys()
    assert metrics["test"]["rmse"] < 0.8 * metrics["baselines"]["bias only"]["test"]["rmse"]
    assert metrics["seconds"] > 0
    assert metrics["sequences_per_second"] > 0
    assert Path(side, "curves.png").stat().st_size > 1000
    assert f"{metrics['test']['rmse']:.4f}" in command("evaluate", side)
    page = results_page([RunFolder(Path(side))])
    assert f"| {side} | {metrics['test']['rmse']:.4f} |" in page
    assert "| matrix factorisation |" in page


def test_a_split_by_what_came_last_gives_ranking_figures_too(command: Command, log: Path) -> None:
    out, metrics = train(command, log, "user", "--split", "loo")
    assert "HR@10" in out
    assert {"rmse", "mae", "hr@10", "ndcg@10"} <= metrics["test"].keys()
    assert {"popularity", "matrix factorisation"} <= metrics["baselines"].keys()
    assert {"rmse", "ndcg@10"} <= metrics["test"]["intervals"].keys()


def test_ratings_of_thousands_are_exported_and_a_bundle_that_is_off_is_not_served(command: Command, log: Path) -> None:
    pl.read_csv(log).with_columns(rating=pl.col("rating") * 1_000).write_csv(log)
    train(command, log, "user")
    command("export", "user", "--version", "v1")
    bundle = read_bundle(Path("artifacts/v1"))
    assert 1e-4 < bundle.manifest.parity.largest_difference < 0.5
    Runtime(bundle, device="cpu").replay_golden()
    off = replace(bundle, golden=replace(bundle.golden, scores=bundle.golden.scores + np.float32(1)))
    with pytest.raises(BundleError, match=r"come out 1 away from torch's answers \(at most 0\.\d+ is allowed"):
        Runtime(off, device="cpu").replay_golden()


def test_implicit_feedback_is_judged_by_ranking_alone(command: Command, log: Path) -> None:
    _, metrics = train(command, log, "implicit")
    assert "rmse" not in metrics["test"]
    assert metrics["test"]["users"] == 80
    assert Path("implicit", "curves.png").exists()
    command("export", "implicit", "--version", "v1")
    encoder = onnx.load("artifacts/v1/encoder.onnx").graph
    assert {entry.name for entry in encoder.input} == {"sequences", "lengths", "inputs"}  # it asks for no values


def test_a_test_file_is_what_judges(command: Command, log: Path) -> None:
    rows = log.read_text().splitlines()
    Path("base.csv").write_text("\n".join(rows[:1200]) + "\n")
    Path("test.csv").write_text("\n".join([rows[0], *rows[1200:]]) + "\n")
    _, metrics = train(command, Path("base.csv"), "item", "--test", "test.csv")
    assert metrics["test"]["ratings"] == len(rows) - 1200
    assert json.loads(Path("item", "run.json").read_text())["split"] == "file"
    assert f"{metrics['test']['rmse']:.4f}" in command("evaluate", "item")
    assert "leave --test out" in command("evaluate", "item", "--test", "other.csv", status=1)  # and not ignored


def test_an_item_based_run_is_not_exported_but_scores_its_users_in_a_batch(command: Command, log: Path) -> None:
    train(command, log, "item")
    refusal = command("export", "item", status=1)
    assert "recommend item --output FILE" in refusal
    assert "leave --data out" in command("recommend", "item", "--data", str(log), "--output", "top.csv", status=1)
    named = command("recommend", "item", "--value-column", "stars", "--output", "top.csv", status=1)
    assert "--value-column 'stars' names nothing here: item is a run" in named
    command("recommend", "item", "--output", "top.csv", "--k", "5")
    top = pl.read_csv("top.csv")
    assert top.height == 400
    assert top.group_by("user_id").len()["len"].to_list() == [5] * 80
    assert not top.join(pl.read_csv(log), on=["user_id", "item_id"]).height  # what judged it was rated too
    assert "only the users it was trained on" in command("evaluate", "item", "--data", str(log), status=1).replace(
        "\n", ""
    )


def test_a_version_is_meant_where_a_run_folder_here_has_its_name(command: Command, log: Path) -> None:
    train(command, log, "user", "--split", "loo")
    command("export", "user", "--version", "user")
    command("recommend", "user", "--data", str(log), "--value-column", "rating", "--output", "top.csv", "--k", "3")
    assert pl.read_csv("top.csv").height == 240


def test_a_user_based_run_becomes_a_bundle_that_every_command_takes(
    command: Command, log: Path, tmp_path: Path
) -> None:
    train(command, log, "user", "--split", "loo")
    command("export", "user", "--version", "v1", "--promote")
    bundle = read_bundle(tmp_path / "artifacts" / "v1")
    assert bundle.inputs is not None
    assert bundle.inputs.shape == (41, 9)
    graph = onnx.load(bundle.encoder).graph
    assert {entry.name for entry in graph.input} == {"sequences", "lengths", "inputs", "values"}
    largest = max(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    assert largest < 41 * 8  # neither of the two matrices is in the graph
    Runtime(bundle, device="cpu").replay_golden()
    out = command("evaluate", "artifacts/v1", "--data", str(log), "--value-column", "rating")
    recorded = json.loads(Path("user", "metrics.json").read_text())["test"]["ndcg@10"]
    assert f"{recorded:.4f}" in out  # through onnxruntime as through torch
    rated = ("--data", str(log), "--value-column", "rating")
    command("recommend", "v1", *rated, "--output", "one.csv", "--k", "3")
    flipped = pl.read_csv(log).with_columns(rating=6 - pl.col("rating"))
    flipped.write_csv("flipped.csv")
    command("recommend", "v1", "--data", "flipped.csv", "--value-column", "rating", "--output", "two.csv", "--k", "3")
    one, two = pl.read_csv("one.csv"), pl.read_csv("two.csv")
    same = one.join(two, on=["user_id", "item_id"]).height / one.height
    assert same < 0.3  # the other way round, others are recommended
    assert "one.csv" in command("recommend", "v1", *rated, "--output", "one.csv")
    assert "--data" in command("recommend", "v1", "--output", "three.csv", status=1)


def test_a_bundle_with_a_changed_or_missing_input_matrix_is_refused(
    command: Command, log: Path, tmp_path: Path
) -> None:
    train(command, log, "user")
    command("export", "user", "--version", "v1")
    folder = tmp_path / "artifacts" / "v1"
    folder.chmod(0o755)
    inputs = folder / "inputs.npy"
    inputs.chmod(0o644)
    content = inputs.read_bytes()
    inputs.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"inputs.npy: sha256"):
        read_bundle(folder)
    inputs.unlink()
    with pytest.raises(BundleError, match=r"inputs.npy missing"):
        read_bundle(folder)
    manifest = read_manifest_without(folder, "inputs.npy")
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_bytes(manifest)
    with pytest.raises(BundleError, match="reads inputs and the bundle has none"):
        Runtime(read_bundle(folder), device="cpu")


def read_manifest_without(folder: Path, name: str) -> bytes:
    from models.manifest import read_manifest

    manifest = read_manifest(folder)
    return sealed(
        manifest.model_copy(update={"files": {key: value for key, value in manifest.files.items() if key != name}})
    )


def test_retraining_publishes_a_user_based_autorec_and_refuses_the_other(command: Command, log: Path) -> None:
    rated = ("--data", str(log), "--value-column", "rating")
    out = command("retrain", *rated, "--config", "user.toml")
    assert "champion is" in out
    version = out.rsplit("champion is ", 1)[1].split()[0]
    manifest = read_bundle(Path("artifacts") / version).manifest
    assert manifest.data.trained_until_ms == manifest.data.last_ms  # fitted again on everything
    assert "retrain a user-based one" in command("retrain", *rated, "--config", "item.toml", status=1)


def test_a_bundle_takes_as_many_unusable_rows_as_its_own_data_could_have(command: Command, log: Path) -> None:
    Path("user.toml").write_text(Path("user.toml").read_text() + "[data]\nmax_dropped = 0.2\n")
    log.write_text(log.read_text() + ",film-1,3,1600000000\n" * 200)
    train(command, log, "user")
    command("export", "user", "--version", "v1")
    rated = ("--data", str(log), "--value-column", "rating")
    command("recommend", "v1", *rated, "--output", "top.csv")
    command("evaluate", "artifacts/v1", *rated, "--split", "random")


def test_two_comparisons_in_one_folder_are_kept_apart(command: Command, log: Path) -> None:
    words = "activations", "user.toml", "--data", str(log), "--value-column", "rating", "--output", "pairs"
    for folder in ("pairs", "pairs/user-identity-identity-0"):
        with RunFolder(Path(folder)).held():
            refusal = " ".join(command(*words, status=1).split())
        assert f"another training is at work in {folder}; wait for it" in refusal


def test_all_pairs_of_activations_are_compared_and_validation_chooses(command: Command, log: Path) -> None:
    out = command("activations", "user.toml", "--data", str(log), "--value-column", "rating", "--output", "pairs")
    lines = [line.strip("| ").split(" | ") for line in Path("pairs/activations.md").read_text().splitlines()[4:]]
    kinds = {"identity", "sigmoid", "relu"}
    assert {(line[0], line[1]) for line in lines} == {(one, two) for one in kinds for two in kinds}
    assert [line[2] for line in lines] == sorted(line[2] for line in lines)
    metrics = json.loads(Path("pairs", f"user-{lines[0][0]}-{lines[0][1]}-0", "metrics.json").read_text())
    assert lines[0][3] == f"{metrics['test']['rmse']:.4f}"
    assert "activations.md" in out
    pairs = sorted(str(path) for path in Path("pairs").iterdir())
    assert "pairs/activations.md is no folder and left out" in command("results", *pairs, "--output", "page.md")
    page = Path("page.md").read_text()
    assert page.count("`python -m training activations user.toml --data log.csv --value-column rating") == 9
    assert "has no encoder and decoder" in command("activations", "sasrec", "--data", str(log), status=1)
