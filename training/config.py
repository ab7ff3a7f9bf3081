"""What a training run is made of: one TOML file, read once, frozen, with no key that nothing reads."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from models.autorec import AutoRecConfig
from models.s3rec import S3RecConfig
from models.sasrec import EncoderConfig, SASRecConfig

CONFIGS = Path(__file__).parent / "configs"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and the value."""


class _Section(BaseModel):
    # strict: TOML has types, so that a number in quotes is a mistake and not a number
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(_Section):
    """Which interactions count."""

    min_user_interactions: int = Field(1, ge=1)  # k-core: users and items below are removed until none is
    min_item_interactions: int = Field(1, ge=1)
    max_dropped: float = Field(0.01, ge=0, le=1)  # share of unusable rows above which the data is refused

    @property
    def minima(self) -> dict[str, int]:
        """The two minima as `build_dataset` takes them."""
        return self.model_dump(include={"min_user_interactions", "min_item_interactions"})


class FittingConfig(_Section):
    """What the training loop needs to know, whatever is trained."""

    batch: int = Field(128, ge=1)  # sequences a step
    epochs: int = Field(200, ge=1)
    patience: int = Field(20, ge=1)  # epochs without a better validation figure before training stops
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(0, ge=0)  # the learning rate rises linearly over these, then stays
    decay: float = Field(1.0, gt=0, le=1)  # the learning rate is multiplied by it after every epoch
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float | None = Field(None, gt=0)  # largest norm of the gradient
    # Decay of the running mean of the weights, which is then what is judged and kept: 0.999 is a mean over about the
    # last thousand steps. None: the weights as they are.
    average: float | None = Field(None, gt=0, lt=1)
    # auto: bfloat16 on a GPU; float32 on CPU, but for the products of the full softmax where the processor has AMX.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class TrainingConfig(FittingConfig):
    """How the model learns what comes next."""

    loss: Literal["softmax", "sampled_softmax", "bce", "gbce"] = "softmax"
    negatives: int = Field(1, ge=1)  # a target for bce and gbce, a batch for sampled_softmax
    # What a target competes with in a softmax: every item, or those that its user has not met before it, as where the
    # service ranks. The negatives of bce and gbce are such that the user never meets.
    candidates: Literal["all", "unseen"] = "all"
    calibration: float = Field(0.75, ge=0, le=1)  # of gbce: 0 is bce, 1 gives scores that are probabilities
    stride: int | None = Field(None, ge=1)  # between windows of a long history; None: the model's length
    shuffle_ties: bool = True  # draw the order of events of one user at the same time anew in every epoch
    # Where the items' vectors begin: at random, or near those of items beside them in histories.
    beginning: Literal["random", "neighbours"] = "random"
    compile: bool = False  # the blocks by torch.compile, pre-training's too: slower on CPU, for a GPU to be tried

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "TrainingConfig":
        for name, losses in (
            ("negatives", {"sampled_softmax", "bce", "gbce"}),
            ("calibration", {"gbce"}),
            ("candidates", {"softmax", "sampled_softmax"}),
        ):
            if getattr(self, name) != type(self).model_fields[name].default and self.loss not in losses:
                raise ValueError(f"training.{name} does nothing with loss {self.loss!r}; leave it out")
        return self


class BlendConfig(_Section):
    """What is added to the model's scores when it serves."""

    neighbours: bool = False  # sequential item-kNN, with the weight that is best on validation


class PretrainingConfig(FittingConfig):
    """S3Rec's self-supervised objectives, before next items; a weight of 0 leaves one out. Weights of its code."""

    batch: int = Field(256, ge=1)
    epochs: int = Field(150, ge=1)
    associated_attributes: float = Field(0.2, ge=0)  # AAP: the attributes of the items that are seen
    masked_items: float = Field(1.0, ge=0)  # MIP
    masked_attributes: float = Field(1.0, ge=0)  # MAP: the attributes of the items that are hidden
    segments: float = Field(0.5, ge=0)  # SP: which segment was cut out
    bounded: bool = False  # MIP and SP compare sigmoids of dot products, as published, and not the products
    mask_probability: float = Field(0.2, gt=0, lt=1)  # of an item; the newest of a history is always hidden
    shuffle_ties: bool = True  # as in training
    prefixes: int | None = Field(None, ge=1)  # most of a user in an epoch, drawn anew in each; None: every one
    # which attributes count; None: all but titles and numbers with a fraction
    columns: list[str] | None = Field(None, min_length=1)

    @property
    def uses_attributes(self) -> bool:
        """Whether an objective learns from the items' attributes."""
        return bool(self.associated_attributes or self.masked_attributes)

    @model_validator(mode="after")
    def _something_is_learned(self) -> "PretrainingConfig":
        if not (self.associated_attributes or self.masked_items or self.masked_attributes or self.segments):
            raise ValueError("pretraining: every objective has weight 0; give one of them a weight, or train a sasrec")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "PretrainingConfig":
        for name, readers in (
            ("bounded", ("masked_items", "segments")),
            ("mask_probability", ("associated_attributes", "masked_items", "masked_attributes")),
        ):
            if getattr(self, name) != type(self).model_fields[name].default and not any(
                getattr(self, reader) for reader in readers
            ):
                raise ValueError(f"pretraining.{name} does nothing with weight 0 of {', '.join(readers)}; leave it out")
        return self


class ReconstructionConfig(FittingConfig):
    """How an autoencoder learns to fill in rows of a matrix."""

    batch: int = Field(128, ge=1)  # rows a step
    epochs: int = Field(150, ge=1)
    patience: int = Field(10, ge=1)
    l2: float = Field(60.0, ge=0)  # the paper's lambda: half of it times the squared matrices, on the sum over ratings
    negatives: int | None = Field(None, ge=1)  # of implicit feedback: zeros drawn for each observed entry, default 5
    validation_share: float = Field(0.05, gt=0, lt=1)  # of the ratings that are not held out, in a split of ratings
    # lowest and highest rating; None: those of the train part. TOML has lists, hence not strict
    scale: tuple[float, float] | None = Field(None, strict=False)

    @model_validator(mode="after")
    def _scale_rises(self) -> "ReconstructionConfig":
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"training.scale {list(self.scale)} must be a lower and a higher rating")
        return self


class AutoRecRunConfig(_Section):
    """A run of AutoRec."""

    data: DataConfig = DataConfig()
    model: AutoRecConfig
    training: ReconstructionConfig = ReconstructionConfig()

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "AutoRecRunConfig":
        name = "scale" if self.model.feedback == "implicit" else "negatives"
        if getattr(self.training, name) is not None:
            raise ValueError(f"training.{name} does nothing with feedback {self.model.feedback!r}; leave it out")
        return self


class _NextItem(_Section):
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    blend: BlendConfig = BlendConfig()
    # Left to the rules of training/presets.py.
    from_data: list[Literal["length", "dim", "dropout", "stride", "batch", "loss"]] = []


class Config(_NextItem):
    """A run of SASRec: the data it keeps, the model, the fitting, and what is blended in."""

    model: SASRecConfig

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        _fits(self, self.model)
        return self


class S3RecRunConfig(_NextItem):
    """A run of S3Rec: the same after pre-training."""

    model: S3RecConfig
    pretraining: PretrainingConfig = PretrainingConfig()

    @property
    def uses_attributes(self) -> bool:
        """Whether what is known about items makes a difference."""
        return self.model.item_attributes or self.pretraining.uses_attributes

    @model_validator(mode="after")
    def _fits(self) -> "S3RecRunConfig":
        _fits(self, self.model)
        if self.pretraining.columns is not None and not self.uses_attributes:
            raise ValueError("pretraining.columns does nothing where no attribute is learned from; leave it out")
        return self


RunConfig = Config | S3RecRunConfig | AutoRecRunConfig


def reads_values(config: RunConfig) -> bool:
    """Whether the model learns from what an interaction was worth, as a rating, and not only that there was one."""
    return isinstance(config, AutoRecRunConfig) and config.model.feedback == "explicit"


def differences(one: BaseModel, other: BaseModel) -> dict[str, tuple[Any, Any]]:
    """Options that are not the same in both, by dotted name, with their two values (None where there is none)."""
    first, second = flat(one), flat(other)
    return {
        name: (first.get(name), second.get(name)) for name in {**first, **second} if first.get(name) != second.get(name)
    }


def flat(config: BaseModel) -> dict[str, Any]:
    """Options by dotted name."""
    return _flat(config.model_dump(mode="json"))


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _fits(config: _NextItem, model: EncoderConfig) -> None:
    """Raise ValueError if the sections contradict each other."""
    stride = config.training.stride
    if stride is not None and stride > model.length:
        raise ValueError(
            f"training.stride {stride} is above model.length {model.length}: items between two windows would never be "
            "predicted"
        )
    for name in config.from_data:
        section = "model" if name in type(model).model_fields else "training"
        if name in (model if section == "model" else config.training).model_fields_set:
            raise ValueError(f"from_data has {name!r} and {section}.{name} is given too; leave one of them out")


_KINDS: dict[str, type[Config] | type[S3RecRunConfig] | type[AutoRecRunConfig]] = {
    "sasrec": Config,
    "s3rec": S3RecRunConfig,
    "autorec": AutoRecRunConfig,
}


def _kind(raw: Any) -> str:
    """The model's name in a configuration, parsed or not; sasrec where there is none."""
    if isinstance(raw, dict):
        model = raw.get("model")
        return str(model.get("name", "sasrec")) if isinstance(model, dict) else "sasrec"
    return str(raw.model.name)


AnyConfig = Annotated[
    Annotated[Config, Tag("sasrec")]
    | Annotated[S3RecRunConfig, Tag("s3rec")]
    | Annotated[AutoRecRunConfig, Tag("autorec")],
    Discriminator(_kind),
]


def load_config(name: str) -> RunConfig:
    """Read a configuration by its name under training/configs/, or by the path of a TOML file.

    Raises ConfigError naming the file, the key and the value.
    """
    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
        raise ConfigError(f"there is no configuration {name!r}; give one of {known}, or the path of a .toml file")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    return parse_config(raw, source=str(path))


def parse_config(raw: Mapping[str, Any], *, source: str = "the configuration") -> RunConfig:
    """A configuration from what a TOML file, or a bundle's manifest, holds. Raises ConfigError, which names source."""
    kind = _kind(raw)
    if kind not in _KINDS:
        raise ConfigError(f"{source}: model.name: there is no model {kind!r}; give one of {', '.join(_KINDS)}")
    try:
        # A manifest's JSON has lists where TOML has them too: strict, but for the tuples those stand for.
        return _KINDS[kind].model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {_said(problem)} (found {problem['input']!r})"
            for problem in error.errors()
        )
        raise ConfigError(f"{source}: {problems}") from error


def _said(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "there is no such option"
    return str(problem["msg"]).removeprefix("Value error, ")
