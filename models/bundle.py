"""The bundle: an exported model as a folder that is immutable, self-describing, checksummed and self-testing.

It is the one place where training and service meet. Only the bundle translates between external ids (strings) and
indices, so a retrained model may renumber its items without touching a stored history.

`read_bundle` verifies every digest before anything is used: onnxruntime loads a graph with flipped bits without a word.
models/draft.py writes bundles.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import (
    AFFINITIES,
    ATTRIBUTES,
    ENCODER,
    GOLDEN,
    INPUTS,
    ITEMS,
    MANIFEST,
    NEIGHBOURS,
    OPTIONAL,
    POPULARITY,
    QUANTISED,
    RANKER,
    REQUIRED,
    SCALES,
    SCAN,
    VOCABULARY,
    BundleError,
    Manifest,
    read_manifest,
)
from models.neighbours import Neighbours
from models.scan import Quantised
from models.sequence import PADDING

GOLDEN_SHAPES = {"sequences": 2, "lengths": 1, "excluded": 2, "vectors": 2, "indices": 2, "scores": 2}
_CHUNK_BYTES = 1 << 20
_KNOWN = {MANIFEST, *REQUIRED, *OPTIONAL}


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs with the answers torch gave, replayed before a bundle may serve.

    sequences int64 (cases, width), lengths int64 (cases,), excluded int64 (cases, any), vectors float32 (cases, dim),
    indices int64 (cases, k), scores float32 (cases, k). values float32 (cases, width), NaN where an event has none, for
    an encoder that reads ratings.
    """

    sequences: NDArray[np.int64]
    lengths: NDArray[np.int64]
    excluded: NDArray[np.int64]
    vectors: NDArray[np.float32]
    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    values: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk; what has a row an item is memory-mapped, so that processes share it."""

    folder: Path
    manifest: Manifest
    items: NDArray[np.float32]
    ids: list[str]
    index_of: dict[str, int]
    popularity: NDArray[np.float32]
    attributes: Mapping[str, list[Any]] | None
    golden: Golden
    neighbours: Neighbours | None = None
    inputs: NDArray[np.float32] | None = None
    quantised: Quantised | None = None

    @property
    def scan(self) -> Path | None:
        """The graph that finds candidates; without one the ranker takes the whole catalogue at once."""
        return self.folder / SCAN if SCAN in self.manifest.files else None

    @property
    def encoder(self) -> Path:
        return self.folder / ENCODER

    @property
    def ranker(self) -> Path:
        return self.folder / RANKER

    def indices(self, history: list[str]) -> NDArray[np.int64]:
        """Item indices of the ids this model knows, in order; the others are left out."""
        known = map(self.index_of.get, history)
        return np.fromiter((index for index in known if index is not None), np.int64)


def read_bundle(folder: Path) -> Bundle:
    """Verify a bundle and open it.

    Raises BundleError, naming the file and the reason, if anything in it is not what its manifest says.
    """
    manifest = verify(folder)
    rows = manifest.items + 1
    items = _load_array(folder / ITEMS, np.float32, (rows, manifest.dim), mapped=True)
    popularity = _load_array(folder / POPULARITY, np.float32, (rows,))
    ids = _load_json(folder / VOCABULARY)
    if not isinstance(ids, list) or len(ids) != rows or not all(isinstance(item, str) for item in ids):
        raise BundleError(f"{folder / VOCABULARY}: must be a list of {rows} ids, one a row")
    index_of = {item: row for row, item in enumerate(ids) if row != PADDING}
    if ids[PADDING] != "" or "" in index_of:
        raise BundleError(f"{folder / VOCABULARY}: the id of row {PADDING}, and of no other row, must be empty")
    if len(index_of) != manifest.items:
        raise BundleError(f"{folder / VOCABULARY}: {manifest.items - len(index_of)} ids occur twice")
    attributes = None
    if ATTRIBUTES in manifest.files:
        attributes = _load_json(folder / ATTRIBUTES)
        if not isinstance(attributes, dict) or any(
            not isinstance(column, list) or len(column) != rows for column in attributes.values()
        ):
            raise BundleError(f"{folder / ATTRIBUTES}: every column must be a list of {rows} values, one a row")
    golden = _load_golden(folder / GOLDEN, manifest)
    neighbours = _load_neighbours(folder, manifest)
    inputs = None
    if INPUTS in manifest.files:
        inputs = _load_array(folder / INPUTS, np.float32, (rows, None), mapped=True)
    quantised = _load_quantised(folder, manifest)
    return Bundle(folder, manifest, items, ids, index_of, popularity, attributes, golden, neighbours, inputs, quantised)


def verify(folder: Path) -> Manifest:
    """Check a bundle's format, its list of files and their digests, and return its manifest.

    Raises BundleError, naming the file and the reason.
    """
    manifest = read_manifest(folder)
    expected = {MANIFEST, *manifest.files}
    missing = sorted({*REQUIRED, *manifest.files} - {entry.name for entry in folder.iterdir()})
    if missing:
        raise BundleError(f"{folder}: {', '.join(missing)} missing")
    unknown = sorted(({entry.name for entry in folder.iterdir()} - expected) | (expected - _KNOWN))
    if unknown:
        raise BundleError(f"{folder}: {', '.join(unknown)} does not belong in a bundle")
    for name, digest in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path}: must be a regular file of the bundle's own, not a link")
        found = sha256(path)
        if found != digest:
            raise BundleError(
                f"{path}: sha256 is {found[:12]}..., manifest says {digest[:12]}...; restore or re-export"
            )
    return manifest


def _load_neighbours(folder: Path, manifest: Manifest) -> Neighbours | None:
    present = {NEIGHBOURS, AFFINITIES} & set(manifest.files)
    if not present:
        return None
    if len(present) == 1:
        raise BundleError(f"{folder}: has {present.pop()} alone; {NEIGHBOURS} and {AFFINITIES} belong together")
    rows = manifest.items + 1
    items = _load_array(folder / NEIGHBOURS, np.int32, (rows, None), mapped=True)
    affinities = _load_array(folder / AFFINITIES, np.float32, items.shape, mapped=True)
    if items.min(initial=0) < 0 or items.max(initial=0) >= rows:
        raise BundleError(f"{folder / NEIGHBOURS}: holds an item outside the rows 0 to {rows - 1}")
    if items[PADDING].any() or affinities[PADDING].any():
        raise BundleError(f"{folder / NEIGHBOURS}: row {PADDING} is no item and must have no neighbours")
    return Neighbours(items, affinities)


def _load_quantised(folder: Path, manifest: Manifest) -> Quantised | None:
    """The int8 matrix. Raises BundleError if its parts are not all there or contradict what the manifest promises."""
    expected = {SCAN, QUANTISED, SCALES} if manifest.scoring.kind == "approximate" else {SCAN} & set(manifest.files)
    found = {SCAN, QUANTISED, SCALES} & set(manifest.files)
    if found != expected:
        parts = ", ".join(sorted(found ^ expected))
        raise BundleError(f"{folder}: scoring is {manifest.scoring.kind}, which {parts} contradicts; export it again")
    if manifest.scoring.kind == "exact":
        return None
    items = _load_array(folder / QUANTISED, np.uint8, (manifest.items + 1, manifest.dim), mapped=True)
    scales = _load_array(folder / SCALES, np.float32, (manifest.dim,))
    if (scales <= 0).any():
        raise BundleError(f"{folder / SCALES}: holds {scales.min()}, a scale must be positive; export it again")
    return Quantised(items, scales)


def _load_array(
    path: Path, dtype: type[np.number[Any]], shape: tuple[int | None, ...], *, mapped: bool = False
) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as an array: {error}") from error
    fits = array.ndim == len(shape) and all(
        size in (None, found) for size, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise BundleError(f"{path}: is {array.dtype} {array.shape}, manifest says {np.dtype(dtype)} {shape}")
    if np.issubdtype(dtype, np.floating) and not np.isfinite(array).all():
        raise BundleError(f"{path}: holds a value that is not a finite number")
    return array  # type: ignore[no-any-return]


def _load_golden(path: Path, manifest: Manifest) -> Golden:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = arrays.get("values")
            golden = Golden(**{name: arrays[name] for name in GOLDEN_SHAPES}, values=values)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: cannot be read as golden inputs: {error}") from error
    cases = len(golden.lengths)
    for name, dimensions in GOLDEN_SHAPES.items():
        array = getattr(golden, name)
        if array.ndim != dimensions or len(array) != cases or cases == 0:
            raise BundleError(f"{path}: {name} has shape {array.shape}, expected {dimensions} dimensions, {cases} rows")
    if golden.values is not None and golden.values.shape != golden.sequences.shape:
        raise BundleError(f"{path}: values have shape {golden.values.shape}, sequences {golden.sequences.shape}")
    if golden.vectors.shape[1] != manifest.dim:
        raise BundleError(f"{path}: vectors have {golden.vectors.shape[1]} columns, manifest says {manifest.dim}")
    return golden


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as JSON: {error}") from error


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
