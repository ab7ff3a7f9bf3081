"""What a request costs, from what was measured: of this machine where it has been, else as performance.md has it.

Ranking is a curve over the size of the catalogue; everything else of a request, encoding its history included, costs
the same at every size.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

Way = Literal["float32", "int8"]

SERVING, CATALOGUE = "serving.json", "catalogue.json"
SCAN_FROM = 200_000  # items from which export gives a bundle a scan, over int8 if that is quicker
_BATCH = 32  # queries that are ranked together when a worker has more to do than it can
_TRIAL = 1_000  # items of a benchmark that only tries whether everything runs
_MACHINE = "two cores of an Intel Xeon with VNNI and AMX, the figures of docs/performance.md"


class CurvesError(Exception):
    """Measurements that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Something that grows with the catalogue: points (items, value), items ascending and both above 0."""

    points: Sequence[tuple[int, float]]

    def at(self, items: float) -> float:
        """The value at so many items: between points, and beyond them, a line in logarithms; one point alone grows
        with the items."""
        if len(self.points) == 1:
            known, value = self.points[0]
            return value * items / known
        segments = list(pairwise(self.points))
        (left, low), (right, high) = next((one for one in segments if items <= one[1][0]), segments[-1])
        slope = math.log(high / low) / math.log(right / left)
        return float(low * (items / left) ** slope)

    def covers(self, items: float) -> bool:
        return self.points[0][0] <= items <= self.points[-1][0]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Seconds of a core for one query among others, and of a query alone, by the size of the catalogue."""

    together: Curve
    alone: Curve


@dataclass(frozen=True, slots=True)
class Measured:
    """Costs in seconds of a core, and what they were taken from.

    dim: columns of the catalogues that were ranked. request_s: a whole request at request_items. event_s: one event.
    """

    rankings: Mapping[Way, Ranking]
    dim: int
    request_s: float
    request_items: int
    event_s: float
    sources: Sequence[str] = field(default=())

    @property
    def beside_ranking_s(self) -> float:
        """HTTP, the store and the encoder of one request. Raises CurvesError if ranking alone took longer than all."""
        rest = self.request_s - self.rankings["float32"].together.at(self.request_items)
        if rest <= 0:
            raise CurvesError(
                f"a request at {self.request_items:,} items took {self.request_s * 1e3:.2g} ms and ranking alone more: "
                f"{SERVING} and {CATALOGUE} are of different machines; measure both on this one"
            )
        return rest


# Milliseconds on one core, (batch of 1, batch of 32), 64 columns: `./run bench catalogue --threads 1`.
_RECORDED: dict[str, dict[int, tuple[float, float]]] = {
    "one run": {12_000: (0.22, 0.80), 100_000: (1.11, 5.76)},
    "float32 scan": {1_000_000: (18.25, 61.31), 10_000_000: (181.94, 662.47)},
    "int8 scan": {100_000: (0.84, 4.74), 1_000_000: (9.62, 33.01), 10_000_000: (119.27, 345.72)},
}
# Items, requests and events a second of a worker: `./run bench serving`; the events were impressions.
_RECORDED_RATES = 12_000, 5_743.0, 10_209.0


def measured(folder: Path) -> Measured:
    """What the benchmarks have left in a folder as serving.json and catalogue.json, the record for what is not there.

    Raises CurvesError for a file that is there and cannot be used.
    """
    sources = []
    ways, dim, threads = _RECORDED, 64, 1
    if (folder / CATALOGUE).is_file():
        ways, dim, threads = _catalogue(folder / CATALOGUE)
        sources.append(f"ranking: {folder / CATALOGUE}, of this machine")
    else:
        sources.append(f"ranking: {_MACHINE} (there is no {folder / CATALOGUE})")
    items, requests, events = _RECORDED_RATES
    if (folder / SERVING).is_file():
        items, requests, events = _serving(folder / SERVING)
        sources.append(f"requests: {folder / SERVING}, of this machine")
    else:
        sources.append(f"requests: {_MACHINE} (there is no {folder / SERVING})")
    float32 = {size: ms for size, ms in ways["one run"].items() if size < SCAN_FROM}
    float32 |= {size: ms for size, ms in ways["float32 scan"].items() if size >= SCAN_FROM}
    rankings: dict[Way, Ranking] = {
        "float32": _ranking(float32, threads),
        "int8": _ranking(ways["int8 scan"], threads),
    }
    return Measured(rankings, dim, 1 / requests, items, 1 / events, sources)


def _ranking(ms: Mapping[int, tuple[float, float]], threads: int) -> Ranking:
    alone = [(size, ms[size][0] / 1e3 * threads) for size in sorted(ms)]
    together = [(size, ms[size][1] / 1e3 * threads / _BATCH) for size in sorted(ms)]
    return Ranking(Curve(together), Curve(alone))


def _catalogue(path: Path) -> tuple[dict[str, dict[int, tuple[float, float]]], int, int]:
    """Milliseconds by way and size, the columns and the threads, of what `./run bench catalogue --output` wrote."""
    again = f"make it anew by `./run bench catalogue --threads 1 --output {path}`"
    ways: dict[str, dict[int, tuple[float, float]]] = {"one run": {}, "float32 scan": {}, "int8 scan": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for one in content["figures"]:
            times = float(one["milliseconds"]["1"]), float(one["milliseconds"][str(_BATCH)])
            if not (int(one["items"]) > 0 and min(times) > 0):
                raise CurvesError(f"{path}: {one['items']} items in {min(times)} ms; {again}")
            ways[one["way"]][int(one["items"])] = times
        dims, threads = {int(one["dim"]) for one in content["figures"]}, int(content["threads"])
    except (ValueError, KeyError, TypeError) as error:
        raise CurvesError(f"{path} is not what the benchmark of catalogues writes ({error!r}); {again}") from error
    if len(dims) != 1 or threads < 1 or not all(ways.values()):
        ranked = [way for way in ways if ways[way]]
        raise CurvesError(f"{path} has {ranked} of {sorted(dims)} columns on {threads} threads; {again}")
    return ways, dims.pop(), threads


def _serving(path: Path) -> tuple[int, float, float]:
    """Items of the smallest catalogue, requests and events a second of one worker, of what `./run bench serving`
    wrote."""
    again = "make it anew by `./run bench serving`"
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        values = {row["name"]: row["value"] for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise CurvesError(f"{path} is not what the benchmark of serving writes ({error!r}); {again}") from error
    of = {
        int(found[1].replace(",", "")): value
        for name, value in values.items()
        if (found := re.fullmatch(r"([\d,]+) items: service, one worker", name)) and value
    }
    if not of:
        raise CurvesError(f"{path} has no requests/s of one worker; {again}")
    items = min(of)
    events = values.get(f"{items:,} items: events, one a request")
    if items < _TRIAL or not events:
        raise CurvesError(f"{path} is of a trial on {items:,} items or has no events/s; {again}, without --quick")
    return items, float(of[items]), float(events)
