"""Schemathesis tries all that the description of a running service allows, and what it does not, over HTTP."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

# All checks of Schemathesis, but for what no schema can say: that a time is not far ahead, that items have an
# attribute, that no two items have one id, and that of several events or queries each has a result of its own; and a
# millisecond is too little for any answer, which is 504.
CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 504]
[[operations]]
include-name = "POST /events"
checks.positive_data_acceptance.enabled = false
checks.negative_data_rejection.enabled = false

[[operations]]
include-name = "POST /recommend"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-name = "POST /recommend/batch"
checks.negative_data_rejection.enabled = false

[[operations]]
include-name = "PUT /items"
checks.positive_data_acceptance.enabled = false

[dictionaries]
items.values = ["i1", "i12"]
versions.values = ["v1", "v2"]

[parameters]
"path.item_id" = { dictionary = "items", probability = 0.5 }
"path.version" = { dictionary = "versions", probability = 0.2 }
"""
ANSWERED = {  # at least; else nothing would be known of those answers
    "recommend": {"200", "422"},
    "recommend/batch": {"200", "422"},
    "events": {"200", "422"},
    "items": {"200", "422"},
    "similar": {"200", "404", "422"},
    "history": {"200", "422"},
    "erase": {"200", "422"},
    "models": {"200"},
    "promote": {"200", "404"},
    "rollback": {"200", "409"},
}


def test_every_answer_is_one_that_is_described(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str, tmp_path: Path
) -> None:
    attributes = {"genre": [None, *["Drama", "Comedy"] * 6], "year": [None, *range(1985, 1997)]}
    for version in ("v1", "v2"):  # one to go back to
        make_bundle(version, attributes=attributes)
    client = start_service(store_url)
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "--no-color", "run", f"{client.base_url}/openapi.json"]
    command += ["--phases=examples,coverage,fuzzing", "--max-failures=20", "--warnings=off"]
    command += ["--generation-deterministic", "--max-examples=25"]
    run = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    answered: dict[str, set[str]] = {}
    pattern = r'^recserve_requests_total\{route="([^"]+)",status="(\d+)"\}'
    for route, status in re.findall(pattern, client.get("/metrics").text, re.MULTILINE):
        answered.setdefault(route, set()).add(status)
    for route, statuses in ANSWERED.items():
        assert statuses <= answered[route], (route, answered[route])
