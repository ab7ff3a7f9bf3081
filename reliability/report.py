"""The page and the file of what came of every promise."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reliability.promise import Finding, Outcome, Promise


class RecordError(Exception):
    """A file that is not the record of promises; the message names it."""


HEADER = ("promise", "figure", "bound", "met")


def rows(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    """Lines of the table for one promise."""
    if outcome.skipped:
        return [(outcome.promise.title, f"not tried: {outcome.skipped}", "", "-")]
    found = [(finding.name, _figure(finding), finding.bound, _met(finding.met)) for finding in outcome.findings]
    return found + ([(outcome.promise.title, outcome.failure, "", _met(False))] if outcome.failure else [])


def line(outcome: Outcome) -> str:
    """What is printed as soon as a promise has been tried."""
    head = f"{outcome.promise.title} ({outcome.seconds:.0f} s)"
    return "\n".join([head, *("  " + "   ".join(cell for cell in row if cell) for row in rows(outcome))])


def summary(outcomes: Sequence[Outcome]) -> str:
    """What is printed at the end; a promise that could not be tried was neither kept nor broken."""
    kept = sum(outcome.kept for outcome in outcomes if not outcome.skipped)
    broken = ", ".join(outcome.promise.name for outcome in outcomes if not outcome.skipped and not outcome.kept)
    skipped = ", ".join(outcome.promise.name for outcome in outcomes if outcome.skipped)
    said = f"{kept} of {len(outcomes)} promises kept"
    return said + (f"; not: {broken}" if broken else "") + (f"; not tried: {skipped}" if skipped else "")


def page(outcomes: Sequence[Outcome], *, command: str) -> str:
    """docs/reliability.md."""
    said = [
        "# Reliability",
        "",
        f"Written by `{command}`; never by hand.",
        "Every line was measured while something was being broken; a figure outside its bound is a promise not kept.",
    ]
    for outcome in outcomes:
        said += ["", f"## {outcome.promise.title}", "", _row(HEADER), "| --- | ---: | --- | --- |"]
        said += [_row(row) for row in rows(outcome)]
        said += ["", f"{outcome.date}, {outcome.seconds:.0f} s, on {outcome.machine}."]
    return "\n".join(said) + "\n"


def record(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """reliability.json."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "promises": [
            {
                "name": outcome.promise.name,
                "title": outcome.promise.title,
                "kept": None if outcome.skipped else outcome.kept,
                "date": outcome.date,
                "machine": outcome.machine,
                "seconds": round(outcome.seconds, 1),
                **({"skipped": outcome.skipped} if outcome.skipped else {}),
                **({"failure": outcome.failure} if outcome.failure else {}),
                "findings": [
                    {
                        "name": finding.name,
                        "figure": finding.figure,
                        "unit": finding.unit,
                        "least": finding.least,
                        "most": finding.most,
                        "met": finding.met,
                    }
                    for finding in outcome.findings
                ],
            }
            for outcome in outcomes
        ],
    }


def recorded(file: Path, promises: Sequence[Promise]) -> dict[str, Outcome]:
    """What `record` wrote of each promise that there still is, by its name; nothing if there is no such file.

    Raises RecordError, which names the file, for another one.
    """
    if not file.exists():
        return {}
    there = {promise.name: promise for promise in promises}
    try:
        content = json.loads(file.read_bytes())
        of_all = content.get("machine", "")  # in a file of before each promise had its own
        return {
            found["name"]: _outcome(there[found["name"]], {"machine": of_all} | found)
            for found in content["promises"]
            if found["name"] in there
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{file} is not what earlier runs have written ({error!r}); move it away") from error


def taking_place(before: Mapping[str, Outcome], outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """Outcomes by name in the place of those from before; one that could not be tried takes nobody's."""
    now = {outcome.promise.name: outcome for outcome in outcomes}
    return {**before, **{name: one for name, one in now.items() if not one.skipped or name not in before}}


def _outcome(promise: Promise, found: Mapping[str, Any]) -> Outcome:
    findings = tuple(
        Finding(*(finding[part] for part in ("name", "figure", "least", "most", "unit")))
        for finding in found["findings"]
    )
    said = found.get("failure", ""), found.get("skipped", "")
    return Outcome(promise, findings, *said, found["seconds"], found["date"], found["machine"])


def dumped(outcomes: Sequence[Outcome]) -> str:
    return json.dumps(record(outcomes), indent=2, ensure_ascii=False) + "\n"


def _figure(finding: Finding) -> str:
    shown = f"{finding.figure:,.0f}" if finding.figure % 1 == 0 else f"{finding.figure:,.6g}"  # a count in full
    return f"{shown}{' ' if finding.unit else ''}{finding.unit}"


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
