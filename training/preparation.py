"""Interactions made ready to train on: which of them count, and which are held out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.manifest import DataWindow
from training.attributes import ITEM_COLUMN, Attributes, read_attributes
from training.config import AutoRecRunConfig, DataConfig, RunConfig, reads_values
from training.dataset import Dataset, DatasetError, build_dataset
from training.interactions import Columns, Interactions, InteractionsError, read_interactions
from training.presets import settle
from training.ratings import rated
from training.spec import RATED, RunSpec, SplitName, rules_of
from training.splits import Split, split_by_time, split_leave_one_out


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Data ready to train on."""

    interactions: Interactions
    dataset: Dataset
    split: Split
    attributes: Attributes | None
    notes: tuple[str, ...] = ()  # sentences about what was left out of it


def read_for(
    config: RunConfig | None, paths: Sequence[Path], columns: Columns, *, values: bool = False
) -> Interactions:
    """Interaction files, read as one log for the configuration's model; None: not known.

    A column of values that nobody named is left alone where the model learns from none: its cells may be anything.
    values: whether another model that is judged on the same log reads them. It gets them where all of them are
    numbers, and no row is lost for its sake.
    """
    most = (config.data if config else DataConfig()).max_dropped
    if columns.value is not None or config is None or reads_values(config):
        return read_interactions(paths, columns=columns, max_dropped=most)
    plain = read_interactions(paths, columns=replace(columns, value=""), max_dropped=most)
    if not values:
        return plain
    try:
        rated = read_interactions(paths, columns=columns, max_dropped=most)
    except InteractionsError:
        return plain
    return rated if len(rated.frame) == len(plain.frame) else plain


def prepare(
    interactions: Interactions,
    config: RunConfig,
    *,
    split: SplitName,
    attributes: Path | None = None,
    item_column: str = ITEM_COLUMN,
    held_out: float = 0.1,
    seed: int = 0,
    test: Interactions | None = None,
) -> Prepared:
    """Interactions -> data set -> split, by the configuration's rules.

    held_out: share of the interactions in the test window of a split by time, with as much before it for validation, or
    of the ratings that `seed` draws for the test of a random split. test: the ratings of a split by file.
    item_column: what the file of attributes may call the items' ids.
    Raises DatasetError where the model cannot be judged by the split.
    """
    notes: tuple[str, ...] = ()
    if isinstance(config, AutoRecRunConfig):
        ratings = rated(interactions, config, split=split, held_out=held_out, seed=seed, test=test)
        interactions, dataset, parts, notes = ratings.interactions, ratings.dataset, ratings.split, ratings.notes
    elif split in RATED:
        said = "--test names" if test is not None else f"the split {split} holds out"
        raise DatasetError(f"{said} single ratings, and {config.model.name} predicts none; split loo or time")
    elif test is not None:
        raise DatasetError(f"--test names single ratings, and {config.model.name} predicts none; leave it out")
    else:
        dataset, parts = split_data(interactions, config.data, split=split, held_out=held_out)
    known = read_attributes(attributes, dataset.vocabulary, item_column=item_column) if attributes else None
    return Prepared(interactions, dataset, parts, known, notes)


def default_split(config: RunConfig) -> SplitName:
    """How a model is judged unless somebody says otherwise: by random ratings if it predicts some, else by ranking."""
    return "random" if reads_values(config) else "loo"


def split_data(
    interactions: Interactions, rules: DataConfig, *, split: SplitName, held_out: float = 0.1
) -> tuple[Dataset, Split]:
    """The part of `prepare` that needs no model: which interactions count, and which are held out."""
    dataset = build_dataset(interactions, **rules.minima)
    if split == "loo":
        return dataset, split_leave_one_out(dataset)
    if split != "time":
        raise DatasetError(f"the split {split!r} is for the ratings of an AutoRec run's own data; split loo or time")
    return dataset, split_by_time(dataset, validation_share=held_out, test_share=held_out)


def spec_of(
    config: RunConfig,
    prepared: Prepared,
    *,
    name: str,
    files: Sequence[Path],
    columns: Columns,
    split: SplitName,
    seed: int,
    attributes: Path | None = None,
    held_out: float = 0.1,
    test: Sequence[Path] = (),
) -> RunSpec:
    """What a run of the configuration on this data is made from, with all settled that it leaves to the data.

    name: of the configuration, or the path of its TOML file. The others are what `prepare` was given, test the files.
    """
    return RunSpec(
        name=Path(name).stem if name.endswith(".toml") else name,
        config=settle(config, prepared.split.train),
        by_rule=rules_of(config),
        split=split,
        held_out=held_out,
        seed=seed,
        files=[path.resolve() for path in files],
        test=[path.resolve() for path in test],
        columns=columns,
        attributes=attributes.resolve() if attributes else None,
        attributes_sha256=prepared.attributes.sha256 if prepared.attributes else None,
        data=data_window([*files, *test], prepared),
    )


def data_window(files: list[Path], prepared: Prepared) -> DataWindow:
    """What the data is, for run.json and the bundle's manifest; sources without a file are called events."""
    whole, digests = [path.absolute().parts for path in files], prepared.interactions.sha256
    depths = range(1, max(map(len, whole), default=0))  # files of one name take as much of their folders as they need
    depth = next((one for one in depths if len({parts[-one:] for parts in whole}) == len(whole)), 0)  # or all of it
    names = ["/".join(parts[-depth:]) for parts in whole] + ["events"] * (len(digests) - len(files))
    times, trained = prepared.dataset.sequences.timestamps, prepared.split.train.timestamps
    return DataWindow(
        files=dict(zip(names, digests, strict=True)),
        users=len(prepared.dataset.users),
        items=prepared.dataset.vocabulary.items,
        interactions=prepared.dataset.sequences.interactions,
        first_ms=None if times is None else int(times.min()),
        last_ms=None if times is None else int(times.max()),
        trained_until_ms=None if trained is None else int(trained.max()),
    )
