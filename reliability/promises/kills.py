"""kill -9 of the service and of the store at random moments, while clients send.

Who starts a killed process again is a supervisor's business, here ours; the service must live through the death of its
store by itself.
"""

import random
import time
from pathlib import Path

from reliability.ledger import Ledger, events
from reliability.load import Load, wait_for
from reliability.processes import Store
from reliability.promise import Finding
from reliability.serving import Service

TITLE = "Killed at random moments under load, nothing acknowledged is lost"
_WAIT_S = 120.0  # for what takes a moment on an idle machine


def check(full: bool, folder: Path) -> list[Finding]:
    count, kills = (10_000, 20) if full else (600, 2)
    chance = random.Random(20)
    ledger = Ledger()
    needless = 0
    with Store(folder) as store, Service(folder, redis=store.url) as service:
        with Load(service.address, ledger, events(users=count // 25), count=count, clients=8) as load:
            for kill in range(kills):
                # Between the same numbers of events in every run, and anywhere within a write.
                wait_for(int(count * (kill + chance.uniform(0.2, 0.8)) / (kills + 1)), ledger, _WAIT_S)
                time.sleep(chance.uniform(0, 0.01))
                if kill % 2:
                    service.kill()
                    service.start()
                else:
                    store.kill()
                    time.sleep(chance.uniform(0, 0.3))
                    store.start()
                    before = ledger.acknowledged
                    wait_for(min(count, before + 1), ledger, _WAIT_S)
                    needless += not service.alive
            load.wait(_WAIT_S)
        audit = ledger.audit(store.url)
    return [
        Finding("kills", kills),
        Finding("requests that met one", ledger.failed + ledger.refused, least=1),
        *audit.findings(at_least=count),
        Finding("answers that were neither 200 nor 503 with Retry-After", len(ledger.surprises), most=0),
        Finding("restarts of the service that the store's death made necessary", needless, most=0),
    ]
