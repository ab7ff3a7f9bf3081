"""The bundle: an exported model as a folder that is immutable, self-describing, checksummed and self-testing.

It is the one place where training and service meet. Only the bundle translates between external ids (strings) and
indices, so a retrained model may renumber its items without touching a stored history.

`write_bundle` writes a draft, syncs it and renames it: a bundle is complete or absent. `read_bundle` verifies every
digest before anything is used: onnxruntime loads a graph with flipped bits without a word.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from models import VERSION
from models.neighbours import Neighbours
from models.scan import Quantised
from models.sequence import PADDING

FORMAT = 1  # raised when an older reader could misread a newer bundle
READER = "0.1.0"  # oldest version that reads what this one writes
MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
RANKER = "ranker.onnx"
ITEMS = "items.npy"
VOCABULARY = "vocabulary.json"
POPULARITY = "popularity.npy"
ATTRIBUTES = "attributes.json"
GOLDEN = "golden.npz"
NEIGHBOURS = "neighbours.npy"
AFFINITIES = "affinities.npy"
INPUTS = "inputs.npy"
SCAN = "scan.onnx"
QUANTISED = "items8.npy"
SCALES = "scales.npy"
VERSION_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"  # what a version may be called: one plain folder
REQUIRED = (ENCODER, RANKER, ITEMS, VOCABULARY, POPULARITY, GOLDEN)
OPTIONAL = (ATTRIBUTES, NEIGHBOURS, AFFINITIES, INPUTS, SCAN, QUANTISED, SCALES)

_GOLDEN_SHAPES = {"sequences": 2, "lengths": 1, "excluded": 2, "vectors": 2, "indices": 2, "scores": 2}
_CHUNK_BYTES = 1 << 20


class BundleError(Exception):
    """A bundle that must not serve; the message names the folder and what is wrong with it."""


class DataWindow(BaseModel):
    """What the model was trained on. Times in epoch milliseconds, None where the data had none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, str]  # name -> sha256
    users: int
    items: int
    interactions: int
    first_ms: int | None = None
    last_ms: int | None = None
    trained_until_ms: int | None = None  # newest interaction that weights were fitted to; later ones were held out


class Parity(BaseModel):
    """How far the graphs were from torch when the bundle was made, over a grid of batch sizes and lengths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: int
    largest_difference: float  # of a score
    top_k_agreed: bool


class Scoring(BaseModel):
    """How the catalogue is searched, and what was measured when that was chosen; on small catalogues nothing is.

    recall_at_10: share of the exact first ten items that the int8 scan finds. Milliseconds of ranking by batch size,
    on the machine that exported; milliseconds_exact beside them those of the exact scan.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["exact", "approximate"] = "exact"
    recall_at_10: float | None = None
    milliseconds_exact: dict[int, float] = Field(default_factory=dict)
    milliseconds_int8: dict[int, float] = Field(default_factory=dict)


class Manifest(BaseModel):
    """What is in a bundle and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    reader: str = Field(READER, pattern=r"^\d+\.\d+\.\d+$")  # oldest version that can read it
    version: str = Field(pattern=f"^{VERSION_NAME}$")
    created: str  # RFC 3339
    model: str
    items: int = Field(ge=1)
    dim: int = Field(ge=1)
    length: int = Field(ge=1)  # longest history the encoder reads
    config: dict[str, JsonValue]
    seed: int
    data: DataWindow
    metrics: dict[str, JsonValue]
    parity: Parity
    scoring: Scoring = Scoring()
    files: dict[str, str] = Field(default_factory=dict)  # name -> sha256
    # sha256 of the manifest's own file without these 64 characters; the last field, where `sealed` puts it
    seal: str = Field("", pattern=r"^([0-9a-f]{64})?$")


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
class Content:
    """Everything a bundle holds, before it is written; row 0 of every per-item array is padding."""

    manifest: Manifest
    encoder: bytes
    ranker: bytes
    items: NDArray[np.float32]  # (items + 1, dim)
    ids: list[str]  # external id of every row; "" for padding
    popularity: NDArray[np.float32]  # (items + 1,) interactions of each item
    attributes: Mapping[str, list[Any]] | None  # column -> a value for every row
    golden: Golden
    neighbours: Neighbours | None = None  # added to the scores, by a ranker that reads them
    inputs: NDArray[np.float32] | None = None  # (items + 1, any): what the encoder reads items as, if not as `items`
    scan: bytes | None = None  # the graph that finds candidates in a large catalogue
    quantised: Quantised | None = None  # what it reads, if not `items`


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


def write_bundle(artifacts: Path, content: Content) -> Path:
    """Write a bundle to `artifacts/<version>` and return that folder.

    It appears under its name complete, synced to disk and read-only, or not at all.
    Raises BundleError if the version exists already.
    """
    target = artifacts / content.manifest.version
    artifacts.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=artifacts))
    try:
        (draft / ENCODER).write_bytes(content.encoder)
        (draft / RANKER).write_bytes(content.ranker)
        np.save(draft / ITEMS, np.ascontiguousarray(content.items, np.float32), allow_pickle=False)
        np.save(draft / POPULARITY, content.popularity.astype(np.float32), allow_pickle=False)
        _write_json(draft / VOCABULARY, content.ids)
        if content.attributes is not None:
            _write_json(draft / ATTRIBUTES, dict(content.attributes))
        if content.neighbours is not None:
            np.save(draft / NEIGHBOURS, content.neighbours.items.astype(np.int32), allow_pickle=False)
            np.save(draft / AFFINITIES, content.neighbours.affinities.astype(np.float32), allow_pickle=False)
        if content.inputs is not None:
            np.save(draft / INPUTS, np.ascontiguousarray(content.inputs, np.float32), allow_pickle=False)
        if content.scan is not None:
            (draft / SCAN).write_bytes(content.scan)
        if content.quantised is not None:
            np.save(draft / QUANTISED, content.quantised.items, allow_pickle=False)
            np.save(draft / SCALES, content.quantised.scales, allow_pickle=False)
        golden = {name: getattr(content.golden, name) for name in _GOLDEN_SHAPES}
        if content.golden.values is not None:
            golden["values"] = content.golden.values
        np.savez(draft / GOLDEN, allow_pickle=False, **golden)
        digests = {path.name: _sha256(path) for path in sorted(draft.iterdir())}
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
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # does nothing after the rename
    return target


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
        found = _sha256(path)
        if found != digest:
            raise BundleError(
                f"{path}: sha256 is {found[:12]}..., manifest says {digest[:12]}...; restore or re-export"
            )
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, without a look at the other files. Raises BundleError if there is none to be read."""
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            raise BundleError(f"{path}: must be a regular file of the bundle's own, not a link")
        raw = path.read_bytes()
        fields = json.loads(raw)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as JSON: {error}") from error
    # Before the fields are checked: a newer format may have fields that this reader does not know.
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else fields
        raise BundleError(
            f"{path}: format is {found!r}, this version ({VERSION}) reads {FORMAT}; export the model again"
        )
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path}: {where}: {first['msg']} (found {first['input']!r})") from error
    if hashlib.sha256(raw.replace(manifest.seal.encode(), b"")).hexdigest() != manifest.seal:
        raise BundleError(f"{path}: has changed since it was written (its seal is another); restore or re-export")
    if _numbers(manifest.reader) > _numbers(VERSION):
        raise BundleError(f"{path}: needs version {manifest.reader} or later, this is {VERSION}; update the service")
    if manifest.version != folder.name:
        raise BundleError(f"{path}: version is {manifest.version}, the folder is called {folder.name}")
    return manifest


def sealed(manifest: Manifest) -> bytes:
    """A manifest as the bytes of its file, with the digest that guards them: it guards every other file."""
    text = manifest.model_copy(update={"seal": ""}).model_dump_json(indent=2) + "\n"
    before, after = text.rsplit('""', 1)
    return f'{before}"{hashlib.sha256(text.encode()).hexdigest()}"{after}'.encode()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


_KNOWN = {MANIFEST, *REQUIRED, *OPTIONAL}


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
            golden = Golden(**{name: arrays[name] for name in _GOLDEN_SHAPES}, values=values)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: cannot be read as golden inputs: {error}") from error
    cases = len(golden.lengths)
    for name, dimensions in _GOLDEN_SHAPES.items():
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


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")), encoding="utf-8")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
