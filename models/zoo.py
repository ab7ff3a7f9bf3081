"""Every model by the name its configuration carries."""

from models.s3rec import S3RecConfig
from models.sasrec import SASRec, SASRecConfig

ModelConfig = SASRecConfig | S3RecConfig  # told apart by `name`


def build(config: ModelConfig, items: int) -> SASRec:
    """A freshly initialised model for a catalogue of `items`, drawing from torch's global generator."""
    return SASRec(config, items)
