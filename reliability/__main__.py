"""`python -m reliability`: try every promise under faults; see ./run reliability."""

import argparse
import signal
import sys
from pathlib import Path

from reliability import report
from reliability.promise import Outcome, Promise, promises, tried

_ABOUT = """Break things while the service works, and count: one line for each figure, with its bound and whether it was
kept. What was tried in full takes its place in docs/reliability.md and reliability.json, beside what earlier runs found
of the others."""


def main(arguments: list[str] | None = None) -> int:
    """0 if every promise that could be tried was kept, 1 if one was not, 2 for a wrong command line."""
    every = list(promises())
    names = ", ".join(promise.name for promise in every)
    parser = argparse.ArgumentParser(prog="./run reliability", description=_ABOUT, epilog=f"promises: {names}")
    parser.add_argument("names", nargs="*", metavar="PROMISE", help="only these (all)")
    parser.add_argument("--quick", action="store_true", help="the short forms that ./run test tries; writes nothing")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for both files (this one)")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {promise.name for promise in every}:
        parser.error(f"no promise is called {', '.join(sorted(unknown))}; there are {names}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is stopped
    outcomes = []
    for promise in every:
        if not options.names or promise.name in options.names:
            outcomes.append(tried(promise, full=not options.quick))
            print(report.line(outcomes[-1]), flush=True)
    print(f"\n{report.summary(outcomes)}")
    if not options.quick:
        _write(options.output, every, outcomes)
    return 0 if all(outcome.skipped or outcome.kept for outcome in outcomes) else 1


def _write(folder: Path, every: list[Promise], outcomes: list[Outcome]) -> None:
    """The page and the file, of these outcomes and of those recorded earlier."""
    file = folder / "reliability.json"
    known = report.taking_place(report.recorded(file, every), outcomes)
    together = [known[promise.name] for promise in every if promise.name in known]
    (folder / "docs").mkdir(parents=True, exist_ok=True)
    (folder / "docs" / "reliability.md").write_text(report.page(together, command="./run reliability"), "utf-8")
    file.write_text(report.dumped(together, full=True), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
