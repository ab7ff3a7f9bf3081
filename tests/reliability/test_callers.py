"""The callers of long loads: what became of every request is counted."""

import time
from pathlib import Path

from reliability.bundle import promoted_bundle
from reliability.callers import Callers
from reliability.serving import Service


def test_an_error_is_counted_by_its_status_and_its_code(tmp_path: Path) -> None:
    promoted_bundle(tmp_path / "artifacts", 12)
    requests = [("/recommend", {"user_id": "u"}), ("/recommend", {"user_id": "u", "k": 0})]
    with Service(tmp_path, redis=None) as service, Callers(service.address, requests, clients=2) as callers:
        until = time.monotonic() + 20
        while callers.counts[422] < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert callers.counts[200] >= 2
    assert callers.errors == {"422 invalid_request": callers.counts[422]}
    assert callers.answered == callers.counts[200] + callers.counts[422]
