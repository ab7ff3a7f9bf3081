"""Every model by the name its configuration carries."""

from models.sasrec import SASRec, SASRecConfig

ModelConfig = SASRecConfig  # becomes a union, told apart by `name`, with the second model


def build(config: ModelConfig, items: int) -> SASRec:
    """A freshly initialised model for a catalogue of `items`, drawing from torch's global generator."""
    return SASRec(config, items)
