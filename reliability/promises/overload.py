"""Requests come faster than they can be answered, whether or not those before have an answer."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from bench.child import Child
from bench.load import Job, Load, LoadGenerator, encode, histories, request
from reliability.bundle import promoted_bundle
from reliability.openloop import Answers, OpenLoop, Pressure
from reliability.promise import Finding
from reliability.serving import Service
from reliability.standstill import longest_standstill_s
from service.schemas import MAX_EVENTS
from service.sequences import StoreSettings

TITLE = "Overload: what can be answered is, the surplus is refused at once, and what came too late is not ranked"
_ITEMS, _DIM = 200_000, 64  # so that ranking is most of the work, as it is where overload is a matter of ranking
_SETTINGS: dict[str, Any] = {"max_waiting": 128, "threads": 1}
_LIMITS = "".join(f", {name}={value}" for name, value in _SETTINGS.items())
_TIMEOUT_MS = 150
_GOODPUT = 0.9  # of the peak, at twice the capacity; the other factors are told
_LATE = 2.0  # times capacity, with deadlines
_ENOUGH = 50  # refusals in a second
_TOGETHER = 50  # events a request, so that it is the service that has too much to do and not who asks


def check(full: bool, folder: Path) -> list[Finding]:
    items = _ITEMS if full else _ITEMS // 10
    promoted_bundle(folder / "artifacts", items, dim=_DIM)
    bodies = encode(
        [{"history": [f"item-{row}" for row in one]} for one in histories(2000, items - 1, np.random.default_rng(1))]
    )
    seconds = 10.0 if full else 1.0
    times = (1, 2, 3, 4, 5) if full else (4,)
    with (
        Service(folder, **_SETTINGS) as service,
        Child(LoadGenerator) as closed,
        Child(OpenLoop) as open_loop,
    ):
        load: Load = closed.call("measure", Job([service.address], "/recommend", bodies, seconds))
        capacity = load.per_second
        requests = [request("/recommend", body) for body in bodies]
        found: dict[int, Answers] = {}
        for factor in times:
            found[factor] = open_loop.call("press", Pressure(service.address, requests, factor * capacity, seconds))
        ranked = service.metric("recserve_batch_size_sum")
        requests = [_in_time(one) for one in requests]
        late: Answers = open_loop.call("press", Pressure(service.address, requests, _LATE * capacity, seconds))
        ranked = service.metric("recserve_batch_size_sum") - ranked
        again: Load = closed.call("measure", Job([service.address], "/recommend", bodies, seconds / 2))
    still_s = longest_standstill_s(seconds)
    goodput = {factor: _goodput(answers, seconds) for factor, answers in found.items()}
    peak = max(capacity, *goodput.values())
    refusals = [_refusals(answers) for answers in found.values()]
    untold = sum(int((~one.retry_after).sum()) for one in refusals)
    every = np.concatenate([answers.status for answers in [*found.values(), late]])
    answered = int((late.status == 200).sum())
    expired = max(1, int((late.status == 504).sum()))
    return [
        Finding(f"capacity{_LIMITS}, every client waiting for its answer", capacity, least=1, unit="requests/s"),
        *(
            Finding(
                f"goodput at {factor} times that, of the peak",
                goodput[factor] / peak,
                least=_GOODPUT if full and factor == 2 else None,
            )
            for factor in times
        ),
        Finding("refused", sum(len(one.latency_s) for one in refusals), least=1),
        *_prompt("", refusals, full=full),
        Finding("longest time that this machine lets a busy process stand still", 1e3 * still_s, unit="ms"),
        Finding("refusals without Retry-After", untold, most=0),
        Finding("answers other than 200, 503 and 504", int(np.isin(every, (200, 503, 504), invert=True).sum()), most=0),
        Finding(f"requests past their {_TIMEOUT_MS} ms", int((late.status == 504).sum()), least=1 if full else None),
        Finding("of these ranked all the same", (ranked - answered) / expired, most=0.05 if full else 0.5),
        Finding("goodput with deadlines, of the peak", _goodput(late, seconds) / peak, least=0.8 if full else None),
        Finding("capacity afterwards, of that before", again.per_second / capacity, least=0.7 if full else None),
        *_flooded(folder, seconds, full=full),
    ]


def _flooded(folder: Path, seconds: float, *, full: bool) -> list[Finding]:
    """The same of events that come at twice the rate at which they can be stored."""
    bodies = 100 if full else 4
    events = encode([{"events": _events(body)} for body in range(bodies)])
    requests = [request("/events", body) for body in events]
    with (
        Service(folder, redis=None, **_SETTINGS) as service,
        Child(LoadGenerator) as closed,
        Child(OpenLoop) as open_loop,
    ):
        _fill_histories(service, bodies * _TOGETHER)
        job = Job([service.address], "/events", events, seconds)
        load: Load = closed.call("measure", job)
        found: Answers = open_loop.call("press", Pressure(service.address, requests, 2 * load.per_second, seconds))
        again: Load = closed.call("measure", job)
    # A store slows down as what it has written grows, whoever asks.
    capacity = (load.per_second + again.per_second) / 2
    refused = _refusals(found)
    others = int(np.isin(found.status, (200, 503), invert=True).sum())
    return [
        Finding(
            f"/events: capacity{_LIMITS}, {_TOGETHER} of them a request", load.per_second, least=1, unit="requests/s"
        ),
        Finding("/events: capacity afterwards, of that before", again.per_second / load.per_second),
        Finding(
            "/events: goodput at 2 times that, of the mean of both",
            _goodput(found, seconds) / capacity,
            least=_GOODPUT if full else None,
        ),
        Finding("/events: refused", len(refused.latency_s), least=1 if full else None),
        *_prompt("/events: ", [refused], full=full),
        Finding("/events: refusals without Retry-After", int((~refused.retry_after).sum()), most=0),
        Finding("/events: answers other than 200 and 503", others, most=0),
    ]


def _events(body: int) -> list[dict[str, object]]:
    return [
        {"user_id": f"user-{_TOGETHER * body + number}", "item_id": f"item-{number}", "type": "view"}
        for number in range(_TOGETHER)
    ]


def _fill_histories(service: Service, users: int) -> None:
    """So that an event costs the same from the first to the last: one more takes longer where there are some."""
    length = StoreSettings().history_length
    together = MAX_EVENTS // length
    for begin in range(0, users, together):
        events = [
            {"user_id": f"user-{user}", "item_id": f"item-{number}", "type": "view"}
            for user in range(begin, min(begin + together, users))
            for number in range(length)
        ]
        answer = service.ask("POST", "/events", {"events": events})
        if answer.status != 200:
            raise RuntimeError(f"events were not stored: {answer.body}")


def _in_time(one: bytes) -> bytes:
    """A request that has so long and no longer."""
    return one.replace(b"\r\n", b"\r\nX-Timeout-Ms: %d\r\n" % _TIMEOUT_MS, 1)


def _goodput(answers: Answers, seconds: float) -> float:
    """Requests answered a second, of those that were due after the queue had time to fill."""
    steady = answers.due_s >= seconds / 5
    return float((answers.status[steady] == 200).sum() / (seconds * 4 / 5))


def _refusals(answers: Answers) -> Answers:
    refused = answers.status == 503
    return Answers(*(getattr(answers, field.name)[refused] for field in fields(Answers)))


def _prompt(what: str, loads: Sequence[Answers], *, full: bool) -> list[Finding]:
    """How soon refusals come, given those of each load. The bound is on the median second of the worst load: where the
    machine stands still for 20 ms, 2 % of what is due in that second are late, whatever the service does."""
    usual = [np.median(seconds) for load in loads if len(seconds := _p99_of_seconds(load))]
    every = np.concatenate([load.latency_s for load in loads])
    if not (usual or full):  # too short to tell
        return []
    return [
        Finding(
            f"{what}p99 of the time to a refusal, in the median second",
            float(max(usual, default=float("nan"))),
            most=10 if full else None,
            unit="ms",
        ),
        Finding(f"{what}p99 of the time to a refusal, stops of the machine included", _p99_ms(every), unit="ms"),
    ]


def _p99_of_seconds(refusals: Answers) -> list[float]:
    """Of each second in which enough was refused to have one, ms."""
    second = refusals.due_s.astype(int)
    of_seconds = [refusals.latency_s[second == one] for one in np.unique(second)]
    return [_p99_ms(latency) for latency in of_seconds if len(latency) >= _ENOUGH]


def _p99_ms(seconds: np.ndarray) -> float:
    return float(np.percentile(seconds, 99) * 1e3) if len(seconds) else float("nan")
