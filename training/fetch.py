"""MovieLens-100K, fetched from where its owners or others publish it.

The data may not be passed on, so the project holds none of it: a first run fetches it, checks it, and leaves it in the
shape `read_interactions` and `read_attributes` take.
"""

import hashlib
import http.client
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

INTERACTIONS, ITEMS = 100_000, 1_682
LICENCE_NOTE = (
    "MovieLens-100K is GroupLens's (University of Minnesota): for research use; do not redistribute it or use it "
    "commercially without permission; acknowledge it (Harper & Konstan 2015, doi:10.1145/2827872). GroupLens endorses "
    "neither this project nor its results. Terms: https://files.grouplens.org/datasets/movielens/ml-100k-README.txt"
)
_INTER_HEADER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float"
_ITEM_HEADER = b"item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
_GENRES = (  # in the order of the flags that end a line of u.item
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_YEAR = re.compile(r"\s*\((\d{4})\)")


class FetchError(RuntimeError):
    """The data could not be had; the message names every source that was tried and why each failed."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The contents of ml-100k.inter and ml-100k.item."""

    inter: bytes
    item: bytes


class Source(Protocol):
    """Somewhere the data can be had."""

    def read(self) -> Tables:
        """Give the tables, or raise FetchError, OSError or HTTPException with the reason."""

    def __str__(self) -> str:
        """Name the source in a message."""


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A package that carries the data: its wheel is downloaded and checked, never installed, and two files read."""

    requirement: str
    sha256: str
    timeout_s: float = 120.0

    def __str__(self) -> str:
        return f"the wheel {self.requirement}"

    def read(self) -> Tables:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
            options += ["--retries=1", "--timeout=15", f"--dest={folder}"]
            try:
                run = subprocess.run(  # noqa: S603 - a fixed command on this interpreter
                    [sys.executable, *_pip(), "download", self.requirement, *options],
                    capture_output=True,
                    text=True,
                    timeout=self.timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise FetchError(f"pip did not finish in {self.timeout_s:g} s") from error
            wheels = list(Path(folder).glob("*.whl"))
            if run.returncode or len(wheels) != 1:
                last = (run.stderr.strip() or run.stdout.strip() or "no message").splitlines()[-1]
                raise FetchError(f"pip could not download it ({last})")
            digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
            if digest != self.sha256:
                raise FetchError(f"its sha256 is {digest}, not {self.sha256}, so it was not opened")
            return _from_archive(wheels[0])


@dataclass(frozen=True, slots=True)
class ArchiveSource:
    """A zip archive at a URL, checked against the MD5 its owners publish."""

    url: str
    md5: str
    timeout_s: float = 30.0

    def __str__(self) -> str:
        return self.url

    def read(self) -> Tables:
        with urllib.request.urlopen(self.url, timeout=self.timeout_s) as response:  # noqa: S310 - ours, not a user's
            content = response.read()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != self.md5:
            raise FetchError(f"the MD5 of the archive is {digest}, not {self.md5}, so it was not opened")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "archive.zip"
            path.write_bytes(content)
            return _from_archive(path)


@dataclass(frozen=True, slots=True)
class PathSource:
    """A folder, zip archive or wheel that someone already has."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> Tables:
        if not self.path.is_dir():
            return _from_archive(self.path)
        found = {file.name: file for file in sorted(self.path.iterdir()) if file.is_file()}
        nested = self.path / "ml-100k"
        if nested.is_dir():
            found |= {file.name: file for file in sorted(nested.iterdir()) if file.is_file()}
        return _tables({name: file.read_bytes for name, file in found.items()})


SOURCES: tuple[Source, ...] = (
    WheelSource("recbole==1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"),
    ArchiveSource("https://files.grouplens.org/datasets/movielens/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"),
)


def fetch_ml_100k(
    folder: Path,
    *,
    source: Path | None = None,
    sources: Sequence[Source] = SOURCES,
    say: Callable[[str], None] = print,
) -> Path:
    """Leave ml-100k.inter and ml-100k.item in the folder and give the path of the first.

    With `source`, a folder, zip archive or wheel that holds these two files or GroupLens's u.data and u.item, only
    that is used; else the sources are tried in turn. Complete files that are there already are kept. `say` gets a line
    about what was done, and the licence note. Nothing appears under the final names before it is complete and checked.
    Raises FetchError with every source and its reason.
    """
    inter, item = folder / "ml-100k.inter", folder / "ml-100k.item"
    if inter.is_file() and item.is_file() and _flaw(Tables(inter.read_bytes(), item.read_bytes())) is None:
        say(f"MovieLens-100K is already in {folder}: {INTERACTIONS:,} interactions, {ITEMS:,} items.")
        say(LICENCE_NOTE)
        return inter
    failures = []
    for candidate in sources if source is None else (PathSource(source),):
        try:
            tables = candidate.read()
            flaw = _flaw(tables)
            if flaw is not None:
                raise FetchError(flaw)
        except (FetchError, OSError, http.client.HTTPException) as error:
            failures.append(f"  {candidate}: {error}")
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, content in ((item, tables.item), (inter, tables.inter)):
                draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
                draft.write_bytes(content)
                draft.replace(path)
        except OSError as error:
            raise FetchError(f"{folder}: cannot be written ({error}); choose another folder") from error
        say(f"MovieLens-100K is in {folder}, from {candidate}: {INTERACTIONS:,} interactions, {ITEMS:,} items.")
        say(LICENCE_NOTE)
        return inter
    raise FetchError(
        "MovieLens-100K could not be had from any source:\n"
        + "\n".join(failures)
        + "\nDownload ml-100k.zip from https://grouplens.org/datasets/movielens/100k/ and pass its path with --from."
    )


def _pip() -> list[str]:
    """Arguments that run pip: the environment's own or, where it has none, the one Python carries to install pip."""
    own = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if own.returncode == 0:
        return ["-m", "pip"]
    spec = importlib.util.find_spec("ensurepip")  # some distributions leave it out
    folders = [] if spec is None else [Path(folder) / "_bundled" for folder in spec.submodule_search_locations or ()]
    carried = [wheel for folder in folders for wheel in sorted(folder.glob("pip-*.whl"))]
    if not carried:
        raise FetchError("this environment has no pip; install pip into it, or pass --from")
    return [f"{carried[-1]}/pip"]


def _from_archive(path: Path) -> Tables:
    """Read the members wanted, by name and into memory: nothing is unpacked, so no member can choose where it lands."""
    if not path.is_file():
        raise FetchError("there is no such file or folder")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if "/ml-100k/" in f"/{name}" or "/" not in name]
            return _tables({name.rsplit("/", 1)[-1]: partial(archive.read, name) for name in members})
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, RuntimeError, EOFError) as error:
        if isinstance(error, FetchError):
            raise
        raise FetchError(f"not a readable zip archive ({error})") from error


def _tables(files: dict[str, Callable[[], bytes]]) -> Tables:
    """The tables, from whichever of the two forms these files are."""
    if {"ml-100k.inter", "ml-100k.item"} <= files.keys():
        return Tables(files["ml-100k.inter"](), files["ml-100k.item"]())
    if {"u.data", "u.item"} <= files.keys():
        return Tables(_inter_of(files["u.data"]()), _item_of(files["u.item"]()))
    raise FetchError("it holds neither ml-100k.inter and ml-100k.item nor u.data and u.item")


def _inter_of(data: bytes) -> bytes:
    """u.data (user, item, rating, epoch seconds, by tabs) under the typed header; the order stays."""
    lines = [line.strip() for line in data.splitlines()]
    return b"\n".join([_INTER_HEADER, *(line for line in lines if line), b""])


def _item_of(listing: bytes) -> bytes:
    """u.item (Latin-1: id|title (year)|release|video|URL|19 genre flags) as item, title, year and genres."""
    lines = [_ITEM_HEADER.decode()]
    for line in listing.decode("latin-1").split("\n"):
        fields = line.rstrip("\r").split("|")
        if len(fields) != 5 + len(_GENRES):
            if line.strip():
                raise FetchError(f"u.item has a line with {len(fields)} fields instead of {5 + len(_GENRES)}: {line!r}")
            continue
        title, flags = fields[1], fields[5:]
        years = _YEAR.findall(title)
        genres = " ".join(genre for genre, flag in zip(_GENRES, flags, strict=True) if flag == "1")
        lines.append(f"{fields[0]}\t{_YEAR.sub('', title).strip()}\t{years[-1] if years else ''}\t{genres}")
    return ("\n".join(lines) + "\n").encode()


def _flaw(tables: Tables) -> str | None:
    """What is wrong with the tables, or None."""
    for name, content, header, rows in (
        ("interactions", tables.inter, _INTER_HEADER, INTERACTIONS),
        ("items", tables.item, _ITEM_HEADER, ITEMS),
    ):
        lines = content.splitlines()
        fields = header.count(b"\t")
        if not lines or lines[0] != header:
            return f"the {name} do not begin with the header {header.decode()!r}"
        if len(lines) - 1 != rows:
            return f"there are {len(lines) - 1:,} {name} instead of {rows:,}"
        if any(line.count(b"\t") != fields for line in lines):
            return f"a line of the {name} has not {fields + 1} fields"
    return None
