"""`python -m bench.size`: what machine a catalogue, its users and their requests take; see ./run bench size."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from bench.curves import CurvesError, Measured, measured
from bench.sizing import VERSIONS, Load, Size, size

_EPILOG = """example: ./run bench size --items 5e6 --users 2e7 --rps 3000
docs/capacity.md explains each line. Costs are this machine's where it has been measured (./run bench serving, and
./run bench catalogue --threads 1 --output artifacts/bench/catalogue.json), else those of docs/performance.md."""
_USUAL = Load(items=1, users=1, requests_per_s=1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./run bench size",
        description="Cores, memory and bytes of the store, from measured costs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--items", type=count(1, 10**9), required=True, help="of the catalogue; 5e6 is a number too")
    add("--users", type=count(0, 10**11), required=True, help="whose histories the store keeps")
    add("--rps", type=number(0.001, 1e7), required=True, help="requests for recommendations a second, at the peak")
    add("--events", type=number(0, 1e7), default=0.0, help="events a second, at the peak (none)")
    add("--dim", type=count(1, 8192), default=_USUAL.columns, help="columns of the model (%(default)s)")
    add("--history", type=count(1, 1000), default=_USUAL.history, help="events kept of a user (%(default)s)")
    add("--log-events", type=count(0, 10**11), default=_USUAL.logged, help="kept for retraining (%(default)s)")
    add("--scoring", choices=("auto", "float32", "int8"), default=_USUAL.scoring, help="as of export (%(default)s)")
    add("--max-batch", type=count(1, 1024), default=_USUAL.batch, help="as of serve (%(default)s)")
    add("--load", type=number(0.05, 1), default=_USUAL.share, help="share of saturation to plan for (%(default)s)")
    add("--cores", type=count(1, 1024), default=_USUAL.machine_cores, help="of one machine (%(default)s)")
    add("--measured", type=Path, default=Path("artifacts/bench"), help="folder of measurements (%(default)s)")
    given = parser.parse_args(arguments)
    load = Load(
        items=given.items,
        users=given.users,
        requests_per_s=given.rps,
        events_per_s=given.events,
        columns=given.dim,
        history=given.history,
        logged=given.log_events,
        scoring=given.scoring,
        batch=given.max_batch,
        share=given.load,
        machine_cores=given.cores,
    )
    try:
        by = measured(given.measured)
        print(table(load, size(load, by), by))
    except (CurvesError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def table(load: Load, found: Size, by: Measured) -> str:
    """All figures, and below them what was assumed."""
    store = found.histories_bytes + found.log_bytes
    rows = [
        ("ranked by", f"{found.way} scoring"),
        ("a request's ranking", f"{found.ranking_s * 1e3:.3g} ms of a core"),
        ("the same of a request alone", f"{found.alone_s * 1e3:.3g} ms of a core"),
        ("HTTP, store and encoding", f"{found.rest_s * 1e3:.3g} ms of a core"),
        ("saturation of a core", f"{found.requests_per_core:,.0f} requests/s"),
        (f"cores, at {load.share:.0%} of saturation", f"{found.cores:,.1f}"),
        (f"machines of {load.machine_cores} cores x workers", f"{found.replicas} x {found.workers}"),
        ("memory that workers share: matrix", _bytes(found.matrix_bytes)),
        ("the same: its int8 copy", _bytes(found.int8_bytes)),
        ("memory of each worker beside it", _bytes(found.worker_bytes)),
        ("memory of a machine", _bytes(found.replica_bytes)),
        ("the same while a version loads", _bytes(found.loading_bytes)),
        ("store: histories", _bytes(found.histories_bytes)),
        ("store: event log", _bytes(found.log_bytes)),
        ("store", _bytes(store)),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [
        f"{load.items:,} items of {load.columns} columns, {load.users:,} users",
        f"{load.requests_per_s:,.10g} requests/s, {load.events_per_s:,.10g} events/s",
        "",
        *(f"{name:{width}}  {value:>18}" for name, value in rows),
        "",
        "assumed:",
    ]
    return "\n".join([*lines, *(f"- {line}" for line in _assumed(load, found, by))])


def _assumed(load: Load, found: Size, by: Measured) -> list[str]:
    lines = list(by.sources)
    if found.beyond:
        lines.append(f"{load.items:,} items lie beyond what was measured; the curve's last slope goes on")
    if load.columns != by.dim:
        lines.append(f"ranking grows with the columns; {by.dim} were measured")
    return [
        *lines,
        "a worker takes one core, and cores rank side by side without slowing each other, which is not measured",
        f"each user has {load.history} events and was active within a day; ids have eight characters",
        f"while a version loads, {VERSIONS} are in memory: it, the one that serves and the one before",
        "the store is on another machine, which may take twice these bytes while it rewrites its file",
    ]


def _bytes(taken: int) -> str:
    return f"{taken / 1e9:,.2f} GB" if taken >= 1e8 else f"{taken / 1e6:,.1f} MB"


def number(low: float, high: float) -> Callable[[str], float]:
    """The type of an option that takes numbers from low to high."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is no number from {low:g} to {high:g}")
        return value

    return parse


def count(low: int, high: int) -> Callable[[str], int]:
    """The same of whole numbers; 5e6 is one."""

    def parse(text: str) -> int:
        value = number(low, high)(text)
        if value != int(value):
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number")
        return int(value)

    return parse


if __name__ == "__main__":
    sys.exit(main())
