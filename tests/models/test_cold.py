"""Vectors from attributes, on numbers worked out by hand."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from models.cold import Learned, Placing, typical_norm

ITEMS = np.array([[9, 9], [2, 0], [4, 0], [0, 2], [0, 4], [6, 6], [0, 0], [0, 0], [0, 0]], np.float32)
COLUMNS: dict[str, list[Any]] = {
    "kind": [None, "a", "a", "b", "b", "b", "b", None, "lone"],  # a lies at (3, 0), b at (1.5, 3)
    "genre": [None, ["x", "y"], ["x"], None, ["x", "x"], ["x"], [], None, None],  # x lies at (3, 2.5)
    "everywhere": [None, *["same"] * 8],
    "year": [None, 1990, 1990.0, 1991, 1991, True, True, 0.5, 0.5],
}


EQUALLY = np.ones(9, np.float32)


def vector(norm: float | None = None, popularity: Any = EQUALLY, /, **attributes: Any) -> list[float] | None:
    found = Placing(ITEMS, COLUMNS, np.array(popularity, np.float32), norm=norm).vector(attributes)
    return None if found is None else [round(float(number), 5) for number in found]


def test_a_value_stands_for_the_mean_of_the_items_that_have_it() -> None:
    assert vector(kind="a") == [3, 0]
    assert vector(kind="b") == [1.5, 3]
    assert vector(genre=["x"]) == [3, 2.5]
    assert vector(genre="x") == [3, 2.5]  # one value or a list of it


def test_the_more_telling_a_value_is_the_more_it_counts() -> None:
    """Of 8 items 2 have kind a, which weighs log 4, and 4 have genre x, which weighs log 2: half of that."""
    assert vector(kind="a", genre=["x"]) == pytest.approx([3, 2.5 / 3], abs=1e-5)
    assert vector(kind="a", genre=["x", "x", "unheard of"]) == pytest.approx([3, 2.5 / 3], abs=1e-5)


@pytest.mark.parametrize(
    "attributes",
    [{}, {"kind": "c"}, {"colour": "a"}, {"kind": "lone"}, {"everywhere": "same"}, {"genre": []}, {"kind": None}],
)
def test_what_nobody_or_a_single_item_or_nearly_everybody_has_tells_nothing(attributes: dict[str, Any]) -> None:
    assert vector(**attributes) is None


def test_nothing_is_kept_of_names_that_no_known_item_has() -> None:
    placing = Placing(ITEMS, COLUMNS, EQUALLY, norm=None)
    tracemalloc.start()
    try:
        for number in range(5000):
            assert placing.vector({f"name {number}": "a"}) is None
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100_000
    assert placing.vector({"name 0": "a", "kind": "a"}) is not None


def test_numbers_are_values_where_they_have_no_fraction_and_booleans_are_none_of_them() -> None:
    assert vector(year=1990) == vector(year=1990.0) == [3, 0]
    assert vector(year="1990") is None
    assert vector(year=True) == [3, 3]
    assert vector(year=1) is None
    assert vector(year=0.5) is None


def test_a_vector_is_brought_to_the_length_that_was_asked_for() -> None:
    assert vector(5.0, kind="a") == [5, 0]
    assert vector(5.0, kind="b") == pytest.approx([5**0.5, 2 * 5**0.5], abs=1e-5)


def test_values_whose_mean_is_nothing_give_no_vector() -> None:
    items = np.array([[0, 0], [1, 0], [-1, 0], [0, 1]], np.float32)
    assert Placing(items, {"kind": [None, "a", "a", "b"]}, EQUALLY[:4], norm=1.0).vector({"kind": "a"}) is None


def test_an_item_weighs_the_root_of_its_interactions_in_a_mean() -> None:
    popularity = [0, 9, 1, 0, 0, 0, 0, 5, 5]
    assert vector(None, popularity, kind="a") == [2.5, 0]  # (3 * 2 + 1 * 4) / 4
    assert vector(None, popularity, kind="b") is None  # nobody has had any of these
    assert vector(None, popularity, kind=["a", "b"]) == [2.5, 0]


def test_the_typical_length_is_the_median_of_items() -> None:
    items = np.array([[99, 0], [3, 4], [0, 1], [0, 7], [50, 0], [0, 2]], np.float32)
    assert typical_norm(items) == 5
    assert typical_norm(np.tile(items[1:2], (100_000, 1))) == 5


def placed(contexts: list[list[int]], norm: float | None = None, /, **attributes: Any) -> list[float] | None:
    popularity = np.array([0, 1, 4, 1, 4, 1, 1, 1, 1], np.float32)
    found = Placing(ITEMS, COLUMNS, popularity, norm=norm).vector(attributes or None, contexts)
    return None if found is None else [round(float(number), 5) for number in found]


def test_an_item_lies_where_the_items_lie_that_were_met_before_it_the_popular_counting_less() -> None:
    """Row 2 has four interactions and weighs half of row 1 and of row 3, and row 4 the same."""
    assert placed([[1]] * 3) == [2, 0]
    assert placed([[1, 2]] * 3) == pytest.approx([(2 + 0.5 * 4) / 1.5, 0], abs=1e-5)
    assert placed([[1], [3], [2, 4]]) == pytest.approx([(2 + 0 + 2) / 3, (0 + 2 + 2) / 3], abs=1e-5)
    assert placed([[1], [3], [2, 4]], 5.0) == pytest.approx([5 / 2**0.5, 5 / 2**0.5], abs=1e-5)


def test_attributes_count_for_five_contexts() -> None:
    alone = placed([], kind="a")
    assert alone is not None
    assert placed([[3]] * 5, kind="a") == pytest.approx(np.mean([alone, [0.0, 2.0]], axis=0), abs=1e-5)
    assert placed([[3]], kind="a") != alone  # one says something beside attributes,
    assert placed([[3]] * 2) is None  # and alone as little as two do
    assert placed([[3], [], [3]]) is None
    assert placed([[3]] * 3, kind="unheard of") == [0, 2]
    assert placed([]) is None
    assert placed([[6]] * 3) is None  # it has no direction


def test_the_mean_of_learned_vectors_counts_as_much_as_where_such_items_lie() -> None:
    """Kind a lies at (3, 0); learned are a at (0, 4), 1990 at (0, -2) and genre z, which no item has, at (0, 9)."""
    names = [("kind", "a"), ("year", "1990"), ("genre", "z"), ("flag", "True")]
    learned = Learned(names, np.array([[0, 4], [0, -2], [0, 9], [5, 0]], np.float32))

    def placed(contexts: Any = (), norm: float | None = 1.0, **attributes: Any) -> list[float] | None:
        found = Placing(ITEMS, COLUMNS, EQUALLY, norm=norm, learned=learned).vector(attributes, contexts)
        return None if found is None else [round(float(number), 5) for number in found]

    half = round(0.5**0.5, 5)
    assert placed(kind="a") == [half, half]
    assert placed(kind="a", genre=["z"]) == [half, half]
    assert placed(genre="z") == [0, 1]  # by what was learned alone
    assert placed(year=1990.0, norm=None) == [3, -2]  # as a number is written: (3, 0) is where those of 1990 lie
    assert placed(flag=True) == [1, 0]
    assert placed(kind="b") == vector(1.0, kind="b")  # of which nothing was learned
    assert placed(genre="unheard of") is None
    assert placed(kind="a", contexts=[[1]] * 5) == pytest.approx([2 / 5**0.5, 1 / 5**0.5], abs=1e-5)
