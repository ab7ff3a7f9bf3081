"""The quick form of every promise is kept, and the runner says so when one is not."""

import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from reliability import report
from reliability.openloop import Answers
from reliability.promise import CannotTryError, Finding, Outcome, Promise, promises, tried
from reliability.promises.overload import _prompt


@pytest.mark.parametrize("promise", list(promises()), ids=lambda promise: promise.name)
def test_the_promise_is_kept(promise: Promise) -> None:
    outcome = tried(promise, full=False)
    if outcome.skipped:
        pytest.skip(f"not tried: {outcome.skipped}")
    assert outcome.kept, report.line(outcome)


@pytest.mark.parametrize(
    ("finding", "met", "bound"),
    [
        (Finding("lost", 0, most=0), True, "at most 0"),
        (Finding("lost", 1, most=0), False, "at most 0"),
        (Finding("lost", 1, least=1, most=40), True, "at least 1 and at most 40"),
        (Finding("lost", 0, least=1, most=40), False, "at least 1 and at most 40"),
        (Finding("stored", 10_000, least=10_000, most=10_000), True, "10,000"),
        (Finding("time", math.nan, most=1), False, "at most 1"),
    ],
)
def test_a_finding_is_met_within_its_bounds(finding: Finding, met: bool, bound: str) -> None:
    assert (finding.met, finding.bound) == (met, bound)


def refusals(*latencies_s: float, stopped: int | None = None) -> list[Answers]:
    """Of each load, 300 a second for ten seconds; in one second the machine may have stood still."""
    loads = []
    for latency in latencies_s:
        due = np.arange(3000) / 300
        times = np.where(due.astype(int) == stopped, 0.03, latency)
        loads.append(Answers(np.full(3000, 503), due, times, np.ones(3000, np.bool_)))
    return loads


@pytest.mark.parametrize(
    ("loads", "met"),
    [
        (refusals(0.005), True),
        (refusals(0.005, stopped=4), True),
        (refusals(0.02), False),
        (refusals(0.005, 0.005, 0.005, 0.005, 0.02), False),  # one load's refusals are late, whatever the others' are
        ([Answers(*(part[:20] for part in astuple(refusals(0.5)[0])))], False),  # too few to say that it is kept
    ],
)
def test_refusals_are_prompt_in_most_seconds_of_every_load(loads: list[Answers], met: bool) -> None:
    usual, _ = _prompt("", loads, full=True)
    assert usual.met is met


def test_an_error_is_a_promise_not_kept_and_what_cannot_be_tried_is_said() -> None:
    def breaks(full: bool, folder: Path) -> list[Finding]:
        raise RuntimeError("the store did not start")

    def lacks(full: bool, folder: Path) -> list[Finding]:
        raise CannotTryError("there is no redis-server")

    broken = tried(Promise("a", "A", breaks), full=False)
    assert (broken.kept, broken.failure) == (False, "RuntimeError: the store did not start")
    skipped = tried(Promise("b", "B", lacks), full=False)
    assert skipped.skipped == "there is no redis-server"
    assert not tried(Promise("c", "C", lambda full, folder: []), full=False).kept

    written = report.page([broken, skipped], command="./run reliability")
    assert "| A | RuntimeError: the store did not start |  | **no** |" in written
    assert "| B | not tried: there is no redis-server |  | - |" in written


def test_the_record_has_what_the_page_has() -> None:
    promise = Promise("c", "Kills", lambda full, folder: [])
    outcome = Outcome(promise, (Finding("lost", 3, most=0), Finding("sent", 1_272_093, least=10_000)), seconds=1.0)
    (of,) = report.record([outcome], full=True)["promises"]
    assert of["kept"] is False
    assert [finding["met"] for finding in of["findings"]] == [False, True]
    page = report.page([outcome], command="x")
    assert "| lost | 3 | at most 0 | **no** |" in page
    assert "| sent | 1,272,093 | at least 10,000 | yes |" in page


def test_what_is_tried_again_takes_its_place_beside_what_was_found_before(tmp_path: Path) -> None:
    kills, soak, gone = (Promise(name, name.title(), lambda full, folder: []) for name in ("kills", "soak", "gone"))
    before = [
        Outcome(kills, (Finding("lost", 0, most=0),), seconds=2.0, date="2026-01-01"),
        Outcome(soak, skipped="no time", seconds=1.0, date="2026-01-01"),
        Outcome(gone, failure="RuntimeError: broken", seconds=1.0, date="2026-01-01"),
    ]
    file = tmp_path / "reliability.json"
    assert report.recorded(file, [kills, soak]) == {}
    file.write_text(report.dumped(before, full=True), encoding="utf-8")
    known = report.recorded(file, [kills, soak])
    assert known == {"kills": before[0], "soak": before[1]}
    again = Outcome(soak, (Finding("growth", 0.5, most=1, unit="MB/h"),), seconds=3600.0, date="2026-02-02")
    written = report.page([*known.values(), again], command="x")
    assert "2026-01-01, 2 s." in written
    assert "2026-02-02, 3600 s." in written
    file.write_text(report.dumped(before, full=False), encoding="utf-8")  # quick ones say less
    assert report.recorded(file, [kills, soak]) == {}


def test_what_could_not_be_tried_is_no_promise_kept_and_takes_no_findings_place() -> None:
    kills, soak = (Promise(name, name.title(), lambda full, folder: []) for name in ("kills", "soak"))
    found = Outcome(kills, (Finding("lost", 0, most=0),))
    broken = Outcome(soak, failure="RuntimeError: broken")
    not_here = [Outcome(promise, skipped="there is no redis-server") for promise in (kills, soak)]
    assert report.taking_place({"kills": found}, not_here) == {"kills": found, "soak": not_here[1]}
    assert report.taking_place({"kills": not_here[0]}, [found, broken]) == {"kills": found, "soak": broken}
    assert report.summary([found, broken]) == "1 of 2 promises kept; not: soak"
    assert report.summary([found, not_here[1]]) == "1 of 2 promises kept; not tried: soak"
