"""From figures to a table: which rounds count, what a row says, and what is written."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import report
from bench.goals import LARGE, SMALL, Measure, Row, rows
from bench.rounds import Rounds, take_rounds


def rounds_of(*floors: float, count: int = 3, spare: int = 2) -> tuple[Rounds, int]:
    """Rounds whose floor takes these values in turn, and how many were taken."""
    taken: list[int] = []

    def measure(number: int) -> dict[str, float]:
        taken.append(number)
        return {"floor": floors[number - 1], "number": number}

    return take_rounds(measure, ["floor"], count=count, spare=spare), len(taken)


def test_steady_rounds_all_count() -> None:
    found, taken = rounds_of(100, 110, 90)
    assert (taken, found.thrown, found.steady) == (3, 0, True)
    assert found.median(lambda one: one["number"]) == 2


def test_a_round_in_which_a_floor_moved_is_thrown_away_and_taken_again() -> None:
    found, taken = rounds_of(100, 80, 101, 102)
    assert (taken, found.thrown, found.steady) == (4, 1, True)
    assert [one["number"] for one in found.kept] == [1, 3, 4]


def test_where_nothing_is_steady_the_nearest_rounds_are_given_and_called_unsteady() -> None:
    found, taken = rounds_of(100, 10, 1000, 130, 50, count=3, spare=2)
    assert (taken, found.thrown, found.steady) == (5, 2, False)
    assert [one["floor"] for one in found.kept] == [100, 130, 50]


MEASURES = (
    Measure("ratio", lambda of: of["a"] / of["b"], goal=2),
    Measure("share", lambda of: of["b"] / of["a"], goal=0.5, bound="at most"),
    Measure("two", lambda of: of["int8 rows"], goal=1),
    Measure("three", lambda of: of["else"]),
)


def test_a_row_is_the_median_of_ratios_and_knows_whether_it_meets_its_goal() -> None:
    taken = Rounds([{"a": 2, "b": 1}, {"a": 9, "b": 3}, {"a": 10, "b": 10}], 0, steady=True)
    ratio, share, _, _ = rows(MEASURES, taken, {"": "left out"}, title="here")
    assert (ratio.name, ratio.value, ratio.met) == ("here: ratio", 2, True)
    assert (share.value, share.met) == (0.5, True)
    assert ratio.steady
    assert not rows(MEASURES, replace(taken, steady=False), {"": "left out"}, title="here")[0].steady
    assert not Row("", "", 0.51, 0.5, "at most").met


def test_what_is_missing_is_not_measured_and_says_why() -> None:
    taken = Rounds([{"a": 2, "b": 1}], 0, steady=True)
    _, _, two, three = rows(MEASURES, taken, {"": "left out", "int8": "there is none"}, title="here")
    assert (two.value, two.met, two.note) == (None, None, "there is none")
    assert three.note == "left out"
    assert all(row.note == "left out" and row.value is None for row in rows(MEASURES, None, {"": "left out"}, title=""))


ROWS = [
    Row("rate", "requests/s", 1234.5),
    Row("good", "", 5.0, 4.5),
    Row("bad", "", 2.0, 1.2, "at most"),
    Row("absent", "", None, 2, note="it is not there"),
    Row("shaken", "", 5.0, 4.5, steady=False),
]


def test_the_table_says_what_was_met_and_what_was_not_measured() -> None:
    lines = [" ".join(line.split()) for line in report.table(ROWS).splitlines()]
    assert lines[1:] == [
        "rate 1,234 requests/s",
        "good 5 x at least 4.5 met",
        "bad 2 x at most 1.2 not met",
        "absent - at least 2 not measured: it is not there",
        "shaken 5 x at least 4.5 met (unsteady)",
    ]


def test_the_file_is_a_list_of_names_values_goals_and_whether_they_are_met(tmp_path: Path) -> None:
    report.write_json(ROWS, tmp_path / "serving.json")
    found = json.loads((tmp_path / "serving.json").read_text())
    assert [(row["name"], row["value"], row["goal"], row["met"]) for row in found] == [
        ("rate", 1234.5, None, None),
        ("good", 5.0, 4.5, True),
        ("bad", 2.0, 1.2, False),
        ("absent", None, 2, None),
        ("shaken", 5.0, 4.5, True),
    ]
    assert [row["steady"] for row in found] == [True, True, True, True, False]
    assert found[3]["note"] == "it is not there"


def test_the_plot_is_drawn_where_there_is_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report.plot(ROWS, tmp_path / "serving.png")
    assert (tmp_path / "serving.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not report.plot(ROWS, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_no_two_rows_have_one_name() -> None:
    for measures in (SMALL, LARGE):
        names = [measure.name for measure in measures]
        assert len(names) == len(set(names))
