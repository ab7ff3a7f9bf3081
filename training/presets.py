"""What a configuration leaves to the data: options that follow by rule from the statistics of the train part.

They follow what the literature uses on data of such a kind; docs/results.md has what they came to where they were run.

The `-best` presets leave all to them but the length of a history, which is 50 in both: windows that overlap by half let
every item be predicted with a long past all the same. Without that overlap, in `sasrec-paper`, 200 gains much on
MovieLens-1M (docs/results.md). Of `sasrec-best` one trial of 200 is recorded there (MovieLens-100K, model.length 200,
seed 2, weights not averaged), which is, the model alone, within the deviation of the seeds of 50 without a filter.
"""

from typing import Any

import numpy as np

from training.config import AutoRecRunConfig, RunConfig
from training.dataset import Sequences

_BATCHES = (128, 64, 32, 16)
_STEPS = 150  # an epoch has at least so many, or small data would need thousands of epochs
_POSITIONS = 3000  # and a step at most so many: more of them are not worth their time
_FULL = 100_000  # items: a larger catalogue makes the full softmax more work than it is worth
_NEGATIVES = 1024  # instead, for a batch
_MUCH = 500_000  # train interactions
_LONG = 100  # mean train interactions of a user, from which on the newest 200 are read
_SHORT = 30  # mean train interactions of a user: with fewer, the same few sequences come round too soon


def settle(config: RunConfig, train: Sequences) -> RunConfig:
    """The configuration with every option of `from_data` set, and none left to set.

    length: 50, or 200 where users have a hundred interactions or more, as Kang & McAuley have it.
    dim: 64, or from half a million interactions on 128, at twice the cost, which gain SASRec nothing on Amazon Beauty.
    dropout: 0.5 where users have few interactions, 0.2 where they have many.
    stride: half the length where histories are longer than it, so that every item is predicted with a long past.
    batch: 128 windows, or half of that again and again down to 16 until an epoch has 150 steps and a step no more than
    3,000 positions.
    loss: the full softmax, or beyond 100,000 items the sampled one with 1,024 negatives a batch.
    """
    if isinstance(config, AutoRecRunConfig):  # leaves nothing to the data
        return config
    lengths = train.lengths[train.lengths > 0]
    found: dict[str, Any] = {"length": 200 if float(lengths.mean()) >= _LONG else 50}
    length = found["length"] if "length" in config.from_data else config.model.length
    found |= {
        "dim": 64 if int(lengths.sum()) < _MUCH else 128,
        "dropout": 0.5 if float(lengths.mean()) < _SHORT else 0.2,
        "stride": max(1, length // 2) if int(lengths.max()) > length else None,
    }
    stride = (found["stride"] if "stride" in config.from_data else config.training.stride) or length
    inputs = lengths[lengths > 1] - 1  # one interaction alone has nothing to predict, and is no window
    windows = int((1 + np.ceil(np.maximum(inputs - length, 0) / stride)).sum())  # but for where the cuts fall
    positions = float(np.minimum(inputs, length).sum()) / max(1, len(inputs))  # of a window, about
    fitting = (batch for batch in _BATCHES if windows >= _STEPS * batch and batch * positions <= _POSITIONS)
    found["batch"] = next(fitting, _BATCHES[-1])
    found["loss"] = "softmax" if int(train.items.max()) <= _FULL else "sampled_softmax"
    chosen: dict[str, Any] = {name: found[name] for name in config.from_data}
    model: dict[str, Any] = {name: chosen.pop(name) for name in ("length", "dim", "dropout") if name in chosen}
    if chosen.get("loss") == "sampled_softmax":
        chosen["negatives"] = _NEGATIVES
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "training": config.training.model_copy(update=chosen),
            "from_data": [],
        }
    )


def describe(before: RunConfig, after: RunConfig) -> str:
    """What was set by the data, in words; empty if nothing was left to it."""
    if isinstance(before, AutoRecRunConfig) or isinstance(after, AutoRecRunConfig):
        return ""
    found = {name: getattr(after.model, name, None) or getattr(after.training, name) for name in before.from_data}
    return ", ".join(
        "windows that do not overlap" if name == "stride" and value is None else f"{name} {value}"
        for name, value in found.items()
    )
