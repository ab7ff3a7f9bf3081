"""`python -m bench`: measure serving; see ./run bench serving."""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench import machine, report
from bench.child import ChildError
from bench.servers import ServerError
from bench.serving import QUICK, Plan, bench_serving
from models.manifest import BundleError
from models.registry import RegistryError
from service.embedded import EmbeddedStoreError

_EPILOG = """what is measured: the service with the embedded store on one worker and on two, beside servers that answer
nothing, beside the straightforward stack (bench/yardsticks.py), and beside its own engine and store; 64 keep-alive
connections, mixed histories (median 12, at most 50), k 10, seen items excluded. Goals stand beside the figures."""
LARGE = 1_000_000
_USUAL = Plan()
_FEWEST = 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./run bench", description="Measure the service.", epilog=_EPILOG)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serving", help="requests a second, latency and their floors", epilog=_EPILOG)
    serving.add_argument("--items", type=int, default=_USUAL.items, help="of the first catalogue (%(default)s)")
    serving.add_argument("--large", action="store_true", help=f"measure a catalogue of {LARGE:,} items too")
    serving.add_argument(
        "--peers", action="store_true", help="measure LitServe, MLServer, BentoML and others beside it"
    )
    serving.add_argument("--rounds", type=_rounds, default=_USUAL.rounds, help="that count, at least 3 (%(default)s)")
    serving.add_argument("--seconds", type=float, default=_USUAL.seconds, help="of each load (%(default)s)")
    serving.add_argument("--quick", action="store_true", help="all of it in seconds, on tiny catalogues: says nothing")
    serving.add_argument(
        "--output", type=Path, default=Path("artifacts/bench"), help="folder of bundles and results (%(default)s)"
    )
    options = parser.parse_args(arguments)
    plan = Plan(
        items=options.items,
        large=LARGE if options.large else None,
        seconds=options.seconds,
        rounds=options.rounds,
        peers=_peers_python() if options.peers else None,
    )
    if options.quick:
        plan = replace(QUICK, large=2 * QUICK.items if options.large else None, peers=plan.peers)
    if plan.peers is not None and not plan.peers.is_file():
        print(f"error: there is no {plan.peers}, which is to have the peers; ./run makes one", file=sys.stderr)
        return 1
    return _serving(plan, options.output)


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < _FEWEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds; {_FEWEST} make a median")
    return int(text)


def _peers_python() -> Path:
    return Path(os.environ.get("BENCH_PEERS") or ".venv-peers-serving/bin/python")


def _serving(plan: Plan, output: Path) -> int:
    output.mkdir(parents=True, exist_ok=True)
    began, stolen = time.perf_counter(), machine.stolen_s()
    try:
        rows, notes = bench_serving(plan, output, lambda what: print(f"... {what}", file=sys.stderr))
    except (ServerError, ChildError, EmbeddedStoreError, BundleError, RegistryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.table(rows))
    print(*notes, sep="\n")
    after = machine.stolen_s()
    seconds = time.perf_counter() - began
    lost = "unknown" if after is None or stolen is None else f"{after - stolen:.1f} s"
    print(f"{machine.describe()}; {seconds:.0f} s, stolen CPU time: {lost}")
    report.write_json(rows, output / "serving.json")
    drawn = report.plot(rows, output / "serving.png")
    print(f"written: {output / 'serving.json'}" + (f", {output / 'serving.png'}" if drawn else ""))
    if not drawn:
        print("no plot: matplotlib is not installed here; ./run setup train brings it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
