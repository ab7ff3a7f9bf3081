"""Writing a bundle: as a draft that is synced and renamed, so that a bundle is complete or absent."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import save_array
from models.bundle import GOLDEN_ARRAYS, Golden, sha256
from models.cold import Learned
from models.durable import sync
from models.manifest import (
    AFFINITIES,
    ATTRIBUTES,
    ENCODER,
    GOLDEN,
    INPUTS,
    ITEMS,
    LEARNED,
    LEARNED_NAMES,
    MANIFEST,
    MAPPED_VOCABULARY,
    NEIGHBOURS,
    POPULARITY,
    QUANTISED,
    RANKER,
    SCALES,
    SCAN,
    SHORTLIST,
    VOCABULARY,
    BundleError,
    Manifest,
    sealed,
)
from models.neighbours import Neighbours
from models.quantised import Quantised
from models.vocabulary import MAPPED_FROM, Ids, laid_out

_DEAD_S = 24 * 3600  # since the newest file of a draft, after which nobody is writing it


@dataclass(frozen=True, slots=True)
class Content:
    """Everything a bundle holds, before it is written; row 0 of every per-item array is padding."""

    manifest: Manifest
    encoder: bytes
    ranker: bytes
    items: NDArray[np.float32]  # (items + 1, dim)
    ids: Ids  # external id of every row; "" for padding
    popularity: NDArray[np.float32]  # (items + 1,) interactions of each item
    attributes: Mapping[str, list[Any]] | None  # column -> a value for every row
    golden: Golden
    neighbours: Neighbours | None = None  # added to the scores, by a ranker that reads them
    inputs: NDArray[np.float32] | None = None  # (items + 1, any): what the encoder reads items as, if not as `items`
    scan: bytes | None = None  # the graph that finds candidates in a large catalogue
    quantised: Quantised | None = None  # what it reads, if not `items`
    shortlist: bytes | None = None  # the graph that finds candidates by items in float16
    learned: Learned | None = None  # what the model knows of attributes by themselves


def write_bundle(artifacts: Path, content: Content) -> Path:
    """Write a bundle to `artifacts/<version>` and return that folder.

    It appears under its name complete, synced to disk and read-only, or not at all.
    Raises BundleError if the version exists already.
    """
    target = artifacts / content.manifest.version
    artifacts.mkdir(parents=True, exist_ok=True)
    with _drafted(artifacts) as draft:
        (draft / ENCODER).write_bytes(content.encoder)
        (draft / RANKER).write_bytes(content.ranker)
        save_array(draft / ITEMS, content.items.astype(np.float32, copy=False))
        save_array(draft / POPULARITY, content.popularity.astype(np.float32))
        _write_vocabulary(draft, content.ids)
        if content.attributes is not None:
            _write_json(draft / ATTRIBUTES, dict(content.attributes))
        if content.learned is not None:
            save_array(draft / LEARNED, content.learned.vectors.astype(np.float32, copy=False))
            _write_json(draft / LEARNED_NAMES, content.learned.names)
        if content.neighbours is not None:
            save_array(draft / NEIGHBOURS, content.neighbours.items.astype(np.int32))
            save_array(draft / AFFINITIES, content.neighbours.affinities.astype(np.float32))
        if content.inputs is not None:
            save_array(draft / INPUTS, content.inputs.astype(np.float32, copy=False))
        if content.scan is not None:
            (draft / SCAN).write_bytes(content.scan)
        if content.shortlist is not None:
            (draft / SHORTLIST).write_bytes(content.shortlist)
        if content.quantised is not None:
            save_array(draft / QUANTISED, content.quantised.items)
            save_array(draft / SCALES, content.quantised.scales)
        golden = {name: getattr(content.golden, name) for name in GOLDEN_ARRAYS}
        if content.golden.values is not None:
            golden["values"] = content.golden.values
        np.savez(draft / GOLDEN, allow_pickle=False, **golden)
        digests = {path.name: sha256(path) for path in sorted(draft.iterdir())}
        manifest = content.manifest.model_copy(update={"files": digests})
        (draft / MANIFEST).write_bytes(sealed(manifest))
        for path in draft.iterdir():
            path.chmod(0o444)
            sync(path)
        draft.chmod(0o755)
        sync(draft)
        try:
            draft.rename(target)  # fails where there is a file or a folder with anything in it
        except OSError as error:
            if not target.exists():
                raise
            raise BundleError(
                f"{target} exists already; a bundle is never changed, export under a new version"
            ) from error
        sync(artifacts)
    return target


@contextmanager
def _drafted(artifacts: Path) -> Iterator[Path]:
    """A new folder to write in, gone at the end if it was not renamed; what writers left who were killed goes too."""
    for left in artifacts.glob(".draft-*"):
        with suppress(OSError):  # another may be taking it away
            if time.time() - max(path.stat().st_mtime for path in (left, *left.iterdir())) > _DEAD_S:
                shutil.rmtree(left)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=artifacts))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # does nothing after the rename


def _write_vocabulary(draft: Path, ids: Ids) -> None:
    if len(ids) <= MAPPED_FROM:
        _write_json(draft / VOCABULARY, list(ids))
        return
    arrays: tuple[NDArray[Any], ...] = laid_out(list(ids))
    for name, array in zip(MAPPED_VOCABULARY, arrays, strict=True):
        save_array(draft / name, array)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")), encoding="utf-8")
