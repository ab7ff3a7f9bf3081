"""A training run as a folder: what went in, how it went, and everything that export needs without the data.

run.json             configuration, data files with their digests, split, seed
metrics.jsonl        a line an epoch
checkpoint.safetensors
vocabulary.json  popularity.npy  attributes.json
neighbours.npy  affinities.npy      of a blend, where the configuration asks for one and validation gains by it
metrics.json         validation, test, baselines, time: written last, so a folder with it is a finished run
sampled.json                        figures among sampled negatives, where `evaluate --sampled` was asked for them
curves.png
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from models.attributed import attribute, fold
from models.manifest import AFFINITIES, NEIGHBOURS, DataWindow
from models.neighbours import Neighbours
from models.sasrec import SASRec
from models.zoo import Model, build
from training import checkpoint
from training.attributes import ITEM_COLUMN, Attributes, learnable, read_attributes
from training.config import (
    CONFIGS,
    AnyConfig,
    AutoRecRunConfig,
    DataConfig,
    RunConfig,
    S3RecRunConfig,
    differences,
    flat,
    load_config,
)
from training.dataset import Dataset, DatasetError, build_dataset, popularity_of
from training.interactions import Columns, Interactions, read_interactions
from training.ratings import rated
from training.splits import Split, split_by_time, split_leave_one_out

SplitName = Literal["loo", "time", "random", "file"]

RATED = ("random", "file")  # splits of single ratings
_AGAIN = "the same train command writes it again"
RUN, METRICS, EPOCHS = "run.json", "metrics.json", "metrics.jsonl"
SAMPLED = "sampled.json"
CHECKPOINT = "checkpoint.safetensors"


class RunError(ValueError):
    """A run folder that cannot be used for what was asked; the message says what to do instead."""


class RunSpec(BaseModel):
    """What a run is made from, as its run.json says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # of the configuration
    config: AnyConfig
    by_rule: list[str] | None = None  # options that followed from the data; None: not recorded
    split: SplitName
    held_out: float = 0.1  # of a split by time or of ratings by chance, as `prepare` has it
    seed: int
    files: list[Path]
    test: list[Path] = []  # files with the ratings to test on, of a split by file
    columns: Columns
    attributes: Path | None
    attributes_sha256: str | None = None
    data: DataWindow

    @property
    def identity(self) -> str:
        """Digest of what decides the result.

        Options at their defaults are not in it, so that a new one makes no other run of those from before.
        """
        return self._digest(self._deciding())

    @property
    def checkpoint_identity(self) -> str:
        """The same for a checkpoint, which is continued only by a run with an equal one.

        Without the columns of ids and times, which `RunFolder.begin` compares: checkpoints were written before the
        identity had them, and still go on.
        """
        deciding = self._deciding()
        return self._digest(deciding.model_copy(update={"columns": Columns(value=deciding.columns.value)}))

    def differences(self, other: "RunSpec") -> dict[str, tuple[Any, Any]]:
        """What decides the result and is not the same in the other, with both values."""
        return {
            name: values
            for name, values in differences(self._deciding(), other._deciding()).items()
            if name.split(".")[0] not in ("name", "files")
        }

    def changed_since(self) -> dict[str, tuple[Any, Any]]:
        """Options that the configuration of this name has otherwise now, with the run's value and today's."""
        if not (CONFIGS / f"{self.name}.toml").is_file():
            return {}
        now = load_config(self.name)
        left = rules_of(now)
        changed = {
            name: values
            for name, values in differences(self.config, now).items()
            if name.split(".")[-1] not in left and name != "from_data"
        }
        followed = left if self.by_rule is None else self.by_rule
        for name, value in flat(self.config).items():
            option = name.split(".")[-1]
            if option in left and option not in followed:
                changed[name] = value, "by the data"
        return changed

    def _deciding(self) -> "RunSpec":
        """Without what decides nothing: where files lie, attributes that are but titles, values that nothing reads."""
        learns = isinstance(self.config, S3RecRunConfig) and self.config.uses_attributes
        rates = isinstance(self.config, AutoRecRunConfig) and self.config.model.feedback == "explicit"
        changes: dict[str, Any] = {"attributes": None, "by_rule": None, "test": [Path(path.name) for path in self.test]}
        changes["attributes_sha256"] = self.attributes_sha256 if learns else None
        changes["columns"] = self.columns if rates else replace(self.columns, value=None)
        return self.model_copy(update=changes)

    @staticmethod
    def _digest(deciding: "RunSpec") -> str:
        kept = deciding.model_dump(mode="json", exclude_defaults=True, exclude={"name", "files", "columns"})
        # Two columns of one file may show the same data window.
        usual = asdict(Columns())
        kept |= {role: name for role, name in asdict(deciding.columns).items() if name != usual[role]}
        return hashlib.sha256(json.dumps([deciding.config.model.name, kept]).encode()).hexdigest()


def rules_of(config: RunConfig) -> list[str]:
    """Options that a configuration leaves to the data."""
    return [] if isinstance(config, AutoRecRunConfig) else [str(name) for name in config.from_data]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Data ready to train on."""

    interactions: Interactions
    dataset: Dataset
    split: Split
    attributes: Attributes | None
    notes: tuple[str, ...] = ()  # sentences about what was left out of it


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
    elif split in ("random", "file"):
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
    explicit = isinstance(config, AutoRecRunConfig) and config.model.feedback == "explicit"
    return "random" if explicit else "loo"


def split_data(
    interactions: Interactions, rules: DataConfig, *, split: SplitName, held_out: float = 0.1
) -> tuple[Dataset, Split]:
    """The part of `prepare` that needs no model: which interactions count, and which are held out."""
    dataset = build_dataset(
        interactions,
        min_user_interactions=rules.min_user_interactions,
        min_item_interactions=rules.min_item_interactions,
    )
    if split == "loo":
        return dataset, split_leave_one_out(dataset)
    if split != "time":
        raise DatasetError(f"the split {split!r} is for the ratings of an AutoRec run's own data; split loo or time")
    return dataset, split_by_time(dataset, validation_share=held_out, test_share=held_out)


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


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, spec: RunSpec, prepared: Prepared) -> None:
        """Write what went in. Raises RunError if the folder holds another run."""
        if (self.path / RUN).exists() and (other := self.spec().differences(spec)):
            said = [f"{name} {before!r} there, {now!r} here" for name, (before, now) in list(other.items())[:3]]
            raise RunError(f"{self.path} holds another run ({'; '.join(said)}); give another --output")
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_json("vocabulary.json", prepared.dataset.vocabulary.ids)
        np.save(self.path / "popularity.npy", popularity_of(prepared.split.train, prepared.dataset.vocabulary.items))
        if prepared.attributes is not None:
            self._write_json("attributes.json", prepared.attributes.columns)
        else:  # the same run with attributes may have been here before
            (self.path / "attributes.json").unlink(missing_ok=True)
        self._write_json(RUN, spec.model_dump(mode="json"), indent=2)  # last: what it describes is there

    def keep_neighbours(self, neighbours: Neighbours | None) -> None:
        """Write what is blended into the model's scores, instead of what was. Call before `finish`."""
        for name in (NEIGHBOURS, AFFINITIES):
            (self.path / name).unlink(missing_ok=True)
        if neighbours is not None:
            np.save(self.path / NEIGHBOURS, neighbours.items, allow_pickle=False)
            np.save(self.path / AFFINITIES, neighbours.affinities, allow_pickle=False)

    def neighbours(self) -> Neighbours | None:
        """What is blended into the model's scores, or None."""
        if not all((self.path / name).exists() for name in (NEIGHBOURS, AFFINITIES)):
            return None
        return Neighbours(self._load(NEIGHBOURS), self._load(AFFINITIES))

    def finish(self, metrics: dict[str, object]) -> None:
        """Write metrics.json, which makes the run a finished one."""
        self._write_json(METRICS, metrics, indent=2)

    def keep_sampled(self, figures: Mapping[str, Any]) -> None:
        """Add figures among sampled negatives, by what says so, to those that are kept beside metrics.json."""
        self._write_json(SAMPLED, self.sampled() | dict(figures), indent=2)

    def sampled(self) -> dict[str, Any]:
        """Figures among sampled negatives by protocol; none if nobody asked for some."""
        return self._read_json(SAMPLED) if (self.path / SAMPLED).exists() else {}

    def spec(self) -> RunSpec:
        """Raises RunError if this is no run."""
        try:
            return RunSpec.model_validate_json((self.path / RUN).read_bytes())
        except (OSError, ValidationError) as error:
            raise RunError(f"{self.path} is not the folder of a training run: {error}") from error

    def metrics(self) -> dict[str, Any]:
        """The finished run's figures. Raises RunError if it is not finished."""
        if not (self.path / METRICS).is_file():
            raise RunError(
                f"{self.path} has no {METRICS}: the run is not finished; the same train command continues it"
            )
        return self._read_json(METRICS)  # type: ignore[no-any-return]

    @property
    def pretraining(self) -> "RunFolder":
        """The part of the folder about pre-training, where there was any."""
        return RunFolder(self.path / "pretraining")

    def drop_checkpoints(self) -> None:
        """Delete the weights, which an exported run has no more need of."""
        for folder in (self, self.pretraining):
            (folder.path / CHECKPOINT).unlink(missing_ok=True)

    def epochs(self) -> list[dict[str, float]]:
        """What metrics.jsonl holds, oldest first; without a line that was torn when the run was killed."""
        log = self.path / EPOCHS
        lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []  # only a whole one ends in a newline
        return [json.loads(line) for line in lines]

    def model(self) -> Model:
        """The model with the run's best weights, in evaluation mode."""
        spec = self.spec()
        model = build(spec.config.model, len(self.ids()) - 1, users=spec.data.users)
        if isinstance(spec.config, S3RecRunConfig) and isinstance(model, SASRec):
            self._load_s3rec(spec, spec.config, model)
        else:
            checkpoint.load_best(self.path / CHECKPOINT, model)
        return model.eval()

    def _load_s3rec(self, spec: RunSpec, config: S3RecRunConfig, model: SASRec) -> None:
        told = Attributes(self.attributes() or {}, 0, 0) if config.model.item_attributes else None
        known = learnable(told, config.pretraining.columns, chosen=spec.attributes is not None)
        if known is not None:
            attribute(model, known.starts, known.flat, known.count)
        checkpoint.load_best(self.path / CHECKPOINT, model)
        fold(model)

    def ids(self) -> list[str]:
        """External id of every item row; row 0 is padding."""
        return self._read_json("vocabulary.json")  # type: ignore[no-any-return]

    def popularity(self) -> NDArray[np.float32]:
        """Train interactions of every item row, float32 (items + 1,)."""
        return self._load("popularity.npy")  # type: ignore[no-any-return]

    def attributes(self) -> dict[str, list[Any]] | None:
        """Attribute columns by name, one entry an item row, or None."""
        return self._read_json("attributes.json") if (self.path / "attributes.json").exists() else None

    def data(self) -> Prepared:
        """The run's data again, read from its files. Raises RunError if they have changed since."""
        spec = self.spec()
        if "events" in spec.data.files:
            raise RunError(f"{self.path} was trained on events of a live store, which cannot be read a second time")
        most = spec.config.data.max_dropped
        log = read_interactions(spec.files, columns=spec.columns, max_dropped=most)
        test = read_interactions(spec.test, columns=spec.columns, max_dropped=most) if spec.test else None
        prepared = prepare(log, spec.config, split=spec.split, held_out=spec.held_out, seed=spec.seed, test=test)
        if data_window([*spec.files, *spec.test], prepared) != spec.data:
            raise RunError(f"{self.path}: the data files are not those the run was trained on (their sha256 differ)")
        return prepared

    def _load(self, name: str) -> Any:
        try:
            return np.load(self.path / name, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name} is damaged ({error}); {_AGAIN}") from error

    def _read_json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name} is damaged ({error}); {_AGAIN}") from error

    def _write_json(self, name: str, value: object, *, indent: int | None = None) -> None:
        draft = self.path / f".{name}.draft"
        draft.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent) + "\n", "utf-8")
        draft.replace(self.path / name)
