"""What a training run is made of: one TOML file, read once, frozen, with no key that nothing reads."""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.zoo import ModelConfig

CONFIGS = Path(__file__).parent / "configs"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and the value."""


class _Section(BaseModel):
    # strict: TOML has types, so that a number in quotes is a mistake and not a number
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(_Section):
    """Which interactions count."""

    min_user_interactions: int = Field(1, ge=1)  # k-core: users and items below are removed until none is
    min_item_interactions: int = Field(1, ge=1)
    max_dropped: float = Field(0.01, ge=0, le=1)  # share of unusable rows above which the data is refused


class TrainingConfig(_Section):
    """How the model is fitted."""

    loss: Literal["softmax", "sampled_softmax", "bce", "gbce"] = "softmax"
    negatives: int = Field(1, ge=1)  # a target for bce and gbce, a batch for sampled_softmax
    calibration: float = Field(0.75, ge=0, le=1)  # of gbce: 0 is bce, 1 gives scores that are probabilities
    batch: int = Field(128, ge=1)  # windows a step
    stride: int | None = Field(None, ge=1)  # between windows of a long history; None: the model's length
    shuffle_ties: bool = True  # draw the order of events of one user at the same time anew in every epoch
    epochs: int = Field(200, ge=1)
    patience: int = Field(20, ge=1)  # epochs without a better validation NDCG@10 before training stops
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(0, ge=0)  # the learning rate rises linearly over these, then stays
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float | None = Field(None, gt=0)  # largest norm of the gradient
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU, float32 on CPU

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "TrainingConfig":
        for name, losses in (("negatives", {"sampled_softmax", "bce", "gbce"}), ("calibration", {"gbce"})):
            if getattr(self, name) != type(self).model_fields[name].default and self.loss not in losses:
                raise ValueError(f"training.{name} does nothing with loss {self.loss!r}; leave it out")
        return self


class BlendConfig(_Section):
    """What is added to the model's scores when it serves."""

    neighbours: bool = False  # sequential item-kNN, with the weight that is best on validation


class Config(_Section):
    """One run: the data it keeps, the model, the fitting, and what is blended in."""

    data: DataConfig = DataConfig()
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    blend: BlendConfig = BlendConfig()


def load_config(name: str) -> Config:
    """Read a configuration by its name under training/configs/, or by the path of a TOML file.

    Raises ConfigError naming the file, the key and the value.
    """
    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
        raise ConfigError(f"there is no configuration {name!r}; give one of {known}, or the path of a .toml file")
    try:
        return Config.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} (found {problem['input']!r})"
            for problem in error.errors()
        )
        raise ConfigError(f"{path}: {problems}") from error
