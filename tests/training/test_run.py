"""A run folder remembers what went in, and says so when that is no longer there."""

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
from models.s3rec import S3RecConfig
from training.attributes import Attributes
from training.config import AutoRecRunConfig, Config, S3RecRunConfig, load_config
from training.interactions import Columns, read_interactions
from training.preparation import Prepared, prepare, spec_of
from training.presets import settle
from training.run import RunError, RunFolder
from training.spec import RunSpec
from training.train import refit


@pytest.fixture
def given(tiny_config: Callable[..., Any]) -> Callable[..., tuple[RunSpec, Prepared]]:
    def given(files: list[Path], **changes: Any) -> tuple[RunSpec, Prepared]:
        values: dict[str, Any] = {"split": "loo", "held_out": 0.1, "seed": 0, "attributes": None} | changes
        config = tiny_config()
        prepared = prepare(
            read_interactions(files),
            config,
            split=values["split"],
            held_out=values["held_out"],
            attributes=values["attributes"],
        )
        return spec_of(config, prepared, name="x", files=files, columns=Columns(), **values), prepared

    return given


@pytest.fixture
def log(tmp_path: Path, walks: Callable[..., pl.DataFrame]) -> Path:
    step = pl.int_range(pl.len()).over("user_id")
    frame = walks(60, 20).with_columns(timestamp=pl.col("timestamp") + step * 100_000_000)
    frame.write_csv(tmp_path / "log.csv")
    return tmp_path / "log.csv"


@pytest.mark.parametrize("held_out", [0.1, 0.25])
@pytest.mark.parametrize("split", ["loo", "time"])
def test_the_data_of_a_run_is_read_again_as_it_was(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]], split: str, held_out: float
) -> None:
    spec, prepared = given([log], split=split, held_out=held_out)
    run = RunFolder(tmp_path / "run")
    run.begin(spec, prepared)
    assert run.spec() == spec
    again = run.data()
    assert again.split.cuts_ms == prepared.split.cuts_ms
    assert again.split.train.items.tolist() == prepared.split.train.items.tolist()
    assert run.ids() == list(prepared.dataset.vocabulary.ids)
    assert run.popularity().sum() == prepared.split.train.interactions
    assert run.attributes() is None


def test_attributes_that_are_no_longer_given_do_not_stay(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]]
) -> None:
    titles = tmp_path / "titles.csv"
    titles.write_text("item_id,title\ni1,First\n")
    run = RunFolder(tmp_path / "run")
    run.begin(*given([log], attributes=titles))
    assert "First" in (run.attributes() or {})["title"]
    run.begin(*given([log]))
    assert run.attributes() is None


def test_data_that_has_changed_since_is_refused(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]]
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(*given([log]))
    log.write_text(log.read_text() + "u1,i1,1600000000000\n")
    with pytest.raises(RunError, match="not those the run was trained on"):
        run.data()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 1}, "seed 0 there, 1 here"), ({"split": "time"}, "split 'loo' there, 'time' here")],
)
def test_another_run_is_refused_and_the_first_one_kept(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]], change: dict[str, Any], said: str
) -> None:
    run = RunFolder(tmp_path / "run")
    spec, prepared = given([log])
    run.begin(spec, prepared)
    run.finish({})
    run.begin(spec, prepared)  # the same again is how a run continues
    with pytest.raises(RunError, match=rf"holds another run \({said}.*--output"):
        run.begin(*given([log], **change))
    assert run.spec() == spec


@pytest.mark.parametrize("kept", ["checkpoint.safetensors", "metrics.json", "pretraining/checkpoint.safetensors"])
def test_a_folder_in_which_nothing_was_trained_is_free(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]], kept: str
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(*given([log]))
    other, prepared = given([log], seed=1)
    run.begin(other, prepared)
    assert run.spec() == other

    (run.path / kept).parent.mkdir(exist_ok=True)
    (run.path / kept).touch()
    with pytest.raises(RunError, match="holds another run"):
        run.begin(*given([log]))


def test_a_folder_is_for_one_training_at_a_time(tmp_path: Path) -> None:
    run, same = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with run.held():
        with (
            pytest.raises(RunError, match=r"another training is at work in .*run; wait for it, or give .* --output"),
            same.held(),
        ):
            pass
        with RunFolder(tmp_path / "other").held():
            pass
    with same.held():
        pass


def test_the_last_fit_of_a_run_is_for_one_training_at_a_time_too(finished_run: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(finished_run.path, tmp_path / "run"))
    with RunFolder(run.path / "refit").held(), pytest.raises(RunError, match=r"at work in .*refit"):
        refit(run, run.data(), Console(file=io.StringIO()))
    assert list((run.path / "refit").iterdir()) == []


def test_attributes_make_another_run_only_where_they_are_learned_from(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]]
) -> None:
    first, second = (tmp_path / name for name in ("first.json", "second.json"))
    first.write_text('{"i1": ["red"], "i2": ["red"]}')
    second.write_text('{"i1": ["red"], "i3": ["red"]}')
    read = {path: given([log], attributes=path)[1].attributes for path in (first, second)}
    sasrec, prepared = given([log])
    s3rec = sasrec.model_copy(
        update={"config": S3RecRunConfig(model=S3RecConfig(length=8)), "attributes_sha256": _digest(read[first])}
    )
    other = {"attributes": second, "attributes_sha256": _digest(read[second])}
    assert _digest(read[first]) != _digest(read[second])
    assert sasrec.model_copy(update=other).identity == sasrec.identity
    assert s3rec.model_copy(update=other).identity != s3rec.identity
    run = RunFolder(tmp_path / "run")
    run.begin(s3rec, prepared)
    run.finish({})
    with pytest.raises(RunError, match="holds another run \\(attributes_sha256"):
        run.begin(s3rec.model_copy(update=other), prepared)


def test_other_ratings_of_the_same_rows_make_another_run_where_ratings_are_read(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]]
) -> None:
    sasrec, prepared = given([log])
    autorec = sasrec.model_copy(update={"config": AutoRecRunConfig(model=AutoRecConfig())})
    implicit = sasrec.model_copy(update={"config": AutoRecRunConfig(model=AutoRecConfig(feedback="implicit"))})
    other = {"columns": Columns(value="stars")}
    for spec in (sasrec, implicit):
        assert spec.model_copy(update=other).identity == spec.identity
        assert spec.model_copy(update=other).differences(spec) == {}
    assert autorec.model_copy(update=other).identity != autorec.identity
    run = RunFolder(tmp_path / "run")
    run.begin(autorec, prepared)
    run.finish({})
    with pytest.raises(RunError, match=r"holds another run \(columns\.value None there, 'stars' here"):
        run.begin(autorec.model_copy(update=other), prepared)


@pytest.mark.parametrize("column", [{"user": "buyer"}, {"item": "artist"}, {"timestamp": "shipped"}])
def test_other_columns_of_the_same_file_make_another_run(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]], column: dict[str, str]
) -> None:
    spec, prepared = given([log])
    other = spec.model_copy(update={"columns": Columns(**column)})
    assert other.identity != spec.identity
    run = RunFolder(tmp_path / "run")
    run.begin(spec, prepared)
    run.finish({})
    ((role, name),) = column.items()
    with pytest.raises(RunError, match=rf"holds another run \(columns\.{role} .* there, '{name}' here"):
        run.begin(other, prepared)


def _digest(attributes: Attributes | None) -> str:
    assert attributes is not None
    return attributes.sha256


def test_an_option_that_came_later_makes_no_other_run_of_one_from_before(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]]
) -> None:
    spec, prepared = given([log])
    run = RunFolder(tmp_path / "run")
    run.begin(spec, prepared)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    del recorded["config"]["training"]["average"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(recorded))
    run.begin(spec, prepared)
    assert run.spec().identity == spec.identity


def test_a_run_says_what_its_configuration_has_otherwise_by_now(
    log: Path, given: Callable[..., tuple[RunSpec, Prepared]]
) -> None:
    spec, prepared = given([log])
    assert spec.changed_since() == {}  # no configuration has that name
    now = settle(load_config("sasrec-best"), prepared.split.train)
    assert isinstance(now, Config)
    same = spec.model_copy(update={"name": "sasrec-best", "config": now, "by_rule": None})  # as from before it was kept
    assert same.changed_since() == {}
    before = now.model_copy(update={"training": now.training.model_copy(update={"average": None, "batch": 7})})
    assert same.model_copy(update={"config": before}).changed_since() == {"training.average": (None, 0.999)}
    told = same.model_copy(update={"config": before, "by_rule": ["dim", "dropout", "stride", "loss"]})
    assert told.changed_since() == {"training.average": (None, 0.999), "training.batch": (7, "by the data")}
    assert told.identity == same.model_copy(update={"config": before}).identity


def test_a_line_torn_by_a_kill_is_no_epoch(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2, "lo')
    assert RunFolder(tmp_path).epochs() == [{"epoch": 1}]


def test_damaged_neighbours_are_named(tmp_path: Path) -> None:
    for name in ("neighbours.npy", "affinities.npy"):
        (tmp_path / name).write_bytes(b"not an array")
    with pytest.raises(RunError, match=r"neighbours\.npy is damaged"):
        RunFolder(tmp_path).neighbours()


def test_neighbours_that_are_no_longer_blended_in_do_not_stay(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.keep_neighbours(Neighbours(np.zeros((3, 1), np.int32), np.zeros((3, 1), np.float32)))
    assert run.neighbours() is not None
    run.keep_neighbours(None)
    assert run.neighbours() is None
    assert list(tmp_path.iterdir()) == []


def test_a_moved_file_is_the_same_run_and_other_content_is_not(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]]
) -> None:
    before = given([log])[0].identity
    (tmp_path / "elsewhere").mkdir()
    moved = log.rename(tmp_path / "elsewhere" / "log.csv")
    assert given([moved])[0].identity == before
    spec = given([moved])[0]
    here, there = (spec.model_copy(update={"test": [folder / "u1.test"]}) for folder in (tmp_path, Path("elsewhere")))
    assert (here.identity, here.differences(there)) == (there.identity, {})
    assert here.identity != spec.identity
    lines = moved.read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    moved.write_text("\n".join(lines) + "\n")
    assert given([moved])[0].identity != before


def test_files_of_one_name_in_two_folders_are_both_remembered(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]]
) -> None:
    def in_a_shop(folder: str) -> list[Path]:
        files = [tmp_path / folder / "shop" / month / "log.csv" for month in ("may", "june")]
        for path in files:
            path.parent.mkdir(parents=True)
            path.write_text(log.read_text())
        return files

    spec, prepared = given(in_a_shop("here"))
    assert set(spec.data.files) == {"may/log.csv", "june/log.csv"}
    run = RunFolder(tmp_path / "run")
    run.begin(spec, prepared)
    run.data()
    assert given(in_a_shop("moved"))[0].identity == spec.identity


def test_a_run_is_finished_by_its_metrics_alone(
    tmp_path: Path, log: Path, given: Callable[..., tuple[RunSpec, Prepared]]
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(*given([log]))
    with pytest.raises(RunError, match="not finished"):
        run.metrics()
    with pytest.raises(ValueError, match="JSON"):
        run.finish({"test": float("nan")})
    with pytest.raises(RunError, match="not finished"):
        run.metrics()
    run.finish({"test": 0.5})
    assert run.metrics() == {"test": 0.5}
    assert run.epochs() == []


@pytest.mark.parametrize("content", [None, "", "{}", '{"name": 3}'])
def test_what_is_no_run_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=f"{tmp_path} is not the folder of a training run"):
        RunFolder(tmp_path).spec()
