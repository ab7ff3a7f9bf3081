"""Files to columns of text: the delimited, Parquet, JSON-lines and header-less formats the data comes in.

Nothing is judged here: text stays text, so that an id like "007" survives, and whoever asked counts what is wrong
with it. Only a file that cannot be read at all is an error.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import polars as pl

# All but Parquet may end in .gz too.
SUFFIXES = (
    ".csv",
    ".tsv",
    ".inter",
    ".item",
    ".parquet",
    ".jsonl",
    ".ndjson",
    ".txt",
    ".base",
    ".test",
    ".data",
)
RATINGS = (".base", ".test", ".data")  # of MovieLens-100K: tabs, no header, always these columns
DELIMITED = (".csv", ".tsv", ".inter", ".item", *RATINGS)
_RATING_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
_TIMED_LINE = re.compile(rb"[^\t]+\t\S+( \S+)*\t\d{9,}( \d{9,})*\s*")  # numbers that can be times, and no ratings
_NO_SEPARATOR = "\x01"  # occurs in no text, so a delimited reader gives whole lines
_HALF = "has half of a surrogate pair, which is no text"
MALFORMED = _NO_SEPARATOR  # a column of ours, called as no file's own is


class FormatError(ValueError):
    """A file is missing, unreadable or not in the format its name promises; the message names it and what to do."""


def suffix_of(path: Path) -> str:
    """The suffix that decides the format, ".gz" taken off and in lower case: one of SUFFIXES, else FormatError."""
    name = path.name.lower()
    bare = name.removesuffix(".gz")
    suffix = Path(bare).suffix
    if suffix not in SUFFIXES or (suffix == ".parquet" and name != bare):
        raise FormatError(f"{path}: unknown kind of file; its name must end in one of {', '.join(SUFFIXES)} (or .gz)")
    return suffix


def content_of(path: Path) -> bytes:
    """The bytes of a file, unpacked if its name ends in .gz; FormatError if that fails or there are none."""
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if not content.strip():
        raise FormatError(f"{path}: the file is empty")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FormatError(f"{path}: is in UTF-16; save it as UTF-8")
    return content


def read_delimited(path: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """CSV with quotes, the others without, parted as `separator_of` says. Every column is String, null if empty.

    Names of columns lose the white space around them, and so do the cells of a column whose name had some: the file is
    parted by more than the separator.
    .inter and .item declare types in their header ("user_id:token"): these are taken off the names and come as the
    second value, type by name; it is empty for CSV and TSV. UTF-8, with or without a byte order mark.
    """
    suffix = suffix_of(path)
    content = content_of(path)
    separator, quote = separator_of(path), '"' if suffix == ".csv" else None
    try:
        frame = pl.read_csv(
            content,
            separator=separator,
            quote_char=quote,
            infer_schema=False,
            has_header=suffix not in RATINGS,
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FormatError(
            f"{path}: not a readable {suffix} table ({_too_wide(content, separator, quote) or _first_line(error)}); "
            "it must be UTF-8 with one header line and "
            "the same number of fields in every line"
        ) from error
    if suffix in RATINGS:
        if frame.width != len(_RATING_COLUMNS):
            raise FormatError(f"{path}: has {frame.width} columns; a {suffix} file has user, item, rating and time")
        frame.columns = _RATING_COLUMNS
    written, frame.columns = frame.columns, _stripped(frame.columns)
    padded = [name for name, before in zip(frame.columns, written, strict=True) if name != before]
    frame = frame.with_columns(frame[name].str.strip_chars().replace("", None) for name in padded)
    if suffix not in (".inter", ".item"):
        return frame, {}
    header = [name.rpartition(":") if ":" in name else (name, ":", "token") for name in frame.columns]
    types = {name: declared for name, _, declared in header}
    if len(types) != len(header):
        raise FormatError(f"{path}: a column occurs twice in the header {frame.columns}")
    frame.columns = list(types)
    return frame, types


def separator_of(path: Path) -> str:
    """What stands between the fields of a delimited file: tabs, or commas in a .csv.

    A .csv whose header has no comma, but one of semicolon, tab and | and neither of the others, has that one.
    """
    if suffix_of(path) != ".csv":
        return "\t"
    header = _header_of(path)
    found = [mark for mark in ";\t|" if mark.encode() in header]
    return found[0] if len(found) == 1 and b"," not in header else ","


def _stripped(names: list[str]) -> list[str]:
    """Names without white space around them, unless two would then be the same."""
    bare = [name.strip() for name in names]
    return [short if bare.count(short) == 1 else name for name, short in zip(names, bare, strict=True)]


def blank_rows(table: pl.DataFrame) -> pl.Series:
    """True where no cell of a delimited table has anything: a blank line, or the bare separators of a spreadsheet."""
    blank = pl.repeat(True, table.height, dtype=pl.Boolean, eager=True)
    for column in table:
        blank &= ~column.str.contains(r"\S").fill_null(False)
        if not blank.any():
            break
    return blank


def _too_wide(content: bytes, separator: str, quote: str | None) -> str:
    """Which line has more fields than the first, which polars does not say; empty if none has."""
    table = csv.reader(
        io.StringIO(content.decode(errors="replace"), newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
    )
    width = 0
    try:
        for fields in table:
            width = width or len(fields)
            if len(fields) > width:
                return f"line {table.line_num} has {len(fields)} fields, the first {width}"
    except csv.Error:  # a field without an end
        pass
    return ""


def read_parquet(path: Path, wanted: Sequence[str] | None = None) -> tuple[pl.DataFrame, list[str]]:
    """Those of the wanted columns (all if None) a Parquet file has, with their types, and the names of all."""
    try:
        present = list(pl.read_parquet_schema(path))
        return pl.read_parquet(path, columns=[name for name in present if wanted is None or name in wanted]), present
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:  # damaged pages panic
        raise FormatError(f"{path}: not a readable Parquet file ({_first_line(error)})") from error


def read_lines(path: Path) -> pl.Series:
    """The lines of a text file that are not blank, String."""
    try:
        lines = pl.read_csv(
            content_of(path),
            has_header=False,
            new_columns=["line"],
            separator=_NO_SEPARATOR,
            quote_char=None,
            infer_schema=False,
        )["line"]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FormatError(f"{path}: not a text file in UTF-8 ({_first_line(error)})") from error
    return lines.filter(lines.str.contains(r"\S"))


def read_json_lines(path: Path, wanted: Sequence[str]) -> tuple[pl.DataFrame, list[str]]:
    """Those of the wanted fields that any line has, as String, and MALFORMED: why a line is unusable, null if not.

    Text and numbers come as they are written, an object or array as its JSON, and so do true and false in brackets: as
    text they could be ids. The second value names the fields of the first line that is an object; none is FormatError.
    """
    given = read_lines(path)
    unread = ~given.str.json_path_match("$").str.starts_with("{").fill_null(False)
    mended = [_mended(line, wanted) for line in given.filter(unread)]
    lines = given.scatter(unread.arg_true(), [line for line, _ in mended])
    malformed = pl.repeat(None, len(lines), dtype=pl.String, eager=True)
    malformed = malformed.scatter(unread.arg_true(), [reason for _, reason in mended])
    if not malformed.null_count():
        halves = f" (the first {_HALF})" if malformed[0] == f"line {_HALF}" else ""
        raise FormatError(
            f"{path}: no line is a JSON object{halves}; write one a line, and check that the file is complete"
        )
    columns = {name: _json_field(lines, name) for name in wanted}
    found = {name: column for name, column in columns.items() if column.null_count() < len(column)}
    fields = list(json.loads(given.filter(malformed.is_null())[0]))
    return pl.DataFrame({**found, MALFORMED: malformed}), fields


def read_sequences(path: Path, *, header: str) -> pl.DataFrame:
    """`user` and `item`, String, of a header-less file: "user item" or "user item item ..." a line, oldest first.

    The two kinds need no telling apart: a line is a user and the items that follow. A line without an item gives one
    row with item null. Users may recur when all lines have two words; in longer lines a user who recurs means that
    the file is something else (often "user item rating time"), which is FormatError, as is a first word equal to
    `header`.
    """
    words = read_lines(path).str.extract_all(r"\S+")
    users = words.list.first()
    if len(users) and users[0] == header:
        raise FormatError(f"{path}: begins with a header line; name a table with columns .csv or .tsv")
    if words.list.len().max() != 2 and users.n_unique() < len(users):
        recurring = users.filter(users.is_duplicated())[0]
        raise FormatError(
            f"{path}: user {recurring!r} has more than one line, so the lines are not 'user item item ...'; write "
            "one line per user, or give a table a header line and name it .csv or .tsv"
        )
    # A null list explodes to a row in every version of polars, an empty one does not.
    items = pl.when(pl.col("item").list.len() > 0).then(pl.col("item"))
    return pl.DataFrame({"user": users, "item": words.list.slice(1)}).with_columns(items).explode("item")


def holds_timed_sequences(path: Path) -> bool:
    """Whether a file begins with a line for `read_timed_sequences` rather than a header; FormatError if unreadable."""
    return _TIMED_LINE.fullmatch(_header_of(path)) is not None


def read_timed_sequences(path: Path) -> pl.DataFrame:
    """`user`, `item` and `timestamp`, String, of a header-less file: a user, the items and their times a line.

    The three stand between tabs; between items, and between times, is a space. A user may have several lines.
    Raises FormatError if a line has not as many times as items.
    """
    parts = read_lines(path).str.strip_chars_end("\r").str.split("\t")
    user, item, timestamp = parts.list.get(0), parts.list.get(1, null_on_oob=True), parts.list.get(2, null_on_oob=True)
    frame = pl.DataFrame({"user": user, "item": item.str.split(" "), "timestamp": timestamp.str.split(" ")})
    items, times = frame["item"].list.len(), frame["timestamp"].list.len()
    wrong = ((parts.list.len() != 3) | (items != times)).fill_null(True)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise FormatError(
            f"{path}: line {row + 1:,}, not counting blank ones, has {items[row] or 0} items and "
            f"{times[row] or 0} times in {len(parts[row])} columns; "
            "every line must be a user, the items and as many times, between tabs"
        )
    return frame.explode("item", "timestamp")


def _header_of(path: Path) -> bytes:
    """The first line that is not blank."""
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
            return next((line for line in file if line.strip()), b"")
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FormatError:
    return FormatError(f"{path}: cannot be read ({error}); check the path and that the file is complete")


def _mended(line: str, wanted: Sequence[str]) -> tuple[str, str | None]:
    """A line that polars cannot read, of the wanted fields alone, and why it is unusable, None if it is not.

    Many write NaN, which is not JSON, for what is missing: it becomes null.
    """
    try:
        found = json.loads(line, parse_constant=lambda name: None if name == "NaN" else name)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return line, "line is not a JSON object"
    kept = {name: found[name] for name in wanted if name in found}
    return json.dumps(kept), None if is_text(json.dumps(kept, ensure_ascii=False)) else f"line {_HALF}"


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it: JSON may have half of a surrogate pair, as in a title that was cut off."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_field(lines: pl.Series, name: str) -> pl.Series:
    """A field of every line. Python reads what polars does not tell: integers beyond 64 bits, booleans from text."""
    found = lines.str.json_path_match(_json_path(name))
    untold = found.str.contains(r"^(-?\d(\.\d+)?e\+?\d+|true|false)$").fill_null(False)
    exact = [json.loads(line, parse_int=str, parse_float=str)[name] for line in lines.filter(untold)]
    told = [json.dumps([value]) if isinstance(value, bool) else value for value in exact]
    return found.scatter(untold.arg_true(), told) if told else found


def _json_path(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"$['{escaped}']"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
