"""What is known about items (titles, genres, brands), as columns with one entry per vocabulary row.

Aligned with the rows of the item matrix, so that filters, pre-training and titles need no look-up by id.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.cold import text_of
from training import fields, formats
from training.dataset import Vocabulary

ITEM_COLUMN = "item_id"
TITLE_COLUMNS = ("title", "movie_title", "name")
_HALF = "with half of a surrogate pair, which is no text; write the whole character or none of it"
_NUMBER = r"^-?(0|[1-9]\d*)(\.\d+)?$"
LIST_COLUMN = "attributes"  # where the lists of {"item": [attribute, ...]} go


class AttributesError(ValueError):
    """The file cannot be used; the message names it, the item or column, and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Attributes:
    """Attribute columns, each a list with one entry per vocabulary row, None where nothing is known (row 0 always).

    An entry is text, a number, a bool or a list of these. missing_items counts items of the vocabulary that the file
    lacks, unknown_items those of the file that the vocabulary lacks.
    """

    columns: dict[str, list[object]]
    missing_items: int
    unknown_items: int

    @property
    def sha256(self) -> str:
        """Digest of the columns: what a model could learn from them."""
        return hashlib.sha256(json.dumps(self.columns, sort_keys=True).encode()).hexdigest()

    def title(self, row: int) -> str | None:
        """The item's name, from the first of TITLE_COLUMNS there is; None if it has none."""
        for name in TITLE_COLUMNS:
            if name in self.columns:
                title = self.columns[name][row]
                return None if title is None else str(title)
        return None


@dataclass(frozen=True, slots=True, eq=False)
class ItemAttributes:
    """Which attributes every item has, numbered, for a model to learn from: item i has flat[starts[i]:starts[i + 1]].

    names has what each number stands for, its column and value; starts int64 (items + 2,), flat int64 (pairs,); known
    bool (items + 1,): True for items of which anything is known.
    """

    names: tuple[tuple[str, str], ...]
    starts: NDArray[np.int64]
    flat: NDArray[np.int64]
    known: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """Number of attributes."""
        return len(self.names)

    def of(self, items: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of a place in items (n,) and an attribute that the item there has, places ascending: int64 each."""
        counts = self.starts[items + 1] - self.starts[items]
        places = np.repeat(np.arange(len(items)), counts)
        nth = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places, self.flat[self.starts[items][places] + nth]


def number_attributes(attributes: Attributes, columns: Sequence[str] | None = None) -> ItemAttributes:
    """Number the attributes that can teach something: those that two items or more have.

    columns: which ones count, by default all that are neither titles nor hold a number with a fraction. An entry is an
    attribute, or each element of a list is one, and is named as `text_of` says. Raises AttributesError for a column
    that is not there, or if no attribute is shared by two items.
    """
    missing = [name for name in columns or () if name not in attributes.columns]
    if missing:
        raise AttributesError(f"there is no attribute column {missing[0]!r}; there are {', '.join(attributes.columns)}")
    chosen = columns or [
        name
        for name, entries in attributes.columns.items()
        if name not in TITLE_COLUMNS
        and not any(isinstance(value, float) and not value.is_integer() for entry in entries for value in _each(entry))
    ]
    code_of: dict[tuple[str, str], int] = {}
    codes: list[int] = []
    owners: list[int] = []  # numbers, since a tuple for each of ten million pairs would take gigabytes
    for name in chosen:
        for row, entry in enumerate(attributes.columns[name]):
            for value in _each(entry):
                codes.append(code_of.setdefault((name, text_of(value)), len(code_of)))
                owners.append(row)
    pairs = np.unique(np.array(owners, np.int64) * len(code_of) + np.array(codes, np.int64))  # a list may repeat itself
    rows, found = np.divmod(pairs, max(1, len(code_of)))
    shared = np.bincount(found, minlength=len(code_of)) >= 2
    names = tuple(sorted(attribute for attribute, code in code_of.items() if shared[code]))
    if not names:
        raise AttributesError(
            f"no attribute of {', '.join(chosen) or 'the file'} is shared by two items of the data (titles, and "
            "columns of numbers with a fraction, are none unless pretraining.columns names them); give such as "
            "genres, brands or categories, or train without --attributes"
        )
    number_of = np.zeros(len(code_of), np.int64)
    number_of[[code_of[attribute] for attribute in names]] = np.arange(len(names))
    kept = shared[found]
    rows, flat = np.divmod(np.sort(rows[kept] * len(names) + number_of[found[kept]]), len(names))
    counts = np.bincount(rows, minlength=len(attributes.columns[chosen[0]]))
    return ItemAttributes(names, np.concatenate(([0], np.cumsum(counts))), flat, counts > 0)


def learnable(attributes: Attributes | None, columns: Sequence[str] | None, *, chosen: bool) -> ItemAttributes | None:
    """What `number_attributes` gives; None without attributes.

    chosen: whether somebody named them to be learned from. Of others, which a retraining took over from the champion,
    nothing may be left that teaches, as of titles alone: then None instead of its AttributesError.
    """
    if attributes is None:
        return None
    try:
        return number_attributes(attributes, columns)
    except AttributesError:
        if chosen:
            raise
        return None


def _each(entry: object) -> list[object]:
    """The values in an entry that are known."""
    return [value for value in (entry if isinstance(entry, list) else [entry]) if value is not None]


def read_attributes(path: Path, vocabulary: Vocabulary, *, item_column: str = ITEM_COLUMN) -> Attributes:
    """Read item attributes and line them up with the vocabulary.

    By suffix: .item (RecBole's atomic file; token_seq becomes a list of words, except in a title column, and float a
    number), .csv and .tsv (text; titles aside, a column with "a|b" in it holds lists, and one with nothing but numbers,
    some with a fraction, numbers), .jsonl or .ndjson and .parquet (their own types; dates become ISO text), all with a
    column `item_id`, or the one that the interactions have it in; .json, an object from item id to an object of
    attributes or to a list of attribute ids (then the column is "attributes"). All but Parquet may end in .gz.
    Raises AttributesError if the file is unreadable, has no item column, has an item twice, or a value of
    another type.
    """
    try:
        ids, columns = _read_json(path) if _is_json(path) else _read_table(path, item_column)
    except formats.FormatError as error:
        raise AttributesError(str(error)) from error
    rows = [vocabulary.index_of(item_id) for item_id in ids]
    known = [row for row in rows if row is not None]
    if len(set(known)) < len(known):
        repeated, _ = Counter(known).most_common(1)[0]
        raise AttributesError(f"{path}: item {vocabulary.ids[repeated]!r} occurs twice; keep one row per item")
    aligned: dict[str, list[object]] = {}
    for name, values in columns.items():
        column: list[object] = [None] * vocabulary.rows
        for row, value in zip(rows, values, strict=True):
            if row is not None:
                column[row] = value
        aligned[name] = column
    return Attributes(aligned, missing_items=vocabulary.items - len(known), unknown_items=len(rows) - len(known))


def _is_json(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".json")


def _read_json(path: Path) -> tuple[list[str], dict[str, list[object]]]:
    try:
        content = json.loads(formats.content_of(path), object_pairs_hook=_unrepeated)
    except formats.FormatError:
        raise
    except KeyError as error:
        raise AttributesError(f"{path}: {error} occurs twice in one object; keep one of them") from error
    except (ValueError, RecursionError) as error:
        raise AttributesError(f"{path}: not JSON in UTF-8, or nested too deeply ({error})") from error
    if not isinstance(content, dict):
        raise AttributesError(f"{path}: must hold one JSON object, from item id to its attributes; for rows use .jsonl")
    if all(isinstance(entry, list) for entry in content.values()):
        content = {item_id: {LIST_COLUMN: entry} for item_id, entry in content.items()}
    for item_id, entry in content.items():
        if not isinstance(entry, dict):
            raise AttributesError(f"{path}: item {item_id!r} has {entry!r}; all items need an object, or all a list")
    return list(content), _by_column(path, content.items())


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; KeyError with a name it has twice, of which `json` would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise KeyError(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return found


def _read_table(path: Path, item_column: str) -> tuple[list[str], dict[str, list[object]]]:
    suffix = formats.suffix_of(path)
    if suffix in (".jsonl", ".ndjson"):
        return _read_json_lines(path, item_column)
    if suffix == ".parquet":
        frame, _ = formats.read_parquet(path)
        types: dict[str, str] = {}
    elif suffix in (".csv", ".tsv", ".item"):
        frame, types = formats.read_delimited(path)
        frame = frame.filter(~formats.blank_rows(frame))
    else:
        raise AttributesError(f"{path}: attributes come as .item, .json, .jsonl, .csv, .tsv or .parquet")
    named = next((name for name in (ITEM_COLUMN, item_column) if name in frame.columns), None)
    if named is None:
        wanted = " or ".join(map(repr, dict.fromkeys((ITEM_COLUMN, item_column))))
        raise AttributesError(f"{path}: no column {wanted}; the columns are {', '.join(map(repr, frame.columns))}")
    if suffix in (".csv", ".tsv"):
        frame = frame.with_columns(
            _numbers(_listed(frame[name])) for name in frame.columns if name not in (named, *TITLE_COLUMNS)
        )
    columns = {name: _typed(path, frame[name], types.get(name, "")) for name in frame.columns if name != named}
    try:
        items = fields.ids(str(path), frame[named])
    except fields.FieldError as error:
        raise AttributesError(str(error)) from error
    return items.fill_null("").to_list(), columns


def _listed(column: pl.Series) -> pl.Series:
    """A column as lists if any of its entries is one, as films' genres in "Comedy|Drama"."""
    many = column.dtype == pl.String and column.str.contains("|", literal=True).any()
    return column.str.split("|") if many else column


def _numbers(column: pl.Series) -> pl.Series:
    """A column as numbers if all known entries are and one has a fraction, as prices; ids, years and "007" stay."""
    if column.dtype != pl.String or not column.str.contains(r"\.\d").any():
        return column
    if not column.str.contains(_NUMBER).all():
        return column
    numbers = column.cast(pl.Float64)
    return numbers if numbers.n_unique() == column.n_unique() else column  # "1.1" and "1.10" are codes


def _typed(path: Path, column: pl.Series, declared: str) -> list[object]:
    """A column as the file declares it: RecBole's words, or the type Parquet gave."""
    if declared == "token_seq" and column.name not in TITLE_COLUMNS:
        column = column.str.extract_all(r"\S+")
    elif declared in ("float", "float_seq"):
        numbers = column if declared == "float" else column.str.extract_all(r"\S+")
        try:
            column = numbers.cast(pl.Float64 if declared == "float" else pl.List(pl.Float64))
        except pl.exceptions.PolarsError as error:
            raise AttributesError(f"{path}: column {column.name!r} is declared {declared} but holds text") from error
    elif column.dtype == pl.Decimal:
        column = column.cast(pl.Float64)
    elif column.dtype in (pl.Date, pl.Datetime):
        column = column.dt.to_string("iso:strict")
    return [_entry(path, f"column {column.name!r}", value) for value in column.to_list()]


def _read_json_lines(path: Path, item_column: str) -> tuple[list[str], dict[str, list[object]]]:
    rows: list[tuple[str, Mapping[str, object]]] = []
    for number, line in enumerate(formats.read_lines(path).to_list(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AttributesError(f"{path}: line {number} is not JSON, or nested too deeply ({error})") from error
        item_id = row.pop(ITEM_COLUMN if ITEM_COLUMN in row else item_column, None) if isinstance(row, dict) else None
        if not isinstance(item_id, str | int) or isinstance(item_id, bool):
            raise AttributesError(
                f"{path}: line {number} must be an object whose {ITEM_COLUMN!r} is text or an integer"
            )
        rows.append((str(item_id), row))
    return [item_id for item_id, _ in rows], _by_column(path, rows)


def _by_column(path: Path, rows: Iterable[tuple[str, Mapping[str, object]]]) -> dict[str, list[object]]:
    """Objects, one per item, as columns; an attribute an item does not have is None."""
    columns: dict[str, list[object]] = {}
    count = 0
    for count, (item_id, row) in enumerate(rows, start=1):
        for name, value in row.items():
            if name not in columns and not formats.is_text(name):
                raise AttributesError(f"{path}: item {item_id!r} has an attribute {name!r}, {_HALF}")
            column = columns.setdefault(name, [])
            column.extend([None] * (count - 1 - len(column)))
            column.append(_entry(path, f"item {item_id!r}, attribute {name!r}", value))
    for column in columns.values():
        column.extend([None] * (count - len(column)))
    return columns


def _entry(path: Path, where: str, value: object) -> object:
    """The value if a bundle can hold it as JSON; a number that is not finite counts as unknown."""
    elements = value if isinstance(value, list) else [value]
    for element in elements:
        if not (element is None or isinstance(element, str | int | float | bool)):
            raise AttributesError(
                f"{path}: {where} is {value!r}; it must be text, a number, true, false or null, or a list of these"
            )
        if isinstance(element, str) and not formats.is_text(element):
            raise AttributesError(f"{path}: {where} is {element!r}, {_HALF}")
    known = [None if isinstance(element, float) and not math.isfinite(element) else element for element in elements]
    return known if isinstance(value, list) else known[0]
