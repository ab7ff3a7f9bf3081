"""Poisonous and mutated requests are refused, and those who behave hardly notice."""

import asyncio
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from reliability.bundle import promoted_bundle
from reliability.mutation import mutated
from reliability.poison import corpus
from reliability.promise import Finding
from reliability.serving import Service
from reliability.wire import ask, read_answer, request

TITLE = "Poisonous requests at the front door"

_Address = tuple[str, int]

_ROUNDS = 10  # of healthy traffic alone and then beside the attack, so that both see the same machine
_ATTACKERS = 16
_HEALTHY_PER_S = 100.0
_PATIENCE_S = 0.25  # with a request that may be half of one
_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class _Round:
    """Which of how many rounds, how many requests it has, and at which rate."""

    number: int
    rounds: int
    requests: int
    per_s: float


@dataclass(frozen=True, slots=True)
class _Attack:
    """What became of some requests: statuses (0: no answer), and the names of poison that was answered otherwise."""

    statuses: Counter[int]
    surprises: list[str]


def check(full: bool, folder: Path) -> Sequence[Finding]:
    """20,000 requests beside healthy traffic, some hundreds in the quick form, which bounds no time."""
    attacks, rounds, alone_s, rate = (20_000, _ROUNDS, 10.0, 100.0) if full else (500, 2, 1.0, 250.0)
    context = multiprocessing.get_context("spawn")
    promoted_bundle(folder / "artifacts", 12_000 if full else 100)
    with (
        Service(folder, "--workers", "2", redis=None) as service,
        # The attackers take what the service and its clients leave of the cores: elsewhere they would have their own.
        ProcessPoolExecutor(1, mp_context=context, initializer=os.nice, initargs=(19,)) as pool,
    ):
        door = service.address
        alone: list[float] = []  # p99 of each round, in ms
        beside: list[float] = []
        statuses: Counter[int] = Counter()
        surprises: list[str] = []
        failed = 0
        pool.submit(time.monotonic).result()  # the start of the process is no part of it
        for number in range(rounds):
            latencies, broken = asyncio.run(_healthy(door, alone_s, None))
            alone.append(float(np.percentile(latencies, 99)) * 1e3)
            attack = pool.submit(_attack, door, _Round(number, rounds, attacks // rounds, rate))
            latencies, broken_beside = asyncio.run(_healthy(door, 0.0, attack))
            beside.append(float(np.percentile(latencies, 99)) * 1e3)
            failed += broken + broken_beside
            found = attack.result()
            statuses += found.statuses
            surprises += found.surprises
        slow = asyncio.run(_slow(door)) if full else []
        restarts, bugs = (
            service.lines("it is replaced|the next one starts"),
            service.lines("a bug |Exception in ASGI|Traceback"),
        )
    sent = statuses.total()
    failures = [str(status) for status in statuses.elements() if status >= 500]
    findings = [
        Finding(
            f"poisonous and mutated requests, {rate:g}/s from one process beside healthy ones", sent, least=attacks
        ),
        Finding("of them answered", sent - statuses[0], least=sent // 4),
        Finding(f"answers of 5xx{_named(failures)}", len(failures), most=0),
        Finding(f"poison not refused as documented{_named(surprises)}", len(surprises), most=0),
        Finding("worker restarts", restarts, most=0),
        Finding("bugs in the log", bugs, most=0),
        Finding("healthy requests without their answer", failed, most=0),
    ]
    if full:
        times = [during / before for before, during in zip(alone, beside, strict=True)]
        findings += [
            Finding(
                f"p99 of healthy traffic, {_HEALTHY_PER_S:g}/s, alone, median of rounds",
                float(np.median(alone)),
                unit="ms",
            ),
            Finding("p99 of the same beside the attack, median of rounds", float(np.median(beside)), unit="ms"),
            Finding("times as long, median of rounds", float(np.median(times)), most=2),
            Finding("half-sent heads and bodies without a 408", sum(status != 408 for status, _ in slow), most=0),
            Finding("the longest of them was waited for", max(seconds for _, seconds in slow), most=10, unit="s"),
        ]
    return findings


async def _slow(door: _Address) -> list[tuple[int, float]]:
    """The status of the answer to each request of which the rest never comes, and the seconds until it was there."""
    head = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\n"

    async def one(wire: bytes) -> tuple[int, float]:
        began = time.perf_counter()
        answer = await ask(*door, wire, patience_s=30)
        return (answer.status if answer else 0), time.perf_counter() - began

    half = [head[:9], head, head + b"Content-Length: 9\r\n\r\n", head + b"Content-Length: 9\r\n\r\n{"]
    return await asyncio.gather(*(one(wire) for wire in half * 5))


def _named(surprises: Sequence[str]) -> str:
    return f" ({', '.join(surprises[:3])})" if surprises else ""


async def _healthy(door: _Address, window_s: float, until: "Future[_Attack] | None") -> tuple[list[float], int]:
    """Seconds to each answer of requests that come in time whatever becomes of the others, and how many had none.

    For window_s, or until the attack is over.
    """
    wires = [
        request("POST", "/recommend", orjson.dumps({"history": [f"item-{number}", "item-2"], "k": 10}))
        for number in range(50)
    ]
    wires += [request("POST", "/events", b'{"user_id": "healthy", "item_id": "item-7"}')]
    latencies: list[float] = []
    failed = 0
    began = time.perf_counter()

    async def client(offset: int) -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection(*door)
        for number in range(offset, 1_000_000, _CONNECTIONS):
            due = began + number / _HEALTHY_PER_S
            if due > began + window_s if until is None else until.done():
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(wires[number % len(wires)])
            try:
                async with asyncio.timeout(30):
                    answer = await read_answer(reader)
            except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
                failed += 1
                break
            latencies.append(time.perf_counter() - due)
            failed += answer.status != 200
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    await asyncio.gather(*(client(offset) for offset in range(_CONNECTIONS)))
    return latencies, failed


def _attack(door: _Address, turn: _Round) -> _Attack:
    """One round of the attack, in a process of its own: its share of the poison, and the rest mutated."""
    return asyncio.run(_attacked(door, turn))


async def _attacked(door: _Address, turn: _Round) -> _Attack:
    generator = random.Random(turn.number)
    poison = list(corpus())[turn.number :: turn.rounds]
    sent: list[tuple[bytes, str, int]] = [(one.sent(), one.name, one.status) for one in poison]
    sent += [(mutated(generator), "", 0) for _ in range(turn.requests - len(poison))]
    generator.shuffle(sent)
    statuses: Counter[int] = Counter()
    surprises: list[str] = []
    began = time.perf_counter()

    async def attacker(offset: int) -> None:
        for place in range(offset, len(sent), _ATTACKERS):
            await asyncio.sleep(max(0.0, began + place / turn.per_s - time.perf_counter()))
            wire, name, expected = sent[place]
            answer = await ask(*door, wire, patience_s=30 if name else _PATIENCE_S)
            status = answer.status if answer else 0
            statuses[status] += 1
            if name and status != expected:
                surprises.append(f"{name}: {status}")

    await asyncio.gather(*(attacker(offset) for offset in range(_ATTACKERS)))
    return _Attack(statuses, surprises)
