"""What counts as an id, a moment or a number, whichever kind of file a column came from."""

import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.logs import SECOND, written
from training.interactions import InteractionsError, interactions_from_frame, read_interactions


@pytest.mark.parametrize("bad", [2.5, float("nan"), float("inf"), 2.0**60])
def test_a_fraction_is_no_id(bad: float) -> None:
    frame = pl.DataFrame({"user_id": [3.0, bad], "item_id": [1, 2]})

    log = interactions_from_frame(frame, source="events", max_dropped=0.5)

    assert log.frame["user_id"].to_list() == ["3"]
    assert log.report.dropped == {"user id of a wrong type": 1}


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"user_id": [[1]], "item_id": ["i"]}),
        pl.DataFrame({"user_id": ["u"], "item_id": [True]}),
        pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [True]}),
        pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "value": [[1.0]]}),
    ],
)
def test_a_column_whose_type_cannot_hold_it_is_refused(tmp_path: Path, frame: pl.DataFrame) -> None:
    path = tmp_path / "log.parquet"
    frame.write_parquet(path)

    with pytest.raises(InteractionsError, match=r"log\.parquet: the \w+ column is"):
        read_interactions([path])


def test_the_unit_of_numbers_is_judged_per_file(tmp_path: Path) -> None:
    seconds = written(tmp_path / "s.csv", f"user_id,item_id,timestamp\nu,a,{SECOND}\nu,b,{SECOND}.25\n")
    milliseconds = written(tmp_path / "ms.csv", f"user_id,item_id,timestamp\nu,c,{SECOND}500\n")

    log = read_interactions([seconds, milliseconds])

    assert log.frame["timestamp"].to_list() == [SECOND * 1000, SECOND * 1000 + 250, SECOND * 1000 + 500]


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
@pytest.mark.parametrize("text", [True, False])
def test_seconds_and_all_parts_of_them_are_told_apart(unit: int, text: bool) -> None:
    frame = pl.DataFrame({"user_id": ["u"] * 2, "item_id": [*"ab"], "timestamp": [SECOND * unit, (SECOND + 1) * unit]})
    log = interactions_from_frame(frame.cast({"timestamp": pl.String}) if text else frame, source="events")
    assert log.frame["timestamp"].to_list() == [SECOND * 1000, SECOND * 1000 + 1000]


@pytest.mark.parametrize("ticks", [133_500_000_000_000_000, 638_500_000_000_000_000])
def test_ticks_are_no_nanoseconds(ticks: int) -> None:
    """Tenths of microseconds since 1601 in Windows, since the year 1 in .NET."""
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [ticks]})
    with pytest.raises(InteractionsError, match="timestamp before 1970 or after 2100"):
        interactions_from_frame(frame, source="events")


@pytest.mark.parametrize(("most", "other"), [(1000, 1), (1, 1000), (10**6, 1), (1, 10**9), (10**9, 10**6)])
@pytest.mark.parametrize("text", [True, False])
def test_times_in_another_unit_than_most_are_counted(most: int, other: int, text: bool) -> None:
    column = pl.Series([SECOND * most, (SECOND + 1) * other, (SECOND + 2) * most, 0])
    frame = pl.DataFrame({"user_id": ["u"] * 4, "item_id": [*"abcd"], "timestamp": column})
    if text:
        frame = frame.cast({"timestamp": pl.String})

    log = interactions_from_frame(frame, source="events", max_dropped=0.25)

    assert log.frame["item_id"].to_list() == ["d", "a", "c"]
    assert log.report.dropped == {"timestamp in another unit than most, as seconds among milliseconds": 1}
    found = f"among milliseconds, first in row 2 of events: '{(SECOND + 1) * other}'"
    with pytest.raises(InteractionsError, match=found):
        interactions_from_frame(frame, source="events")


@pytest.mark.parametrize(
    "column", [["20240301", "", "20231231"], [20240301, None, 20231231], [20240301.0, None, 20231231.0]]
)
def test_numbers_that_all_are_dates_are_taken_for_them(column: list[object]) -> None:
    frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": column}, strict=False)

    log = interactions_from_frame(frame, source="events", max_dropped=0.4)

    assert log.frame.select("item_id", "timestamp").rows() == [("c", 1_703_980_800_000), ("a", 1_709_251_200_000)]
    assert log.report.dropped == {"timestamp missing": 1}


@pytest.mark.parametrize("odd", [20240230.0, 20241301.0, 0.0, 99999999.0, 20240301.5])
def test_a_date_that_there_is_not_is_counted_and_leaves_the_others_dates(odd: float) -> None:
    frame = pl.DataFrame(
        {"user_id": ["u"] * 4, "item_id": [*"abcd"], "timestamp": [20240301.0, odd, 20231231.0, 20240302.0]}
    )

    log = interactions_from_frame(frame, source="events", max_dropped=0.25)

    assert log.frame["item_id"].to_list() == ["c", "a", "d"]
    assert log.frame["timestamp"][1] == 1_709_251_200_000
    assert log.report.dropped == {"timestamp unreadable": 1}


def test_a_few_numbers_that_could_be_dates_are_none() -> None:
    frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": [*"abc"], "timestamp": [SECOND, 20240301, SECOND]})

    assert interactions_from_frame(frame, source="events").frame["timestamp"][0] == 20240301_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-03-01", 1_709_251_200_000),
        ("2024-03-01T12:30:00Z", 1_709_296_200_000),
        ("2024-03-01t12:30:00z", 1_709_296_200_000),
        ("2024-03-01 12:30", 1_709_296_200_000),
        ("2024-03-01T12:30:00.5+02:00", 1_709_289_000_500),
        ("2024-03-01T12:30:00.123456-0530", 1_709_316_000_123),
        ("2024-03-01 12:30:00.5+02", 1_709_289_000_500),  # as PostgreSQL writes it
        ("1709296200", 1_709_296_200_000),
    ],
)
def test_times_are_read_as_rfc_3339_or_numbers_even_mixed(text: str, expected: int) -> None:
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [text, "4102444800"]})

    assert interactions_from_frame(frame, source="events").frame["timestamp"][0] == expected


@given(
    st.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(2100, 12, 30)),
    st.integers(-14 * 60, 14 * 60),
)
def test_any_rfc_3339_time_is_the_moment_the_standard_library_says(moment: datetime.datetime, offset: int) -> None:
    aware = moment.replace(tzinfo=datetime.timezone(datetime.timedelta(minutes=offset)))
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [aware.isoformat()]})

    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    expected = (aware - epoch) // datetime.timedelta(milliseconds=1)
    assert interactions_from_frame(frame, source="events").frame["timestamp"][0] == expected
