"""A promise is a module of reliability.promises; what it finds are figures with the bounds they must keep."""

import importlib
import pkgutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import reliability.promises
from bench.machine import describe
from service.embedded import NoServerError


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the page: a figure, and the bounds within which the promise is kept.

    name: what was counted or timed, in words; unit: of the figure, or empty for a count; least, most: inclusive.
    """

    name: str
    figure: float
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is within its bounds; NaN never is."""
        above = self.least is None or self.figure >= self.least
        return self.figure == self.figure and above and (self.most is None or self.figure <= self.most)

    @property
    def bound(self) -> str:
        """The bounds in words."""
        if self.least is not None and self.least == self.most:
            return f"{self.least:,g}"
        parts = [f"at least {self.least:,g}"] if self.least is not None else []
        return " and ".join(parts + ([f"at most {self.most:,g}"] if self.most is not None else []))


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise. `check(full, folder)`: try it at its full size or a quick one, with a folder for what it writes."""

    name: str
    title: str
    check: Callable[[bool, Path], Sequence[Finding]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one promise: findings, or `failure` if it could not be tried to its end. A promise may be skipped
    out loud where a machine lacks what it takes: `skipped` says what. date: the day it was tried, in UTC; machine: the
    one it was tried on."""

    promise: Promise
    findings: tuple[Finding, ...] = ()
    failure: str = ""
    skipped: str = ""
    seconds: float = 0.0
    date: str = ""
    machine: str = ""

    @property
    def kept(self) -> bool:
        return not self.failure and all(finding.met for finding in self.findings)


class CannotTryError(Exception):
    """This machine lacks what the promise takes; the message says what."""


def promises() -> Iterator[Promise]:
    """Every promise, by name."""
    for found in sorted(pkgutil.iter_modules(reliability.promises.__path__), key=lambda module: module.name):
        module = importlib.import_module(f"reliability.promises.{found.name}")
        yield Promise(found.name, module.TITLE, module.check)


def tried(promise: Promise, *, full: bool) -> Outcome:
    """Try a promise. An error is an outcome too, so that the others are still tried."""
    began = time.perf_counter()
    outcome = Outcome(promise, date=f"{datetime.now(UTC):%Y-%m-%d}", machine=describe())
    try:
        # A path short enough for a socket in it.
        with tempfile.TemporaryDirectory(prefix="recserve-") as folder:
            findings = tuple(promise.check(full, Path(folder)))
        outcome = replace(outcome, findings=findings, failure="" if findings else "it found nothing")
    except (CannotTryError, NoServerError) as error:
        outcome = replace(outcome, skipped=str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the promise is not kept
        outcome = replace(outcome, failure=f"{type(error).__name__}: {error}")
    return replace(outcome, seconds=time.perf_counter() - began)
