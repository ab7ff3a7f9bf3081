"""One evaluation for runs and bundles: the same figures on the same data, whichever program scores."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from models.autorec import AutoRecConfig
from models.neighbours import Neighbours
from training.assessment import Assessment, assess, open_subject
from training.baselines import baselines
from training.config import AutoRecRunConfig, DataConfig, ReconstructionConfig, RunConfig
from training.dataset import Sequences
from training.evaluate import EvaluationError, evaluate_test
from training.export import export
from training.interactions import Columns
from training.measures import intervals
from training.preparation import prepare, read_for, spec_of, split_data
from training.report import print_assessment
from training.run import RunError, RunFolder
from training.scorers import Translated
from training.spec import SplitName
from training.train import refit, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def log(finished_run: RunFolder) -> Path:
    return finished_run.spec().files[0]


def same_figures(one: Any, two: Any) -> None:
    """Reports equal to rounding, however deep."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            same_figures(one[name], two[name])
    else:
        assert one == pytest.approx(two, abs=1e-3)


def test_a_bundle_through_onnxruntime_gives_the_figures_of_its_run_through_torch(
    finished_run: RunFolder, published: Path, log: Path
) -> None:
    run = assess(finished_run.path, sampled=9)
    bundle = assess(published, data=[log], sampled=9)
    same_figures(run.evaluation.report(), bundle.evaluation.report())
    same_figures(run.sampled, bundle.sampled)
    assert run.evaluation.metrics()["hr@10"] == finished_run.metrics()["test"]["hr@10"] > 0.5
    assert (run.notes, bundle.notes) == ((), ())
    assert run.baselines.keys() == bundle.baselines.keys() == {"popularity", "co-visitation", "item-kNN"}


def test_the_model_is_paired_with_every_baseline_user_by_user(
    finished_run: RunFolder, published: Path, log: Path
) -> None:
    run, bundle = assess(finished_run.path), assess(published, data=[log])
    assert run.differences == finished_run.metrics()["test"]["differences"]  # as it was recorded
    assert bundle.differences.keys() == run.differences.keys() == run.baselines.keys()
    for name, found in run.differences.items():
        apart = run.evaluation.metrics()["ndcg@10"] - run.baselines[name]["ndcg@10"]
        assert found["mean"] == pytest.approx(apart)
        assert found["low"] <= found["mean"] <= found["high"]
        assert bundle.differences[name]["mean"] == pytest.approx(apart, abs=1e-3)
    best = max(run.baselines, key=lambda name: run.baselines[name]["ndcg@10"])
    shown = io.StringIO()
    print_assessment(run, Console(file=shown, width=200))
    assert f"ndcg@10 minus that of {best}, the best baseline, user by user: " in shown.getvalue()


def test_where_the_model_errs_both_err_alike(
    finished_run: RunFolder, published: Path, tmp_path: Path, walks: Callable[..., pl.DataFrame]
) -> None:
    walks(150, 40, seed=5, shuffled=True).write_csv(tmp_path / "noise.csv")
    run, bundle = (assess(path, data=[tmp_path / "noise.csv"], sampled=9) for path in (finished_run.path, published))
    assert (run.evaluation.ranks != bundle.evaluation.ranks).mean() < 0.02  # rounding may swap two equals
    assert len(set(run.evaluation.ranks.tolist())) > 15
    same_figures(run.evaluation.report(), bundle.evaluation.report())
    same_figures(run.sampled, bundle.sampled)


def test_on_other_data_too_whatever_the_order_of_its_items(
    finished_run: RunFolder, published: Path, tmp_path: Path, walks: Callable[..., pl.DataFrame]
) -> None:
    other = tmp_path / "other.csv"
    newcomers = pl.DataFrame(
        [(f"u{user}", "new", 1) for user in range(30)], schema=["user_id", "item_id", "timestamp"], orient="row"
    )
    pl.concat([newcomers, walks(30, 40, seed=9).reverse()]).write_csv(other)
    run, bundle = assess(finished_run.path, data=[other]), assess(published, data=[other])
    assert run.evaluation.ranks.tolist() == bundle.evaluation.ranks.tolist()
    assert len(run.evaluation.ranks) == 30
    assert run.evaluation.metrics()["hr@10"] > 0.5  # i + 1 follows i here too
    assert "trained on other files (walks.csv)" in run.notes[0]
    assert run.baselines["item-kNN"] != finished_run.metrics()["baselines"]["item-kNN"]["test"]


def test_a_bundle_has_no_data_of_its_own_and_a_run_no_other_split(finished_run: RunFolder, published: Path) -> None:
    with pytest.raises(EvaluationError, match="name the files with --data"):
        assess(published)
    with pytest.raises(EvaluationError, match="trained on the split loo"):
        assess(finished_run.path, split="time")


def test_another_split_of_the_same_data_is_pointed_out(published: Path, log: Path) -> None:
    (note,) = assess(published, data=[log], split="time").notes
    assert "trained on another split" in note


def _is_judged_as_another_split(found: Assessment, log: Path) -> None:
    """The baselines are fitted to the data's own train part, and a note says that its test may have been learned."""
    dataset, parts = split_data(read_for(None, [log], Columns()), DataConfig(), split="loo")
    items = dataset.vocabulary.items
    expected = {name: evaluate_test(one, parts, items) for name, one in baselines(parts.train, items).items()}
    assert found.baselines == {name: judged.report() for name, judged in expected.items()}
    assert found.differences.keys() == expected.keys()
    assert "trained on another split or selection of this very data" in found.notes[0]


def test_a_model_of_everything_is_not_judged_as_one_of_the_train_part(
    tmp_path: Path, walks: Callable[..., pl.DataFrame], tiny_config: Callable[..., Any]
) -> None:
    """The newest event is somebody's only one, so that both were trained until then."""
    log = tmp_path / "log.csv"
    known = walks(60, 20)
    newcomer = known.tail(1).with_columns(user_id=pl.lit("newcomer"), timestamp=pl.lit(1_700_000_000_000))
    pl.concat([known, newcomer]).write_csv(log)
    config = tiny_config(epochs=2)
    judged = RunFolder(_run(config, log, tmp_path / "judged", split="time"))
    whole = refit(judged, prepare(read_for(config, [log], Columns()), config, split="time"), _silent())
    found = assess(export(whole, tmp_path / "artifacts"), data=[log])
    assert open_subject(whole.path).data.trained_until_ms == 1_700_000_000_000
    _is_judged_as_another_split(found, log)


@pytest.mark.parametrize("times", [True, False])
def test_a_model_of_ratings_is_judged_by_ranking_beside_baselines_and_told_what_it_may_have_learned(
    tmp_path: Path, walks: Callable[..., pl.DataFrame], times: bool
) -> None:
    log = tmp_path / "rated.csv"
    rated = walks(60, 20).with_columns(value=pl.int_range(pl.len()) * 7 % 5 + 1)
    newest = rated.tail(1).with_columns(user_id=pl.lit("newcomer"), timestamp=pl.lit(1_700_000_000_000))
    (pl.concat([rated, newest]) if times else rated.drop("timestamp")).write_csv(log)
    run = RunFolder(_run(_of_ratings(), log, tmp_path / "autorec", split="random"))
    assert (open_subject(run.path).data.trained_until_ms is None) is not times
    for subject in (run.path, export(run, tmp_path / "artifacts")):
        _is_judged_as_another_split(assess(subject, data=[log]), log)


def test_a_folder_that_is_neither_is_named(tmp_path: Path, published: Path) -> None:
    with pytest.raises(RunError, match=f"{tmp_path} is not the folder of a training run"):
        open_subject(tmp_path)
    damaged = tmp_path / published.name
    shutil.copytree(published, damaged)
    (damaged / "items.npy").chmod(0o644)
    (damaged / "items.npy").write_bytes(b"x")
    with pytest.raises(Exception, match=r"items\.npy"):
        open_subject(damaged)


def test_a_difference_is_that_of_the_same_users(finished_run: RunFolder, published: Path, log: Path) -> None:
    itself = assess(published, data=[log], against=finished_run.path).difference
    assert itself is not None
    assert itself.mean == pytest.approx(0, abs=1e-3)
    assert itself.p > 0.3
    worse = assess(finished_run.path, against=_forgetful(finished_run, log.parent / "forgetful"))
    assert worse.difference is not None
    assert worse.difference.low > 0
    assert worse.difference.p < 0.001
    assert worse.against is not None


@pytest.fixture
def sequential_and_rating(
    tmp_path: Path, walks: Callable[..., pl.DataFrame], tiny_config: Callable[..., Any]
) -> tuple[Path, Path, Path]:
    """A log with a column of values, and the runs of a SASRec and of an AutoRec of ratings on it."""
    log = tmp_path / "rated.csv"
    walks(60, 20).with_columns(value=pl.int_range(pl.len()) * 7 % 5 + 1).write_csv(log)
    return log, _run(tiny_config(epochs=2), log, tmp_path / "sasrec"), _run(_of_ratings(), log, tmp_path / "autorec")


def _of_ratings() -> AutoRecRunConfig:
    return AutoRecRunConfig(
        model=AutoRecConfig(hidden=(8,)), training=ReconstructionConfig(batch=16, epochs=3, learning_rate=0.02)
    )


def _run(config: RunConfig, log: Path, folder: Path, *, split: SplitName = "loo") -> Path:
    prepared = prepare(read_for(config, [log], Columns()), config, split=split, seed=1)
    spec = spec_of(config, prepared, name=folder.name, files=[log], columns=Columns(), split=split, seed=1)
    return train(spec, prepared, folder, _silent()).path


def _silent() -> Console:
    return Console(file=io.StringIO())


def test_a_model_of_ratings_reads_them_whichever_of_two_is_judged_against_the_other(
    sequential_and_rating: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    log, sasrec, autorec = sequential_and_rating
    for data in ([], [log]):
        one, other = assess(sasrec, data=data, against=autorec), assess(autorec, data=data, against=sasrec)
        assert one.difference is not None
        assert other.difference is not None
        assert one.difference.mean == -other.difference.mean != 0
        assert one.notes == other.notes == ()
    pl.read_csv(log).drop("value").write_csv(tmp_path / "unrated.csv")
    notes = assess(sasrec, data=[tmp_path / "unrated.csv"], against=autorec).notes
    assert "autorec reads ratings and is judged here without any" in notes[-1]


def _forgetful(run: RunFolder, folder: Path) -> Path:
    """A copy of the run whose items have changed places, so that its model knows nothing."""
    shutil.copytree(run.path, folder)
    ids = run.ids()
    (folder / "vocabulary.json").write_text(json.dumps(["", *np.random.default_rng(0).permutation(ids[1:]).tolist()]))
    return folder


def test_items_are_matched_by_id_and_the_unknown_cannot_be_scored() -> None:
    """The scorer knows b, a, c as rows 1 to 3 and scores each by its row, plus ten times the newest row it is given."""

    def scorer(histories: Sequences) -> np.ndarray:
        newest = [history[-1] if len(history) else 0 for history in (histories[u] for u in range(len(histories)))]
        return np.array([[row + 10 * last for row in range(4)] for last in newest], np.float32)

    popularity = np.array([0, 7, 8, 9], np.float32)
    translated = Translated(scorer, np.array([0, 2, 1, 0]), popularity)
    flat = np.array([2, 3, 1, 3, 3], np.int32)  # "b new", "a", "new new"
    scores = translated(Sequences(flat, np.array([0, 2, 3]), np.array([2, 3, 5])))
    assert scores[:, 1:].tolist() == [[12, 11, -np.inf], [22, 21, -np.inf], [8, 7, -np.inf]]
    assert (scores[:, 0] == -np.inf).all()


def test_the_tables_show_parts_intervals_and_that_a_sample_is_one(
    command: Callable[..., tuple[int, str, str]], finished_run: RunFolder, published: Path, log: Path
) -> None:
    status, out, _ = command("evaluate", published, "--data", log, "--sampled", "9", "--against", finished_run.path)
    assert status == 0
    for word in (
        "walks-1",
        "item-kNN",
        "short history",
        "long history",
        "head target",
        "tail target",
    ):
        assert word in out
    assert "strictly later" not in out  # which here are all of them
    assert "Sampled negatives, not all items" in out
    assert "sampled, 9 negatives" in out
    assert "ndcg@10 of walks-1 minus that of" in out
    assert "p = " in out
    low, high = intervals(assess(finished_run.path).evaluation.ranks)["ndcg@10"]
    assert f"{low:.4f} to {high:.4f}" in out


def test_of_a_blend_the_model_alone_is_ranked_among_the_same_sample(tmp_path: Path, finished_run: RunFolder) -> None:
    shutil.copytree(finished_run.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    shape = len(run.ids()), 1
    last = np.full(shape, shape[0] - 1, np.int32)
    last[0] = 0
    run.keep_neighbours(Neighbours(last, np.where(last > 0, np.float32(1000), np.float32(0))))  # before all others
    found = assess(run.path, sampled=9).sampled
    assert (
        found["sampled, 9 negatives, the model alone"]
        == assess(finished_run.path, sampled=9).sampled["sampled, 9 negatives"]
    )
    assert found["sampled, 9 negatives"]["mrr"] < found["sampled, 9 negatives, the model alone"]["mrr"]


def test_a_sample_that_some_users_cannot_give_is_refused_before_anything_is_scored(
    finished_run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("scored although nothing can come of it")

    monkeypatch.setattr("training.assessment.evaluate_test", never)
    histories = finished_run.data().dataset.sequences.lengths.tolist()  # a walk meets nothing twice
    few = sum(40 - length < 30 for length in histories)
    with pytest.raises(EvaluationError, match=f"{few} of 150 users .* at most {40 - max(histories)} can be drawn"):
        assess(finished_run.path, sampled=30)


def test_figures_among_a_sample_are_kept_with_the_run_they_are_of(
    tmp_path: Path, finished_run: RunFolder, command: Callable[..., tuple[int, str, str]]
) -> None:
    shutil.copytree(finished_run.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.sampled() == {}
    for negatives in ("9", "7"):
        assert command("evaluate", run.path, "--sampled", negatives)[0] == 0
    assert set(run.sampled()) == {"sampled, 9 negatives", "sampled, 7 negatives"}
    assert run.metrics() == finished_run.metrics()
