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
from bench.size import count, number
from models.interrupts import end_as_interrupted
from models.manifest import BundleError
from models.registry import RegistryError
from service.embedded import EmbeddedStoreError

_EPILOG = """what is measured: the service with the embedded store on one worker and on two, beside servers that answer
nothing, beside the straightforward stack (bench/yardsticks.py), and beside its own engine and store; 64 keep-alive
connections, mixed histories (median 12, at most 50), k 10, seen items excluded. Goals stand beside the figures."""
LARGE = 1_000_000
_USUAL = Plan()
_OUTPUT = Path("artifacts/bench")
_INTERRUPTED = 130  # exit status of a program that was told to end: 128 + SIGINT


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./run bench", description="Measure the service.", epilog=_EPILOG)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serving", help="requests a second, latency and their floors", epilog=_EPILOG)
    own = {
        "items": (count(100, 10**8), "of the first catalogue"),
        "rounds": (count(3, 1000), "that count, at least 3: they make a median"),
        "seconds": (number(0.1, 3600), "of each load"),
    }
    for name, (kind, said) in own.items():
        serving.add_argument(f"--{name}", type=kind, help=f"{said} ({getattr(_USUAL, name)})")
    serving.add_argument("--large", action="store_true", help=f"measure a catalogue of {LARGE:,} items too")
    serving.add_argument(
        "--peers", action="store_true", help="measure LitServe, MLServer, BentoML and others beside it"
    )
    serving.add_argument("--quick", action="store_true", help="all of it in seconds, on tiny catalogues: says nothing")
    serving.add_argument(
        "--output", type=Path, help=f"folder of bundles and results ({_OUTPUT}, or {_OUTPUT / 'quick'} with --quick)"
    )
    options = parser.parse_args(arguments)
    chosen = {name: value for name in own if (value := getattr(options, name)) is not None}
    if options.quick and chosen:
        parser.error(f"--quick has sizes of its own and takes no {', '.join(f'--{name}' for name in chosen)}")
    usual = QUICK if options.quick else _USUAL
    plan = replace(usual, **chosen, peers=_peers_python() if options.peers else None)
    if options.large:
        plan = replace(plan, large=2 * QUICK.items if options.quick else LARGE)
    if plan.peers is not None and not plan.peers.is_file():
        print(f"error: there is no {plan.peers}, which is to have the peers; ./run makes one", file=sys.stderr)
        return 1
    end_as_interrupted()
    try:
        return _serving(plan, options.output or (_OUTPUT / "quick" if options.quick else _OUTPUT))
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return _INTERRUPTED
    except (ServerError, ChildError, EmbeddedStoreError, BundleError, RegistryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _peers_python() -> Path:
    return Path(os.environ.get("BENCH_PEERS") or ".venv-peers-serving/bin/python")


def _serving(plan: Plan, output: Path) -> int:
    output.mkdir(parents=True, exist_ok=True)
    began, stolen = time.perf_counter(), machine.stolen_s()
    rows, notes = bench_serving(plan, output, lambda what: print(f"... {what}", file=sys.stderr))
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
