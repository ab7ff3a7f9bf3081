"""What a training run is made from, and what decides its result."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from models.manifest import DataWindow
from training.config import (
    CONFIGS,
    AnyConfig,
    AutoRecRunConfig,
    RunConfig,
    S3RecRunConfig,
    differences,
    flat,
    load_config,
    reads_values,
)
from training.interactions import Columns

SplitName = Literal["loo", "time", "random", "file"]

RATED = ("random", "file")  # splits of single ratings


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
    hidden: float = 0.0  # share of the items that `cold` hid from it
    data: DataWindow

    @property
    def identity(self) -> str:
        """Digest of what decides the result.

        Options at their defaults are not in it, so that a new one makes no other run of those from before.
        """
        deciding = self._deciding()
        kept = deciding.model_dump(mode="json", exclude_defaults=True, exclude={"name", "files", "columns"})
        # Two columns of one file may show the same data window.
        usual = asdict(Columns())
        kept |= {role: name for role, name in asdict(deciding.columns).items() if name != usual[role]}
        return hashlib.sha256(json.dumps([deciding.config.model.name, kept]).encode()).hexdigest()

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
        changes: dict[str, Any] = {"attributes": None, "by_rule": None, "test": [Path(path.name) for path in self.test]}
        changes["attributes_sha256"] = self.attributes_sha256 if learns else None
        changes["columns"] = self.columns if reads_values(self.config) else replace(self.columns, value=None)
        return self.model_copy(update=changes)


def rules_of(config: RunConfig) -> list[str]:
    """Options that a configuration leaves to the data."""
    return [] if isinstance(config, AutoRecRunConfig) else [str(name) for name in config.from_data]
