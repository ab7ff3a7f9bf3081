"""Interaction logs in, checked columns out, with a count of every row that was dropped and why.

A log is the one input nobody here controls. So every row passes the same checks whatever file it came from, a few bad
rows are counted and left behind, and many are an error before any of them is learned from.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

from training import fields, formats
from training.fields import MAX_TIMESTAMP_MS
from training.quotes import swallowed_rows

_ONE_COLUMN = "If that is several, part them by commas in a .csv (;, tabs or | do too, one of them), by tabs in a .tsv"
_UNREADABLE = "timestamp unreadable"
_TIMES = "times are such as 2024-01-31T10:00:00+01:00, 2024-01-31 10:00, 2024-01-31, 20240131, or numbers since 1970"
MAX_ID_BYTES = 256  # the limit of the HTTP contract: a longer id could never be asked for


class InteractionsError(ValueError):
    """The files cannot be used; the message names the file or the reasons, and what to do."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read. One that is named must be there.

    None stands for "timestamp" and "value" (in .inter files and MovieLens's .base, .test and .data "timestamp" and
    "rating"), read where a file has them. An empty name reads none; without times the order of the rows counts.
    """

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Rows read and kept, and how many were dropped for which reason; a row counts under its first reason.

    first: where each reason was met first, and what stood there.
    """

    rows_read: int
    rows_kept: int
    dropped: dict[str, int]
    first: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        met = {reason: f", first {place}" for reason, place in self.first.items()}
        reasons = "".join(f"\n  {count:>10,}  {reason}{met.get(reason, '')}" for reason, count in self.dropped.items())
        return f"{self.rows_kept:,} of {self.rows_read:,} rows kept{reasons}"

    @classmethod
    def of(cls, reports: Sequence["Report"]) -> "Report":
        """All of them together, in their order."""
        dropped: Counter[str] = Counter()
        first: dict[str, str] = {}
        for report in reports:
            dropped.update(report.dropped)
            first = report.first | first
        return cls(sum(one.rows_read for one in reports), sum(one.rows_kept for one in reports), dict(dropped), first)


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Checked interactions, oldest first; where times tie or there are none, in the order they were read.

    frame: user_id String, item_id String, timestamp Int64 in epoch ms (all null without timestamps), value Float32
    (null where there is none). Repeated rows stay: a user may well do the same thing twice.
    sha256 has a digest per source, in the order they were read.
    """

    frame: pl.DataFrame
    report: Report
    has_timestamps: bool
    sha256: tuple[str, ...]

    def extended(self, other: "Interactions") -> "Interactions":
        """These and the other interactions, in time order; in a tie these come first. Duplicates are not removed.

        Raises InteractionsError if only one of the two has timestamps, since they could not be ordered.
        """
        if self.has_timestamps != other.has_timestamps:
            raise InteractionsError("only one of the two sets of interactions has timestamps; give both or neither")
        return Interactions(
            frame=_in_time_order(pl.concat([self.frame, other.frame])),
            report=Report.of([self.report, other.report]),
            has_timestamps=self.has_timestamps,
            sha256=self.sha256 + other.sha256,
        )


def read_interactions(
    paths: Sequence[Path], *, columns: Columns = Columns(), max_dropped: float = 0.01
) -> Interactions:
    """Read interaction files as one log, in the given order.

    By suffix: .csv (parted by commas, or by semicolons, tabs or | alone), .tsv (with a header; without one a user, the
    items and their times a line, between tabs), .jsonl or .ndjson, .inter (RecBole's atomic file, typed header), .txt
    without a header ("user item" or "user item item ..." a line, oldest first), .base, .test and .data as
    MovieLens-100K has them (user, item, rating, time, no header), each also with .gz; and .parquet.

    Ids are kept as written, but for white space around them where the name in the header has some too; integers become
    their decimal digits, and so do numbers with a fraction of zero in a Parquet column of floats (there 3.0 is item
    "3"; any other fraction is a wrong type). Timestamps are RFC 3339 or ISO dates (UTC unless they say otherwise) or
    numbers: dates where most of the file are such (20240131), else seconds where their median is below 1e11,
    milliseconds below 1e14, nanoseconds from 9.4e17 on, and microseconds between. Without a timestamp column the order
    of the rows counts.

    Dropped and counted: ids that are empty, blank, over 256 UTF-8 bytes or of a wrong type; timestamps that are
    missing, unreadable, in another unit than most, before 1970 or after 2100; values that are not a finite number (NaN
    is none, as is an empty cell); lines that are not JSON. Blank lines are no rows.
    Raises InteractionsError if a file or column is missing or unreadable, if more than max_dropped (a share) of the
    rows are dropped, if no row is left, if only some files have timestamps, or if a file is named twice.
    """
    if not paths:
        raise InteractionsError("no interaction file was given")
    named = Counter(path.resolve() for path in paths)
    for path in paths:
        if named[path.resolve()] > 1:
            raise InteractionsError(f"{path} is named twice, so its rows would count twice; name it once")
    parts = []
    digests = []
    for path in paths:
        if path.is_dir():
            raise InteractionsError(f"{path} is a folder; name the files in it, as in --data {path}/*")
        try:
            raw = _raw_columns(path, columns)
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except (formats.FormatError, OSError) as error:
            raise InteractionsError(str(error)) from error
        parts.append((str(path), raw))
    found = _assembled(parts, tuple(digests), max_dropped)
    if not found.frame.height:
        names = ", ".join(source for source, _ in parts)
        raise InteractionsError(f"{names}: no interaction is left to learn from.\n{found.report}")
    return found


def interactions_from_frame(
    frame: pl.DataFrame, *, source: str, columns: Columns = Columns(), max_dropped: float = 0.01
) -> Interactions:
    """The same checks for rows that are already in memory; `source` names them in errors.

    The digest is that of the kept rows written as CSV. Raises InteractionsError as `read_interactions` does, but not
    where no row is left.
    """
    raw = _chosen(frame, frame.columns, columns, source=source, value_name="value")
    checked = _assembled([(source, raw)], (), max_dropped)
    digest = hashlib.sha256(checked.frame.write_csv().encode()).hexdigest()
    return Interactions(checked.frame, checked.report, checked.has_timestamps, (digest,))


def _raw_columns(path: Path, columns: Columns) -> pl.DataFrame:
    """user and item, and timestamp, value and malformed where there are any, of one file, nothing checked.

    row has the number of each, from 0, where blank lines were left out of it.
    """
    suffix = formats.suffix_of(path)
    timed = suffix == ".tsv" and formats.holds_timed_sequences(path)
    if suffix == ".txt" or timed:
        for name in (columns.timestamp, columns.value):
            if name:
                raise InteractionsError(f"{path}: a file of sequences has no column {name!r}; do not name one")
        if not timed:
            return formats.read_sequences(path, header=columns.user)
        found = formats.read_timed_sequences(path)
        return found if columns.timestamp is None else found.drop("timestamp")
    value_name = "rating" if suffix in (".inter", *formats.RATINGS) else "value"
    wanted = list(dict.fromkeys(name for name in _names(columns, value_name).values() if name))
    if suffix == ".parquet":
        frame, present = formats.read_parquet(path, wanted)
    elif suffix in (".jsonl", ".ndjson"):
        frame, present = formats.read_json_lines(path, wanted)
    else:
        frame, _ = formats.read_delimited(path)
        present = frame.columns
        columns = _without_padding(columns, present)
        _refuse_no_header(path, present, columns.user)
    chosen = _chosen(frame, present, columns, source=str(path), value_name=value_name)
    if suffix == ".csv":
        _refuse_swallowed_rows(path, chosen, frame, columns)
    if suffix in formats.DELIMITED and (blank := formats.blank_rows(frame)).any():
        chosen = chosen.with_row_index("row").filter(~blank)
    return chosen


def _refuse_swallowed_rows(path: Path, chosen: pl.DataFrame, table: pl.DataFrame, columns: Columns) -> None:
    """A quote that is not closed takes the rows up to the next quote into one cell, where nobody would count them."""
    for role in {"user", "item", "timestamp"} & set(chosen.columns):
        broken = chosen[role].filter(chosen[role].str.contains("\n", literal=True))
        if len(broken):
            raise InteractionsError(
                f"{path}: the {role} {broken[0][:60]!r} goes on over {broken[0].count(chr(10)) + 1} lines; close the "
                "quote it begins with, or write it without"
            )
    found = swallowed_rows(table, separator=formats.separator_of(path), ids=(columns.user, columns.item))
    if found is not None:
        raise InteractionsError(
            f"{path}: in row {found.row:,} the column {found.column!r} goes on over {found.text.count(chr(10)) + 1} "
            f"lines, and one of them is a row: {found.text[:60]!r}; close the quote it begins with, or write it without"
        )


def _names(columns: Columns, value_name: str) -> dict[str, str]:
    """What each role's column is called, empty where none is to be read."""
    return {
        "user": columns.user,
        "item": columns.item,
        "timestamp": "timestamp" if columns.timestamp is None else columns.timestamp,
        "value": value_name if columns.value is None else columns.value,
    }


def _without_padding(columns: Columns, present: Sequence[str]) -> Columns:
    """The columns as they are called once white space is off the header's names, and so off those that were copied."""
    named = asdict(columns).items()
    return Columns(**{role: name.strip() if name and name not in present else name for role, name in named})


def _chosen(
    frame: pl.DataFrame, present: Sequence[str], columns: Columns, *, source: str, value_name: str
) -> pl.DataFrame:
    """The mapped columns under the names user, item, timestamp, value."""
    chosen = []
    for role, name in _names(columns, value_name).items():
        if not name or (name not in frame.columns and getattr(columns, role) is None):
            continue
        if name not in frame.columns:
            raise InteractionsError(
                f"{source}: no column {name!r} for the {role}; the columns are {', '.join(map(repr, present))}. "
                + (_ONE_COLUMN if len(present) == 1 else f"Name the {role} column with --{role}-column")
            )
        if f"{name}_duplicated_0" in frame.columns:  # as polars calls the second one
            raise InteractionsError(f"{source}: the header has {name!r} twice; rename the one that is not the {role}")
        chosen.append(frame[name].alias(role))
    if formats.MALFORMED in frame.columns:
        chosen.append(frame[formats.MALFORMED].alias("malformed"))
    return pl.DataFrame(chosen)


def _refuse_no_header(path: Path, present: Sequence[str], user: str) -> None:
    """Taken for a header, the first row of data would be lost without a word."""
    # A table without names is written with the numbers of its columns.
    numbers = [name for place, name in enumerate(present) if name.isdecimal() and int(name) not in (place, place + 1)]
    if user not in present and len(numbers) > 1:
        raise InteractionsError(
            f"{path}: its first line, {', '.join(map(repr, present))}, looks like data and not like a header; put a "
            "line of names above it, such as user_id,item_id,rating,timestamp with what stands in these columns"
        )


def _assembled(parts: Sequence[tuple[str, pl.DataFrame]], digests: tuple[str, ...], max_dropped: float) -> Interactions:
    """Check every part, put the rows together, refuse too many drops."""
    if not 0 <= max_dropped <= 1:
        raise InteractionsError(f"max_dropped is {max_dropped}; it is a share of the rows, from 0 to 1")
    timed = {source: "timestamp" in raw.columns for source, raw in parts}
    if len(set(timed.values())) > 1:
        without = ", ".join(source for source, has in timed.items() if not has)
        raise InteractionsError(f"{without}: no timestamps, but other files have them; all files need them, or none")
    try:
        checked = [_checked(source, raw) for source, raw in parts]
    except fields.FieldError as error:
        raise InteractionsError(str(error)) from error
    frame = pl.concat([kept for kept, _ in checked])
    report = Report.of([found for _, found in checked])
    names, unusable = ", ".join(timed), report.rows_read - report.rows_kept
    if unusable > max_dropped * report.rows_read:
        raise InteractionsError(
            f"{names}: {unusable:,} of {report.rows_read:,} rows are unusable, more than the share of "
            f"{max_dropped:g} allowed; mend the rows"
            + (f" ({_TIMES})" if _UNREADABLE in report.dropped else "")
            + (", or raise data.max_dropped in the configuration" if report.rows_kept else "")
            + f".\n{report}"
        )
    return Interactions(_in_time_order(frame), report, any(timed.values()), digests)


def _in_time_order(frame: pl.DataFrame) -> pl.DataFrame:
    times = frame["timestamp"]
    if times.null_count() or times.is_sorted():
        return frame
    return frame.sort("timestamp", maintain_order=True)


def _checked(source: str, raw: pl.DataFrame) -> tuple[pl.DataFrame, Report]:
    """The usable rows in the columns of Interactions.frame, and what became of the others."""
    absent = pl.repeat(None, raw.height, dtype=pl.Null, eager=True)
    timed = "timestamp" in raw.columns
    user, item = fields.ids(source, raw["user"]), fields.ids(source, raw["item"])
    timestamp, unreadable, other_unit = fields.timestamps(source, raw["timestamp"] if timed else absent)
    value, no_number = fields.values(source, raw["value"] if "value" in raw.columns else absent)
    frame = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": timestamp, "value": value})
    tests: list[tuple[str, pl.Series]] = []
    if "malformed" in raw.columns:
        reasons = raw["malformed"].drop_nulls().unique(maintain_order=True)
        tests += [(reason, (raw["malformed"] == reason).fill_null(False)) for reason in reasons]
    for role, given, ids in (("user", raw["user"], user), ("item", raw["item"], item)):
        tests += [
            (f"{role} id of a wrong type", ids.is_null() & given.is_not_null()),
            (f"{role} id empty", ~ids.str.contains(r"\S").fill_null(False)),
            (f"{role} id over {MAX_ID_BYTES} bytes", ids.str.len_bytes().fill_null(0) > MAX_ID_BYTES),
        ]
    if timed:
        tests += [
            (_UNREADABLE, unreadable),
            ("timestamp missing", timestamp.is_null()),
            ("timestamp in another unit than most, as seconds among milliseconds", other_unit),
            (
                "timestamp before 1970 or after 2100",
                ~timestamp.is_between(0, MAX_TIMESTAMP_MS, closed="left").fill_null(False),
            ),
        ]
    tests.append(("value is not a finite number", no_number))

    bad = pl.repeat(False, raw.height, dtype=pl.Boolean, eager=True)
    dropped: dict[str, int] = {}
    first: dict[str, str] = {}
    for reason, fails in tests:
        new = fails & ~bad
        if new.any():
            dropped[reason], first[reason] = int(new.sum()), _place(source, raw, reason, int(new.arg_max() or 0))
            bad |= fails
    kept = frame.filter(~bad) if dropped else frame
    return kept, Report(raw.height, kept.height, dropped, first)


def _place(source: str, raw: pl.DataFrame, reason: str, row: int) -> str:
    """Where a row is, counted from 1 without a header but with blank lines, and the cell, if it is not a user's."""
    role = reason.partition(" ")[0]
    cell = raw[role][row] if role in ("item", "timestamp", "value") else None
    number = int(raw["row"][row]) if "row" in raw.columns else row
    return f"in row {number + 1:,} of {source}" + ("" if cell is None else f": {str(cell)[:40]!r}")
