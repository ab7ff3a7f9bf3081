"""The primary loses sight of its replica, goes on, and dies; the replica takes over.

The link is cut by a proxy that passes nothing on and closes nothing: the primary goes on counting its replica as
online, as in a partition, and as it would not if the replica were stopped.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from reliability.ledger import Audit, Ledger, Sent, events
from reliability.load import Load, wait_for
from reliability.processes import Store
from reliability.promise import Finding
from reliability.proxy import Proxy
from reliability.serving import Service

TITLE = "The primary dies cut off from its replica: what was acknowledged as replicated is on the replica"
_WAIT_S = 60.0


def check(full: bool, folder: Path) -> list[Finding]:
    rounds = 5 if full else 1
    replicated = [_partition(folder / f"replicated-{number}", "replicated") for number in range(rounds)]
    durable = _partition(folder / "durable", "durable")
    audits = [found.audit for found in replicated]
    total = Audit(**{name: sum(getattr(audit, name) for audit in audits) for name in Audit.__slots__})
    again = sum(found.again for found in replicated)
    return [
        Finding("partitions", rounds),
        *total.findings(at_least=rounds * _BEFORE),
        Finding("events refused in a partition", sum(found.refused for found in replicated), least=rounds),
        Finding("events acknowledged in a partition", sum(found.within for found in replicated), most=0),
        Finding("events sent again when there was a replica again", again, least=rounds),
        Finding("of all events, not stored in the end", total.sent - total.stored, most=0),
        Finding("answers that were neither 200 nor 503", sum(found.surprises for found in replicated), most=0),
        Finding("acknowledged events lost that were only durable: it bites", durable.audit.lost, least=1),
    ]


_BEFORE = 200  # events acknowledged before the partition


@dataclass(frozen=True, slots=True)
class _Found:
    audit: Audit  # of the replica that took over
    refused: int
    within: int  # events sent in the partition and acknowledged
    again: int  # events that had got no acknowledgement, sent again when there was a replica again
    surprises: int


def _partition(folder: Path, durability: str) -> _Found:
    quickly = {"repl-diskless-sync-delay": "0"}
    with ExitStack() as stack:
        primary = stack.enter_context(Store(folder, "primary", options=quickly))
        link = stack.enter_context(Proxy(primary.address))
        replica = stack.enter_context(Store(folder, "replica", options=quickly))
        _follow(replica, primary, link.address)
        front = stack.enter_context(Proxy(primary.address))  # the address that clients know
        service = stack.enter_context(Service(folder, redis=front.url, durability=durability))
        ledger, stream = Ledger(), events(users=_BEFORE)
        with Load(service.address, ledger, stream):
            wait_for(_BEFORE, ledger, _WAIT_S)
            link.silent = True  # under load, so that writes are on their way
            time.sleep(0.2)
        refused, within = _in_partition(service, ledger, stream)
        primary.kill()
        with replica.client() as client:
            client.replicaof("NO", "ONE")
        front.target = replica.address
        # The old primary comes back as a replica, and clients send again whatever they got no acknowledgement for.
        primary.start()
        _follow(primary, replica, replica.address)
        again = ledger.unacknowledged
        with Load(service.address, ledger, iter(again), count=len(again)) as load:
            load.wait(_WAIT_S)
        return _Found(ledger.audit(replica.url), refused, within, len(again), len(ledger.surprises))


def _follow(replica: Store, primary: Store, address: tuple[str, int]) -> None:
    """Make one the replica of the other, by that address, and wait until it is."""
    with replica.client() as client:
        client.replicaof(*address)
    until = time.monotonic() + _WAIT_S
    with primary.client() as client:
        while not client.wait(1, 100):
            if time.monotonic() > until:
                raise TimeoutError("the replica did not come")


def _in_partition(service: Service, ledger: Ledger, stream: Iterator[Sent]) -> tuple[int, int]:
    """How many events are refused and how many acknowledged of those that are sent, and sent again, meanwhile."""
    refused, acknowledged = ledger.refused, ledger.acknowledged
    with Load(service.address, ledger, stream):
        time.sleep(2.0)
    return ledger.refused - refused, ledger.acknowledged - acknowledged
