"""Promotion, rollback and the live swap: from HTTP and from the artifacts folder, under load."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.registry import Registry
from service.engine import Engine
from tests.conftest import succession, write_tiny


def until(fact: Callable[[], bool], seconds: float = 3) -> float:
    """Seconds until something is true."""
    started = time.monotonic()
    while not fact():
        assert time.monotonic() - started < seconds, "it did not become true"
        time.sleep(0.01)
    return time.monotonic() - started


def first(client: httpx.Client) -> str:
    return client.post("/recommend", json={"history": ["i3"], "k": 1}).json()["items"][0]["item_id"]


def damage(folder: Path) -> None:
    """Flip one bit of the encoder."""
    graph = folder / "encoder.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.chmod(0o644)
    graph.write_bytes(content)


@pytest.fixture
def two(make_bundle: Callable[..., Path], start_service: Callable[..., httpx.Client], store_url: str) -> httpx.Client:
    """A service of v1 (forwards), beside which lies v2 (backwards)."""
    make_bundle("v1")
    make_bundle("v2", step=-1, promote=False)
    return start_service(store_url)


def test_versions_are_listed_with_their_metrics(two: httpx.Client, artifacts: Path) -> None:
    damage(artifacts / "v2")
    (artifacts / "broken").mkdir()
    (artifacts / "broken" / "manifest.json").write_text("{")
    found = two.get("/models").json()
    assert (found["champion"], found["refused"]) == ("v1", None)
    assert found["loaded"] == {"version": "v1", "provider": "CPUExecutionProvider"}
    assert [(entry["version"], entry["champion"]) for entry in found["versions"]] == [
        ("v1", True),
        ("v2", False),
        ("broken", False),
    ]
    assert found["versions"][0]["metrics"] == {"test": {"ndcg@10": 0.5}}
    assert found["versions"][0]["items"] == 12
    assert found["versions"][0]["created"] == 1_767_225_600_000  # 2026-01-01T00:00:00Z in the manifest
    assert "cannot be read" in found["versions"][2]["damaged"]


def test_a_time_that_is_none_is_no_reason_to_list_nothing(
    artifacts: Path, start_service: Callable[..., httpx.Client], store_url: str
) -> None:
    write_tiny(artifacts, "v1", succession(12, 1), created="yesterday")
    Registry(artifacts).promote("v1")
    (entry,) = start_service(store_url).get("/models").json()["versions"]
    assert (entry["version"], entry["created"]) == ("v1", None)


def test_the_list_goes_on_where_something_in_the_folder_is_odd(two: httpx.Client, artifacts: Path) -> None:
    for odd in ("v1 copy", "v1~"):
        shutil.copytree(artifacts / "v1", artifacts / odd)
    (artifacts / "gone" / "manifest.json").mkdir(parents=True)
    found = two.get("/models").json()
    assert [entry["version"] for entry in found["versions"]] == ["v1", "v2", "gone"]
    assert "manifest.json: is not there, or no file" in found["versions"][2]["damaged"]


def test_a_current_that_cannot_be_read_is_told_at_once_beside_the_versions(two: httpx.Client, artifacts: Path) -> None:
    current = artifacts / "CURRENT"
    current.write_bytes(b"\xff")
    for is_folder, reason in ((False, "is not a list of versions"), (True, "Is a directory")):
        if is_folder:
            current.unlink()
            current.mkdir()
        found = two.get("/models").json()
        assert (found["champion"], found["loaded"]["version"], len(found["versions"])) == (None, "v1", 2)
        assert found["refused"]["version"] == "CURRENT"
        assert reason in found["refused"]["reason"]


def test_an_artifacts_folder_that_cannot_be_looked_into_is_told_beside_what_serves(
    make_bundle: Callable[..., Path], start_service: Callable[..., httpx.Client], store_url: str, artifacts: Path
) -> None:
    make_bundle("v1")
    client = start_service(store_url, keys=artifacts.with_name("keys"))
    artifacts.rename(artifacts.with_name("elsewhere"))
    artifacts.symlink_to("x" * 300)  # no name of a file, so that not even root gets there
    answer = client.get("/models")
    assert answer.status_code == 200
    found = answer.json()
    assert (found["champion"], found["loaded"]["version"], found["versions"]) == (None, "v1", [])
    assert found["refused"]["version"] == "CURRENT"
    assert "File name too long" in found["refused"]["reason"]


def test_a_promotion_serves_when_it_answers_and_a_rollback_too(two: httpx.Client, artifacts: Path) -> None:
    assert first(two) == "i4"
    assert two.post("/models/v2/promote").json() == {"champion": "v2", "before": "v1"}
    assert (first(two), two.get("/readyz").json()["model_version"]) == ("i2", "v2")
    assert two.post("/models/rollback").json() == {"champion": "v1", "before": "v2"}
    assert (first(two), Registry(artifacts).current()) == ("i4", "v1")


def test_a_rollback_with_nothing_before_is_a_conflict(two: httpx.Client) -> None:
    response = two.post("/models/rollback")
    assert (response.status_code, response.json()["code"]) == (409, "conflict")


def test_a_version_that_is_not_there_is_a_404(two: httpx.Client) -> None:
    for name in ("v3", "..", "%2e%2e", "v1%00", "x" * 101, "CURRENT", ".draft-x"):
        assert two.post(f"/models/{name}/promote").status_code == 404


def test_where_current_cannot_be_read_promotion_and_rollback_are_conflicts_that_say_how_it_is_written(
    two: httpx.Client, artifacts: Path
) -> None:
    (artifacts / "CURRENT").write_bytes(b"\xff\xfe")
    for path in ("/models/v2/promote", "/models/rollback"):
        response = two.post(path)
        assert (response.status_code, response.json()["code"]) == (409, "conflict")
        assert "one a line: the champion first, the one before it second" in response.json()["detail"]
    assert two.post("/models/v3/promote").status_code == 404
    (artifacts / "CURRENT").write_text("v1\nv3\n")
    assert two.post("/models/rollback").status_code == 409  # the one before is there no more


def test_a_promotion_in_the_folder_is_noticed_soon(two: httpx.Client, artifacts: Path) -> None:
    Registry(artifacts).promote("v2")
    assert until(lambda: first(two) == "i2") < 3  # it takes a quarter of a second where the machine has nothing else
    Registry(artifacts).rollback()
    assert until(lambda: first(two) == "i4") < 3


def test_an_artifacts_folder_that_cannot_be_written_is_a_503_that_says_so(two: httpx.Client, artifacts: Path) -> None:
    two.post("/models/v2/promote")
    (artifacts / ".lock").unlink()
    (artifacts / ".lock").mkdir()  # cannot be opened to write, not even by root
    for path in ("/models/v1/promote", "/models/rollback"):
        response = two.post(path)
        assert (response.status_code, response.json()["code"]) == (503, "artifacts_unavailable")
        assert str(artifacts / ".lock") in response.json()["detail"]
        assert int(response.headers["retry-after"]) > 0
    assert (first(two), Registry(artifacts).current()) == ("i2", "v2")


def test_a_damaged_version_is_refused_by_promotion(two: httpx.Client, artifacts: Path) -> None:
    damage(artifacts / "v2")
    response = two.post("/models/v2/promote")
    assert (response.status_code, response.json()["code"]) == (409, "version_damaged")
    assert "encoder.onnx" in response.json()["detail"]
    assert (first(two), Registry(artifacts).current()) == ("i4", "v1")


def test_a_damaged_champion_is_shown_and_the_old_one_keeps_serving(
    two: httpx.Client, artifacts: Path, make_bundle: Callable[..., Path]
) -> None:
    damage(artifacts / "v2")
    (artifacts / "CURRENT").write_text("v2\nv1\n")
    until(lambda: two.get("/models").json()["refused"] is not None)
    found = two.get("/models").json()
    assert (found["champion"], found["loaded"]["version"]) == ("v2", "v1")
    assert found["refused"]["version"] == "v2"
    assert "encoder.onnx" in found["refused"]["reason"]
    time.sleep(0.6)  # two more looks at the folder
    assert "recserve_refused_versions_total 1.0" in two.get("/metrics").text  # and no hot loop
    assert (first(two), two.get("/readyz").status_code) == ("i4", 200)
    make_bundle("v3", step=-1)
    until(lambda: first(two) == "i2")
    assert two.get("/models").json()["refused"] is None


def test_a_bundle_that_gives_other_answers_than_it_was_certified_with_may_not_serve(
    two: httpx.Client, artifacts: Path, make_bundle: Callable[..., Path]
) -> None:
    make_bundle("v3", items=2, table=np.ones((3, 2)), golden_table=np.zeros((3, 2)), promote=False)
    response = two.post("/models/v3/promote")
    assert response.status_code == 409
    assert "golden" in response.json()["detail"]
    (artifacts / "CURRENT").write_text("v1\nv3\n")  # v3 served once, and is asked to again
    with (artifacts / "CURRENT").open() as current:
        assert two.post("/models/rollback").status_code == 409
        assert os.fstat(current.fileno()).st_nlink == 1  # no other file has ever taken its place
    assert (Registry(artifacts).current(), first(two)) == ("v1", "i4")


def test_a_rollback_from_a_damaged_champion_works_and_one_that_fails_leaves_it(
    two: httpx.Client, artifacts: Path, make_bundle: Callable[..., Path]
) -> None:
    make_bundle("v3", items=2, table=np.ones((3, 2)), golden_table=np.zeros((3, 2)), promote=False)
    two.post("/models/v2/promote")
    damage(artifacts / "v2")
    (artifacts / "CURRENT").write_text("v2\nv3\nv1\n")
    assert two.post("/models/rollback").json()["code"] == "version_damaged"
    assert (artifacts / "CURRENT").read_text() == "v2\nv3\nv1\n"
    (artifacts / "CURRENT").write_text("v2\nv1\n")
    assert two.post("/models/rollback").json() == {"champion": "v1", "before": "v2"}
    assert (first(two), (artifacts / "CURRENT").read_text()) == ("i4", "v1\n")


def test_a_current_that_is_gone_is_shown_and_counted_beside_the_versions(two: httpx.Client, artifacts: Path) -> None:
    (artifacts / "CURRENT").unlink()
    until(lambda: two.get("/models").json()["refused"] is not None)
    found = two.get("/models").json()
    assert (found["champion"], found["loaded"]["version"], found["refused"]["version"]) == (None, "v1", "CURRENT")
    assert "missing or empty" in found["refused"]["reason"]
    assert "recserve_refused_versions_total 1.0" in two.get("/metrics").text
    assert two.get("/readyz").status_code == 200
    assert two.post("/models/v1/promote").json() == {"champion": "v1", "before": None}
    assert two.get("/models").json()["refused"] is None


def test_graphs_that_do_not_run_are_refused_once_and_the_old_ones_keep_serving(
    two: httpx.Client, make_bundle: Callable[..., Path]
) -> None:
    from training.ranker import build_ranker

    make_bundle("v3", encoder=build_ranker())  # a graph, but with other inputs
    until(lambda: two.get("/models").json()["refused"] is not None)
    time.sleep(0.6)  # two more looks at the folder
    assert "recserve_refused_versions_total 1.0" in two.get("/metrics").text
    assert "its graphs" in two.get("/models").json()["refused"]["reason"]
    assert two.post("/models/v3/promote").status_code == 409
    assert first(two) == "i4"


def test_swapping_under_load_fails_no_request_and_mixes_no_answer(two: httpx.Client, artifacts: Path) -> None:
    answers: list[tuple[int, Any]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=two.base_url, timeout=10) as client:
            while not stop.is_set():
                response = client.post("/recommend", json={"history": ["i3"], "k": 2})
                body = response.json()
                answers.append((response.status_code, (body.get("model_version"), body["items"][0]["item_id"])))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    registry = Registry(artifacts)
    for _ in range(4):
        assert two.post("/models/v2/promote").status_code == 200
        assert two.post("/models/rollback").status_code == 200
    registry.promote("v2")
    until(lambda: first(two) == "i2")
    registry.rollback()
    until(lambda: first(two) == "i4")
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert {answer for _, answer in answers} == {("v1", "i4"), ("v2", "i2")}
    assert len(answers) > 100


def test_without_a_bundle_it_says_how_to_make_one_and_picks_up_the_first(
    start_service: Callable[..., httpx.Client],
    make_bundle: Callable[..., Path],
    store_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = start_service(store_url)
    assert client.get("/healthz").status_code == 200
    for response in (client.get("/readyz"), client.post("/recommend", json={"history": ["i1"]})):
        assert (response.status_code, response.json()["code"]) == (503, "no_model")
        assert "python -m models promote" in response.json()["detail"]
        assert int(response.headers["retry-after"]) > 0
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    stored = client.post("/events", json={"user_id": "ada", "item_id": "i3"}).json()
    assert (stored["accepted"], stored["unknown_items"]) == (1, 1)
    assert client.get("/models").json()["loaded"] is None
    make_bundle("v1")
    until(lambda: client.get("/readyz").status_code == 200)
    assert client.post("/recommend", json={"user_id": "ada", "k": 1}).json()["items"][0]["item_id"] == "i4"


def test_the_bundle_before_stays_in_memory_and_older_ones_are_let_go(
    make_bundle: Callable[..., Path], start_service: Callable[..., httpx.Client], store_url: str, artifacts: Path
) -> None:
    import gc

    make_bundle("v1")
    make_bundle("v2", promote=False)
    make_bundle("v3", promote=False)
    client = start_service(store_url)
    for _ in range(3):
        client.post("/models/v2/promote")
        client.post("/models/v3/promote")
        client.post("/models/v1/promote")
        first(client)
    gc.collect()
    alive = [
        thing
        for thing in gc.get_objects()
        if type(thing) is Engine and "test_the_bundle_before" in str(thing.bundle.folder)
    ]
    assert {engine.version for engine in alive} == {"v1", "v3"}
    assert len(alive) == 2


def test_a_damaged_champion_at_start_is_told_and_a_rollback_mends_it_without_a_restart(
    make_bundle: Callable[..., Path], artifacts: Path, start_service: Callable[..., httpx.Client], store_url: str
) -> None:
    make_bundle("v1")
    items = make_bundle("v2") / "items.npy"
    items.chmod(0o644)
    items.write_bytes(items.read_bytes()[:-4] + b"\0\0\0\0")
    client = start_service(store_url)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "v2 was refused" in answer.json()["detail"]
    assert "items.npy" in answer.json()["detail"]
    assert client.get("/healthz").status_code == 200  # a restart would change nothing
    Registry(artifacts).rollback()
    deadline = time.monotonic() + 2
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert client.get("/readyz").json()["model_version"] == "v1"


def test_a_current_that_is_no_text_is_told(
    make_bundle: Callable[..., Path], artifacts: Path, start_service: Callable[..., httpx.Client], store_url: str
) -> None:
    make_bundle("v1")
    (artifacts / "CURRENT").write_bytes(b"\xff\xfe")
    client = start_service(store_url)
    assert "is not a list of versions" in client.get("/readyz").json()["detail"]
    (artifacts / "CURRENT").write_text("v1\n")
    deadline = time.monotonic() + 2
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
