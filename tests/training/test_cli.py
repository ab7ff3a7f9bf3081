"""The command line as a person meets it: help with examples, and mistakes answered in one sentence.

Run in this process, through the function that `python -m training` calls; tests/test_pipeline.py starts it for real.
"""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from training.__main__ import EXPECTED, app
from training.run import RunFolder

COMMANDS = (
    *("fetch", "train", "activations", "cold", "evaluate", "export", "recommend", "backfill", "retrain", "results"),
    *("bootstrap", "bench"),
)


@pytest.fixture
def command(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_thread: None
) -> Callable[..., tuple[int, str, str]]:
    """The same in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return command


@pytest.fixture
def log(tmp_path: Path, walks: Callable[..., pl.DataFrame]) -> Path:
    walks(40, 20).write_csv(tmp_path / "log.csv")
    return tmp_path / "log.csv"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(
        "[model]\ndim = 8\nblocks = 1\nheads = 1\ninner = 8\nlength = 6\n[training]\nbatch = 32\nepochs = 2\n"
    )
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_with_an_example(command: Callable[..., tuple[int, str, str]], name: str) -> None:
    status, out, error = command(name, "--help")
    assert (status, error) == (0, "")
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", out).split())
    assert f"Example: python -m training {name}" in plain


def test_help_tells_of_every_option_what_it_is_and_its_default(
    command: Callable[..., tuple[int, str, str]],
) -> None:
    from typer.main import get_command

    for name, told in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert [option.name for option in told.params if not option.help] == [], name
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m|│", "", command("train", "--help")[1]).split())
    for default in (
        "loo; random for explicit ratings, file with --test",
        "runs/CONFIG-SEED",
        "timestamp, if there is one",
    ):
        assert f"[default: {default}]" in plain


def test_who_interrupts_a_training_is_told_how_it_goes_on(
    command: Callable[..., tuple[int, str, str]], log: Path, tiny: Path
) -> None:
    tiny.write_text(tiny.read_text().replace("epochs = 2", "epochs = 100000\npatience = 100000"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it puts behind itself ignore it

    def interrupt() -> None:
        while not Path("run/checkpoint.safetensors").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    status, out, _ = command("train", tiny, "--data", log, "--output", "run")
    assert status == 130
    assert out.endswith("interrupted; the same command goes on from the last epoch that ended\n")


def test_there_is_no_command_without_a_test() -> None:
    assert {info.name or getattr(info.callback, "__name__", "") for info in app.registered_commands} == set(COMMANDS)


def test_every_error_class_of_the_package_is_answered_and_not_traced() -> None:
    """A class that a command can raise and nobody listed would reach people as a traceback."""
    import importlib

    import models.eventlog
    import models.manifest
    import models.registry
    import models.runtime

    found = set()
    folder = Path(__file__).parents[2] / "training"
    modules = [importlib.import_module(f"training.{path.stem}") for path in folder.glob("*.py") if path.stem[0] != "_"]
    for module in [*modules, models.manifest, models.eventlog, models.registry, models.runtime]:
        found |= {
            value
            for name, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, Exception)
            and name.endswith("Error")
            and value.__module__ == module.__name__
        }
    inner = {"FieldError", "FormatError"}  # become InteractionsError where files are read
    assert {error.__name__ for error in found if not issubclass(error, EXPECTED)} <= inner


def one_sentence(result: tuple[int, str, str], *words: str) -> None:
    status, _, error = result
    assert status == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_mistakes_are_one_sentence_on_standard_error(
    command: Callable[..., tuple[int, str, str]], log: Path, tiny: Path, tmp_path: Path
) -> None:
    one_sentence(command("train", tiny, "--data", "missing.csv"), "missing.csv", "No such file")
    one_sentence(command("train", "sasrce", "--data", log), "sasrce", "give one of")
    one_sentence(
        command("train", tiny, "--data", log, "--item-column", "sku"), "'sku'", "'user_id', 'item_id', 'timestamp'"
    )
    one_sentence(command("train", tiny, "--data", tmp_path), str(tmp_path))
    one_sentence(command("train", tiny, "--data", log, "--attributes", "none.json"), "none.json")
    (tmp_path / "titles.csv").write_text("item_id,title\ni1,One\ni2,Two\n")
    cold = "--data", log, "--attributes", "titles.csv"
    one_sentence(command("cold", "autorec-implicit", *cold), "autorec-implicit is an autoencoder")
    one_sentence(command("cold", tiny, *cold[:3], "none.json"), "none.json")
    one_sentence(command("evaluate", "nowhere"), "nowhere is not the folder of a training run")
    one_sentence(command("export", tmp_path), f"{tmp_path} is not the folder of a training run")
    one_sentence(command("fetch", "netflix"), "'netflix'", "ml-100k")
    one_sentence(command("bench", "everything"), "'everything'", "data, training or catalogue")
    one_sentence(command("bench", "data", "--peers"), "--peers goes with training")
    for what in ("training", "catalogue"):
        one_sentence(
            command("bench", what, "--interactions", "1000"), f"--interactions goes with data, not with {what}"
        )
    one_sentence(command("bench", "training", "--items", "100"), "--items", "go with catalogue")
    one_sentence(command("bench", "catalogue", "--run", "nowhere"), "nowhere is not the folder of a training run")
    one_sentence(command("bench", "training", "--peers", "--peers-python", "no/python"), "there is no no/python")
    (tmp_path / "broken.toml").write_text("[model]\ndim = 'wide'\n")
    one_sentence(command("train", "broken.toml", "--data", log), "broken.toml", "model.dim", "'wide'")
    (tmp_path / "file").write_text("")
    one_sentence(command("train", tiny, "--data", log, "--output", "file"), "file")
    assert not (tmp_path / "runs").exists()  # nothing was begun


@pytest.mark.parametrize("words", [("trian",), ("train", "sasrec"), ("train", "sasrec", "--data", "x", "--sed", "1")])
def test_a_wrong_word_is_a_usage_error(command: Callable[..., tuple[int, str, str]], words: tuple[str, ...]) -> None:
    status, out, error = command(*words)
    assert (status, out) == (2, "")
    assert "Usage" in error


def test_a_run_from_training_to_evaluation_is_quiet_outside_a_terminal(
    command: Callable[..., tuple[int, str, str]], log: Path, tiny: Path
) -> None:
    status, out, error = command("train", tiny, "--data", log, "--output", "first", "--seed", "4")
    assert (status, error) == (0, "")
    assert "\x1b" not in out  # no colours
    assert "\r" not in out  # and no bar
    assert "epoch 1 " not in out
    for word in ("popularity", "co-visitation", "item-kNN", "tiny", "HR@10", "NDCG@10", "MRR", "coverage@10"):
        assert word in out
    assert "trained all 2 epochs" in out
    assert "run folder: first" in out
    assert f"{len(pl.read_csv(log)):,} of" in out
    run = RunFolder(Path("first"))
    metrics = run.metrics()
    assert set(metrics["baselines"]) == {"popularity", "co-visitation", "item-kNN"}
    for figures in (metrics, *metrics["baselines"].values()):
        assert {"hr@10", "ndcg@10", "mrr", "users", "intervals"} <= set(figures["validation"])
        assert set(figures["test"]) - set(figures["validation"]) >= {"coverage@10", "novelty@10", "slices"}
    assert (run.spec().seed, run.spec().name) == (4, "tiny")
    assert (Path("first") / "curves.png").read_bytes().startswith(b"\x89PNG")

    # The same command again leaves a finished run as it is, another seed is another run.
    before = Path("first/checkpoint.safetensors").read_bytes()
    assert command("train", tiny, "--data", log, "--output", "first", "--seed", "4")[0] == 0
    assert Path("first/checkpoint.safetensors").read_bytes() == before
    assert run.metrics() == metrics
    one_sentence(command("train", tiny, "--data", log, "--output", "first"), "first holds another run", "--output")

    for option in ("--user-column", "--item-column", "--timestamp-column", "--value-column"):
        one_sentence(
            command("evaluate", "first", option, "what"), f"{option} 'what'", "first is judged on its own data"
        )
    status, out, error = command("evaluate", "first")
    assert (status, error) == (0, "")
    assert f"{metrics['test']['hr@10']:.4f}" in out
    assert "recorded" not in out  # the same figures as when it was trained
    shutil.copytree("first", "second")
    Path("second/metrics.json").unlink()
    one_sentence(command("evaluate", "second"), "not finished", "same train command")
    one_sentence(command("export", "second"), "not finished")
    log.write_text(log.read_text() + "u1,i1,1600000000000\n")
    one_sentence(command("evaluate", "first"), "not those the run was trained on")


def test_a_version_that_exists_is_not_exported_again(
    command: Callable[..., tuple[int, str, str]], finished_run: Any, published: Path
) -> None:
    one_sentence(command("export", finished_run.path, "--artifacts", published.parent, "--version", ".x"), "'.x'")
    one_sentence(
        command("export", finished_run.path, "--artifacts", published.parent, "--version", "walks-1"),
        "walks-1 exists already",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "RUN", "--version", "walks-1"), "walks-1 exists already"),
        (("recommend", "v9", "--data", "log.csv", "--output", "top.csv"), "in {folder} (versions here: walks-1)"),
        (("retrain", "--data", "log.csv"), "{folder}/CURRENT is not a list of versions"),
        (("bootstrap",), "{folder}/CURRENT is not a list of versions"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_the_folder_of_bundles_is_the_services_unless_it_is_named(
    command: Callable[..., tuple[int, str, str]],
    *,
    finished_run: RunFolder,
    published: Path,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    folder = tmp_path / "served"
    shutil.copytree(published, folder / "walks-1")
    (folder / "CURRENT").write_bytes(b"\xff")
    monkeypatch.setenv("RECSERVE_ARTIFACTS", str(folder))
    one_sentence(command(*(finished_run.path if word == "RUN" else word for word in words)), said.format(folder=folder))


def test_columns_can_be_called_anything(
    command: Callable[..., tuple[int, str, str]], log: Path, tiny: Path, tmp_path: Path
) -> None:
    renamed = pl.read_csv(log).rename({"user_id": "customer", "item_id": "sku", "timestamp": "when"})
    renamed.write_csv(tmp_path / "shop.tsv", separator="\t")
    columns = ("--user-column", "customer", "--item-column", "sku", "--timestamp-column", "when")
    status, out, _ = command("train", tiny, "--data", "shop.tsv", *columns, "--output", "shop")
    assert status == 0
    assert "no timestamps" not in out
    assert json.loads(Path("shop/run.json").read_text())["columns"]["item"] == "sku"
    pl.read_csv(log).drop("timestamp").write_csv(tmp_path / "plain.csv")
    status, out, _ = command("train", tiny, "--data", "plain.csv", "--output", "plain")
    assert status == 0
    assert "no timestamps: the order of the rows is taken as the order of events" in " ".join(out.split())


def test_a_column_of_values_that_nobody_named_stops_no_model_that_reads_none(
    command: Callable[..., tuple[int, str, str]], log: Path, tiny: Path, tmp_path: Path
) -> None:
    run, bundle = tmp_path / "run", tmp_path / "artifacts" / "v1"
    pl.read_csv(log).with_columns(value=pl.lit("purchase")).write_csv(log)
    assert command("train", tiny, "--data", log, "--output", run)[::2] == (0, "")
    assert command("evaluate", run)[::2] == (0, "")
    assert command("export", run, "--version", "v1")[::2] == (0, "")
    assert command("evaluate", bundle, "--data", log)[::2] == (0, "")
    assert command("recommend", "v1", "--data", log, "--output", "top.csv")[::2] == (0, "")
    status, _, error = command("train", tiny, "--data", log, "--value-column", "value", "--output", tmp_path / "other")
    assert (status, "value is not a finite number" in error) == (1, True)
    assert command("train", tiny, "--data", log, "--value-column", "", "--output", run)[::2] == (0, "")


def test_ids_titles_and_paths_are_printed_as_they_are_written(
    command: Callable[..., tuple[int, str, str]], log: Path, tiny: Path, tmp_path: Path
) -> None:
    """Whoever posts an event chooses an id: one that looks like markup must not stop a retraining."""
    text = re.sub(r"\bi(\d+)", r"[/i\1]", log.read_text())
    (tmp_path / "log[b].csv").write_text(text + "u0,[/i1],[/when]\n")
    titles = "".join(f"[/i{item}],[rec] {item}\n" for item in range(0, 20, 2))
    (tmp_path / "titles.csv").write_text("item_id,title\n" + titles)
    files = "--data", "log[b].csv", "--attributes", "titles.csv"
    status, out, error = command("train", tiny, *files, "--output", "run[b]")
    assert (status, error) == (0, "")
    assert "of log[b].csv: '[/when]'" in out
    assert {"[/i1]", "[rec] 2"} <= set(re.findall(r"\[/i1\]|\[rec\] 2\b", out))
    assert "run folder: run[b]" in out
    status, out, error = command("evaluate", "run[b]", "--sampled", "5")
    assert (status, error) == (0, "")
    assert "Sampled negatives, not all items: only to compare" in out


def test_files_that_follow_a_file_are_data_too(tmp_path: Path) -> None:
    from training.options import spread

    one, two = tmp_path / "a.csv", tmp_path / "b.csv"
    one.touch()
    two.touch()
    files = [str(one), str(two)]
    assert spread(["train", "x", "--data", *files, "--seed", "1"]) == [
        *("train", "x", "--data", str(one), "--data", str(two), "--seed", "1")
    ]
    assert spread(["train", "--data", str(one), "sasrec"]) == ["train", "--data", str(one), "sasrec"]
    assert spread(["export", *files]) == ["export", *files]


def test_a_configuration_may_follow_the_files(tmp_path: Path) -> None:
    from training.options import spread

    one, two, config = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "quick.toml"
    for path in (one, two, config):
        path.touch()
    assert spread(["train", "--data", str(one), str(config), str(two)]) == [
        *("train", "--data", str(one), str(config), "--data", str(two))
    ]


def test_another_column_of_the_same_file_does_not_continue_the_run(
    command: Callable[..., tuple[int, str, str]], log: Path, tiny: Path
) -> None:
    pl.read_csv(log).with_columns(artist=pl.col("item_id").str.replace("i", "a")).write_csv(log)
    words = ("train", tiny, "--data", log, "--output", "run")
    assert command(*words)[0] == 0
    vocabulary = Path("run/vocabulary.json").read_text()
    one_sentence(command(*words, "--item-column", "artist"), "columns.item 'item_id' there, 'artist' here", "--output")
    assert Path("run/vocabulary.json").read_text() == vocabulary
    assert command(*words)[0] == 0


def test_targets_that_a_history_holds_already_are_told(
    command: Callable[..., tuple[int, str, str]], tiny: Path
) -> None:
    rows = ["a,x", "a,y", "a,x", "a,z", "b,x", "b,y", "b,z", "b,x", "c,x", "c,y", "c,z", "c,w"]
    Path("log.csv").write_text("user_id,item_id\n" + "".join(f"{row}\n" for row in rows))
    _, out, _ = command("train", tiny, "--data", "log.csv")
    told = "which counts as missed: 1 of 3 validation targets, 1 of 3 test targets"
    assert f"in the user's history already, {told}\n" in out
    Path("log.csv").write_text("user_id,item_id\n" + "".join(f"{row}\n" for row in rows[-4:]))
    assert "counts as missed" not in command("train", tiny, "--data", "log.csv", "--output", "other")[1]
