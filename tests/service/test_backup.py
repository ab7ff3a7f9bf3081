"""What docs/operating.md says of backup and restore, carried out."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from models.archive import read
from tests.service.processes import ROOT, Process, serving


def history(service: Process, user: str) -> list[str]:
    events = httpx.get(f"{service.url}/users/{user}/history").json()["events"]
    return [event["event_id"] for event in events]


def post(service: Process, user: str, *numbers: int) -> dict[str, Any]:
    events = [{"user_id": user, "item_id": f"i{n}", "event_id": f"{user}-{n}", "timestamp": n} for n in numbers]
    answer: dict[str, Any] = httpx.post(f"{service.url}/events", json={"events": events}).json()
    return answer


def archive(service: Process, artifacts: Path, *options: str) -> None:
    found = re.search(r"the embedded store listens at (unix://[^\s\"]+)", "".join(service.lines))
    assert found, service.lines
    command = [sys.executable, "-m", "service", "archive", "--once", "--redis", found[1], *options]
    subprocess.run([*command, "--to", str(artifacts / "archive")], cwd=ROOT, check=True, capture_output=True)


def copy(source: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(to)], check=True)


def test_a_store_that_is_put_back_has_what_it_had_and_the_archive_has_everything_once(
    make_bundle: Callable[..., Path], artifacts: Path, tmp_path: Path
) -> None:
    make_bundle("v1")
    options = ("--artifacts", str(artifacts), "--embedded")
    with serving(*options) as service:
        post(service, "ada", 1, 2, 3)
        post(service, "ben", 4)
        archive(service, artifacts)
        post(service, "ada", 5)
        assert service.stop() == 0
    copy(artifacts, tmp_path / "copy")

    with serving(*options) as service:  # goes on after the copy
        post(service, "ada", 6)
        assert httpx.delete(f"{service.url}/users/ben").status_code == 200
        archive(service, artifacts, "--compact")
        assert service.stop() == 0
    shutil.rmtree(artifacts / "store")  # and is lost
    copy(tmp_path / "copy" / "store", artifacts / "store")

    with serving(*options) as service:
        assert history(service, "ada") == ["ada-1", "ada-2", "ada-3", "ada-5"]
        sent_again = post(service, "ada", 3, 5, 6)
        assert (sent_again["accepted"], sent_again["duplicates"]) == (1, 2)
        assert history(service, "ada") == ["ada-1", "ada-2", "ada-3", "ada-5", "ada-6"]
        assert history(service, "ben") == ["ben-4"]  # erased since, and back
        assert httpx.delete(f"{service.url}/users/ben").status_code == 200
        archive(service, artifacts, "--compact")
        assert history(service, "ben") == []
        assert service.stop() == 0
    found = read(artifacts / "archive").events
    assert sorted(found["event_id"]) == ["ada-1", "ada-2", "ada-3", "ada-5", "ada-6"]


def test_all_of_a_service_is_its_artifacts_folder(
    make_bundle: Callable[..., Path], artifacts: Path, tmp_path: Path
) -> None:
    make_bundle("v1")
    with serving("--artifacts", str(artifacts), "--embedded") as service:
        post(service, "ada", 3, 9)
        before = httpx.post(f"{service.url}/recommend", json={"user_id": "ada"}).json()
        assert service.stop() == 0
    copy(artifacts, tmp_path / "elsewhere")
    shutil.rmtree(artifacts)
    with serving("--artifacts", str(tmp_path / "elsewhere"), "--embedded") as service:
        after = httpx.post(f"{service.url}/recommend", json={"user_id": "ada"}).json()
        assert (after["model_version"], after["items"]) == (before["model_version"], before["items"])
        assert service.stop() == 0
