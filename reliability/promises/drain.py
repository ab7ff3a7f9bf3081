"""The service is told to stop while it works, its scoring thread ends, and one of its workers is killed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from reliability.bundle import promoted_bundle
from reliability.callers import Callers
from reliability.promise import Finding
from reliability.serving import Service

TITLE = "A service that is told to stop answers first; a dead scoring thread and a dead worker are noticed"
_ITEMS = 2000
_MOST_S = 30.0  # for a drain
_RED_S = 1.0
_PATIENCE_S = 60.0


def check(full: bool, folder: Path) -> list[Finding]:
    promoted_bundle(folder / "artifacts", _ITEMS)
    found = []
    for workers in (1, 2):
        found += _drained(folder, workers, times=10 if full else 2)
    return [*found, *_red(folder, within_s=_RED_S if full else 10.0), *_replaced(folder)]


def _requests() -> list[tuple[str, object]]:
    histories = [[f"item-{(7 * row + place) % _ITEMS}" for place in range(1 + row % 20)] for row in range(40)]
    chosen = [f"item-{row}" for row in range(500)]
    return [
        *(("/recommend", {"history": history}) for history in histories),
        *(("/recommend", {"history": history, "candidates": chosen, "explain": True}) for history in histories[:10]),
        *(("/events", {"user_id": f"user-{row}", "item_id": "item-3"}) for row in range(20)),
    ]


def _drained(folder: Path, workers: int, *, times: int) -> list[Finding]:
    answered = lost = failed = not_taken = wrong_ends = 0
    longest_s = 0.0
    for time_of in range(times):
        # In turn on kept connections, and on a new one for each request, of which some wait to be taken at the end.
        with (
            Service(folder, "--workers", str(workers), redis=None) as service,
            Callers(service.address, _requests(), clients=16, kept=time_of % 2 == 0) as callers,
        ):
            _until(lambda callers=callers: callers.answered > 300)  # type: ignore[misc]
            status, seconds = service.stop(within_s=_MOST_S + 5)
        wrong_ends += status != 0
        longest_s = max(longest_s, seconds)
        answered += callers.counts[200]
        lost += callers.counts["lost"]
        failed += callers.answered - callers.counts[200]
        not_taken += callers.counts["not taken"]
    these = f"{workers} worker{'s' if workers > 1 else ''}: "
    return [
        Finding(f"{these}requests answered, before and while it drained", answered, least=300 * times),
        Finding(f"{these}requests in flight that were lost", lost, most=0),
        Finding(f"{these}answers other than 200", failed, most=0),
        Finding(f"{these}clients that could not connect any more", not_taken),
        Finding(f"{these}longest time to its end", longest_s, most=_MOST_S, unit="s"),
        Finding(f"{these}ends other than with status 0", wrong_ends, most=0),
    ]


def _red(folder: Path, *, within_s: float) -> list[Finding]:
    """The scoring thread ends while it works."""
    with Service(folder, module="reliability.mortal") as service:
        green = service.ask("GET", "/healthz").status
        body = {"history": ["item-1"], "candidates": ["item-2", "item-3"]}
        os.kill(service.pid, signal.SIGUSR1)
        began = time.monotonic()
        answers = []
        while (health := service.ask("GET", "/healthz")).status == 200 and time.monotonic() - began < _PATIENCE_S:
            answers.append(service.ask("POST", "/recommend", body).status)  # an idle thread ends with its next work
        red_s = time.monotonic() - began
        after = service.ask("POST", "/recommend", body).status
    return [
        Finding("the scoring thread's end: /healthz before", green, least=200, most=200),
        Finding("/healthz after", health.status, least=503, most=503),
        Finding("time until then", red_s, most=within_s, unit="s"),
        Finding("a request that needs the thread is answered, with", after, least=503, most=503),
    ]


def _replaced(folder: Path) -> list[Finding]:
    """A worker is killed beside another."""
    with Service(folder, "--workers", "2") as service:
        workers = _workers(service)
        os.kill(workers[0], signal.SIGKILL)
        _until(lambda: len(_workers(service)) == 2 and workers[0] not in _workers(service))
        _until(lambda: service.metric("recserve_workers") == 2)
        statuses = [service.ask("POST", "/recommend", {"history": ["item-1"]}).status for _ in range(50)]
        stayed = service.alive and workers[1] in _workers(service)
    return [
        Finding("a killed worker: replaced beside one that stays", int(stayed), least=1),
        Finding("requests afterwards that were not answered 200", sum(one != 200 for one in statuses), most=0),
    ]


def _workers(service: Service) -> list[int]:
    def is_worker(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/comm").read_text().startswith("recserve-w")
        except OSError:
            return False

    return [pid for pid in service.processes() if is_worker(pid)]


def _until(fact: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE_S
    while not fact():
        if time.monotonic() > until:
            raise TimeoutError(f"it did not happen within {_PATIENCE_S:.0f} s")
        time.sleep(0.01)
