"""Every format gives the same columns, and every kind of bad row is dropped and counted, and many are refused."""

import datetime
import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.interactions import Columns, Interactions, InteractionsError, interactions_from_frame, read_interactions

SHARED = Path(__file__).parents[3] / "shared" / "data"
SECOND = 1_700_000_000  # an arbitrary moment, in epoch seconds


def rows(interactions: Interactions) -> list[tuple[object, ...]]:
    return interactions.frame.rows()


def written(path: Path, text: str) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


CSV = f"user_id,item_id,timestamp,value\n7,a,{SECOND},4\nx,007,{SECOND + 1},\n7,b,{SECOND + 2},1.5\n"
JSONL = (
    f'{{"user_id": 7, "item_id": "a", "timestamp": {SECOND}, "value": 4}}\n\n'
    f'{{"item_id": "007", "user_id": "x", "timestamp": {SECOND + 1}, "more": [1]}}\n'
    f'{{"user_id": "7", "item_id": "b", "timestamp": "{SECOND + 2}", "value": 1.5}}\n'
)
INTER = CSV.replace("user_id,item_id,timestamp,value", "user_id:token,item_id:token,timestamp:float,rating:float")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", CSV),
        ("LOG.CSV", CSV),
        ("log.csv.gz", CSV),
        ("log.csv", "\ufeff" + CSV),
        ("log.csv", CSV.replace("\n", "\r\n")),
        ("log.tsv", CSV.replace(",", "\t")),
        ("log.tsv.gz", CSV.replace(",", "\t")),
        ("log.inter", INTER.replace(",", "\t")),
        ("log.inter.gz", INTER.replace(",", "\t")),
        ("log.jsonl", JSONL),
        ("log.ndjson", JSONL),
        ("log.jsonl.gz", JSONL),
    ],
)
def test_every_text_format_gives_the_same_columns(tmp_path: Path, name: str, text: str) -> None:
    log = read_interactions([written(tmp_path / name, text)])

    assert rows(log) == [
        ("7", "a", SECOND * 1000, 4.0),
        ("x", "007", (SECOND + 1) * 1000, None),
        ("7", "b", (SECOND + 2) * 1000, 1.5),
    ]
    assert log.has_timestamps
    assert (log.report.rows_read, log.report.rows_kept, log.report.dropped) == (3, 3, {})
    assert log.frame.schema == {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "value": pl.Float32,
    }


@pytest.mark.parametrize(
    "times",
    [
        [SECOND, SECOND + 1],
        [float(SECOND), SECOND + 1.0],
        [SECOND * 1000, SECOND * 1000 + 1000],
        [f"{SECOND}", f"{SECOND + 1}"],
        pl.Series([SECOND * 1000, SECOND * 1000 + 1000]).cast(pl.Datetime("ms")),
        pl.Series([SECOND * 10**6, SECOND * 10**6 + 10**6]).cast(pl.Datetime("us", "Asia/Tokyo")),
    ],
)
def test_parquet_columns_keep_their_meaning_whatever_their_type(tmp_path: Path, times: object) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": [1, 2], "item_id": [3.0, 4.0], "timestamp": times, "extra": [None, "x"]}).write_parquet(
        path
    )

    log = read_interactions([path])

    assert rows(log) == [("1", "3", SECOND * 1000, None), ("2", "4", SECOND * 1000 + 1000, None)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 10\n1 11\n2 10\n1 12\n", [("1", "10"), ("1", "11"), ("2", "10"), ("1", "12")]),
        (
            "1 10 11 10\n2\t12  13 \r\n\n3 9",
            [("1", "10"), ("1", "11"), ("1", "10"), ("2", "12"), ("2", "13"), ("3", "9")],
        ),
    ],
)
@pytest.mark.parametrize("name", ["log.txt", "log.txt.gz"])
def test_header_less_text_is_pairs_or_sequences(
    tmp_path: Path, name: str, text: str, expected: list[tuple[str, str]]
) -> None:
    log = read_interactions([written(tmp_path / name, text)])

    assert [row[:2] for row in rows(log)] == expected
    assert not log.has_timestamps
    assert log.frame["timestamp"].null_count() == len(expected)


@pytest.mark.parametrize(
    "text",
    ["1 10 5 881250949\n1 11 3 881250950\n2 10 4 881250951\n", "user_id item_id\n1 2\n", "user_id item_id rating\n"],
)
def test_a_table_that_poses_as_sequences_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InteractionsError, match=r"name (a table|it) .*\.csv or \.tsv"):
        read_interactions([written(tmp_path / "log.txt", text)])


def test_a_user_without_items_in_a_text_file_is_a_dropped_row(tmp_path: Path) -> None:
    log = read_interactions([written(tmp_path / "log.txt", "1 10 11\n2\n")], max_dropped=0.5)

    assert [row[:2] for row in rows(log)] == [("1", "10"), ("1", "11")]
    assert log.report.dropped == {"item id empty": 1}


@pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz"])
def test_sequences_may_have_their_times_beside_them(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, f"1\t10 11\t{SECOND} {SECOND + 2}\r\n2\t12\t{SECOND + 1}\n\n1\t10\t{SECOND + 3}")

    assert [row[:3] for row in rows(read_interactions([path]))] == [
        ("1", "10", SECOND * 1000),
        ("2", "12", (SECOND + 1) * 1000),
        ("1", "11", (SECOND + 2) * 1000),
        ("1", "10", (SECOND + 3) * 1000),
    ]
    untimed = read_interactions([path], columns=Columns(timestamp=""))
    assert [row[1] for row in rows(untimed)] == ["10", "11", "12", "10"]
    assert not untimed.has_timestamps
    with pytest.raises(InteractionsError, match="has no column 'rating'"):
        read_interactions([path], columns=Columns(value="rating"))


@pytest.mark.parametrize("line", [f"2\t12 13\t{SECOND}", f"2\t12\t{SECOND} {SECOND}", "2\t12", f"2\t12\t{SECOND}\tx"])
def test_a_sequence_without_a_time_for_each_item_is_refused_by_its_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(InteractionsError, match="line 2 has"):
        read_interactions([written(tmp_path / "log.tsv", f"1\t10 11\t{SECOND} {SECOND + 2}\n{line}\n")])


def test_ratings_without_a_header_are_not_taken_for_times(tmp_path: Path) -> None:
    with pytest.raises(InteractionsError, match="no column 'user_id'"):
        read_interactions([written(tmp_path / "log.tsv", "1\t10\t5\n1\t11\t3\n")])


def test_ties_in_time_keep_the_order_of_the_files_and_of_their_rows(tmp_path: Path) -> None:
    first = written(tmp_path / "b.csv", "user_id,item_id,timestamp\nu,late,20\nu,x,10\nu,y,10\n")
    second = written(tmp_path / "a.csv", "user_id,item_id,timestamp\nu,a,10\nu,early,5\n")

    log = read_interactions([first, second])

    assert log.frame["item_id"].to_list() == ["early", "x", "y", "a", "late"]
    assert log.frame["timestamp"].to_list() == [5_000, 10_000, 10_000, 10_000, 20_000]
    assert len(log.sha256) == 2


def test_without_timestamps_the_order_of_the_rows_stays(tmp_path: Path) -> None:
    log = read_interactions([written(tmp_path / "a.csv", "user_id,item_id\nu,z\nu,a\nu,z\n")])

    assert rows(log) == [("u", "z", None, None), ("u", "a", None, None), ("u", "z", None, None)]
    assert not log.has_timestamps


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", f"who,what,when,stars,timestamp\nu,i,{SECOND},3,1\n")

    log = read_interactions([path], columns=Columns(user="who", item="what", timestamp="when", value="stars"))

    assert rows(log) == [("u", "i", SECOND * 1000, 3.0)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("role", ["user", "item", "timestamp", "value"])
def test_a_named_column_that_is_missing_is_an_error_with_the_columns_there_are(
    tmp_path: Path, suffix: str, role: str
) -> None:
    path = tmp_path / f"log.{suffix}"
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [1], "value": [1.0]})
    write: dict[str, Callable[[Path], object]] = {
        "csv": frame.write_csv,
        "jsonl": frame.write_ndjson,
        "parquet": frame.write_parquet,
    }
    write[suffix](path)

    with pytest.raises(InteractionsError) as caught:
        read_interactions([path], columns=Columns(**{role: "absent"}))

    assert f"{path}: no column 'absent' for the {role}" in str(caught.value)
    assert "'user_id', 'item_id', 'timestamp', 'value'" in str(caught.value)


GOOD = {"user_id": "u", "item_id": "i", "timestamp": str(SECOND), "value": "1"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"user_id": ""}, "user id empty"),
        ({"user_id": None}, "user id empty"),
        ({"user_id": " \t"}, "user id empty"),
        ({"item_id": ""}, "item id empty"),
        ({"user_id": "é" * 128 + "x"}, "user id over 256 bytes"),
        ({"item_id": "x" * 257}, "item id over 256 bytes"),
        ({"item_id": '{"id": 3}'}, "item id of a wrong type"),
        ({"user_id": "[3]"}, "user id of a wrong type"),
        ({"timestamp": ""}, "timestamp missing"),
        ({"timestamp": None}, "timestamp missing"),
        ({"timestamp": "NaN"}, "timestamp missing"),
        ({"timestamp": "yesterday"}, "timestamp unreadable"),
        ({"timestamp": "2024-02-30"}, "timestamp unreadable"),
        ({"timestamp": "2024-01-01T25:00:00Z"}, "timestamp unreadable"),
        ({"timestamp": "-1"}, "timestamp before 1970 or after 2100"),
        ({"timestamp": "1969-12-31T23:59:59Z"}, "timestamp before 1970 or after 2100"),
        ({"timestamp": "inf"}, "timestamp before 1970 or after 2100"),
        ({"timestamp": "1e300"}, "timestamp before 1970 or after 2100"),
        ({"timestamp": "2101-01-01"}, "timestamp before 1970 or after 2100"),
        ({"timestamp": "4133980800"}, "timestamp before 1970 or after 2100"),
        ({"value": "good"}, "value is not a finite number"),
        ({"value": "nan"}, "value is not a finite number"),
        ({"value": "-inf"}, "value is not a finite number"),
        ({"user_id": "", "timestamp": "x", "value": "x"}, "user id empty"),
    ],
)
def test_a_bad_row_is_dropped_and_counted_under_its_first_reason(bad: dict[str, str | None], reason: str) -> None:
    frame = pl.DataFrame([GOOD, GOOD | bad, GOOD], schema=dict.fromkeys(GOOD, pl.String))

    log = interactions_from_frame(frame, source="events", max_dropped=0.5)

    assert log.report.dropped == {reason: 1}
    assert (log.report.rows_read, log.report.rows_kept, log.frame.height) == (3, 2, 2)


@pytest.mark.parametrize(
    "row",
    [
        {"user_id": "é" * 128},
        {"item_id": "x" * 256},
        {"item_id": "{3F2504E0-4F89-41D3-9A0C-0305E82C3301}"},
        {"timestamp": "0"},
        {"timestamp": "4133980799"},
        {"value": ""},
        {"value": None},
    ],
)
def test_a_row_at_the_limit_is_kept(row: dict[str, str | None]) -> None:
    frame = pl.DataFrame([GOOD, GOOD | row], schema=dict.fromkeys(GOOD, pl.String))

    assert interactions_from_frame(frame, source="events", max_dropped=0).report.rows_kept == 2


@pytest.mark.parametrize("bad", [2.5, float("nan"), float("inf"), 2.0**60])
def test_a_fraction_is_no_id(bad: float) -> None:
    frame = pl.DataFrame({"user_id": [3.0, bad], "item_id": [1, 2]})

    log = interactions_from_frame(frame, source="events", max_dropped=0.5)

    assert log.frame["user_id"].to_list() == ["3"]
    assert log.report.dropped == {"user id of a wrong type": 1}


def test_a_line_that_is_not_json_is_dropped_and_counted(tmp_path: Path) -> None:
    good = '{"user_id": "u", "item_id": "i"}\n'
    path = written(tmp_path / "log.jsonl", good + "not json\n[1]\n" + good + good.rstrip()[:-3])

    log = read_interactions([path], max_dropped=0.6)

    assert log.report.dropped == {"line is not a JSON object": 3}
    assert log.report.rows_kept == 2


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_a_column_may_be_called_as_one_of_ours(tmp_path: Path, name: str) -> None:
    table = "user_id,item_id,malformed\nu,i,no\n" if name == "log.csv" else '{"malformed": "u", "item_id": "i"}\n'
    columns = Columns(user="user_id" if name == "log.csv" else "malformed")
    assert rows(read_interactions([written(tmp_path / name, table)], columns=columns)) == [("u", "i", None, None)]


def test_integers_of_any_size_are_ids_as_written(tmp_path: Path) -> None:
    ids = [2**63, 2**64, 10**22, 10**40 + 1, 10**40 + 2, -(2**64), 7]
    lines = "".join(f'{{"user_id": {number}, "item_id": "1e22", "timestamp": 1e9}}\n' for number in ids)
    log = read_interactions([written(tmp_path / "log.jsonl", lines)])
    assert log.frame["user_id"].to_list() == list(map(str, ids))
    assert set(log.frame["item_id"]) == {"1e22"}
    assert set(log.frame["timestamp"]) == {10**12}


@pytest.mark.parametrize("text", ['{"user_id": "u", "item', "[1]\nnot json\n"])
def test_a_file_without_any_json_object_is_told_so(tmp_path: Path, text: str) -> None:
    with pytest.raises(InteractionsError, match=r"log\.jsonl: no line is a JSON object"):
        read_interactions([written(tmp_path / "log.jsonl", text)])


def test_the_share_of_dropped_rows_may_reach_the_limit_and_not_pass_it(tmp_path: Path) -> None:
    def log(bad: int) -> Path:
        return written(tmp_path / "log.csv", "user_id,item_id\n" + "u,i\n" * (100 - bad) + ",i\n" * bad)

    assert read_interactions([log(1)]).report.dropped == {"user id empty": 1}
    with pytest.raises(InteractionsError, match=r"2 of 100 rows.*data\.max_dropped(.|\n)*2  user id empty"):
        read_interactions([log(2)])
    assert read_interactions([log(2)], max_dropped=0.02).report.rows_kept == 98


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", b""),
        ("log.csv", b"\n\n"),
        ("log.csv", b"user_id,item_id\n"),
        ("log.csv", b"user_id,item_id\nu,i\nu,i,extra\n"),
        ("log.csv", b'user_id,item_id\nu,"i\nu,i\n'),
        ("log.csv", b"user_id,item_id\n\xff\xfe,i\n"),
        ("log.csv", b"user_id\n1\n"),
        ("log.inter", b"user_id:token\tuser_id:float\n1\t2\n"),
        ("log.tsv.gz", b"not gzip"),
        ("log.tsv.gz", gzip.compress(b"user_id\titem_id\n" + b"u\ti\n" * 999)[:-9]),
        ("log.jsonl", b"[]"),
        ("log.jsonl", b"\x00\x01\x02"),
        ("log.parquet", b"user_id,item_id\n"),
        ("log.parquet", b""),
        ("log.txt", b"1\n2\n"),
        ("log.xlsx", b"PK"),
        ("log.parquet.gz", b"PAR1"),
    ],
)
def test_a_malformed_file_is_refused_in_a_sentence_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(InteractionsError, match=name.replace(".", r"\.")):
        read_interactions([path])


def test_a_line_with_too_many_fields_is_named(tmp_path: Path) -> None:
    log = written(tmp_path / "log.csv", 'user_id,item_id\nu,"i\n1"\nu,i\nu,i,extra\n')
    with pytest.raises(InteractionsError, match="line 5 has 3 fields, the first 2"):
        read_interactions([log])


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_rows_that_an_open_quote_swallows_are_not_lost_unnoticed(tmp_path: Path, column: str) -> None:
    row = {"user_id": "u", "item_id": "i", "timestamp": f"{SECOND}"}
    first, last = ({**row, column: text} for text in (f'"{row[column]}', f'{row[column]}"'))
    lines = [",".join(cells.values()) for cells in (row, first, row, row, last, *[row] * 400)]
    log = written(tmp_path / "log.csv", "\n".join([",".join(row), *lines, ""]))
    with pytest.raises(InteractionsError, match=f"{column.removesuffix('_id')} .* over 4 lines; close the quote"):
        read_interactions([log])


def test_a_missing_file_a_folder_and_no_file_at_all_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for paths in ([tmp_path / "absent.csv"], [tmp_path / "absent.parquet"], []):
        with pytest.raises(InteractionsError):
            read_interactions(paths)
    parts = tmp_path / "parts.parquet"
    parts.mkdir()
    pl.DataFrame({"user_id": ["u"], "item_id": ["i"]}).write_parquet(parts / "part-0.parquet")
    for folder in (tmp_path / "folder.csv", parts):
        with pytest.raises(InteractionsError, match=rf"is a folder; .*{folder.name}/\*"):
            read_interactions([folder])


def test_a_table_in_utf_16_is_told_what_to_be(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes("user_id,item_id\nu,i\n".encode("utf-16"))
    with pytest.raises(InteractionsError, match=r"log\.csv: is in UTF-16; save it as UTF-8"):
        read_interactions([path])


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_column_that_is_in_the_header_twice_is_refused_if_it_is_to_be_read(tmp_path: Path, suffix: str) -> None:
    def log(header: str) -> Path:
        rows = f"{header}\nu,a,b,c\nu,b,c,d\n"
        return written(tmp_path / f"log{suffix}", rows if suffix == ".csv" else rows.replace(",", "\t"))

    with pytest.raises(InteractionsError, match=r"the header has 'item_id' twice; rename the one that is not the item"):
        read_interactions([log("user_id,item_id,item_id,x")])
    assert read_interactions([log("user_id,item_id,x,x")]).frame["item_id"].to_list() == ["a", "b"]


def test_a_file_that_is_named_twice_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id\nu,i\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InteractionsError, match=r"^log\.csv is named twice, .* name it once$"):
        read_interactions([Path("log.csv"), log])


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


def test_files_with_and_without_timestamps_do_not_mix(tmp_path: Path) -> None:
    timed = written(tmp_path / "timed.csv", "user_id,item_id,timestamp\nu,i,1\n")
    untimed = written(tmp_path / "untimed.csv", "user_id,item_id\nu,i\n")

    with pytest.raises(InteractionsError, match=r"untimed\.csv: no timestamps"):
        read_interactions([timed, untimed])
    with pytest.raises(InteractionsError, match="timestamps"):
        read_interactions([timed]).extended(read_interactions([untimed]))


def test_the_unit_of_numbers_is_judged_per_file(tmp_path: Path) -> None:
    seconds = written(tmp_path / "s.csv", f"user_id,item_id,timestamp\nu,a,{SECOND}\nu,b,{SECOND}.25\n")
    milliseconds = written(tmp_path / "ms.csv", f"user_id,item_id,timestamp\nu,c,{SECOND}500\n")

    log = read_interactions([seconds, milliseconds])

    assert log.frame["timestamp"].to_list() == [SECOND * 1000, SECOND * 1000 + 250, SECOND * 1000 + 500]


@pytest.mark.parametrize(
    "column", [["20240301", "", "20231231"], [20240301, None, 20231231], [20240301.0, None, 20231231.0]]
)
def test_numbers_that_all_are_dates_are_taken_for_them(column: list[object]) -> None:
    frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": column}, strict=False)

    log = interactions_from_frame(frame, source="events", max_dropped=0.4)

    assert log.frame.select("item_id", "timestamp").rows() == [("c", 1_703_980_800_000), ("a", 1_709_251_200_000)]
    assert log.report.dropped == {"timestamp missing": 1}
    other = frame.with_columns(timestamp=pl.Series([20240301, 20240302, 20240399]))
    assert interactions_from_frame(other, source="events").frame["timestamp"][0] == 20240301_000


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


def test_a_report_shows_where_each_reason_was_met_first_and_never_a_user(tmp_path: Path) -> None:
    first = written(tmp_path / "a.csv", "user_id,item_id,timestamp\nu,a,10\nu,b,yesterday\nu,,30\n")
    long = "v" * 257
    second = written(tmp_path / "b.csv", f"user_id,item_id,timestamp\nu,a,10\n{long},b,20\nu,b,today\nu,b,1e300\n")
    assert str(read_interactions([first, second], max_dropped=1).report).splitlines() == [
        "2 of 7 rows kept",
        f"           1  item id empty, first in row 3 of {first}",
        f"           2  timestamp unreadable, first in row 2 of {first}: 'yesterday'",
        f"           1  user id over 256 bytes, first in row 2 of {second}",
        f"           1  timestamp before 1970 or after 2100, first in row 4 of {second}: '1e300'",
    ]


def test_extending_keeps_time_order_duplicates_and_both_reports(tmp_path: Path) -> None:
    log = read_interactions(
        [written(tmp_path / "log.csv", "user_id,item_id,timestamp\nu,a,10\nu,b,30\n,x,1\n")], max_dropped=0.5
    )
    frame = pl.DataFrame({"user_id": ["u", "u", ""], "item_id": ["b", "c", "x"], "timestamp": [30, 20, 20]})
    events = interactions_from_frame(frame, source="events", max_dropped=0.5)

    both = log.extended(events)

    assert both.frame["item_id"].to_list() == ["a", "c", "b", "b"]
    assert (both.report.rows_read, both.report.rows_kept, both.report.dropped) == (6, 4, {"user id empty": 2})
    assert both.sha256 == log.sha256 + events.sha256


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    first = read_interactions([written(tmp_path / "a.csv", "user_id,item_id\nu,i\n")])
    same = read_interactions([written(tmp_path / "b.csv", "user_id,item_id\nu,i\n")])
    other = read_interactions([written(tmp_path / "c.csv", "user_id,item_id\nu,j\n")])

    assert first.sha256 == same.sha256 != other.sha256


@pytest.mark.parametrize(
    ("name", "columns", "interactions", "users", "items"),
    [
        ("ml-100k/ml-100k.inter", Columns(), 100_000, 943, 1_682),
        ("beauty/Beauty.txt", Columns(), 198_502, 22_363, 12_101),
        ("ml-1m/ml-1m.txt.gz", Columns(), 999_611, 6_040, 3_416),
        ("yoochoose-clicks-100k/sequences.tsv.gz", Columns(), 145_716, 17_744, 5_630),
        # 279 of its 1,000,209 ratings have no timestamp.
        ("ml-1m/ratings.tsv.gz", Columns(item="movie_id", value="rating"), 999_930, 6_040, None),
    ],
)
def test_published_files_have_their_published_sizes(
    name: str, columns: Columns, interactions: int, users: int, items: int | None
) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")

    log = read_interactions([path], columns=columns)

    assert log.report.rows_kept == interactions
    assert log.frame["user_id"].n_unique() == users
    assert items is None or log.frame["item_id"].n_unique() == items
