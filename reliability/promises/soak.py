"""Load for a long time, models swapped all the while, the memory of all processes measured."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from reliability.bundle import promoted_bundle
from reliability.callers import Callers
from reliability.memory import Growth, allocated_mb, growth
from reliability.promise import Finding
from reliability.serving import Service

TITLE = "Memory stays what it is under load with models swapped"
_ITEMS = 3000
_USERS = 500
_MOST_MB_PER_HOUR = 1.0
_QUICK_MB = 60.0  # in the quick form, whose seconds make no slope: by so much it may be more at the end


@dataclass(frozen=True, slots=True)
class _Soaked:
    """When, how many MB the service took then, how many its store at last, swaps, and promotions without one."""

    times: list[float]
    sizes: list[float]
    store: float
    swaps: int
    refused: list[str]


def check(full: bool, folder: Path) -> list[Finding]:
    # An hour: a slope of 1 MB an hour drowns in the noise of ten minutes.
    warm_s, soak_s, swap_s = (180.0, 3600.0, 5.0) if full else (4.0, 11.0, 1.0)
    for seed, version in enumerate(("v2", "v1"), start=1):
        promoted_bundle(folder / "artifacts", _ITEMS, version=version, seed=seed)
    # Bounded logs are full soon, as they are in a service that has run for long.
    with (
        Service(folder, redis=None, history_length=20, log_max_events=16_000) as service,
        Callers(service.address, _requests(), clients=4) as callers,
    ):
        warm = _swapped(service, warm_s, swap_s)
        before = callers.answered
        soaked = _swapped(service, soak_s, swap_s)
        answered = callers.answered - before
        failed = callers.answered - callers.counts[200] + callers.counts["lost"] + callers.counts["not taken"]
    refused = warm.refused + soaked.refused
    found = growth(soaked.times, soaked.sizes)
    return [
        Finding("requests answered after warm-up", answered, least=soak_s),
        Finding("requests that failed, in all", failed, most=0),
        *(Finding(f"of which {error}", count) for error, count in callers.errors.most_common()),
        Finding("swaps", soaked.swaps, least=soak_s / swap_s / 4),
        Finding("promotions refused, in all", len(refused), most=0),
        *(Finding(f"of which {why}", count) for why, count in Counter(refused).most_common()),
        Finding("memory that the service has allocated at the end", soaked.sizes[-1], unit="MB"),
        Finding("memory that its store has allocated at the end", soaked.store, unit="MB"),
        *_judged(found, soaked.sizes, full=full),
    ]


def _judged(found: Growth, sizes: list[float], *, full: bool) -> list[Finding]:
    if not full:
        return [Finding("more memory at the end than at first", sizes[-1] - sizes[0], most=_QUICK_MB, unit="MB")]
    return [
        Finding("growth", found.per_hour, most=_MOST_MB_PER_HOUR, unit="MB/h"),
        Finding("its standard error", found.error, unit="MB/h"),
    ]


def _requests() -> list[tuple[str, object]]:
    users = [f"user-{row}" for row in range(_USERS)]
    return [
        request
        for row, user in enumerate(users)
        for request in (
            ("/events", {"user_id": user, "item_id": f"item-{row % _ITEMS}", "type": "click"}),
            ("/recommend", {"user_id": user}),
            ("/recommend", {"history": [f"item-{(row * 7 + place) % _ITEMS}" for place in range(row % 30)], "k": 50}),
            ("/recommend", {"user_id": user, "candidates": [f"item-{row}", "item-1"], "explain": True}),
            ("/recommend/batch", {"queries": [{"user_id": other} for other in users[row : row + 3]]}),
        )
    ]


def _swapped(service: Service, seconds: float, swap_s: float) -> _Soaked:
    """Swap models for so long."""
    began = time.monotonic()
    times: list[float] = []
    sizes: list[float] = []
    refused: list[str] = []
    swaps = 0
    while (now := time.monotonic() - began) < seconds:
        version = "v1" if swaps % 2 else "v2"
        answer = service.ask("POST", f"/models/{version}/promote")
        if answer.status == 200:
            swaps += 1
        else:
            refused.append(f"{answer.status} {str(answer.body)[:200]}")
        service.ask("GET", "/metrics")
        time.sleep(max(0.0, swap_s - (time.monotonic() - began - now)))
        times.append(time.monotonic() - began)
        sizes.append(allocated_mb([service.pid]))
    others = [pid for pid in service.processes() if pid != service.pid]
    return _Soaked(times, sizes, allocated_mb(others), swaps, refused)
