"""The results page says what the run folders say, seeds put together, nothing left out."""

import json
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.__main__ import main
from training.results import results_page
from training.run import RunError, RunFolder


@pytest.fixture
def another(finished_run: RunFolder, tmp_path: Path) -> Callable[..., RunFolder]:
    """A copy of a finished run with another seed, other figures, or another part of its run.json."""

    def make(name: str, *, seed: int, figures: dict[str, float] | None = None, **changes: Any) -> RunFolder:
        folder = tmp_path / name
        shutil.copytree(finished_run.path, folder)
        spec = json.loads((folder / "run.json").read_text()) | {"seed": seed} | changes
        (folder / "run.json").write_text(json.dumps(spec))
        metrics = finished_run.metrics()
        metrics["test"] |= figures or {}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return RunFolder(folder)

    return make


def rows(page: str) -> list[list[str]]:
    """Cells of every line of every table."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line.startswith("|")
    ]


def test_seeds_are_one_row_with_mean_and_deviation(another: Callable[..., RunFolder]) -> None:
    runs = [
        another(f"s{seed}", seed=seed, figures={"ndcg@10": figure}) for seed, figure in ((0, 0.1), (1, 0.4), (2, 0.4))
    ]
    table = {row[0]: row for row in rows(results_page(runs))}
    assert set(table) == {"model", "---", "popularity", "co-visitation", "item-kNN", "walks"}
    assert table["walks"][2] == f"0.3000 ± {statistics.stdev([0.1, 0.4, 0.4]):.4f}"
    assert table["walks"][9] == "0, 1, 2"
    assert table["walks"][11].endswith("--seed SEED`")


def test_a_single_run_has_its_command_seed_time_and_digest(finished_run: RunFolder) -> None:
    page = results_page([finished_run])
    spec, metrics = finished_run.spec(), finished_run.metrics()
    row = next(row for row in rows(page) if row[0] == "walks")
    low, high = metrics["test"]["intervals"]["ndcg@10"]
    assert row[2] == f"{metrics['test']['ndcg@10']:.4f}"  # no deviation of one
    assert row[6] == f"{low:.4f} to {high:.4f}"
    ahead = metrics["test"]["differences"]["item-kNN"]
    assert row[7] == f"{ahead['mean']:+.4f} ({ahead['low']:+.4f} to {ahead['high']:+.4f})"
    assert row[8] == f"{metrics['test']['slices']['strictly later']['ndcg@10']:.4f}"
    assert row[9:11] == ["3", f"{metrics['seconds']:.0f} s ({metrics['device']})"]
    assert row[11].startswith("`python -m training train walks.toml --data ")
    assert row[11].endswith(" --seed 3`")
    assert "walks.csv" in row[11]
    assert f"walks.csv: sha256 `{spec.data.files['walks.csv']}`" in page
    assert "150 users, 40 items" in page
    assert f" {finished_run.path}" not in page  # relative, whoever wrote it
    popularity = next(row for row in rows(page) if row[0] == "popularity")
    assert popularity[1] == f"{metrics['baselines']['popularity']['test']['hr@10']:.4f}"
    assert popularity[7] == "-"
    assert popularity[9:] == ["-", "-", "-"]


def test_a_run_with_hidden_items_has_the_command_that_hides_them(another: Callable[..., RunFolder]) -> None:
    hiding = another("cold", seed=3, hidden=0.25)
    row = next(row for row in rows(results_page([hiding])) if row[0] == "walks")
    assert row[11].startswith("`python -m training cold walks.toml --data ")
    assert row[11].endswith(" --share 0.25 --seed 3`")
    with pytest.raises(RunError, match="trained by `cold`, with 25% of the items hidden, on data that no file holds"):
        hiding.data()


def test_several_seeds_are_as_far_from_the_best_baseline_as_in_the_mean(another: Callable[..., RunFolder]) -> None:
    found = [
        {"popularity": {"mean": 0.5, "low": 0.4, "high": 0.6}, "item-kNN": {"mean": 0.1, "low": -0.1, "high": 0.3}},
        {"popularity": {"mean": 0.2, "low": 0.1, "high": 0.3}, "item-kNN": {"mean": 0.3, "low": 0.1, "high": 0.5}},
    ]
    runs = [another(f"s{seed}", seed=seed, figures={"differences": found[seed]}) for seed in (0, 1)]
    table = {row[0]: row for row in rows(results_page(runs))}
    assert table["walks"][7] == "+0.1500 (+0.0000 to +0.3000)"
    before = another("s2", seed=2, figures={"differences": {}})
    assert {row[0]: row for row in rows(results_page([*runs, before]))}["walks"][7] == "-"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        ((2580.0, 1860.0, 900.0), "30 min, longest 43 min"),
        ((500.0, 620.0), "560 s, longest 10 min"),
        ((30.2, 30.4), "30 s"),
        ((31.0,), "31 s"),
    ],
)
def test_the_time_of_several_seeds_is_their_mean_with_the_longest(
    another: Callable[..., RunFolder], seconds: tuple[float, ...], shown: str
) -> None:
    runs = [another(f"s{seed}", seed=seed) for seed in range(len(seconds))]
    for run, time in zip(runs, seconds, strict=True):
        run.finish(run.metrics() | {"seconds": time, "device": "1 CPU threads"})
    table = {row[0]: row for row in rows(results_page(runs))}
    assert (table["model"][10], table["walks"][10]) == ("time of fitting", f"{shown} (1 CPU threads)")


def test_every_data_set_has_a_table_of_its_own_the_best_first(
    another: Callable[..., RunFolder], finished_run: RunFolder
) -> None:
    data = finished_run.spec().data.model_dump(mode="json") | {"files": {"shop.csv": "b" * 64}}
    page = results_page([finished_run, another("shop", seed=0, data=data, split="time", figures={"ndcg@10": 0.0001})])
    assert page.count("\n## ") == 2
    assert "## walks.csv, leave-one-out" in page
    assert "## shop.csv, split by time" in page
    shop = page[page.index("## shop.csv") :]
    assert [row[0] for row in rows(shop)][-1] == "walks"  # disappointing, and there
    assert "--split time" in shop


def test_unfinished_runs_have_their_row(another: Callable[..., RunFolder]) -> None:
    run = another("cut", seed=5)
    (run.path / "metrics.json").unlink()
    (only,) = [row for row in rows(results_page([run])) if row[0] == "walks"]
    best = max(epoch["ndcg@10"] for epoch in run.epochs())
    assert only[1] == f"not finished: {len(run.epochs())} epochs, best validation NDCG@10 {best:.4f}"
    assert len(only) == 12
    assert only[9] == "5"


@pytest.mark.parametrize(
    ("blend", "name"),
    [({"weight": 1.0, "backward": 0.0}, "walks + item-kNN"), ({"weight": 1.0}, "walks + the baseline's item-kNN")],
)
def test_a_blend_has_a_row_beside_the_model_alone(
    another: Callable[..., RunFolder], blend: dict[str, float], name: str
) -> None:
    run = another("blend", seed=0, figures={"ndcg@10": 0.6})
    metrics = run.metrics()
    alone = json.loads(json.dumps(metrics["test"])) | {"ndcg@10": 0.2}
    run.finish(metrics | {"alone": {"test": alone}, "blend": blend})
    table = {row[0]: row for row in rows(results_page([run]))}
    assert (table["walks"][2], table[name][2]) == ("0.2000", "0.6000")


def test_sampled_figures_stand_apart_under_a_heading_that_says_so(another: Callable[..., RunFolder]) -> None:
    runs = [another("one", seed=0), another("two", seed=1)]
    for run, figure in zip(runs, (0.5, 0.7), strict=True):
        run.keep_sampled(
            {"sampled, 9 negatives": {"hr@10": 1.0, "ndcg@10": figure, "intervals": {"ndcg@10": [0.4, 0.8]}}}
        )
    page = results_page(runs)
    _, below = page.split("### Among sampled negatives, not all items")
    (row,) = [cells for cells in rows(below) if cells[0] == "walks"]
    assert row[1] == "sampled, 9 negatives"
    assert row[3].startswith("0.6000 ±")
    assert row[4:6] == ["0.4000 to 0.8000", "0, 1"]
    assert row[6].endswith("one --sampled 9`")
    assert "Among sampled" not in results_page([another("three", seed=2)])


def test_sampled_figures_of_a_blend_are_not_shown_as_those_of_the_model(another: Callable[..., RunFolder]) -> None:
    run = another("blend", seed=0, figures={"ndcg@10": 0.6})
    run.finish(run.metrics() | {"alone": {"test": run.metrics()["test"]}, "blend": {"backward": 0.5}})
    figures = {"hr@10": 1.0, "ndcg@10": 0.5, "intervals": {"ndcg@10": [0.4, 0.8]}}
    run.keep_sampled({"sampled, 9 negatives": figures, "sampled, 9 negatives, the model alone": figures})
    _, below = results_page([run]).split("### Among sampled negatives, not all items")
    shown = [cells[:2] for cells in rows(below) if cells[0].startswith("walks")]
    assert shown == [["walks + item-kNN", "sampled, 9 negatives"], ["walks", "sampled, 9 negatives"]]


def test_configurations_of_one_name_are_told_apart(another: Callable[..., RunFolder], finished_run: RunFolder) -> None:
    config = finished_run.spec().config.model_dump(mode="json")
    config["training"]["epochs"] = 99
    other = another("other", seed=3, config=config)
    names = [row[0] for row in rows(results_page([finished_run, other]))]
    assert f"walks ({other.spec().identity[:8]})" in names
    assert f"walks ({finished_run.spec().identity[:8]})" in names


def test_the_same_run_is_not_counted_twice(another: Callable[..., RunFolder], finished_run: RunFolder) -> None:
    with pytest.raises(RunError, match="are the same run twice"):
        results_page([finished_run, another("copy", seed=3)])


def results(*arguments: object) -> int:
    """The status that `training results` leaves with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["training", "results", *map(str, arguments)])
        try:
            return main()
        except SystemExit as left:
            return int(left.code or 0)


def test_the_command_writes_the_page(
    tmp_path: Path, finished_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "docs" / "results.md"
    assert results(finished_run.path, "--output", output) == 0
    assert output.read_text() == results_page([finished_run])
    assert "1 runs" in " ".join(capsys.readouterr().out.split())


def test_the_page_grows_after_the_runs_are_gone(another: Callable[..., RunFolder], tmp_path: Path) -> None:
    output, runs = tmp_path / "docs" / "results.md", [another(f"s{seed}", seed=seed) for seed in (0, 1)]
    runs[0].keep_sampled({"sampled, 9 negatives": {"hr@10": 1.0, "ndcg@10": 0.5, "intervals": {"ndcg@10": [0.4, 0.8]}}})
    expected = results_page(runs)
    for run in runs:
        assert results(run.path, "--output", output) == 0
        shutil.rmtree(run.path)
    assert output.read_text() == expected
    output.unlink()
    assert results("--output", output) == 0
    assert output.read_text() == expected
    assert str(Path.home()) not in (output.with_suffix("") / "s0" / "run.json").read_text()


def test_a_record_is_not_overwritten_by_another_run(
    another: Callable[..., RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, run = tmp_path / "results.md", another("s", seed=0)
    assert results(run.path, "--output", output) == 0
    (run.path / "run.json").write_text(run.spec().model_copy(update={"seed": 1}).model_dump_json())
    assert results(run.path, "--output", output) != 0
    assert "is the record of another run" in " ".join(capsys.readouterr().err.split())
    assert RunFolder(tmp_path / "results" / "s").spec().seed == 0


def test_a_run_is_recorded_once_whatever_its_folder_is_called(
    another: Callable[..., RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, run = tmp_path / "results.md", another("first", seed=0)
    assert results(run.path, "--output", output) == 0
    page, copy = output.read_text(), another("copy", seed=0)
    assert results(copy.path, "--output", output) != 0
    assert "first is the record of the same run" in " ".join(capsys.readouterr().err.split())
    assert results("--output", output) == 0  # nothing was left that stands in the way
    assert output.read_text() == page


def test_a_record_may_be_named_itself(another: Callable[..., RunFolder], tmp_path: Path) -> None:
    output = tmp_path / "results.md"
    assert results(another("s", seed=0).path, "--output", output) == 0
    page = output.read_text()
    assert results(tmp_path / "results" / "s", "--output", output) == 0
    assert output.read_text() == page


def test_a_run_that_has_begun_again_leaves_its_finished_record_as_it_is(
    another: Callable[..., RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, run = tmp_path / "results.md", another("s", seed=0)
    assert results(run.path, "--output", output) == 0
    page = output.read_text()
    (run.path / "metrics.json").unlink()
    (run.path / "metrics.jsonl").write_text("")
    assert results(run.path, "--output", output) == 0
    assert "s is not finished, and its record is" in " ".join(capsys.readouterr().out.split())
    assert output.read_text() == page
    assert (tmp_path / "results" / "s" / "metrics.jsonl").read_text()


def test_the_folder_we_are_in_is_recorded_by_its_name(
    another: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(another("here", seed=0).path)
    assert results(".", "--output", tmp_path / "results.md") == 0
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["here"]


def test_a_run_with_a_test_file_is_recorded_again(another: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = another("tested", seed=0, test=[str(tmp_path / "u1.test")])
    for _ in range(2):
        assert results(run.path, "--output", tmp_path / "results.md") == 0


def test_without_a_record_the_command_says_what_to_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results("--output", tmp_path / "results.md") != 0
    assert "holds no record of a run" in " ".join(capsys.readouterr().err.split())


def test_the_projects_own_page_is_what_the_command_writes_from_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    kept = [RunFolder(folder.relative_to(root)) for folder in sorted((root / "docs" / "results").glob("*/"))]
    assert (root / "docs" / "results.md").read_text() == results_page(kept)


def test_the_readme_shows_figures_of_the_page() -> None:
    root = Path(__file__).parents[2]
    readme, page = ((root / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md"))
    table = readme.partition("on larger data, HR@10 / NDCG@10")[2].partition("\n\n")[2].partition("\n\n")[0]
    pairs = re.findall(r"(\.\d{4}) / (\.\d{4})", table)
    assert len(pairs) == 10
    for hr, ndcg in pairs:
        assert re.search(rf"\| 0\{hr}[^|]* \| 0\{ndcg}[^|]* \|", page), (hr, ndcg)


def test_without_timestamps_no_target_is_known_to_be_strictly_later(
    another: Callable[..., RunFolder], finished_run: RunFolder
) -> None:
    window = finished_run.spec().data.model_dump(mode="json")
    run = another("untimed", seed=0, data=window | {"first_ms": None, "last_ms": None, "trained_until_ms": None})
    assert {row[8] for row in rows(results_page([run]))[2:]} == {"-"}
    assert "-" not in {row[8] for row in rows(results_page([finished_run]))[2:]}


def test_a_record_that_was_read_back_says_so_and_of_which_seed(another: Callable[..., RunFolder]) -> None:
    runs = [another(f"s{seed}", seed=seed) for seed in (0, 1)]
    runs[1].finish(runs[1].metrics() | {"read_back": "from the page of May"})
    (row,) = [row for row in rows(results_page(runs)) if row[0] == "walks"]
    assert row[11].endswith("--seed SEED`; read back: seed 1")
    assert "read back: seed" not in results_page(runs[:1])


def test_a_run_without_the_figures_of_its_row_is_named_and_not_kept(
    another: Callable[..., RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, good, bad = tmp_path / "results.md", another("good", seed=0), another("bad", seed=1, split="random")
    bad.finish(bad.metrics() | {"test": {}})
    assert results(good.path, bad.path, "--output", output) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"{bad.path / 'metrics.json'} has not the figures of a run on random ratings held out (KeyError(" in said
    assert not output.with_suffix("").exists()
    assert results(good.path, "--output", output) == 0
    shutil.copytree(bad.path, output.with_suffix("") / "bad")  # kept before such runs were refused
    assert results("--output", output) == 1
    assert "results/bad/metrics.json has not the figures" in " ".join(capsys.readouterr().err.split())


def test_an_unfinished_run_that_is_validated_by_ratings_has_its_row(another: Callable[..., RunFolder]) -> None:
    run = another("rated", seed=0)
    (run.path / "metrics.json").unlink()
    (run.path / "metrics.jsonl").write_text('{"epoch": 1, "rmse": 0.9}\n')
    assert "| walks | not finished: 1 epochs | - |" in results_page([run])


def test_the_goals_stand_beside_figures_of_the_page() -> None:
    root = Path(__file__).parents[2]
    goals = (root / "docs" / "performance.md").read_text(encoding="utf-8").partition("## Quality beside its goals")[2]
    page = (root / "docs" / "results.md").read_text(encoding="utf-8")
    table = [cells for cells in rows(goals) if len(cells) == 6][2:]
    assert len(table) >= 8
    for name, goal, figure, interval, seeds, met in table:
        page_cells = [cells for cells in rows(page) if len(cells) > 9]
        if goal == "more than 0 by the interval":
            (cells,) = [cells for cells in page_cells if cells[7] == f"{figure} ({interval})"]
            reached = float(interval.split()[0]) > 0
        else:
            (cells,) = [cells for cells in page_cells if cells[2] == figure and cells[6] == interval]
            reached = float(figure.split()[0]) >= float(goal)
        assert len(cells[9].split(", ")) == int(seeds), name
        few = "" if int(seeds) >= 3 else f", of {seeds} seed{'s' * (int(seeds) > 1)}"
        assert met == ("yes" if reached else "no") + few, name
    for figure in re.findall(r"0\.\d{4} ± 0\.\d{4}", goals.partition("For `s3rec-best` with genres")[2]):
        assert f"| {figure} |" in page


def test_the_goals_of_time_stand_beside_those_of_the_page() -> None:
    root = Path(__file__).parents[2]
    goals = (root / "docs" / "performance.md").read_text(encoding="utf-8").partition("The goals of time")[2]
    page = [cells for cells in rows((root / "docs" / "results.md").read_text(encoding="utf-8")) if len(cells) > 10]
    table = rows(goals)[2:]
    assert len(table) == 2
    for name, goal, mean, longest, met in table:
        model = name.split("`")[1]
        found = [cells for cells in page if re.fullmatch(rf"{mean}, longest {longest} \(.*\)", cells[10])]
        assert any(cells[0].startswith(f"{model} (") and len(cells[9].split(", ")) == 3 for cells in found), name
        assert met == ("yes" if int(longest.split()[0]) <= int(goal.split()[0]) else "no"), name
