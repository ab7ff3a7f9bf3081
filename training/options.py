"""What a person types for training, as types that typer reads, and the run that is made from it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.config import ConfigError, load_config
from training.interactions import Columns
from training.preparation import Prepared, default_split, prepare, read_for, spec_of
from training.presets import describe
from training.spec import RunSpec, SplitName

ConfigName = Annotated[str, typer.Argument(help="A name under training/configs/, or the path of a TOML file.")]
Data = Annotated[
    list[Path],
    typer.Option(
        "--data",
        metavar="FILE",
        help="Interactions: .csv .tsv .jsonl .parquet .inter, or .txt and .tsv of sequences. Repeat for several files.",
    ),
]
AttributesFile = Annotated[
    Path | None, typer.Option("--attributes", metavar="FILE", help="Item attributes: .item .json .jsonl .csv .parquet.")
]
Split = Annotated[
    SplitName | None,
    typer.Option(
        "--split",
        help="loo: each user's last item is the test. time: everything after a moment. random: a tenth of the ratings, "
        "for AutoRec. file: what --test names.  \\[default: loo; random for explicit ratings, file with --test]",
    ),
]
TestFiles = Annotated[
    list[Path] | None,
    typer.Option("--test", metavar="FILE", help="Ratings to test on, for AutoRec: as u1.test beside --data u1.base."),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**32 - 1,
        help="Of weights, dropout, data order, negatives, the ratings of a random split and the items that cold hides.",
    ),
]
User = Annotated[str, typer.Option("--user-column", help="Column with the user's id.")]
Item = Annotated[str, typer.Option("--item-column", help="Column with the item's id.")]
Time = Annotated[
    str | None,
    typer.Option(
        "--timestamp-column", help='Column with the time; "" for none.  \\[default: timestamp, if there is one]'
    ),
]
Value = Annotated[
    str | None,
    typer.Option(
        "--value-column",
        help='Column with a rating; "" for none.  \\[default: for AutoRec with explicit ratings, value, or in .inter, '
        ".base, .test and .data rating, if there is one; for other models none]",
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished training run.")]
ARTIFACTS = "RECSERVE_ARTIFACTS"  # the service's own, so that nothing is promoted where nobody serves
Artifacts = Annotated[Path, typer.Option("--artifacts", metavar="DIR", envvar=ARTIFACTS, help="Folder of bundles.")]


def run_of(
    name: str,
    files: tuple[list[Path], list[Path]],
    columns: Columns,
    split: SplitName | None,
    *,
    seed: int,
    attributes: Path | None,
    console: Console,
) -> tuple[RunSpec, Prepared]:
    """What a run is made from, and its data; says what was read. files: those to learn from, and those of the test."""
    data, test = files
    loaded = load_config(name)
    interactions = read_for(loaded, data, columns)
    console.print(str(interactions.report))
    tested = read_for(loaded, test, columns) if test else None
    if tested is not None:
        console.print(f"test: {tested.report}")
    split = split or ("file" if test else default_split(loaded))
    prepared = prepare(
        interactions,
        loaded,
        split=split,
        attributes=attributes,
        item_column=columns.item,
        seed=seed,
        test=tested,
    )
    spec = spec_of(
        loaded,
        prepared,
        name=name,
        files=data,
        columns=columns,
        split=split,
        seed=seed,
        attributes=attributes,
        test=test,
    )
    if left := describe(loaded, spec.config):
        console.print(f"by the data: {left}")
    return spec, prepared


def refuse_columns(columns: Columns, why: str) -> None:
    """Raise ConfigError for the first column that was named: for where no file is read, and why none is."""
    usual = asdict(Columns())
    for role, name in asdict(columns).items():
        if name != usual[role]:
            raise ConfigError(f"--{role}-column {name!r} names nothing here: {why}; leave it out")


def spread(arguments: list[str]) -> list[str]:
    """`--data a b` as `--data a --data b`: files that follow a file, as a shell's `*.csv` gives them.

    A TOML file is never data but the configuration, which so may come before the files or after them.
    """
    found: list[str] = []
    data = False
    for argument in arguments:
        file = not argument.startswith("-") and not argument.endswith(".toml") and Path(argument).is_file()
        another = data and found[-1] != "--data" and file
        data = argument == "--data" or (data and not argument.startswith("-"))
        found += ["--data", argument] if another else [argument]
    return found
