"""The commands that use what was fitted: evaluate, export, recommend, results."""

from pathlib import Path
from typing import Annotated

import typer

from models.bundle import read_bundle
from models.manifest import MANIFEST
from models.registry import Registry
from models.runtime import Runtime
from training.assessment import assess
from training.config import RunConfig, parse_config
from training.evaluate import EvaluationError
from training.export import export
from training.interactions import Columns
from training.measures import RMSE
from training.options import Artifacts, Item, Run, TestFiles, Time, User, Value, refuse_columns
from training.preparation import read_for
from training.rating_run import is_autorec, judged_again, judged_bundle, print_figures
from training.recommend import RecommendError, recommend, recommend_run
from training.report import print_assessment, terminal
from training.results import keep_record, results_page
from training.run import RunError, RunFolder
from training.scoring import Asked
from training.spec import RATED, SplitName

_DRIFT = 5e-4  # of an error: more than rounding on another machine makes of it


def evaluate(
    subject: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="Folder of a finished run, or of a bundle.")],
    *,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FILE", help="Interactions to judge on.  \\[default: those of the run]"),
    ] = None,
    test: TestFiles = None,
    split: Annotated[
        SplitName | None, typer.Option(help="As in train.  \\[default: the run's; for a bundle loo, file with --test]")
    ] = None,
    sampled: Annotated[
        int | None, typer.Option(metavar="N", help="Also rank among N sampled negatives, as some papers do.", min=1)
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN_OR_BUNDLE", help="Test the difference from this one on the same users.")
    ] = None,
    user_column: User = "user_id",
    item_column: Item = "item_id",
    timestamp_column: Time = None,
    value_column: Value = None,
) -> None:
    """Judge a run through torch, or a bundle through onnxruntime, on its test part, and print the tables."""
    columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column, value=value_column)
    bundle = (subject / MANIFEST).is_file()
    if test and not bundle:
        raise EvaluationError(
            f"{subject} is a run, whose test ratings are those held out when it was trained; leave --test out, or "
            "export it and judge the bundle"
        )
    if not (data or bundle):
        refuse_columns(columns, f"without --data {subject} is judged on its own data, whose columns it knows")
    if not (data or sampled or against) and is_autorec(subject):
        spec = RunFolder(subject).spec()
        if split not in (None, spec.split):
            raise RunError(f"{subject} was trained on the split {spec.split}; leave --split out or give other --data")
        print_figures(spec.name, judged_again(RunFolder(subject)), terminal(), split=spec.split)
        return
    if (test or split in RATED) and bundle:
        if sampled or against:
            raise EvaluationError("single ratings that were held out are not ranked; leave --sampled and --against out")
        _evaluate_ratings(subject, data or [], test or [], columns, split or "file")
        return
    found = assess(subject, data=data or (), columns=columns, split=split, sampled=sampled, against=against)
    print_assessment(found, terminal())
    if found.sampled and not data:  # a run on its own data: the results page shows them
        RunFolder(subject).keep_sampled(found.sampled)


def _evaluate_ratings(folder: Path, data: list[Path], test: list[Path], columns: Columns, split: SplitName) -> None:
    """Print the figures of a bundle on ratings that were held out one by one."""
    if not data:
        raise EvaluationError(f"{folder} is a bundle, which does not hold its data; name the files with --data")
    runtime = Runtime(read_bundle(folder), device="cpu")
    runtime.replay_golden()
    config = _config_of(runtime)
    tested = read_for(config, test, columns) if test else None
    learned = read_for(config, data, columns)
    figures = judged_bundle(runtime, learned, split=split, test=tested)
    console, found = terminal(), figures["test"][RMSE]
    print_figures(folder.name, figures, console, split=split)
    test_figures = runtime.bundle.manifest.metrics.get("test")
    recorded = test_figures.get(RMSE) if isinstance(test_figures, dict) else None
    if not isinstance(recorded, float) or abs(found - recorded) > _DRIFT:
        console.print(
            f"note: {RMSE} {found:.4f} is not what was recorded when {folder.name} was trained "
            f"({recorded or 'none'}): these ratings are not the ones that were held out "
            "from it, so it may have learned them, and the figures may flatter it"
        )


def _config_of(runtime: Runtime) -> RunConfig | None:
    """By whose rules the bundle's own data was read, and so is any other."""
    config = runtime.bundle.manifest.config
    return parse_config(config) if config else None


def export_command(
    run: Run,
    artifacts: Artifacts = Path("artifacts"),
    version: Annotated[
        str | None, typer.Option(help="Name of the bundle.  \\[default: time and configuration]")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Make it the champion, which services load.")] = False,
    scoring: Annotated[
        Asked,
        typer.Option(
            help="What a search of a large catalogue reads. auto: the quicker that misses nothing, as measured."
        ),
    ] = "auto",
) -> None:
    """Export a run as a bundle, after proving that onnxruntime computes what torch computes."""
    folder = export(RunFolder(run), artifacts, version=version, scoring=scoring)
    manifest = Registry(artifacts).manifest(folder.name)
    parity, chosen = manifest.parity, manifest.scoring
    console = terminal()
    console.print(f"{folder}: {parity.cases} histories, largest difference from torch {parity.largest_difference:.1e}")
    if chosen.milliseconds_int8:
        console.print(
            f"the search reads {chosen.kind}; milliseconds by batch over int8 {chosen.milliseconds_int8}, over float32 "
            f"{chosen.milliseconds_float32}; recall@10 of int8 {chosen.recall_int8}"
        )
    if promote:
        Registry(artifacts).promote(folder.name)
        console.print(f"champion is {folder.name}")
    else:
        console.print(f"serve it with: python -m models --artifacts {artifacts} promote {folder.name}")


def recommend_command(
    version: Annotated[
        str, typer.Argument(help="A bundle that `python -m models list` shows, or the folder of an AutoRec run.")
    ],
    *,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FILE", help="Interactions: the histories. A run is for its own users."),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="What to write: .parquet or .csv.")],
    k: Annotated[int, typer.Option("--k", help="Items a user.", min=1)] = 10,
    artifacts: Artifacts = Path("artifacts"),
    user_column: User = "user_id",
    item_column: Item = "item_id",
    timestamp_column: Time = None,
    value_column: Value = None,
) -> None:
    """Write the first k items of every user in a log, through onnxruntime, as the bundle would serve them."""
    console, registry = terminal(), Registry(artifacts)
    columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column, value=value_column)
    if version not in registry.versions() and is_autorec(Path(version)):  # a folder here may have a version's name
        if data:
            raise RecommendError(f"{version} is a run, which scores the users of its own data; leave --data out")
        refuse_columns(columns, f"{version} is a run, which scores the users of its own data and knows its columns")
        console.print(f"{output}: {recommend_run(RunFolder(Path(version)), output, k=k, console=console)}")
        return
    if not data:
        raise RecommendError(f"{version} is a bundle and holds no histories; name the files with --data")
    runtime = Runtime(read_bundle(registry.folder(version)))
    runtime.replay_golden()
    interactions = read_for(_config_of(runtime), data, columns)
    console.print(str(interactions.report))
    console.print(f"{output}: {recommend(runtime, interactions, output, k=k, console=console)}")


def results(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders of training runs, finished or not.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The Markdown page to write.")] = Path("docs/results.md"),
    records: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What is kept of runs.  \\[default: a folder of the page's name]"),
    ] = None,
) -> None:
    """Write the results page: a table for each data set, seeds put together.

    What the page needs of each run is kept beside it, in some kilobytes, so that the page can grow after the run's own
    folder is gone. Without a RUN the page is written again from what is kept.
    """
    console = terminal()
    kept = records or output.with_suffix("")
    for run in runs or ():
        if not run.is_file():  # before any is kept: a record that can have no row would be in the way of every page
            results_page([RunFolder(run)])
    for run in runs or ():
        if run.is_file():  # runs/* matches what lies beside them too
            console.print(f"{run} is no folder and left out")
        elif not keep_record(RunFolder(run), kept / run.resolve().name):  # "." has no name
            console.print(f"{run} is not finished, and its record is: that stays as it was")
    folders = [RunFolder(folder) for folder in sorted(kept.glob("*/"))]
    if not folders:
        raise RunError(f"{kept} holds no record of a run; name the folders of some, as in: training results runs/*")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(results_page(folders), encoding="utf-8")
    console.print(f"{output}: {len(folders)} runs")
