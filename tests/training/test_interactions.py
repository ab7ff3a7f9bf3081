"""Every kind of bad row is dropped and counted, many are refused, and what is left is in order."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.training.logs import SECOND, rows, written
from training.interactions import Columns, InteractionsError, interactions_from_frame, read_interactions

SHARED = Path(__file__).parents[3] / "shared" / "data"


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


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_first_row_of_data_is_not_taken_for_a_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ratings.{suffix}"
    pl.DataFrame({"119": ["u"], "300": ["i"], "5": ["4"], "874774286": ["874774290"]}).write_csv(
        path, separator="," if suffix == "csv" else "\t"
    )
    with pytest.raises(InteractionsError, match=r"first line, '119', '300', '5', '874774286', looks like data"):
        read_interactions([path])


def test_names_that_are_numbers_are_names_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    frame = pl.DataFrame({"10": ["ann"], "20": ["book"]})
    frame.write_parquet(path)
    frame.write_csv(path.with_suffix(".csv"))
    for one in (path, path.with_suffix(".csv")):
        assert read_interactions([one], columns=Columns(user="10", item="20")).frame["user_id"].to_list() == ["ann"]
    with pytest.raises(InteractionsError, match="no column 'user_id' for the user"):
        read_interactions([path])


def test_a_header_of_places_is_one(tmp_path: Path) -> None:
    """As pandas writes a table without names."""
    path = tmp_path / "log.csv"
    path.write_text(f"0,1,2\nann,book,{SECOND}\n")
    log = read_interactions([path], columns=Columns(user="0", item="1", timestamp="2"))
    assert log.frame.select("user_id", "item_id").rows() == [("ann", "book")]


def test_where_no_row_is_usable_nobody_is_told_to_allow_it(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nann,,1\n")
    with pytest.raises(InteractionsError) as caught:
        read_interactions([path])
    assert "mend the rows." in str(caught.value)
    assert "max_dropped" not in str(caught.value)


@pytest.mark.parametrize("time", ["01/31/2024 10:00", "2024-01-31 10:00:00 UTC", "yesterday"])
def test_where_times_are_unreadable_it_is_said_what_is_a_time(tmp_path: Path, time: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"user_id,item_id,timestamp\nann,book,{time}\nann,pen,2024-01-31 10:00\n")
    with pytest.raises(InteractionsError, match=r"mend the rows \(times are such as 2024-01-31T10:00.*\), or raise"):
        read_interactions([path])


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
        {"value": "NaN"},
    ],
)
def test_a_row_at_the_limit_is_kept(row: dict[str, str | None]) -> None:
    frame = pl.DataFrame([GOOD, GOOD | row], schema=dict.fromkeys(GOOD, pl.String))

    assert interactions_from_frame(frame, source="events", max_dropped=0).report.rows_kept == 2


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_value_that_is_nan_is_a_missing_one(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "value": [float("nan"), 2.0]})
    path = tmp_path / f"log.{suffix}"
    (frame.write_csv if suffix == "csv" else frame.write_parquet)(path)
    assert [row[3] for row in rows(read_interactions([path], max_dropped=0))] == [None, 2.0]


@pytest.mark.parametrize("suffix", ["csv", "inter", "jsonl", "parquet"])
def test_no_values_are_read_where_the_name_of_their_column_is_empty(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"log.{suffix}"
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "value": ["purchase"], "rating": ["good"]})
    if suffix == "parquet":
        frame.write_parquet(path)
    elif suffix == "jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path, separator="," if suffix == "csv" else "\t")

    assert rows(read_interactions([path], columns=Columns(value=""))) == [("u", "i", None, None)]
    with pytest.raises(InteractionsError, match="value is not a finite number"):
        read_interactions([path])


def test_the_share_of_dropped_rows_may_reach_the_limit_and_not_pass_it(tmp_path: Path) -> None:
    def log(bad: int) -> Path:
        return written(tmp_path / "log.csv", "user_id,item_id\n" + "u,i\n" * (100 - bad) + ",i\n" * bad)

    assert read_interactions([log(1)]).report.dropped == {"user id empty": 1}
    with pytest.raises(InteractionsError, match=r"2 of 100 rows.*data\.max_dropped(.|\n)*2  user id empty"):
        read_interactions([log(2)])
    assert read_interactions([log(2)], max_dropped=0.02).report.rows_kept == 98


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_rows_that_an_open_quote_swallows_are_not_lost_unnoticed(tmp_path: Path, column: str) -> None:
    row = {"user_id": "u", "item_id": "i", "timestamp": f"{SECOND}"}
    first, last = ({**row, column: text} for text in (f'"{row[column]}', f'{row[column]}"'))
    lines = [",".join(cells.values()) for cells in (row, first, row, row, last, *[row] * 400)]
    log = written(tmp_path / "log.csv", "\n".join([",".join(row), *lines, ""]))
    with pytest.raises(InteractionsError, match=f"{column.removesuffix('_id')} .* over 4 lines; close the quote"):
        read_interactions([log])


@pytest.mark.parametrize("header", ["user_id,item_id,timestamp,note", "note,user_id,item_id", "user_id,note,item_id"])
@pytest.mark.parametrize("swallows", [1, 3])
def test_rows_that_an_open_quote_swallows_in_a_column_nobody_reads_are_not_lost_unnoticed(
    tmp_path: Path, header: str, swallows: int
) -> None:
    def line(number: int, note: str) -> str:
        row = {"user_id": f"u{number % 9}", "item_id": f"i{number % 7}", "timestamp": str(SECOND), "note": note}
        return ",".join(row[name] for name in header.split(","))

    notes = ["plain"] * 300
    notes[100], notes[100 + swallows] = '"7 inch', '7 inch"'
    log = written(tmp_path / "log.csv", "\n".join([header, *map(line, range(300), notes), ""]))
    with pytest.raises(InteractionsError, match=r"in row 101 the column 'note' goes .* one of them is a row: .*quote"):
        read_interactions([log])


def test_text_of_several_lines_in_a_column_nobody_reads_is_no_harm(tmp_path: Path) -> None:
    texts = [
        "u\nu,000 pieces, nice, all of them",
        "one\ntwo",
        "good, cheap,\nfast, and, so, on",
        'a ""quoted"" word\n\n1,2',
        "u\ni\n1",
    ]
    lines = [f'u,i,1,"{text}"' for text in texts]
    log = written(tmp_path / "log.csv", "\n".join(["user_id,item_id,timestamp,review", *lines, ""]))
    assert read_interactions([log], max_dropped=0).report.rows_kept == 5


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("log.csv", "user_id,item_id,timestamp"),
        ("log.tsv", "user_id\titem_id\ttimestamp"),
        ("log.inter", "user_id:token\titem_id:token\ttimestamp:float"),
        ("log.data", ""),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_are_no_rows(tmp_path: Path, name: str, header: str, end: str) -> None:
    mark = "," if name == "log.csv" else "\t"
    row = mark.join(["u", "i", *(["3"] if name == "log.data" else []), str(SECOND)])
    blank = ["", "  ", mark * row.count(mark)]
    lines = [*([header] if header else []), row, *blank, row, row.replace("i", "", 1), "", ""]
    log = read_interactions([written(tmp_path / name, end.join(lines))], max_dropped=0.5)

    assert (log.report.rows_read, log.report.dropped) == (3, {"item id empty": 1})
    assert log.report.first == {"item id empty": f"in row 6 of {tmp_path / name}"}


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


def test_files_with_and_without_timestamps_do_not_mix(tmp_path: Path) -> None:
    timed = written(tmp_path / "timed.csv", "user_id,item_id,timestamp\nu,i,1\n")
    untimed = written(tmp_path / "untimed.csv", "user_id,item_id\nu,i\n")

    with pytest.raises(InteractionsError, match=r"untimed\.csv: no timestamps"):
        read_interactions([timed, untimed])
    with pytest.raises(InteractionsError, match="timestamps"):
        read_interactions([timed]).extended(read_interactions([untimed]))


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


def test_a_boolean_of_json_is_no_id_and_the_word_is(tmp_path: Path) -> None:
    lines = (f'{{"user_id": "u", "item_id": {item}}}\n' for item in ("true", '"true"', "false", '"i"'))

    log = read_interactions([written(tmp_path / "log.jsonl", "".join(lines))], max_dropped=0.5)

    assert log.frame["item_id"].to_list() == ["true", "i"]
    assert log.report.dropped == {"item id of a wrong type": 2}
