"""The manifest of a bundle: what is in it, where it comes from, and the digests that everything else is held to."""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from models import VERSION

FORMAT = 2  # raised when an older reader could misread a newer bundle, or a newer one cannot read an older
READER = "0.1.0"  # oldest version that reads what this one writes
MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
RANKER = "ranker.onnx"
ITEMS = "items.npy"
VOCABULARY = "vocabulary.json"
MAPPED_VOCABULARY = ("ids.npy", "id_ends.npy", "id_digests.npy", "id_rows.npy")  # instead, of a large catalogue
POPULARITY = "popularity.npy"
ATTRIBUTES = "attributes.json"
LEARNED = "attribute_vectors.npy"
LEARNED_NAMES = "attribute_names.json"
GOLDEN = "golden.npz"
NEIGHBOURS = "neighbours.npy"
AFFINITIES = "affinities.npy"
INPUTS = "inputs.npy"
SCAN = "scan.onnx"
SHORTLIST = "shortlist.onnx"
QUANTISED = "items8.npy"
SCALES = "scales.npy"
VERSION_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"  # what a version may be called: one plain folder
REQUIRED = (ENCODER, RANKER, ITEMS, POPULARITY, GOLDEN)
OPTIONAL = (
    VOCABULARY,
    *MAPPED_VOCABULARY,
    ATTRIBUTES,
    LEARNED,
    LEARNED_NAMES,
    NEIGHBOURS,
    AFFINITIES,
    INPUTS,
    SCAN,
    SHORTLIST,
    QUANTISED,
    SCALES,
)

_MANIFEST_BYTES = 1 << 24
_SHOWN = 200  # characters of what is wrong


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
    """What is read of every item when the catalogue is searched, and what was measured when that was chosen; on small
    catalogues nothing is.

    Milliseconds of ranking by batch size, on the machine that exported, over either kind; recall_int8: the share of the
    ten best over float32 that int8 found, None where it was not asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["float32", "int8"] = "float32"
    milliseconds_float32: dict[int, float] = Field(default_factory=dict)
    milliseconds_int8: dict[int, float] = Field(default_factory=dict)
    recall_int8: float | None = None


class Manifest(BaseModel):
    """What is in a bundle and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    reader: str = Field(READER, pattern=r"^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}$")  # oldest version that can read it
    version: str = Field(pattern=f"^{VERSION_NAME}$")
    created: str  # RFC 3339
    model: str
    items: int = Field(ge=1, le=2**31 - 2)  # rows are numbered in 32 bits
    dim: int = Field(ge=1, le=1 << 16)
    length: int = Field(ge=1, le=1 << 14)  # longest history the encoder reads
    config: dict[str, JsonValue]
    seed: int
    data: DataWindow
    metrics: dict[str, JsonValue]
    parity: Parity
    scoring: Scoring = Scoring()
    files: dict[str, str] = Field(default_factory=dict)  # name -> sha256
    # sha256 of the manifest's own file without these 64 characters; the last field, where `sealed` puts it
    seal: str = Field("", pattern=r"^([0-9a-f]{64})?$")


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, without a look at the other files. Raises BundleError if there is none to be read."""
    path = folder / MANIFEST
    if folder.is_symlink():
        raise BundleError(f"{folder}: must be a folder of its own, not a link; copy the bundle there")
    raw, fields = read_json(path, _MANIFEST_BYTES)
    # Before the fields are checked: a newer format may have fields that this reader does not know.
    found = fields.get("format") if isinstance(fields, dict) else fields
    if type(found) is not int or found != FORMAT:
        raise BundleError(
            f"{path}: format is {_short(found)}, this version ({VERSION}) reads {FORMAT}; export the model again"
        )
    try:
        manifest = Manifest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path}: {plain(where)}: {first['msg']} (found {_short(first['input'])})") from error
    if hashlib.sha256(raw.replace(manifest.seal.encode(), b"")).hexdigest() != manifest.seal:
        raise BundleError(f"{path}: has changed since it was written (its seal is another); restore or re-export")
    if _numbers(manifest.reader) > _numbers(VERSION):
        raise BundleError(f"{path}: needs version {manifest.reader} or later, this is {VERSION}; update the service")
    if manifest.version != folder.name:
        raise BundleError(f"{path}: version is {manifest.version}, the folder is called {plain(folder.name)}")
    return manifest


def open_own(path: Path) -> BinaryIO:
    """Open a file to read. Raises BundleError unless it is a regular file that has no other name."""
    try:
        # Without waiting: a pipe in place of a file would hold its reader up for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        link = error.errno == errno.ELOOP
        reason = "must be a regular file of the bundle's own, not a link" if link else f"cannot be read: {error}"
        raise BundleError(f"{path}: {reason}") from error
    file = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if file is None:
        os.close(descriptor)
        raise BundleError(f"{path}: must be a regular file of the bundle's own, not a link or a folder")
    if os.fstat(descriptor).st_nlink > 1:  # and could be changed by its other name, outside of the folder
        file.close()
        raise BundleError(f"{path}: must be a file of the bundle's own, not a hard link; copy it there")
    return file


def read_json(path: Path, most_bytes: int) -> tuple[bytes, Any]:
    """A file of JSON, as bytes and as what they say. Raises BundleError, for one that is too large to be one too."""
    with open_own(path) as file:
        raw = file.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise BundleError(f"{path}: has more than the {most_bytes} bytes that can be expected of it")
    try:
        return raw, json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read as JSON: {error}") from error


def plain(name: str) -> str:
    """A name that may have been given to a file by anybody, as text that can be sent and is not too long."""
    text = name.encode(errors="backslashreplace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _short(value: object) -> str:
    return plain(repr(value))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def sealed(manifest: Manifest) -> bytes:
    """A manifest as the bytes of its file, with the digest that guards them: it guards every other file."""
    text = manifest.model_copy(update={"seal": ""}).model_dump_json(indent=2) + "\n"
    before, after = text.rsplit('""', 1)
    return f'{before}"{hashlib.sha256(text.encode()).hexdigest()}"{after}'.encode()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
