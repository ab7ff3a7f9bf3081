"""`python -m training`: fetch, train, judge, export, recommend, retrain, and what else its help lists."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models.archive import ArchiveError
from models.bundle import read_bundle
from models.device import DeviceError
from models.eventlog import SEQUENCE_TYPES, EventLogError
from models.manifest import MANIFEST, BundleError
from models.registry import Registry, RegistryError
from models.runtime import Runtime
from training.activations import activations_table, compare_activations
from training.assessment import assess
from training.attributes import AttributesError
from training.checkpoint import CheckpointError
from training.cold import SHARE, evaluate_cold
from training.config import ConfigError, load_config
from training.dataset import DatasetError
from training.evaluate import EvaluationError
from training.export import ExportError, export
from training.fetch import FetchError, fetch_ml_100k
from training.fit import FitError
from training.interactions import Columns, InteractionsError, read_interactions
from training.options import (
    Artifacts,
    AttributesFile,
    ConfigName,
    Data,
    Item,
    Run,
    Seed,
    Split,
    TestFiles,
    Time,
    User,
    Value,
    run_of,
    spread,
)
from training.parallel import joined
from training.peer_process import PeersError
from training.rating_run import is_autorec, judged_again, judged_bundle, print_figures
from training.recommend import RecommendError, recommend, recommend_run
from training.reconstruction import RMSE
from training.report import print_assessment
from training.results import results_page
from training.retrain import NotPromoted, retrain
from training.run import RATED, RunError, RunFolder, SplitName
from training.scoring import Asked, ScoringError
from training.train import train

# What a person can put right: one sentence on standard error and exit status 1, never a traceback.
EXPECTED = (
    ArchiveError,
    AttributesError,
    BundleError,
    CheckpointError,
    ConfigError,
    DatasetError,
    DeviceError,
    EvaluationError,
    EventLogError,
    ExportError,
    FetchError,
    FitError,
    InteractionsError,
    PeersError,
    RecommendError,
    RegistryError,
    RunError,
    ScoringError,
    OSError,
)
_DRIFT = 5e-4  # of an error: more than rounding on another machine makes of it
NOT_PROMOTED = 3  # exit status of retrain when the challenger was worse

app = typer.Typer(
    help="From an interaction log to a certified model: fetch, train, evaluate, export, retrain.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command(
    epilog="[bold]Example:[/] python -m training fetch ml-100k --to data/ml-100k",
)
def fetch(
    name: Annotated[str, typer.Argument(help="The only one so far: ml-100k.")],
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to.  [default: data/NAME]")] = None,
    source: Annotated[Path | None, typer.Option("--from", metavar="PATH", help="A copy you already have.")] = None,
) -> None:
    """Fetch a public data set, check it, and print its licence note."""
    if name != "ml-100k":
        raise FetchError(f"there is no data set {name!r} to fetch; the only one is ml-100k")
    fetch_ml_100k(to or Path("data") / name, source=source)


@app.command(
    name="train",
    epilog="[bold]Example:[/] python -m training train sasrec --data events.csv --user-column customer "
    "--item-column sku --output runs/first",
)
def train_command(
    config: ConfigName,
    *,
    data: Data,
    test: TestFiles = None,
    attributes: AttributesFile = None,
    split: Split | None = None,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder.  [default: runs/CONFIG-SEED]")] = None,
    user_column: User = "user_id",
    item_column: Item = "item_id",
    timestamp_column: Time = None,
    value_column: Value = None,
) -> None:
    """Fit a model, evaluate it beside the baselines, and write a run folder.

    The same command continues a run that was interrupted, with the same result. With several GPUs, or several machines:
    torchrun --nproc-per-node N -m training train ...
    """
    with joined() as processes:
        console = Console(quiet=not processes.leader)
        columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column, value=value_column)
        files = data, test or []
        spec, prepared = run_of(config, files, columns, split, seed=seed, attributes=attributes, console=console)
        train(spec, prepared, output or Path("runs") / f"{spec.name}-{seed}", console, processes)


@app.command(
    epilog="[bold]Example:[/] python -m training activations autorec-item --data ratings.csv --value-column rating"
)
def activations(
    config: ConfigName,
    *,
    data: Data,
    test: TestFiles = None,
    split: Split | None = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of runs.  [default: runs/CONFIG-activations-SEED]")
    ] = None,
    user_column: User = "user_id",
    item_column: Item = "item_id",
    timestamp_column: Time = None,
    value_column: Value = None,
) -> None:
    """Fit an AutoRec with every pair of encoder and decoder activation, and write and print the table of them."""
    console = Console()
    columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column, value=value_column)
    files = data, test or []
    spec, prepared = run_of(config, files, columns, split, seed=seed, attributes=None, console=console)
    folder = output or Path("runs") / f"{spec.name}-activations-{seed}"
    console.print(activations_table(compare_activations(spec, prepared, folder, console)))
    console.print(f"written: {folder / 'activations.md'}")


@app.command(
    epilog="[bold]Example:[/] python -m training cold ml-100k --data ml-100k.inter --attributes ml-100k.item",
)
def cold(
    config: ConfigName,
    *,
    data: Data,
    attributes: Annotated[
        Path, typer.Option("--attributes", metavar="FILE", help="Item attributes: .item .json .jsonl .csv .parquet.")
    ],
    share: Annotated[float, typer.Option(help="Of the items that are hidden.", min=0.01, max=0.9)] = SHARE,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder.  [default: runs/CONFIG-cold-SEED]")
    ] = None,
    user_column: User = "user_id",
    item_column: Item = "item_id",
    timestamp_column: Time = None,
) -> None:
    """Hide items from training and see how well their attributes place them, as the service places new items."""
    console = Console()
    columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column)
    found = evaluate_cold(config, data, columns, attributes, share=share, seed=seed, output=output, console=console)
    console.print(found.table())


@app.command(
    epilog="[bold]Example:[/] python -m training evaluate artifacts/v2 --data events.csv --against artifacts/v1"
)
def evaluate(
    subject: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="Folder of a finished run, or of a bundle.")],
    *,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FILE", help="Interactions to judge on.  [default: those of the run]"),
    ] = None,
    test: TestFiles = None,
    split: Annotated[
        SplitName | None, typer.Option(help="As in train.  [default: the run's; for a bundle loo]")
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
    if not (data or sampled or against) and is_autorec(subject):
        spec = RunFolder(subject).spec()
        if split not in (None, spec.split):
            raise RunError(f"{subject} was trained on the split {spec.split}; leave --split out or give other --data")
        print_figures(spec.name, judged_again(RunFolder(subject)), Console(), split=spec.split)
        return
    if (test or split in RATED) and (subject / MANIFEST).is_file():
        _evaluate_ratings(subject, data or [], test or [], columns, split or "file")
        return
    found = assess(subject, data=data or (), columns=columns, split=split, sampled=sampled, against=against)
    print_assessment(found, Console())
    if found.sampled and not data:  # a run on its own data: the results page shows them
        RunFolder(subject).keep_sampled(found.sampled)


def _evaluate_ratings(folder: Path, data: list[Path], test: list[Path], columns: Columns, split: SplitName) -> None:
    """Print the figures of a bundle on ratings that were held out one by one."""
    if not data:
        raise EvaluationError(f"{folder} is a bundle, which does not hold its data; name the files with --data")
    runtime = Runtime(read_bundle(folder), device="cpu")
    runtime.replay_golden()
    tested = read_interactions(test, columns=columns) if test else None
    figures = judged_bundle(runtime, read_interactions(data, columns=columns), split=split, test=tested)
    console, found = Console(), figures["test"][RMSE]
    print_figures(folder.name, figures, console, split=split)
    test_figures = runtime.bundle.manifest.metrics.get("test")
    recorded = test_figures.get(RMSE) if isinstance(test_figures, dict) else None
    if not isinstance(recorded, float) or abs(found - recorded) > _DRIFT:
        console.print(
            f"note: {RMSE} {found:.4f} is not what was recorded when {folder.name} was trained "
            f"({recorded or 'none'}): these ratings are not the ones that were held out "
            "from it, so it may have learned them, and the figures may flatter it"
        )


@app.command(name="export", epilog="[bold]Example:[/] python -m training export runs/first --promote")
def export_command(
    run: Run,
    artifacts: Artifacts = Path("artifacts"),
    version: Annotated[str | None, typer.Option(help="Name of the bundle.  [default: time and configuration]")] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Make it the champion, which services load.")] = False,
    scoring: Annotated[
        Asked,
        typer.Option(help="Search of the catalogue. auto: exact up to a million items, then as measured."),
    ] = "auto",
) -> None:
    """Export a run as a bundle, after proving that onnxruntime computes what torch computes."""
    folder = export(RunFolder(run), artifacts, version=version, scoring=scoring)
    manifest = Registry(artifacts).manifest(folder.name)
    parity, chosen = manifest.parity, manifest.scoring
    console = Console()
    console.print(f"{folder}: {parity.cases} histories, largest difference from torch {parity.largest_difference:.1e}")
    if chosen.recall_at_10 is not None:
        console.print(
            f"scoring is {chosen.kind}: int8 finds {chosen.recall_at_10:.4f} of the exact first ten; milliseconds by "
            f"batch: {chosen.milliseconds_int8}, exactly {chosen.milliseconds_exact}"
        )
    if promote:
        Registry(artifacts).promote(folder.name)
        console.print(f"champion is {folder.name}")
    else:
        console.print(f"serve it with: python -m models --artifacts {artifacts} promote {folder.name}")


@app.command(
    name="recommend",
    epilog="[bold]Example:[/] python -m training recommend v2 --data events.csv --output top.parquet",
)
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
    console = Console()
    if is_autorec(Path(version)):
        if data:
            raise RecommendError(f"{version} is a run, which scores the users of its own data; leave --data out")
        console.print(f"{output}: {recommend_run(RunFolder(Path(version)), output, k=k, console=console)}")
        return
    if not data:
        raise RecommendError(f"{version} is a bundle and holds no histories; name the files with --data")
    runtime = Runtime(read_bundle(Registry(artifacts).folder(version)))
    runtime.replay_golden()
    columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column, value=value_column)
    interactions = read_interactions(data, columns=columns)
    console.print(str(interactions.report))
    console.print(f"{output}: {recommend(runtime, interactions, output, k=k, console=console)}")


@app.command(
    name="retrain",
    epilog="[bold]Example:[/] python -m training retrain --data history.parquet --events-from redis://localhost:6379",
)
def retrain_command(
    *,
    data: Data,
    config: Annotated[str, typer.Option("--config", help="A name under training/configs/, or a TOML file.")] = "sasrec",
    events_from: Annotated[
        list[str] | None,
        typer.Option(metavar="URL|DIR", help="Also train on a store's event log, or on an archive of it. Repeat."),
    ] = None,
    event_types: Annotated[
        list[str], typer.Option("--event-type", help="Which logged events count. Repeat; as RECSERVE_SEQUENCE_TYPES.")
    ] = list(SEQUENCE_TYPES),  # noqa: B006 - typer reads it, nobody changes it
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of bundles.")] = Path("artifacts"),
    attributes: AttributesFile = None,
    seed: Seed = 0,
    user_column: User = "user_id",
    item_column: Item = "item_id",
    timestamp_column: Time = None,
    value_column: Value = None,
) -> None:
    """Train a challenger, compare it with the champion on the same held-out window, promote it if it is not worse.

    Exit status 0 when it was promoted, 3 when it was not (the reason is printed and the champion stays).
    """
    columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column, value=value_column)
    retrain(
        data,
        load_config(config),
        name=Path(config).stem,
        artifacts=output,
        events_from=events_from or [],
        event_types=event_types,
        attributes=attributes,
        columns=columns,
        seed=seed,
        console=Console(),
    )


@app.command(epilog="[bold]Example:[/] python -m training results runs/* --output docs/results.md")
def results(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of training runs, finished or not.")],
    *,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The Markdown page to write.")] = Path("docs/results.md"),
) -> None:
    """Write the results page from recorded runs: a table for each data set, seeds put together."""
    console = Console()
    folders = [RunFolder(run) for run in runs if run.is_dir()]  # runs/* matches what lies beside them too
    for file in (run for run in runs if run.is_file()):
        console.print(f"{file} is no folder and left out")
    page = results_page(folders)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    console.print(f"{output}: {len(folders)} runs")


@app.command(epilog="[bold]Example:[/] python -m training bootstrap --artifacts artifacts")
def bootstrap(
    *,
    artifacts: Artifacts = Path("artifacts"),
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Where MovieLens-100K is or goes.")] = Path(
        "data/ml-100k"
    ),
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where the run folder goes.")] = Path("runs"),
    source: Annotated[Path | None, typer.Option("--from", metavar="PATH", help="A copy you already have.")] = None,
) -> None:
    """Make the demo's model when there is no champion: fetch MovieLens-100K, train, export, promote."""
    console = Console()
    champion = Registry(artifacts).current()
    if champion:
        console.print(f"champion is {champion}; nothing to do")
        return
    fetch_ml_100k(data, source=source)
    output = runs / "ml-100k-0"
    train_command("ml-100k", data=[data / "ml-100k.inter"], attributes=data / "ml-100k.item", output=output)
    export_command(output, artifacts, promote=True)


@app.command(epilog="[bold]Example:[/] python -m training bench data --interactions 1000000")
def bench(
    what: Annotated[
        str, typer.Argument(help="data: preparing a log. training: sequences a second. catalogue: ranking.")
    ],
    interactions: Annotated[int, typer.Option(help="Rows of the synthetic log.", min=1000)] = 10_000_000,
    *,
    peers: Annotated[bool, typer.Option("--peers", help="Training beside RecTools and RecBole; six minutes.")] = False,
    peers_python: Annotated[
        Path, typer.Option(metavar="PATH", envvar="RECSERVE_PEERS", help="The Python that has them.")
    ] = Path(".venv-peers/bin/python"),
    items: Annotated[
        list[int] | None, typer.Option(help="Size of a catalogue. Repeat.  [default: 12000, 100000, 1000000]", min=10)
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Catalogues of this run's items instead of random ones.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="That rank a catalogue.  [default: the CPU quota]", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a catalogue's figures as JSON.")
    ] = None,
) -> None:
    """Measure this machine on synthetic data; nothing is kept."""
    from training.bench import bench_dataset, bench_training  # noqa: PLC0415 - nothing else needs it
    from training.bench_catalogue import SIZES, bench_catalogue  # noqa: PLC0415
    from training.peers import bench_peers, find_python  # noqa: PLC0415

    if what not in ("data", "training", "catalogue"):
        raise ConfigError(f"there is no benchmark {what!r}; give data, training or catalogue")
    if peers and what != "training":
        raise ConfigError(f"--peers goes with training: they are not measured on {what}")
    if what != "catalogue" and (items or run or threads or output):
        raise ConfigError(f"--items, --run, --threads and --output go with catalogue, not with {what}")
    if what == "catalogue":
        catalogues = bench_catalogue(items or SIZES, run=run, threads=threads)
        print(catalogues)
        if output:
            catalogues.write(output)
        return
    console = Console()
    if what == "data":
        console.print(str(bench_dataset(interactions=interactions)))
        return
    if peers:
        find_python(peers_python)  # before minutes have passed
    ours = bench_training()
    console.print(str(ours))
    if not peers:
        console.print("beside RecTools and RecBole: ./run bench training --peers")
        return
    with Console(stderr=True).status("") as status:
        console.print(bench_peers(peers_python, ours.rates["S3Rec pre-training"], say=status.update))


def main() -> int:
    try:
        app(spread(sys.argv[1:]))
    except NotPromoted as reason:
        print(f"not promoted: {reason}", file=sys.stderr)
        return NOT_PROMOTED
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
