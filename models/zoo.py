"""Every model by the name its configuration carries."""

from typing import overload

from models.autorec import AutoRec, AutoRecConfig
from models.s3rec import S3RecConfig
from models.sasrec import SASRec, SASRecConfig

ModelConfig = SASRecConfig | S3RecConfig | AutoRecConfig  # told apart by `name`
Model = SASRec | AutoRec


@overload
def build(config: SASRecConfig | S3RecConfig, items: int, *, users: int | None = None) -> SASRec: ...
@overload
def build(config: AutoRecConfig, items: int, *, users: int | None = None) -> AutoRec: ...
@overload
def build(config: ModelConfig, items: int, *, users: int | None = None) -> Model: ...
def build(config: ModelConfig, items: int, *, users: int | None = None) -> Model:
    """A freshly initialised model for a catalogue of `items`, drawing from torch's global generator.

    users: needed by an item-based AutoRec, whose columns they are.
    """
    if not isinstance(config, AutoRecConfig):
        return SASRec(config, items)
    if config.side == "user":
        return AutoRec(config, items)
    if users is None:
        raise ValueError("an item-based AutoRec has a column for every user: give users")
    return AutoRec(config, users)
