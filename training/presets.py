"""What a configuration leaves to the data: options that follow by rule from the statistics of the train part.

They follow what the literature uses on data of such a kind; docs/results.md has what they came to where they were run.
"""

from typing import Any

import numpy as np

from training.config import AutoRecRunConfig, RunConfig
from training.dataset import Sequences

_LENGTHS = (50, 100, 200)  # as published for shops and for films; attention costs the square
_BATCHES = (128, 64, 32, 16)
_STEPS = 100  # an epoch has at least so many, or small data would need thousands of epochs
_SHORT = 30  # mean train interactions of a user: with fewer, the same few sequences come round too soon


def settle(config: RunConfig, train: Sequences) -> RunConfig:
    """The configuration with every option of `from_data` set, and none left to set.

    length: the shortest of 50, 100 and 200 that nine histories of ten fit into, else 200.
    dropout: 0.5 where users have few interactions, 0.2 where they have many.
    stride: half the length where histories are longer than it, so that every item is predicted with a long past.
    batch: 128 windows, or half of that again and again down to 16 while an epoch has fewer than a hundred steps.
    """
    if isinstance(config, AutoRecRunConfig):  # leaves nothing to the data
        return config
    lengths = train.lengths[train.lengths > 0]
    reach = float(np.percentile(lengths, 90))
    found: dict[str, Any] = {
        "length": next((length for length in _LENGTHS if reach <= length), _LENGTHS[-1]),
        "dropout": 0.5 if float(lengths.mean()) < _SHORT else 0.2,
    }
    length = found["length"] if "length" in config.from_data else config.model.length
    found["stride"] = max(1, length // 2) if int(lengths.max()) > length else None
    stride = found["stride"] if "stride" in config.from_data else config.training.stride
    windows = int((1 + np.maximum(lengths - 1 - length, 0) // (stride or length)).sum())  # but for where the cuts fall
    found["batch"] = next((batch for batch in _BATCHES if windows >= _STEPS * batch), _BATCHES[-1])
    chosen: dict[str, Any] = {name: found[name] for name in config.from_data}
    training: dict[str, Any] = {name: chosen.pop(name) for name in ("stride", "batch") if name in chosen}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=chosen),
            "training": config.training.model_copy(update=training),
            "from_data": [],
        }
    )


def describe(before: RunConfig, after: RunConfig) -> str:
    """What was set by the data, in words; empty if nothing was left to it."""
    if isinstance(before, AutoRecRunConfig) or isinstance(after, AutoRecRunConfig):
        return ""
    return ", ".join(
        f"{name} {getattr(after.model if name in ('length', 'dropout') else after.training, name)}"
        for name in before.from_data
    )
