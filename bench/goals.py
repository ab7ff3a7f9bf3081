"""What is printed and what it should come to: a row is a figure or a ratio of figures of the same round.

Names of figures are those of small.py, large.py and peers.py. A ratio whose figures are not there is "not measured",
with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.rounds import Figures, Rounds

Bound = Literal["at least", "at most"]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. value None: not measured, `note` says why; goal None: there is none for it. steady: whether
    the floors stood still in the rounds that it is of."""

    name: str
    unit: str
    value: float | None
    goal: float | None = None
    bound: Bound = "at least"
    note: str = ""
    steady: bool = True

    @property
    def met(self) -> bool | None:
        if self.value is None or self.goal is None:
            return None
        return self.value >= self.goal if self.bound == "at least" else self.value <= self.goal


@dataclass(frozen=True, slots=True)
class Measure:
    """How a row comes about: from the figures of one round, the median over rounds being the row's value."""

    name: str
    of: Callable[[Figures], float]
    unit: str = ""
    goal: float | None = None
    bound: Bound = "at least"


def figure(key: str, unit: str, *, times: float = 1.0) -> Measure:
    """A figure as it is, under its own name; times 1e3 for milliseconds."""
    return Measure(key, lambda of: of[key] * times, unit)


def _rate(key: str) -> Measure:
    return figure(key, "requests/s")


def _bound_of(workers: str) -> Callable[[Figures], float]:
    """Saturation over 1 / (1 / what HTTP alone answers + 1 / what the engine alone ranks)."""
    return lambda of: of[f"service, {workers}"] * (1 / of[f"no-op ASGI, {workers}"] + 1 / of[f"engine rows, {workers}"])


def _idle(engine: str) -> Callable[[Figures], float]:
    """A request that comes alone, over what its three parts take."""
    return lambda of: (
        of["single idle request, median"]
        / (of["single idle no-op ASGI, median"] + of[engine] + of["store round trip, median"])
    )


SMALL = (
    _rate("no-op ASGI, one worker"),
    _rate("no-op FastAPI, one worker"),
    _rate("straightforward, one worker"),
    _rate("service, one worker"),
    _rate("service, one worker, histories in the body"),
    figure("engine rows, one worker", "rows/s"),
    _rate("no-op ASGI, two workers"),
    _rate("no-op FastAPI, two workers"),
    _rate("straightforward, two workers"),
    _rate("service, two workers"),
    figure("engine rows, two workers", "rows/s"),
    _rate("events, one a request"),
    figure("PING through the same client", "calls/s"),
    figure("single idle request, median", "ms", times=1e3),
    figure("single idle no-op ASGI, median", "ms", times=1e3),
    figure("store round trip, median", "ms", times=1e3),
    figure("engine, batch of 1", "ms", times=1e3),
    figure("engine, batch of 1 after a pause", "ms", times=1e3),
    figure("engine, batch of 64", "ms", times=1e3),
    figure("p50 at half of saturation", "ms", times=1e3),
    figure("p99 at half of saturation", "ms", times=1e3),
    figure("start to ready", "s"),
    Measure("memory of two workers and their supervisor beyond one", lambda of: of["second worker, bytes"] / 1e6, "MB"),
    Measure(
        "saturation / straightforward stack, one worker each",
        lambda of: of["service, one worker"] / of["straightforward, one worker"],
        goal=4.5,
    ),
    Measure(
        "saturation with two workers / straightforward stack with one",
        lambda of: of["service, two workers"] / of["straightforward, one worker"],
        goal=7,
    ),
    Measure(
        "saturation / straightforward stack, two workers each",
        lambda of: of["service, two workers"] / of["straightforward, two workers"],
    ),
    Measure(
        "saturation / no-op FastAPI with a response model, one worker",
        lambda of: of["service, one worker"] / of["no-op FastAPI, one worker"],
        goal=1.2,
    ),
    Measure(
        "saturation / no-op FastAPI with a response model, two workers",
        lambda of: of["service, two workers"] / of["no-op FastAPI, two workers"],
        goal=1.2,
    ),
    Measure("saturation / serial bound of HTTP and engine, one worker", _bound_of("one worker"), goal=0.85),
    Measure("saturation / serial bound of HTTP and engine, two workers", _bound_of("two workers"), goal=0.85),
    Measure(
        "single idle request / (no-op ASGI + engine + store round trip)",
        _idle("engine, batch of 1"),
        goal=1.2,
        bound="at most",
    ),
    Measure("the same, the engine after a pause of 1 ms", _idle("engine, batch of 1 after a pause")),
    Measure(
        "p99 at half of saturation / time of a full batch",
        lambda of: of["p99 at half of saturation"] / of["engine, batch of 64"],
        goal=3,
        bound="at most",
    ),
    Measure(
        "engine with buckets / padded to 50 at all positions, with ranking",
        lambda of: of["padded and ranked"] / of["bucketed and ranked"],
        goal=2.5,
    ),
    Measure("the same, the encoder alone", lambda of: of["padded"] / of["bucketed"]),
    Measure(
        "events, one a request / PING through the same client",
        lambda of: of["events, one a request"] / of["PING through the same client"],
        goal=0.6,
    ),
)

LARGE = (
    figure("memory bandwidth", "GB/s", times=1e-9),
    figure("SGEMM", "GFLOP/s", times=1e-9),
    figure("engine, batch of 1", "ms", times=1e3),
    figure("engine, batch of 32", "ms", times=1e3),
    _rate("straightforward, one worker"),
    _rate("service, one worker"),
    Measure(
        "exact float32, batch of 1: share of memory bandwidth",
        lambda of: of["matrix bytes"] / of["engine, batch of 1"] / of["memory bandwidth"],
        goal=0.85,
    ),
    Measure(
        "exact float32, batch of 32: share of the SGEMM rate",
        lambda of: 2 * 32 * of["matrix bytes"] / 4 / of["engine, batch of 32"] / of["SGEMM"],
        goal=0.70,
    ),
    Measure(
        "saturation / straightforward stack, one worker each",
        lambda of: of["service, one worker"] / of["straightforward, one worker"],
        goal=20,
    ),
    Measure(
        "int8 scan with exact re-ranking / exact float32, batch of 32",
        lambda of: of["engine, batch of 32"] / of["int8, batch of 32"],
        goal=2,
    ),
    Measure("int8 scan with exact re-ranking: recall@10", lambda of: of["int8, recall@10"], goal=0.999),
    Measure("start to ready", lambda of: of["start to ready"], "s", goal=3, bound="at most"),
    Measure(
        "extra memory of a second worker / the matrix",
        lambda of: of["second worker, bytes"] / of["matrix bytes"],
        goal=0.15,
        bound="at most",
    ),
)


def rows(measures: Sequence[Measure], rounds: Rounds | None, reasons: Mapping[str, str], *, title: str) -> list[Row]:
    """A row for each measure, its name behind a title. reasons: why figures are missing, by the start of their names;
    the empty one is for all others. Without rounds nothing was measured."""
    found = []
    for measure in measures:
        name = f"{title}: {measure.name}"
        try:
            value = rounds.median(measure.of) if rounds else None
            note = "" if rounds else reasons[""]
        except KeyError as missing:
            value, note = None, _reason(str(missing.args[0]), reasons)
        found.append(Row(name, measure.unit, value, measure.goal, measure.bound, note, rounds is None or rounds.steady))
    return found


def _reason(key: str, reasons: Mapping[str, str]) -> str:
    return next((why for begin, why in reasons.items() if begin and key.startswith(begin)), reasons[""])
