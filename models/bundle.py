"""The bundle: an exported model as a folder that is immutable, self-describing, checksummed and self-testing.

It is the one place where training and service meet. Only the bundle translates between external ids (strings) and
indices, so a retrained model may renumber its items without touching a stored history.

`read_bundle` verifies every digest before anything is used: onnxruntime loads a graph with flipped bits without a word.
models/draft.py writes bundles.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Shape, load_archive, load_array
from models.cold import Learned
from models.graphs import check_graph
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
    OPTIONAL,
    POPULARITY,
    QUANTISED,
    RANKER,
    REQUIRED,
    SCALES,
    SCAN,
    SHORTLIST,
    VOCABULARY,
    BundleError,
    Manifest,
    open_own,
    plain,
    read_json,
    read_manifest,
)
from models.neighbours import Neighbours
from models.quantised import Quantised
from models.sequence import PADDING
from models.vocabulary import Ids, MappedIndex, opened

GOLDEN_ARRAYS: dict[str, tuple[type[np.number[Any]], Shape]] = {
    "sequences": (np.int64, (None, None)),
    "lengths": (np.int64, (None,)),
    "excluded": (np.int64, (None, None)),
    "vectors": (np.float32, (None, None)),
    "indices": (np.int64, (None, None)),
    "scores": (np.float32, (None, None)),
}
_CHUNK_BYTES = 1 << 20
_ID_BYTES = 1 << 11  # of an id in the vocabulary: 256, each of which may be written as an escape of six characters
_ATTRIBUTE_BYTES = 1 << 14  # of an item, on average; beside _SPARE_BYTES
_SPARE_BYTES = 1 << 20
_LARGEST = float(np.finfo(np.float64).max)
_LISTED = 5  # names in a message
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
    ids: Ids
    index_of: Mapping[str, int]
    popularity: NDArray[np.float32]
    attributes: Mapping[str, list[Any]] | None
    golden: Golden
    neighbours: Neighbours | None = None
    inputs: NDArray[np.float32] | None = None
    quantised: Quantised | None = None
    learned: Learned | None = None

    @property
    def scan(self) -> Path | None:
        """The graph that finds candidates; without one the ranker takes the whole catalogue at once."""
        return self.folder / SCAN if SCAN in self.manifest.files else None

    @property
    def shortlist(self) -> Path | None:
        """The graph that finds candidates on a GPU by items in float16."""
        return self.folder / SHORTLIST if SHORTLIST in self.manifest.files else None

    @property
    def encoder(self) -> Path:
        return self.folder / ENCODER

    @property
    def ranker(self) -> Path:
        return self.folder / RANKER

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id, PADDING for one that this model does not know: int64 (ids,)."""
        if isinstance(self.index_of, MappedIndex):
            return self.index_of.rows(ids)
        return np.array([self.index_of.get(one, PADDING) for one in ids], np.int64)

    def known(self, ids: Sequence[str]) -> list[bool]:
        """Whether this model knows each id."""
        return [row != PADDING for row in self.rows_of(ids).tolist()]

    def indices(self, history: list[str]) -> NDArray[np.int64]:
        """Item indices of the ids this model knows, in order; the others are left out."""
        if isinstance(self.index_of, MappedIndex):
            rows = self.index_of.rows(history)
            return np.extract(rows != PADDING, rows)
        return np.array(list(filter(None, map(self.index_of.get, history))), np.int64)  # every request comes by here


def read_bundle(folder: Path) -> Bundle:
    """Verify a bundle and open it.

    Raises BundleError, naming the file and the reason, if anything in it is not what its manifest says.
    """
    manifest = verify(folder)
    rows = manifest.items + 1
    items = load_array(folder / ITEMS, np.float32, (rows, manifest.dim), mapped=True)
    popularity = load_array(folder / POPULARITY, np.float32, (rows,))
    if popularity.min() < 0:
        raise BundleError(f"{folder / POPULARITY}: holds {popularity.min()}, a count of interactions is 0 or more")
    ids, index_of = _load_vocabulary(folder, manifest)
    attributes = _load_attributes(folder / ATTRIBUTES, rows) if ATTRIBUTES in manifest.files else None
    golden = _load_golden(folder / GOLDEN, manifest)
    neighbours = _load_neighbours(folder, manifest)
    inputs = None
    if INPUTS in manifest.files:
        inputs = load_array(folder / INPUTS, np.float32, (rows, None), mapped=True)
    quantised = _load_quantised(folder, manifest, items)
    beside = neighbours, inputs, quantised, _load_learned(folder, manifest)
    return Bundle(folder, manifest, items, ids, index_of, popularity, attributes, golden, *beside)


def verify(folder: Path) -> Manifest:
    """Check a bundle's format, its list of files and their digests, and return its manifest.

    Raises BundleError, naming the file and the reason.
    """
    manifest = read_manifest(folder)
    expected, found_there = {MANIFEST, *manifest.files}, {entry.name for entry in folder.iterdir()}
    if unknown := (found_there - expected) | (expected - _KNOWN):
        raise BundleError(f"{folder}: {_listed(unknown)} does not belong in a bundle")
    if missing := {*REQUIRED, *manifest.files} - found_there:
        raise BundleError(f"{folder}: {_listed(missing)} missing")
    for name, digest in manifest.files.items():
        path = folder / name
        found = sha256(path)
        if found != digest:
            raise BundleError(
                f"{path}: sha256 is {found[:12]}..., manifest says {digest[:12]}...; restore or re-export"
            )
    for name in (ENCODER, RANKER, *sorted({SCAN, SHORTLIST} & set(manifest.files))):
        check_graph(folder / name)
    return manifest


def _listed(names: set[str]) -> str:
    shown = ", ".join(plain(name) for name in sorted(names)[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


def _has_both(folder: Path, manifest: Manifest, one: str, other: str) -> bool:
    """Whether two files are there that belong together. Raises BundleError if only one is."""
    present = {one, other} & set(manifest.files)
    if len(present) == 1:
        raise BundleError(f"{folder}: has {present.pop()} alone; {one} and {other} belong together")
    return bool(present)


def _load_neighbours(folder: Path, manifest: Manifest) -> Neighbours | None:
    if not _has_both(folder, manifest, NEIGHBOURS, AFFINITIES):
        return None
    rows = manifest.items + 1
    items = load_array(folder / NEIGHBOURS, np.int32, (rows, None), mapped=True)
    affinities = load_array(folder / AFFINITIES, np.float32, items.shape, mapped=True)
    if items.min(initial=0) < 0 or items.max(initial=0) >= rows:
        raise BundleError(f"{folder / NEIGHBOURS}: holds an item outside the rows 0 to {rows - 1}")
    if items[PADDING].any() or affinities[PADDING].any():
        raise BundleError(f"{folder / NEIGHBOURS}: row {PADDING} is no item and must have no neighbours")
    return Neighbours(items, affinities)


def _load_learned(folder: Path, manifest: Manifest) -> Learned | None:
    if not _has_both(folder, manifest, LEARNED, LEARNED_NAMES):
        return None
    vectors = load_array(folder / LEARNED, np.float32, (None, manifest.dim), mapped=True)
    where = folder / LEARNED_NAMES
    _, names = read_json(where, _SPARE_BYTES + len(vectors) * _ATTRIBUTE_BYTES)
    if not isinstance(names, list) or len(names) != len(vectors):
        raise BundleError(f"{where}: must be a list of {len(vectors)} names, one a vector")
    for row, name in enumerate(names):
        if not isinstance(name, list) or [type(part) for part in name] != [str, str]:
            raise BundleError(
                f"{where}: row {row} holds {plain(repr(name))}; a name is a column and a value, both text"
            )
    return Learned([(column, value) for column, value in names], vectors)


def _load_quantised(folder: Path, manifest: Manifest, items: NDArray[np.float32]) -> Quantised | None:
    """The int8 matrix. Raises BundleError if its parts are not all there or contradict what the manifest promises."""
    expected = {SCAN, QUANTISED, SCALES} if manifest.scoring.kind == "int8" else {SCAN} & set(manifest.files)
    found = {SCAN, QUANTISED, SCALES} & set(manifest.files)
    if found != expected:
        parts = ", ".join(sorted(found ^ expected))
        raise BundleError(f"{folder}: scoring is {manifest.scoring.kind}, which {parts} contradicts; export it again")
    if manifest.scoring.kind == "float32":
        return None
    levels = load_array(folder / QUANTISED, np.uint8, (manifest.items + 1, manifest.dim), mapped=True)
    scales = load_array(folder / SCALES, np.float32, (manifest.dim,))
    if (scales <= 0).any():
        raise BundleError(f"{folder / SCALES}: holds {scales.min()}, a scale must be positive; export it again")
    return Quantised.beside(items, levels, scales)


def _load_vocabulary(folder: Path, manifest: Manifest) -> tuple[Ids, Mapping[str, int]]:
    """Ids by row and rows by id, of whichever of its two forms the bundle has."""
    kinds: tuple[type[np.number[Any]], ...] = (np.uint8, np.int64, np.uint64, np.int32)
    found = {VOCABULARY, *MAPPED_VOCABULARY} & set(manifest.files)
    if found not in ({VOCABULARY}, set(MAPPED_VOCABULARY)):
        raise BundleError(
            f"{folder}: has {_listed(found) or 'no ids'}; {VOCABULARY} or all of the ids' arrays belong there"
        )
    if VOCABULARY in found:
        return _load_ids(folder / VOCABULARY, manifest.items + 1)
    text, ends, digests, rows = (
        load_array(folder / name, kind, (None,), mapped=True)
        for name, kind in zip(MAPPED_VOCABULARY, kinds, strict=True)
    )
    where = folder / MAPPED_VOCABULARY[0]
    if len(rows) != manifest.items:
        raise BundleError(f"{where}: holds {len(rows)} ids, manifest says {manifest.items}")
    try:
        return opened(text, ends, digests, rows)
    except ValueError as error:
        raise BundleError(f"{where} and the arrays beside it: {error}") from error


def _load_ids(path: Path, rows: int) -> tuple[list[str], dict[str, int]]:
    _, ids = read_json(path, _SPARE_BYTES + rows * _ID_BYTES)
    if not isinstance(ids, list) or len(ids) != rows or not all(isinstance(item, str) for item in ids):
        raise BundleError(f"{path}: must be a list of {rows} ids, one a row")
    try:
        "".join(ids).encode()
    except UnicodeEncodeError as error:
        raise BundleError(f"{path}: holds an id that is no text and could not be sent: {error}") from error
    index_of = {item: row for row, item in enumerate(ids) if row != PADDING}
    if ids[PADDING] != "" or "" in index_of:
        raise BundleError(f"{path}: the id of row {PADDING}, and of no other row, must be empty")
    if len(index_of) != rows - 1:
        raise BundleError(f"{path}: {rows - 1 - len(index_of)} ids occur twice")
    return ids, index_of


def _load_attributes(path: Path, rows: int) -> dict[str, list[Any]]:
    _, attributes = read_json(path, _SPARE_BYTES + rows * _ATTRIBUTE_BYTES)
    if not isinstance(attributes, dict) or any(
        not isinstance(column, list) or len(column) != rows for column in attributes.values()
    ):
        raise BundleError(f"{path}: every column must be a list of {rows} values, one a row")
    for name, column in attributes.items():
        for row, entry in enumerate(column):
            for value in entry if isinstance(entry, list) else (entry,):
                if not _filterable(value):
                    raise BundleError(
                        f"{path}: column {plain(name)}, row {row} holds {plain(repr(value))}; a value is text, a "
                        "finite number, true, false, null or a list of these"
                    )
    return attributes


def _filterable(value: object) -> bool:
    """Whether a value is one that filters compare; numbers as floats, which some whole numbers are too large for."""
    if isinstance(value, int | float):
        return -_LARGEST <= value <= _LARGEST
    return value is None or isinstance(value, str)


def _load_golden(path: Path, manifest: Manifest) -> Golden:
    arrays = load_archive(path, GOLDEN_ARRAYS | {"values": GOLDEN_ARRAYS["scores"]})
    if missing := sorted(GOLDEN_ARRAYS.keys() - arrays.keys()):
        raise BundleError(f"{path}: cannot be read as golden inputs: {', '.join(missing)} missing")
    golden = Golden(**arrays)
    cases, width = golden.sequences.shape
    for name, array in arrays.items():
        if len(array) != cases:
            raise BundleError(f"{path}: {name} has {len(array)} rows, expected {cases}")
    if golden.values is not None and golden.values.shape != golden.sequences.shape:
        raise BundleError(f"{path}: values have shape {golden.values.shape}, sequences {golden.sequences.shape}")
    if golden.vectors.shape[1] != manifest.dim:
        raise BundleError(f"{path}: vectors have {golden.vectors.shape[1]} columns, manifest says {manifest.dim}")
    if golden.indices.shape != golden.scores.shape:
        raise BundleError(f"{path}: indices have shape {golden.indices.shape}, scores {golden.scores.shape}")
    bounds = {"sequences": manifest.items, "excluded": manifest.items, "indices": manifest.items, "lengths": width}
    for name, most in bounds.items():
        if arrays[name].min() < 0 or arrays[name].max() > most:
            raise BundleError(f"{path}: {name} holds a number outside 0 to {most}")
    return golden


def sha256(path: Path) -> str:
    """Digest of a file. Raises BundleError if it is not one, or a link."""
    digest = hashlib.sha256()
    with open_own(path) as file:
        try:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error}") from error
    return digest.hexdigest()
