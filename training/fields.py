"""Columns as they were read to ids, times and values, with null where a cell is none.

What counts as an id, a moment or a number is decided here once, whichever kind of file a column came from.
"""

import polars as pl

MAX_TIMESTAMP_MS = 4_133_980_800_000  # 2101-01-01; anything from there on, or before 1970, is no event's time
# A number from the first on may be a time in a unit of which the second makes milliseconds: seconds, milli-, micro- and
# nanoseconds, from March 1973 on, which in the smaller units is early 1970 and in the larger ones after 2100: no log is
# near either. Nanoseconds from 2000 on, for what is less may be ticks of Windows or .NET.
_UNITS = ((1e8, 1e3), (1e11, 1.0), (1e14, 1e-3), (9.4e17, 1e-6))
EARLY_MS = 100_000_000_000  # March 1973
_FIRST_DAY, _LAST_DAY = 19_700_101, 21_001_231  # as seconds, a summer of 1970
_INSTANT = (
    r"^(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2})(?::(\d{2}))?(?:[.,](\d{1,9}))?"
    r"\s*(?:[Zz]|([+-])(\d{2})(?::?(\d{2}))?)?)?$"
)


class FieldError(ValueError):
    """A column has a type that cannot hold what is asked of it; the message names the source and the column."""


def ids(source: str, given: pl.Series) -> pl.Series:
    """The ids as String; null where one is missing or of a wrong type."""
    if given.dtype == pl.String:
        if not given.str.contains(r"^[\[{]").any():
            return given
        # A JSON object or array where an id should be; a mere brace, as in a GUID, is not JSON and may stay.
        nested = given.str.contains(r"^[\[{]") & given.str.json_path_match("$").is_not_null()
        return given.set(nested.fill_null(False), None)
    if given.dtype.is_float():
        whole = given.is_finite() & (given == given.floor()) & (given.abs() < 2**53)
        return given.set(~whole.fill_null(False), None).cast(pl.Int64).cast(pl.String)
    if given.dtype.is_integer() or given.dtype in (pl.Categorical, pl.Enum, pl.Null):
        return given.cast(pl.String)
    raise FieldError(f"{source}: the {given.name} column is {given.dtype}; ids must be text or integers")


def timestamps(source: str, given: pl.Series) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Epoch milliseconds Int64, null where there is no time; True where something was there but is none; and True
    where a number is in another unit than most, as seconds among milliseconds.
    """
    if given.dtype in (pl.Date, pl.Datetime):
        nowhere = given.is_null() & False
        return given.cast(pl.Datetime("ms")).cast(pl.Int64), nowhere, nowhere
    if not (given.dtype.is_numeric() or given.dtype in (pl.String, pl.Null)):
        raise FieldError(f"{source}: the timestamp column is {given.dtype}; it must be numbers, text or dates")
    present = given.is_not_null()
    if given.dtype == pl.String:
        present &= given.str.contains(r"\S").fill_null(False)
        text = given.str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
    else:
        text = None
        numbers = given.cast(pl.Float64)
    not_a_number = numbers.is_nan().fill_null(False)
    finite = numbers.set(~numbers.is_finite().fill_null(False), None)
    other_unit = present & False
    milliseconds = _days(finite)
    if milliseconds is None:
        median = finite.abs().quantile(0.5, "higher")  # one of them: between two units lies a third
        usual = median if isinstance(median, float) else 0.0
        factor = next((factor for lowest, factor in reversed(_UNITS) if usual >= lowest), _UNITS[0][1])
        other_unit = _in_other_unit(finite, factor)
        # Past the limit the exact time no longer matters, and an integer may not hold it.
        milliseconds = (finite * factor).round().clip(-1.0, float(MAX_TIMESTAMP_MS)).cast(pl.Int64)
    infinite = numbers.is_infinite().fill_null(False)
    milliseconds = milliseconds.set(infinite, MAX_TIMESTAMP_MS)
    if text is not None and (present & numbers.is_null()).any():
        milliseconds = milliseconds.zip_with(numbers.is_not_null(), _instants(text))
    return milliseconds, present & milliseconds.is_null() & ~not_a_number, other_unit


def _in_other_unit(numbers: pl.Series, factor: float) -> pl.Series:
    """True where a number is a time of this age only in another unit than that of the factor."""
    found = pl.repeat(False, len(numbers), dtype=pl.Boolean, eager=True)
    for lowest, other in _UNITS:
        if other != factor:
            found |= numbers.is_between(lowest, MAX_TIMESTAMP_MS / other, closed="left").fill_null(False)
    return found


def _days(numbers: pl.Series) -> pl.Series | None:
    """Epoch milliseconds of dates written as numbers, as in 20240131; None unless most are such.

    The others, 20240230 and 0, are then no dates: null. As seconds all of them are two weeks of 1970.
    """
    written = numbers.is_between(_FIRST_DAY, _LAST_DAY) & (numbers % 1 == 0)
    days = (
        numbers.set(~written.fill_null(False), None).cast(pl.Int64).cast(pl.String).str.to_date("%Y%m%d", strict=False)
    )
    return days.cast(pl.Datetime("ms")).cast(pl.Int64) if 2 * days.count() > numbers.count() else None


def _instants(text: pl.Series) -> pl.Series:
    """Epoch milliseconds of RFC 3339 and ISO 8601 times and dates, UTC where no zone is given; null where none."""
    parts = text.str.extract_groups(_INSTANT).struct.unnest()
    day, minute, second, fraction, sign, zone_hours, zone_minutes = (parts[name] for name in parts.columns)
    local = (day + " " + minute.fill_null("00:00") + ":" + second.fill_null("00")).str.to_datetime(
        "%Y-%m-%d %H:%M:%S", time_unit="ms", strict=False
    )
    past_second = fraction.fill_null("0").str.pad_end(3, "0").str.slice(0, 3).cast(pl.Int64)
    offset = zone_hours.cast(pl.Int64).fill_null(0) * 60 + zone_minutes.cast(pl.Int64).fill_null(0)
    east = (sign == "-").fill_null(False).cast(pl.Int64) * -2 + 1
    return local.cast(pl.Int64) + past_second - offset * east * 60_000


def values(source: str, given: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Float32, null where there is no value or NaN, and True where something was there but is no finite number."""
    if given.dtype == pl.String:
        present = given.str.contains(r"\S").fill_null(False)
        numbers = given.str.strip_chars().cast(pl.Float32, strict=False)
    elif given.dtype.is_numeric() or given.dtype in (pl.Boolean, pl.Null):
        present = given.is_not_null()
        numbers = given.cast(pl.Float32)
    else:
        raise FieldError(f"{source}: the value column is {given.dtype}; it must be numbers")
    missing = numbers.is_nan().fill_null(False)
    return numbers.set(missing, None), present & ~missing & ~numbers.is_finite().fill_null(False)
