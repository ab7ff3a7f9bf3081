"""All of the benchmark of serving: makes the bundles, takes the rounds, gives the rows.

Everything is measured in one run on one machine, interleaved, because requests a second mean little by themselves.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import goals
from bench.bundle import bench_bundle
from bench.goals import Row, rows
from bench.large import FLOORS as LARGE_FLOORS
from bench.large import large
from bench.peers.measure import FLOORS as PEERS_FLOORS
from bench.peers.measure import MEASURES, peers, works
from bench.rounds import Rounds, take_rounds
from bench.servers import has_workers
from bench.small import FLOORS, small, traffic
from service.embedded import EmbeddedStore

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: items of the two catalogues, seconds of a load, rounds, users with a stored history."""

    items: int = 12_000
    large: int | None = None  # items of the second one, if there is one
    seconds: float = 3.0
    rounds: int = 3
    users: int = 2000
    spare: int = 3  # rounds to replace those in which a floor moved
    peers: Path | None = None  # interpreter that has them, if they are measured


QUICK = Plan(items=300, seconds=0.2, rounds=1, users=70, spare=0)


def bench_serving(plan: Plan, folder: Path, say: Say = lambda _: None) -> tuple[list[Row], list[str]]:
    """Rows of the table, and sentences about how they were taken. Bundles are kept in the folder.

    Raises ServerError, ChildError or EmbeddedStoreError if something that is measured does not run.
    """
    found: list[Row] = []
    notes: list[str] = []
    reasons = {
        "": "it was left out",
        "second worker": "the memory of processes is not to be had",
    }
    if not has_workers():
        reasons |= dict.fromkeys(("service, two workers", "second worker"), "several workers on one port need Linux")
    taken = _small(plan, folder, say)
    notes.append(_about(f"{plan.items:,} items", taken))
    found += rows(goals.SMALL, taken, reasons, title=f"{plan.items:,} items")
    of_large: Rounds | None = None
    title = f"{plan.large or 1_000_000:,} items"
    if plan.large is not None:
        of_large = _large(plan, plan.large, folder, say)
        notes.append(_about(title, of_large))
    without: Mapping[str, str] = reasons | ({"": "give --large"} if of_large is None else {})
    found += rows(goals.LARGE, of_large, without, title=title)
    if plan.peers is not None:
        of_peers, missing = _peers(plan, plan.peers, folder, say)
        title = f"{plan.items:,} items, histories in the body"
        notes += [_about(title, of_peers), *works(), *(f"{name} did not run: {why}" for name, why in missing.items())]
        by_peer = {f"{part}peer {name}": why for name, why in missing.items() for part in ("", "p99 of ")}
        by_peer |= {"p99 of service": "several workers on one port need Linux"}
        found += rows(MEASURES, of_peers, by_peer | reasons, title=title)
    return found, notes


def _small(plan: Plan, folder: Path, say: Say) -> Rounds:
    say(f"a bundle of {plan.items:,} items")
    artifacts = bench_bundle(folder, plan.items)
    with (
        tempfile.TemporaryDirectory() as data,
        EmbeddedStore(Path(data)) as store,
        small(artifacts, store.url, traffic(plan.items, plan.users), plan.seconds) as subjects,
    ):
        return take_rounds(
            lambda number: subjects.round(lambda what: say(f"{plan.items:,} items, round {number}: {what}")),
            FLOORS,
            count=plan.rounds,
            spare=plan.spare,
        )


def _large(plan: Plan, items: int, folder: Path, say: Say) -> Rounds:
    say(f"a bundle of {items:,} items")
    artifacts, float32, int8 = (bench_bundle(folder, items, way) for way in ("auto", "float32", "int8"))
    with (
        tempfile.TemporaryDirectory() as data,
        EmbeddedStore(Path(data)) as store,
        large(
            artifacts, store.url, traffic(items, plan.users), float32=float32, int8=int8, seconds=plan.seconds
        ) as subjects,
    ):
        return take_rounds(
            lambda number: subjects.round(lambda what: say(f"{items:,} items, round {number}: {what}")),
            LARGE_FLOORS,
            count=plan.rounds,
            spare=plan.spare,
        )


def _peers(plan: Plan, python: Path, folder: Path, say: Say) -> tuple[Rounds, dict[str, str]]:
    artifacts = bench_bundle(folder, plan.items)
    with (
        tempfile.TemporaryDirectory() as data,
        EmbeddedStore(Path(data)) as store,
        peers(python, artifacts, store.url, traffic(plan.items, plan.users), plan.seconds) as subjects,
    ):
        taken = take_rounds(
            lambda number: subjects.round(lambda what: say(f"peers, round {number}: {what}")),
            PEERS_FLOORS,
            count=plan.rounds,
            spare=plan.spare,
        )
        return taken, subjects.missing


def _about(title: str, taken: Rounds) -> str:
    counted = f"{title}: medians of {len(taken.kept)} rounds, {taken.thrown} thrown away because a floor had moved"
    return counted if taken.steady else f"{counted}; not all that count were steady, so take the figures with care"
