"""The commands that fit models: fetch, train, activations, cold."""

from pathlib import Path
from typing import Annotated

import typer

from training.activations import activations_table, compare_activations
from training.cold import SHARE, evaluate_cold
from training.fetch import FetchError, fetch_ml_100k
from training.interactions import Columns
from training.options import AttributesFile, ConfigName, Data, Item, Seed, Split, TestFiles, Time, User, Value, run_of
from training.parallel import joined
from training.report import terminal
from training.train import train


def fetch(
    name: Annotated[str, typer.Argument(help="The only one so far: ml-100k.")],
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to.  \\[default: data/NAME]")] = None,
    source: Annotated[Path | None, typer.Option("--from", metavar="PATH", help="A copy you already have.")] = None,
) -> None:
    """Fetch a public data set, check it, and print its licence note."""
    if name != "ml-100k":
        raise FetchError(f"there is no data set {name!r} to fetch; the only one is ml-100k")
    fetch_ml_100k(to or Path("data") / name, source=source)


def train_command(
    config: ConfigName,
    *,
    data: Data,
    test: TestFiles = None,
    attributes: AttributesFile = None,
    split: Split = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder.  \\[default: runs/CONFIG-SEED]")
    ] = None,
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
        console = terminal(quiet=not processes.leader)
        columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column, value=value_column)
        files = data, test or []
        spec, prepared = run_of(config, files, columns, split, seed=seed, attributes=attributes, console=console)
        try:
            train(spec, prepared, output or Path("runs") / f"{spec.name}-{seed}", console, processes)
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on from the last epoch that ended")
            raise


def activations(
    config: ConfigName,
    *,
    data: Data,
    test: TestFiles = None,
    split: Split = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of runs.  \\[default: runs/CONFIG-activations-SEED]")
    ] = None,
    user_column: User = "user_id",
    item_column: Item = "item_id",
    timestamp_column: Time = None,
    value_column: Value = None,
) -> None:
    """Fit an AutoRec with every pair of encoder and decoder activation, and write and print the table of them."""
    console = terminal()
    columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column, value=value_column)
    files = data, test or []
    spec, prepared = run_of(config, files, columns, split, seed=seed, attributes=None, console=console)
    folder = output or Path("runs") / f"{spec.name}-activations-{seed}"
    console.print(activations_table(compare_activations(spec, prepared, folder, console)))
    console.print(f"written: {folder / 'activations.md'}")


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
        Path | None, typer.Option(metavar="DIR", help="Run folder.  \\[default: runs/CONFIG-cold-SEED]")
    ] = None,
    user_column: User = "user_id",
    item_column: Item = "item_id",
    timestamp_column: Time = None,
) -> None:
    """Hide items from training and see how well their attributes place them, as the service places new items."""
    console = terminal()
    columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column)
    found = evaluate_cold(config, data, columns, attributes, share=share, seed=seed, output=output, console=console)
    console.print(found.table())
