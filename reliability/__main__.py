"""`python -m reliability`: try every promise under faults; see ./run reliability."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from models.durable import sync
from models.interrupts import end_as_interrupted
from reliability import report
from reliability.promise import Outcome, Promise, promises, tried

_ABOUT = """Break things while the service works, and count: one line for each figure, with its bound and whether it was
kept. What was tried in full takes its place in docs/reliability.md and reliability.json, beside what earlier runs found
of the others."""
_RECORD, _PAGE = Path("reliability.json"), Path("docs", "reliability.md")
_INTERRUPTED = 130  # exit status of a program that was told to end: 128 + SIGINT


def main(arguments: list[str] | None = None, every: Sequence[Promise] = ()) -> int:
    """0 if every promise that could be tried was kept, 1 if one was not, or if nothing can be written, 2 for a wrong
    command line, 130 if it was stopped. every: the promises there are, if not those of the package."""
    every = every or list(promises())
    names = ", ".join(promise.name for promise in every)
    parser = argparse.ArgumentParser(prog="./run reliability", description=_ABOUT, epilog=f"promises: {names}")
    parser.add_argument("names", nargs="*", metavar="PROMISE", help="only these (all)")
    parser.add_argument("--quick", action="store_true", help="the short forms that ./run test tries; writes nothing")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for both files (this one)")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {promise.name for promise in every}:
        parser.error(f"no promise is called {', '.join(sorted(unknown))}; there are {names}")
    end_as_interrupted()
    chosen = [promise for promise in every if not options.names or promise.name in options.names]
    try:
        outcomes = _quick(chosen) if options.quick else _full(chosen, every, options.output)
    except KeyboardInterrupt:
        print("stopped" if options.quick else "stopped; what was tried is written", file=sys.stderr)
        return _INTERRUPTED
    except (report.RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{report.summary(outcomes)}")
    return 0 if all(outcome.skipped or outcome.kept for outcome in outcomes) else 1


def _full(chosen: Sequence[Promise], every: Sequence[Promise], folder: Path) -> list[Outcome]:
    """Try them at full size, each written as soon as it has been tried, beside what was recorded earlier."""
    known = report.recorded(folder / _RECORD, every)
    for file in (folder / _RECORD, folder / _PAGE):  # before hours have passed
        file.parent.mkdir(parents=True, exist_ok=True)
        _draft(file).touch()
        _draft(file).unlink()
    outcomes = []
    for promise in chosen:
        outcomes.append(_said(tried(promise, full=True)))
        known = report.taking_place(known, outcomes[-1:])
        together = [known[promise.name] for promise in every if promise.name in known]
        _replace(folder / _RECORD, report.dumped(together))
        _replace(folder / _PAGE, report.page(together, command="./run reliability"))
    return outcomes


def _quick(chosen: Sequence[Promise]) -> list[Outcome]:
    return [_said(tried(promise, full=False)) for promise in chosen]


def _said(outcome: Outcome) -> Outcome:
    print(report.line(outcome), flush=True)
    return outcome


def _draft(file: Path) -> Path:
    return file.with_name(f"{file.name}.draft")


def _replace(file: Path, content: str) -> None:
    """Whatever happens, there is all of the old file or all of the new one."""
    draft = _draft(file)
    draft.write_text(content, encoding="utf-8")
    sync(draft)
    draft.replace(file)


if __name__ == "__main__":
    sys.exit(main())
