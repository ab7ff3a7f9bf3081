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

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.attributed import attribute, attribute_vectors, fold
from models.cold import Learned
from models.manifest import AFFINITIES, NEIGHBOURS
from models.neighbours import Neighbours
from models.sasrec import SASRec
from models.zoo import Model, build
from training import checkpoint
from training.attributes import Attributes, learnable
from training.config import S3RecRunConfig
from training.dataset import popularity_of
from training.preparation import Prepared, data_window, prepare, read_for
from training.spec import RunSpec

_AGAIN = "the same train command writes it again"
RUN, METRICS, EPOCHS = "run.json", "metrics.json", "metrics.jsonl"
SAMPLED = "sampled.json"
CHECKPOINT = "checkpoint.safetensors"


class RunError(ValueError):
    """A run folder that cannot be used for what was asked; the message says what to do instead."""


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other training out of the folder. Raises RunError if one is at work in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # some network's file system has no locks
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise RunError(
                        f"another training is at work in {self.path}; wait for it, or give another --output"
                    ) from None
            yield
        finally:
            os.close(folder)

    def begin(self, spec: RunSpec, prepared: Prepared) -> None:
        """Write what went in. Raises RunError if another run has trained in the folder."""
        if self._trained() and (self.path / RUN).exists() and (other := self.spec().differences(spec)):
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

    def _trained(self) -> bool:
        """Whether something would be lost: a run that was refused before its first epoch leaves the folder free."""
        folders = self.path, self.pretraining.path
        return any((folder / name).exists() for folder in folders for name in (CHECKPOINT, METRICS))

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
        return self.fitted()[0]

    def fitted(self) -> tuple[Model, Learned | None]:
        """`model`, and the vectors of attributes that it has folded into its items; None for one without them."""
        spec = self.spec()
        model, known = build(spec.config.model, len(self.ids()) - 1, users=spec.data.users), None
        if isinstance(spec.config, S3RecRunConfig) and isinstance(model, SASRec) and spec.config.model.item_attributes:
            told = Attributes(self.attributes() or {}, 0, 0)
            known = learnable(told, spec.config.pretraining.columns, chosen=spec.attributes is not None)
            if known is not None:
                attribute(model, known.starts, known.flat, known.count)
        checkpoint.load_best(self.path / CHECKPOINT, model)
        learned = None
        if isinstance(model, SASRec):
            vectors = attribute_vectors(model)
            learned = None if known is None or vectors is None else Learned(known.names, vectors)
            fold(model)
        return model.eval(), learned

    def ids(self) -> list[str]:
        """External id of every item row; row 0 is padding."""
        return self._read_json("vocabulary.json")  # type: ignore[no-any-return]

    def popularity(self) -> NDArray[np.float32]:
        """Train interactions of every item row, float32 (items + 1,)."""
        return self._load("popularity.npy")  # type: ignore[no-any-return]

    def attributes(self) -> dict[str, list[Any]] | None:
        """Attribute columns by name, one entry an item row, or None."""
        return self._read_json("attributes.json") if (self.path / "attributes.json").exists() else None

    def data(self, *, values: bool = False) -> Prepared:
        """The run's data again, read from its files; values: as in `read_for`. Raises RunError if they have changed."""
        spec = self.spec()
        if "events" in spec.data.files:
            raise RunError(f"{self.path} was trained on events of a live store, which cannot be read a second time")
        if spec.hidden:
            raise RunError(
                f"{self.path} was trained by `cold`, with {spec.hidden:.0%} of the items hidden, on data that no file "
                "holds; the same cold command judges it again"
            )
        log = read_for(spec.config, spec.files, spec.columns, values=values)
        test = read_for(spec.config, spec.test, spec.columns) if spec.test else None
        prepared = prepare(log, spec.config, split=spec.split, held_out=spec.held_out, seed=spec.seed, test=test)
        found = data_window([*spec.files, *spec.test], prepared)
        if found.files != spec.data.files:
            raise RunError(f"{self.path}: the data files are not those the run was trained on (their sha256 differ)")
        if found != spec.data:
            raise RunError(f"{self.path}: its files are read or split otherwise than when it was trained; train again")
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
