"""A tenth of all replies is lost, between clients and service and between service and store; clients send again."""

import random
from pathlib import Path

from reliability.ledger import Ledger, events
from reliability.load import Load
from reliability.processes import Store
from reliability.promise import Finding
from reliability.proxy import Fate, Proxy
from reliability.serving import Service

TITLE = "With a tenth of all replies lost, each event is applied exactly once"
_WAIT_S = 300.0


def check(full: bool, folder: Path) -> list[Finding]:
    count = 10_000 if full else 400
    chance = random.Random(4)
    ledger = Ledger()

    def to_service() -> Fate:
        return "silent" if chance.random() < 0.05 else "cut" if chance.random() < 0.05 else "passed"

    def to_client() -> Fate:  # a client's patience is no part of this
        return "cut" if chance.random() < 0.1 else "passed"

    with (
        Store(folder) as store,
        Proxy(store.address, fate=to_service) as before_store,
        Service(folder, redis=before_store.url) as service,
        Proxy(service.address, fate=to_client) as before_service,
    ):
        with Load(before_service.address, ledger, events(users=count // 25), count=count, clients=16) as load:
            load.wait(_WAIT_S)
        audit = ledger.audit(store.url)
    least = 0.08 if full else 0.02  # of the two hundred that a store then gives, a tenth may be a thirtieth
    return [
        Finding("replies of the store lost", before_store.lost),
        Finding("share of the store's replies", before_store.lost_share, least=least),
        Finding("replies of the service lost", before_service.lost),
        Finding("share of the service's replies", before_service.lost_share, least=least),
        *audit.findings(at_least=count),
        Finding("events sent and not stored", audit.sent - audit.stored, most=0),
        Finding("answers that were neither 200 nor 503 with Retry-After", len(ledger.surprises), most=0),
    ]
