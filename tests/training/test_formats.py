"""Every format gives the same columns, and a file that is in none of them is told what to be."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from tests.training.logs import SECOND, rows, written
from training.attributes import read_attributes
from training.dataset import build_dataset
from training.interactions import Columns, InteractionsError, read_interactions

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
        ("log.csv", CSV.replace(",", ";")),
        ("log.csv.gz", CSV.replace(",", "\t")),
        ("log.csv", CSV.replace(",", "|").replace("x", '"x"')),
        ("log.csv", CSV.replace(",item_id", ", item_id ").replace("timestamp", " timestamp\t")),
        ("log.csv", CSV.replace("\n", "\r\r\n")),
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
    ("name", "text"),
    [
        ("log.csv", "user_id;item_id|x\nu;i|1\n"),
        ("log.tsv", "user_id,item_id\nu,i\n"),
        ("log.csv", "user_id item_id\n1 2\n"),
    ],
)
def test_a_table_that_is_parted_otherwise_is_told_what_parts_it(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(
        InteractionsError, match=r"no column 'user_id' .* part them by commas in a \.csv .* tabs in a \.tsv"
    ):
        read_interactions([written(tmp_path / name, text)])


def test_a_decimal_comma_parts_nothing_and_an_open_quote_is_seen_between_semicolons(tmp_path: Path) -> None:
    header = "user_id;item_id;price;note\n"
    log = written(tmp_path / "log.csv", header + "u;i;3,5;x\nu;j;2,5;y\n")
    assert [row[:2] for row in rows(read_interactions([log]))] == [("u", "i"), ("u", "j")]
    written(log, header + 'u;i;3,5;"7 inch\nu;j;2,5;7 inch"\nu;j;1,5;x\n')
    with pytest.raises(InteractionsError, match="in row 1 the column 'note' goes on over 2 lines"):
        read_interactions([log])


def test_padding_is_no_part_of_a_columns_name_unless_it_tells_two_apart(tmp_path: Path) -> None:
    log = written(tmp_path / "log.csv", "user_id, item_id,stars , stars\nu,i,1,2\n")
    for columns in (Columns(value="stars "), Columns(item=" item_id", value="stars ")):
        assert rows(read_interactions([log], columns=columns)) == [("u", "i", None, 1.0)]


def test_padding_of_a_whole_column_is_no_part_of_its_ids_and_that_of_a_cell_is(tmp_path: Path) -> None:
    log = written(tmp_path / "log.csv", "user_id, item_id , value\n u, i , 3\n u, , 1\n u,j,\n")
    found = read_interactions([log], max_dropped=0.4)
    assert rows(found) == [(" u", "i", None, 3.0), (" u", "j", None, None)]
    assert found.report.dropped == {"item id empty": 1}
    attributes = written(tmp_path / "items.csv", "item_id, genre, year\ni, War, \nj, War,1995\n")
    known = read_attributes(attributes, build_dataset(found).vocabulary)
    assert known.columns == {"genre": [None, "War", "War"], "year": [None, None, "1995"]}


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
    with pytest.raises(InteractionsError, match="line 2, not counting"):
        read_interactions([written(tmp_path / "log.tsv", f"1\t10 11\t{SECOND} {SECOND + 2}\n{line}\n")])


def test_ratings_without_a_header_are_not_taken_for_times(tmp_path: Path) -> None:
    with pytest.raises(InteractionsError, match="looks like data and not like a header"):
        read_interactions([written(tmp_path / "log.tsv", "1\t10\t5\n1\t11\t3\n")])


def test_a_line_that_is_not_json_is_dropped_and_counted(tmp_path: Path) -> None:
    good = '{"user_id": "u", "item_id": "i"}\n'
    path = written(tmp_path / "log.jsonl", good + "not json\n[1]\n" + good + good.rstrip()[:-3])

    log = read_interactions([path], max_dropped=0.6)

    assert log.report.dropped == {"line is not a JSON object": 3}
    assert log.report.rows_kept == 2


def test_nan_in_json_is_a_missing_value(tmp_path: Path) -> None:
    lines = ['{"user_id": 7, "item_id": "a", "value": NaN}', '{"user_id": 7, "item_id": "b", "value": 2, "x": [NaN]}']
    log = read_interactions([written(tmp_path / "log.jsonl", "\n".join(lines))], max_dropped=0)
    assert rows(log) == [("7", "a", None, None), ("7", "b", None, 2.0)]
    infinite = written(tmp_path / "infinite.jsonl", lines[0].replace("NaN", "-Infinity"))
    with pytest.raises(InteractionsError, match="value is not a finite number"):
        read_interactions([infinite])


def test_half_a_surrogate_pair_is_told_where_it_stands_in_what_is_read(tmp_path: Path) -> None:
    good, half = '{"user_id": "u", "item_id": "i", "title": "\\ud83d"}\n', '{"user_id": "u", "item_id": "\\ud83d"}\n'
    path = written(tmp_path / "log.jsonl", good + half)

    log = read_interactions([path], max_dropped=0.5)

    assert rows(log) == [("u", "i", None, None)]
    reason = "line has half of a surrogate pair, which is no text"
    assert (log.report.dropped, log.report.first) == ({reason: 1}, {reason: f"in row 2 of {path}"})
    with pytest.raises(InteractionsError, match=r"log\.jsonl: no line is .* half of a surrogate pair"):
        read_interactions([written(path, half)])


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


def test_a_table_in_utf_16_is_told_what_to_be(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes("user_id,item_id\nu,i\n".encode("utf-16"))
    with pytest.raises(InteractionsError, match=r"log\.csv: is in UTF-16; save it as UTF-8"):
        read_interactions([path])
