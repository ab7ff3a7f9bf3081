"""Forged ids of a large catalogue: arrays in place of the list, that do not fit each other or are no ids."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import save_array
from models.manifest import MANIFEST, MAPPED_VOCABULARY, VOCABULARY
from models.vocabulary import laid_out
from reliability.damage import Damage, Named
from reliability.forged_text import reseal

Array = NDArray[Any]


def forged_ids() -> list[Named]:
    text, ends, digests, rows = MAPPED_VOCABULARY
    changes: dict[tuple[str, str], Callable[[Array], Array]] = {
        (text, "a byte less"): lambda array: array[:-1],
        (text, "no text"): lambda array: np.where(np.arange(len(array)) == 5, 0xFF, array).astype(np.uint8),
        (text, "half a character"): lambda array: np.append(array[:-1], np.uint8(0xC3)),
        (ends, "one less"): lambda array: array[:-1],
        (ends, "going back"): lambda array: np.r_[array[:2], array[4], array[3:]],
        (ends, "beyond"): lambda array: np.r_[array[:-1], array[-1] + 1],
        (ends, "around the largest number"): lambda array: np.r_[0, 2**63 - 1, -(2**63), -1, array[4:]],
        (digests, "not sorted"): lambda array: array[::-1],
        (digests, "of others"): lambda array: np.sort(~array),
        (digests, "all alike"): lambda array: np.full_like(array, array[0]),
        (rows, "not sorted so"): lambda array: np.roll(array, 1),
        (rows, "beyond"): lambda array: array + 1,
        (rows, "below"): lambda array: -array,
        (rows, "twice"): lambda array: np.r_[array[1], array[1:]],
    }
    return [Named(f"{name}: {how}", _instead(name, change)) for (name, how), change in changes.items()]


def _instead(name: str, change: Callable[[Array], Array]) -> Damage:
    def damage(folder: Path, random: np.random.Generator) -> Sequence[str]:
        ids = json.loads((folder / VOCABULARY).read_bytes())
        (folder / VOCABULARY).unlink()
        arrays: dict[str, Array] = dict(zip(MAPPED_VOCABULARY, laid_out(ids), strict=True))
        for one, array in (arrays | {name: change(arrays[name])}).items():
            save_array(folder / one, array)
        fields = json.loads((folder / MANIFEST).read_bytes())
        fields["files"] = dict.fromkeys(fields["files"].keys() - {VOCABULARY} | arrays.keys(), "")
        (folder / MANIFEST).write_text(json.dumps(fields), encoding="utf-8")
        reseal(folder)
        return MAPPED_VOCABULARY

    return damage
