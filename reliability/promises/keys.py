"""Keys come and go while the service is under load, and a limit holds over its workers, with the store and without."""

import time
from pathlib import Path

from reliability.keyholders import WORKERS, Caller, Tally, World, world
from reliability.promise import Finding
from service.keyfile import KeyFolder, Limit
from service.limits import ASK_S, LOT_S, RETRY_S

TITLE = "Keys: rotation without restart, and limits that hold"

_NOTICED_S = 2.0  # four looks a second; the rest is for a machine that is busy
_GIVE_UP_S = 20.0
_OBSERVERS = 12  # connections, so that each worker surely has some
_A_SECOND = 60  # requests that the limited key may make


def check(full: bool, folder: Path) -> list[Finding]:
    """Replace keys 3 or 40 times under load; hammer a limited key 3 or 20 s with the store, without, and with it."""
    keys = KeyFolder(folder / "artifacts" / "keys")
    _, steady = keys.create("steady", ["recommend"])
    _, limited = keys.create("limited", ["recommend"], Limit(requests=_A_SECOND, seconds=1))
    with world(folder) as there:
        return [*_rotation(there, steady, 40 if full else 3), *_limit(there, limited, 20 if full else 3)]


def _rotation(there: World, steady: str, rounds: int) -> list[Finding]:
    created, revoked, late = [], [], 0
    observers = [Caller(there.address, steady) for _ in range(_OBSERVERS)]
    with Tally(there.address, steady, callers=4) as tally:
        for number in range(rounds):
            key = there.command("create", f"round {number}", "--scope", "recommend")
            for observer in observers:
                observer.key = key
            created.append(_until(observers, 200))
            there.command("revoke", key.split("_")[1])
            revoked.append(_until(observers, 401))
            late += sum(observer.ask().status != 401 for observer in observers * 5)
    for observer in observers:
        observer.close()
    return [
        Finding("requests with a valid key while others came and went", tally.all, least=rounds * 10),
        Finding("of them refused or failed", tally.all - tally.of(200) + len(tally.failures), most=0),
        Finding("longest until a created key worked at every worker", max(created), most=_NOTICED_S, unit="s"),
        Finding("longest until a revoked key worked at none", max(revoked), most=_NOTICED_S, unit="s"),
        Finding("answers to a revoked key after that", late, most=0),
    ]


def _until(observers: list[Caller], status: int) -> float:
    """Seconds until all get this status at once."""
    began = time.monotonic()
    while any(observer.ask().status != status for observer in observers):
        if time.monotonic() - began > _GIVE_UP_S:
            break
        time.sleep(0.01)
    return time.monotonic() - began


def _limit(there: World, limited: str, seconds: float) -> list[Finding]:
    """A bucketful may be there when a phase begins, a worker may hold a lot, and one that was not answered in time, as
    happens when a machine is busy, goes on alone until it asks again."""
    found = []
    tallies = []

    def hammer(when: str, least_share: float) -> None:
        """least_share: of what the limit allows."""
        with Tally(there.address, limited, callers=8) as tally:
            time.sleep(seconds)
        tallies.append(tally)
        lots = WORKERS * max(1, int(_A_SECOND * LOT_S))
        alone = int(_A_SECOND * (RETRY_S + ASK_S))
        allowed = _A_SECOND * tally.seconds
        found.append(
            Finding(
                f"let through of {tally.all:,} in {tally.seconds:.1f} s at {_A_SECOND}/s, {when}",
                tally.of(200),
                least=int(least_share * allowed),
                most=int(_A_SECOND + allowed) + lots + alone,
            )
        )

    hammer("two workers, one store", least_share=0.9)
    there.kill_store()
    hammer("the store killed", least_share=0.4)  # all callers may be at one worker, which has half
    there.store.__enter__()
    hammer("the store back", least_share=0.4)
    strange = sum(tally.all - tally.of(200, 429) + len(tally.failures) for tally in tallies)
    return [
        *found,
        Finding("answers that were neither 200 nor 429", strange, most=0),
        Finding("refusals that do not say when to come back", sum(tally.silent for tally in tallies), most=0),
    ]
