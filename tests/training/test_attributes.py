"""Every format of item attributes lines up with the vocabulary, and says what did not match."""

import datetime
import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.cold import Learned, Placing
from training.attributes import Attributes, AttributesError, number_attributes, read_attributes
from training.dataset import Vocabulary, build_dataset
from training.interactions import read_interactions

SHARED = Path(__file__).parents[3] / "shared" / "data"
VOCABULARY = Vocabulary(("", "20", "10", "30"))  # the files below know 10, 20 and 99


def read(path: Path, content: str) -> Attributes:
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return read_attributes(path, VOCABULARY)


@pytest.mark.parametrize("name", ["a.item", "a.item.gz"])
def test_a_recbole_item_file_gives_titles_whole_and_token_sequences_as_lists(tmp_path: Path, name: str) -> None:
    header = (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tscore:float\tweights:float_seq\n"
    )
    rows = '10\tToy "Story"\t1995\tAnimation Comedy\t1.5\t1 2.5\n99\tX\t1\tY\t1\t1\n20\tGold Eye\t\t\t\t\n'

    attributes = read(tmp_path / name, header + rows)

    assert attributes.columns == {
        "movie_title": [None, "Gold Eye", 'Toy "Story"', None],
        "release_year": [None, None, "1995", None],
        "class": [None, None, ["Animation", "Comedy"], None],
        "score": [None, None, 1.5, None],
        "weights": [None, None, [1.0, 2.5], None],
    }
    assert (attributes.missing_items, attributes.unknown_items) == (1, 1)
    assert [attributes.title(row) for row in range(4)] == [None, "Gold Eye", 'Toy "Story"', None]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")])
def test_a_table_stays_text(tmp_path: Path, name: str, separator: str) -> None:
    text = "title,item_id,price\nTea,10,007\nJam,20,\nInk,99,3\n".replace(",", separator)

    attributes = read(tmp_path / name, text)

    assert attributes.columns == {"title": [None, "Jam", "Tea", None], "price": [None, None, "007", None]}
    assert (attributes.missing_items, attributes.unknown_items) == (1, 1)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("attributes", "where"),
    [
        ('{"x": "\\ud83d"}', "attribute 'x' is '.ud83d'"),
        ('{"x": ["ok", "\\ud83d"]}', "attribute 'x' is '.ud83d'"),
        ('{"\\ud83d": 1}', "has an attribute '.ud83d'"),
    ],
)
def test_half_a_surrogate_pair_is_no_text(tmp_path: Path, suffix: str, attributes: str, where: str) -> None:
    text = f'{{"10": {attributes}}}' if suffix == "json" else '{"item_id": "10", ' + attributes[1:]
    with pytest.raises(AttributesError, match=rf"a\.{suffix}: item '10',? {where}, with half of a surrogate pair"):
        read(tmp_path / f"a.{suffix}", text)


def test_a_table_may_be_parted_by_semicolons(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "item_id; brand\n10;acme, inc\n").columns == {
        "brand": [None, None, "acme, inc", None]
    }


def test_blank_lines_of_a_table_are_no_items(tmp_path: Path) -> None:
    attributes = read(tmp_path / "a.csv", "item_id,brand\n10,acme\n\n ,\n20,acme\n\n")

    assert attributes.columns == {"brand": [None, "acme", "acme", None]}
    assert (attributes.missing_items, attributes.unknown_items) == (1, 0)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize(
    ("first", "second", "numbers"),
    [
        ("12", "-0.99", True),
        ("", "0.5", True),
        ("1999", "2000", False),
        ("007", "1.5", False),
        ("1.5", "n/a", False),
        ("1.5", " ", False),
        ("1.5|2", "3", False),
        ("1.", "2", False),
        ("1e3", "1.5", False),
        ("1.1", "1.10", False),
    ],
)
def test_a_column_of_a_table_is_numbers_if_all_are_and_one_has_a_fraction(
    tmp_path: Path, name: str, first: str, second: str, numbers: bool
) -> None:
    text = f"item_id,price,title\n10,{first},1.5\n20,{second},2.5\n".replace(",", "\t" if name == "a.tsv" else ",")

    columns = read(tmp_path / name, text).columns

    known = [value for value in columns["price"] if value is not None]
    assert all(isinstance(value, float) is numbers for value in known)
    assert not numbers or known == [float(value) for value in (second, first) if value]
    assert columns["title"] == [None, "2.5", "1.5", None]


def test_json_from_item_to_a_list_of_attribute_ids(tmp_path: Path) -> None:
    attributes = read(tmp_path / "a.json", '{"10": [3, 1], "20": [], "99": [7]}')

    assert attributes.columns == {"attributes": [None, [], [3, 1], None]}
    assert attributes.title(1) is None


def test_json_from_item_to_an_object(tmp_path: Path) -> None:
    attributes = read(tmp_path / "a.json", '{"10": {"name": "Tea", "price": 2.5}, "20": {"hot": true, "price": NaN}}')

    assert attributes.columns == {
        "name": [None, None, "Tea", None],
        "price": [None, None, 2.5, None],
        "hot": [None, True, None, None],
    }
    assert attributes.title(2) == "Tea"


def test_json_lines_with_text_or_integer_ids(tmp_path: Path) -> None:
    attributes = read(tmp_path / "a.jsonl", '{"item_id": 10, "title": 1984}\n\n{"item_id": "20", "tags": ["x"]}\n')

    assert attributes.columns == {"title": [None, None, 1984, None], "tags": [None, ["x"], None, None]}
    assert attributes.title(2) == "1984"


def test_a_column_of_a_table_with_several_in_an_entry_holds_lists(tmp_path: Path) -> None:
    rows = "item_id,title,genres,maker\n10,Tea|Time,Drama|Comedy,x\n20,Jam,Drama,y\n"
    assert read(tmp_path / "a.csv", rows).columns == {
        "title": [None, "Jam", "Tea|Time", None],
        "genres": [None, ["Drama"], ["Drama", "Comedy"], None],
        "maker": [None, "y", "x", None],
    }


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "sku,hue\n10,red\n"), ("a.jsonl", '{"sku": 10, "hue": "red"}\n')]
)
def test_items_may_be_called_as_in_the_interactions(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_attributes(tmp_path / name, VOCABULARY, item_column="sku").columns == {"hue": [None, None, "red", None]}
    with pytest.raises(AttributesError, match="item_id"):
        read_attributes(tmp_path / name, VOCABULARY, item_column="article")


@pytest.mark.parametrize(
    "column", [pl.Series(["a", "b"], dtype=pl.Categorical), pl.Series([1.0, 2.0]), pl.Series([1, 2])]
)
def test_a_parquet_column_of_ids_is_what_it_is_in_the_interactions(tmp_path: Path, column: pl.Series) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item_id": column, "price": pl.Series(["19.47", "3.00"]).cast(pl.Decimal(10, 2))}).write_parquet(path)
    first, second = ("a", "b") if column.dtype == pl.Categorical else ("1", "2")
    found = read_attributes(path, Vocabulary(("", second, first)))
    assert found.columns["price"] == [None, 3.0, 19.47]


def test_parquet_keeps_types_and_writes_dates_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    day = datetime.date(2024, 2, 29)
    frame = pl.DataFrame({"item_id": [10, 20], "day": [day, None], "tags": [["x"], None], "n": [1, 2]})
    frame.write_parquet(path)

    assert read_attributes(path, VOCABULARY).columns == {
        "day": [None, None, "2024-02-29", None],
        "tags": [None, None, ["x"], None],
        "n": [None, 2, 1, None],
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,title\n10,Tea\n", "no column 'item_id'; the columns are 'id', 'title'"),
        ("a.csv", "item_id,title\n10,Tea\n20,Jam\n10,Ink\n", "item '10' occurs twice"),
        ("a.csv", "", "empty"),
        ("a.item", "item_id:token\tscore:float\n10\tgood\n", "'score' is declared float"),
        ("a.json", '{"10": [1]', "not JSON"),
        ("a.json", "[]", "one JSON object"),
        ("a.json", '{"10": [1], "20": {}}', "all items need an object, or all a list"),
        ("a.json", '{"10": 5}', "item '10' has 5"),
        ("a.json", '{"10": {"hue": "red"}, "20": {}, "10": {}}', "'10' occurs twice"),
        ("a.json", '{"10": {"hue": "red", "hue": "blue"}}', "'hue' occurs twice"),
        ("a.json", '{"10": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply"),
        ("a.jsonl", '{"item_id": 10, "a": ' + "[" * 200_000 + "]" * 200_000 + "}", "line 1 .* nested too deeply"),
        ("a.json", '{"10": {"maker": {"name": "x"}}}', "item '10', attribute 'maker'"),
        ("a.json", '{"10": [[1]]}', "a list of these"),
        ("a.jsonl", '{"item_id": 10}\n{"item_id": 2', "line 2 is not JSON"),
        ("a.jsonl", '{"title": "Tea"}\n', "line 1 must be an object"),
        ("a.jsonl", '{"item_id": true}\n', "line 1 must be an object"),
        ("a.jsonl", "[1]\n", "line 1 must be an object"),
        ("a.parquet", "no parquet", "Parquet"),
        ("a.txt", "10 20\n", r"attributes come as"),
        ("a.zip", "PK", "unknown kind of file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(AttributesError, match=message) as caught:
        read(tmp_path / name, content)

    assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    for name in ("absent.csv", "absent.json", "absent.parquet"):
        with pytest.raises(AttributesError, match="absent"):
            read_attributes(tmp_path / name, VOCABULARY)
    (tmp_path / "latin.json").write_bytes('{"10": ["é"]}'.encode("latin-1"))
    with pytest.raises(AttributesError, match="UTF-8"):
        read_attributes(tmp_path / "latin.json", VOCABULARY)


@pytest.mark.parametrize("column", [[{"a": 1}], [b"x"], [datetime.timedelta(1)]])
def test_a_parquet_column_no_bundle_can_hold_is_refused(tmp_path: Path, column: list[object]) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"item_id": ["10"], "odd": column}).write_parquet(path)

    with pytest.raises(AttributesError, match="'odd'"):
        read_attributes(path, VOCABULARY)


@pytest.mark.parametrize(
    ("log", "attributes", "column", "title"),
    [
        ("ml-100k/ml-100k.inter", "ml-100k/ml-100k.item", "class", True),
        ("beauty/Beauty.txt", "beauty/Beauty_item2attributes.json", "attributes", False),
        ("beauty/Beauty.txt", "beauty/Beauty_items.tsv", "asin", True),
        ("ml-1m/ml-1m.txt.gz", "ml-1m/item_map.tsv", "genres", True),
    ],
)
def test_published_attributes_cover_every_item(log: str, attributes: str, column: str, title: bool) -> None:
    if not (SHARED / log).is_file():
        pytest.skip(f"{SHARED / log} is not here")
    vocabulary = build_dataset(read_interactions([SHARED / log])).vocabulary

    found = read_attributes(SHARED / attributes, vocabulary)

    assert (found.missing_items, found.unknown_items) == (0, 0)
    assert len(found.columns[column]) == vocabulary.rows
    assert found.columns[column][0] is None
    assert (found.title(1) is not None) == title


def test_attributes_are_numbered_if_two_items_share_them() -> None:
    columns: dict[str, list[object]] = {
        "title": [None, "A", "A", "B"],  # a name, not an attribute
        "genre": [None, ["War", "Drama"], ["Drama"], None],
        "year": [None, "1999", "1999", "2001"],
        "price": [None, 1.5, 1.5, 2.5],  # a number with a fraction is no class
    }
    numbered = number_attributes(Attributes(columns, missing_items=0, unknown_items=0))
    assert numbered.names == (("genre", "Drama"), ("year", "1999"))
    assert numbered.count == 2
    assert numbered.known.tolist() == [False, True, True, False]
    places, attributes = numbered.of(np.array([2, 0, 3, 1]))
    assert (places.tolist(), attributes.tolist()) == ([0, 0, 3, 3], [0, 1, 0, 1])
    only = number_attributes(Attributes(columns, missing_items=0, unknown_items=0), ["price"])
    assert only.names == (("price", "1.5"),)


def test_a_column_of_integers_with_gaps_is_numbered_by_what_a_new_item_says(tmp_path: Path) -> None:
    """Where a value is missing, pandas writes its integers as floats; one price with a fraction makes a column none."""
    frame = pl.DataFrame(
        {
            "item_id": ["20", "10", "30"],
            "year": pl.Series([1995, 1995, None], dtype=pl.Float64),
            "tags": pl.Series([[7.0, 8.0], [8.0], None], dtype=pl.List(pl.Float64)),
            "price": [2.0, 2.0, 2.5],
        }
    )
    frame.write_parquet(tmp_path / "items.parquet")
    numbered = number_attributes(read_attributes(tmp_path / "items.parquet", VOCABULARY))
    assert numbered.names == (("tags", "8"), ("year", "1995"))
    assert (numbered.starts.tolist(), numbered.flat.tolist()) == ([0, 0, 2, 4, 4], [0, 1, 0, 1])
    learned = Learned(numbered.names, np.eye(2, dtype=np.float32))
    placing = Placing(np.zeros((4, 2), np.float32), {}, np.ones(4, np.float32), norm=None, learned=learned)
    for year in (1995, 1995.0, "1995"):
        assert np.array(placing.vector({"year": year})).tolist() == [0, 1]


def test_numbering_many_attributes_holds_no_python_object_for_each() -> None:
    values: list[list[object]] = [[f"t{number}" for number in range(200)] for _ in range(500)]
    tracemalloc.start()
    try:
        numbered = number_attributes(Attributes({"tags": [None, *values]}, missing_items=0, unknown_items=0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(numbered.flat) == 100_000
    assert peak < 100 * len(numbered.flat)  # bytes; a tuple, its text and a set take twice as many for each


def test_attributes_that_cannot_teach_are_refused_with_what_there_is() -> None:
    attributes = Attributes(
        {"brand": [None, "a", "b"], "colour": [None, "red", None]}, missing_items=0, unknown_items=0
    )
    with pytest.raises(AttributesError, match="no attribute column 'size'; there are brand, colour"):
        number_attributes(attributes, ["size"])
    with pytest.raises(
        AttributesError, match=r"no attribute of brand, colour is shared by two items.*or train without --attributes"
    ):
        number_attributes(attributes)
