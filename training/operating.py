"""The commands of who runs it: backfill, retrain, bootstrap, bench."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models.eventlog import SEQUENCE_TYPES
from models.interrupts import end_as_interrupted
from models.registry import Registry
from training.backfill import backfill
from training.config import ConfigError, load_config
from training.fetch import fetch_ml_100k
from training.fitting import train_command
from training.interactions import Columns, read_interactions
from training.judging import export_command
from training.options import ARTIFACTS, Artifacts, AttributesFile, Data, Item, Seed, Time, User, Value
from training.report import terminal
from training.retrain import retrain


def backfill_command(
    *,
    data: Data,
    to: Annotated[str, typer.Option(metavar="URL", help="The service.")] = "http://127.0.0.1:8000",
    newest: Annotated[
        int, typer.Option(min=1, max=1000, help="Interactions of a user; the service keeps RECSERVE_HISTORY_LENGTH.")
    ] = 50,
    event_type: Annotated[str, typer.Option("--type", help="The type of what is sent.")] = "interaction",
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="BACKFILL_KEY",  # everybody on the machine can see a command line
            help="API key with the scope events, where the service wants one.",
        ),
    ] = None,
    user_column: User = "user_id",
    item_column: Item = "item_id",
    timestamp_column: Time = None,
    value_column: Annotated[
        str, typer.Option(help="Column with a rating, which models of ratings serve from.  \\[default: none is sent]")
    ] = "",
) -> None:
    """Send each user's newest interactions to a service, which then knows them from the first request.

    It can be repeated and interrupted: what was sent within 24 hours is not stored again. Retraining on the same file
    and on the event log counts each of them once. Users who were erased have to be taken out of the file before.
    """
    console = terminal()
    columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column, value=value_column)
    interactions = read_interactions(data, columns=columns, max_dropped=1.0)  # those that are left are the user's past
    console.print(str(interactions.report))
    console.print(
        str(backfill(interactions, to, console=console, files=data, newest=newest, event_type=event_type, key=key))
    )


def retrain_command(
    *,
    data: Annotated[
        list[Path] | None, typer.Option("--data", metavar="FILE", help="Interactions, as `train` takes them. Repeat.")
    ] = None,
    config: Annotated[str, typer.Option("--config", help="A name under training/configs/, or a TOML file.")] = "sasrec",
    events_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL|DIR",
            envvar="RETRAIN_EVENTS_FROM",  # everybody on the machine can see a command line and the password in it
            help="A store's event log, or an archive of it, to learn from beside --data or without it. Repeat; in the "
            "variable, spaces between.",
        ),
    ] = None,
    event_types: Annotated[
        list[str], typer.Option("--event-type", help="Which logged events count. Repeat; as RECSERVE_SEQUENCE_TYPES.")
    ] = list(SEQUENCE_TYPES),  # noqa: B006 - typer reads it, nobody changes it
    output: Annotated[Path, typer.Option(metavar="DIR", envvar=ARTIFACTS, help="Folder of bundles.")] = Path(
        "artifacts"
    ),
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
        data or [],
        load_config(config),
        name=config,
        artifacts=output,
        events_from=events_from or [],
        event_types=event_types,
        attributes=attributes,
        columns=columns,
        seed=seed,
        console=terminal(),
    )


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
    console = terminal()
    champion = Registry(artifacts).current()
    if champion:
        console.print(f"champion is {champion}; nothing to do")
        return
    fetch_ml_100k(data, source=source)
    output = runs / "ml-100k-0"
    train_command("ml-100k", data=[data / "ml-100k.inter"], attributes=data / "ml-100k.item", output=output)
    export_command(output, artifacts, promote=True)


def bench(
    what: Annotated[
        str, typer.Argument(help="data: preparing a log. training: sequences a second. catalogue: ranking.")
    ],
    interactions: Annotated[
        int | None, typer.Option(help="Rows of the synthetic log of data.  \\[default: 10000000]", min=1000)
    ] = None,
    *,
    peers: Annotated[bool, typer.Option("--peers", help="Training beside RecTools and RecBole; six minutes.")] = False,
    peers_python: Annotated[
        Path, typer.Option(metavar="PATH", envvar="BENCH_PEERS", help="The Python that has them.")
    ] = Path(".venv-peers/bin/python"),
    items: Annotated[
        list[int] | None, typer.Option(help="Size of a catalogue. Repeat.  \\[default: 12000, 100000, 1000000]", min=10)
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Catalogues of this run's items instead of random ones.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="That rank a catalogue.  \\[default: the CPU quota]", min=1)
    ] = None,
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
    if what != "data" and interactions:
        raise ConfigError(f"--interactions goes with data, not with {what}")
    if peers and what != "training":
        raise ConfigError(f"--peers goes with training: they are not measured on {what}")
    if what != "catalogue" and (items or run or threads or output):
        raise ConfigError(f"--items, --run, --threads and --output go with catalogue, not with {what}")
    end_as_interrupted()
    if what == "catalogue":
        if output:  # before minutes have passed
            output.parent.mkdir(parents=True, exist_ok=True)
            if output.is_dir():
                raise ConfigError(f"--output {output} is a folder; name a file")
        catalogues = bench_catalogue(items or SIZES, run=run, threads=threads)
        print(catalogues)
        if output:
            catalogues.write(output)
        return
    console = terminal()
    if what == "data":
        console.print(str(bench_dataset(interactions=interactions or 10_000_000)))
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
