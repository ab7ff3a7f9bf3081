"""`python -m service` as a process: it starts or says why not, drains when told to stop, and keeps what it took."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import redis

from models import eventlog
from models.device import load_onnxruntime
from service.server import _admit_no_more, _last_of
from tests.service.endless import endless_encoder, stuck
from tests.service.processes import ROOT, refused, serving


@pytest.fixture
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_what_was_acknowledged_outlives_a_killed_service(
    make_bundle: Callable[..., Path], artifacts: Path, data: Path
) -> None:
    make_bundle("v1")
    options = ("--artifacts", str(artifacts), "--embedded", "--data", str(data))
    with serving(*options) as service:
        for n in (3, 9):
            event = {"user_id": "ada", "item_id": f"i{n}", "timestamp": n}
            assert httpx.post(f"{service.url}/events", json=event).json()["accepted"] == 1
        refused_second = refused("serve", "--port", "0", *options)
        assert str(data) in refused_second
        service.process.kill()
    with serving(*options) as service:
        answer = httpx.post(f"{service.url}/recommend", json={"user_id": "ada", "k": 1}).json()
        assert (answer["history_length"], answer["items"][0]["item_id"]) == (2, "i10")
        assert service.stop(signal.SIGINT) == 0


def server_of(folder: Path) -> int:
    """Process id of the embedded store that keeps its files in a folder."""
    with redis.Redis(unix_socket_path=str(folder / "store.sock"), decode_responses=True) as client:
        return int(client.info("server")["process_id"])


def test_without_its_embedded_store_it_says_so_and_exits_1(
    make_bundle: Callable[..., Path], artifacts: Path, data: Path
) -> None:
    make_bundle("v1")
    options = ("--artifacts", str(artifacts), "--embedded", "--data", str(data))
    with serving(*options) as service:
        os.kill(server_of(data), signal.SIGKILL)
        assert service.process.wait(5) == 1
        time.sleep(0.05)
        errors = [line for line in map(json.loads, service.lines) if line["level"] == "error"]
    assert len(errors) == 1
    assert f"the embedded store in {data} ended by signal 9" in errors[0]["message"]
    assert "Traceback" not in str(service.lines)
    with serving(*options) as service:  # the folder is free and nothing was left behind
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        assert service.stop() == 0


def test_where_the_embedded_store_listens_is_logged_and_can_be_read_there(
    make_bundle: Callable[..., Path], artifacts: Path, tmp_path: Path
) -> None:
    make_bundle("v1")
    deep = tmp_path / ("d" * 90)  # too long for a socket, which then lies elsewhere
    with serving("--artifacts", str(artifacts), "--embedded", "--data", str(deep)) as service:
        httpx.post(f"{service.url}/events", json={"user_id": "ada", "item_id": "i1"})
        found = re.search(r"the embedded store listens at (unix://[^\s\"]+)", "".join(service.lines))
        assert found, service.lines
        with eventlog.connect(found[1]) as client:
            assert [event.item_id for event in eventlog.read_events(client)] == ["i1"]


def test_a_supervisor_that_stops_service_and_store_at_once_sees_an_ordinary_stop(
    make_bundle: Callable[..., Path], artifacts: Path, data: Path
) -> None:
    make_bundle("v1")
    with serving("--artifacts", str(artifacts), "--embedded", "--data", str(data)) as service:
        store = server_of(data)
        service.process.send_signal(signal.SIGTERM)
        os.kill(store, signal.SIGTERM)
        assert service.process.wait(15) == 0


def test_told_to_stop_it_answers_who_is_waiting_and_exits_0(
    make_bundle: Callable[..., Path], artifacts: Path, store_url: str
) -> None:
    make_bundle("v1")
    statuses: list[int] = []
    stopping = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(timeout=10) as client:
            while not stopping.is_set():
                with contextlib.suppress(httpx.TransportError):  # a connection that was closed before it was used
                    statuses.append(client.post(f"{url}/recommend", json={"history": ["i1"]}).status_code)

    with serving("--artifacts", str(artifacts), "--redis", store_url) as service:
        threads = [threading.Thread(target=ask, args=(service.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(statuses) < 50:
            time.sleep(0.01)
        assert service.stop() == 0
        stopping.set()
        for thread in threads:
            thread.join()
        for line in service.lines:
            assert "Traceback" not in line
            assert set(json.loads(line)) >= {"time", "level", "logger", "message"}
    assert set(statuses) == {200}


def test_told_to_stop_it_leaves_a_ranking_behind_that_does_not_end_and_exits_1(
    make_bundle: Callable[..., Path], artifacts: Path, data: Path
) -> None:
    make_bundle("v1", encoder=endless_encoder())
    options = ("--artifacts", str(artifacts), "--embedded", "--data", str(data))
    with serving(*options, environment={"RECSERVE_DRAIN_S": "0"}) as service:
        with stuck(service.url):
            began = time.monotonic()
            assert service.stop() == 1
            assert (
                time.monotonic() - began < 10
            )  # 3 where the machine has nothing else: kept connections, drain, thread
        said = [record["message"] for record in service.records() if "ranking" in record["message"]]
        assert len(said) == 1
        assert "a ranking has not ended" in said[0]
        assert "Traceback" not in str(service.lines)
    assert "bye bye" in (data / "server.log").read_text()
    with serving(*options) as service:  # the store's folder is free
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        assert service.stop() == 0


_SLOW = """
import sys, time
from service import slot
from service.__main__ import main

class SlowSlot(slot.Slot):
    def _load(self, version):
        if version == "v2":
            print("it loads", file=sys.stderr)
            time.sleep(60)
        return super()._load(version)

slot.Slot = SlowSlot
sys.exit(main())
"""


def test_told_to_stop_it_does_not_wait_for_a_version_that_is_being_loaded(
    make_bundle: Callable[..., Path], artifacts: Path, store_url: str, tmp_path: Path
) -> None:
    make_bundle("v1")
    program = tmp_path / "program.py"
    program.write_text(_SLOW)
    options = ("--artifacts", str(artifacts), "--redis", store_url)
    with serving(*options, program=(str(program),), environment={"PYTHONPATH": str(ROOT)}) as service:
        make_bundle("v2")
        while not any("it loads" in line for line in service.lines):
            time.sleep(0.02)
        assert service.stop() == 0
    assert "Traceback" not in str(service.lines)


def test_told_to_stop_it_answers_every_connection_that_the_kernel_has_taken(
    make_bundle: Callable[..., Path], artifacts: Path, store_url: str
) -> None:
    make_bundle("v1")
    body = b'{"history": ["i1"]}'
    request = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    answers: list[bytes] = []

    def ask(address: tuple[str, int]) -> None:
        while True:
            try:
                connection = socket.create_connection(address, timeout=10)
            except ConnectionRefusedError:
                return
            with connection:
                connection.sendall(request)
                answers.append(connection.recv(15))

    for number in range(3):
        with serving("--artifacts", str(artifacts), "--redis", store_url) as service:
            url = httpx.URL(service.url)
            with ThreadPoolExecutor(16) as clients:
                asked = [clients.submit(ask, (url.host, url.port or 80)) for _ in range(16)]
                while len(answers) < 100 * (number + 1):
                    time.sleep(0.01)
                assert service.stop() == 0
            for one in asked:
                one.result()  # or what a client met instead of an answer
    assert set(answers) == {b"HTTP/1.1 200 OK"}


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_listener_that_admits_no_more_keeps_who_was_admitted(family: socket.AddressFamily, host: str) -> None:
    listener = socket.create_server((host, 0), family=family)
    address = listener.getsockname()[:2]
    with socket.create_connection(address) as admitted:
        admitted.sendall(b"a request")
        _admit_no_more(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
        (taken,) = _last_of(listener)
        with taken:
            assert taken.recv(9) == b"a request"
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)


def test_told_to_stop_it_answers_what_comes_on_a_kept_connection_and_says_goodbye(
    make_bundle: Callable[..., Path], artifacts: Path
) -> None:
    make_bundle("v1")
    with serving("--artifacts", str(artifacts), "--redis", "redis://127.0.0.1:1") as service:
        host, port = service.url.removeprefix("http://").split(":")
        connections = [http.client.HTTPConnection(host, int(port), timeout=20) for _ in range(8)]

        def ask(connection: http.client.HTTPConnection) -> tuple[int, str | None]:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/recommend", b'{"history": ["i3"]}', headers)
            response = connection.getresponse()
            response.read()
            return response.status, response.getheader("connection")

        assert {ask(connection) for connection in connections} == {(200, None)}
        service.process.send_signal(signal.SIGTERM)
        while connections:  # until told that it is the last answer; uvicorn alone would close them without a word
            answers = [(connection, *ask(connection)) for connection in connections]
            assert {status for _, status, _ in answers} == {200}
            connections = [connection for connection, _, said in answers if said != "close"]
        assert service.process.wait(20) == 0


def test_a_bug_is_logged_with_its_request_id_and_no_user(
    make_bundle: Callable[..., Path], artifacts: Path, store_url: str
) -> None:
    import numpy as np

    table = np.ones((201, 200))
    table[150] = np.nan
    make_bundle("v1", table=table)
    with serving("--artifacts", str(artifacts), "--redis", store_url) as service:
        body = {"user_id": "ada-lovelace", "history": ["i150"], "history_mode": "append"}
        response = httpx.post(f"{service.url}/recommend", json=body, headers={"X-Request-ID": "bug-1"})
        assert response.status_code == 500
        service.stop()
        time.sleep(0.05)
    lines = [json.loads(line) for line in service.lines]
    assert any(line.get("request_id") == "bug-1" and "EngineError" in line.get("exception", "") for line in lines)
    assert "ada-lovelace" not in str(service.lines)


def test_it_does_not_start_on_a_port_in_use(artifacts: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused("serve", "--port", str(port), "--redis", "redis://127.0.0.1:1", "--artifacts", str(artifacts))
    assert str(port) in said
    assert "--port" in said


def test_an_artifacts_folder_without_a_promoted_version_is_named_at_the_start(tmp_path: Path) -> None:
    with serving("--artifacts", str(tmp_path / "artefacts"), "--redis", "redis://127.0.0.1:1") as service:
        assert f"no version is promoted in {tmp_path / 'artefacts'}" in str(service.lines)


def test_an_archiver_without_a_store_is_told_of_none_of_its_own() -> None:
    said = refused("archive", "--once")
    assert "--redis" in said
    assert "or use --embedded" not in said


def test_it_does_not_start_where_it_may_not_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refused("serve", "--port", "0", "--embedded", "--artifacts", str(tmp_path / "file" / "artifacts"))
    assert str(tmp_path / "file") in said


def test_it_does_not_start_with_settings_that_contradict_or_do_not_exist() -> None:
    assert "RECSERVE_COLOUR" in refused("serve", "--embedded", environment={"RECSERVE_COLOUR": "red"})
    assert "redis" in refused("serve", "--port", "0", "--redis", "htp://x")


def test_it_does_not_start_without_the_device_it_was_told_to_use(
    make_bundle: Callable[..., Path], artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "CUDAExecutionProvider" in load_onnxruntime().get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    make_bundle("v1")
    options = ("--port", "0", "--redis", "redis://127.0.0.1:1", "--artifacts", str(artifacts), "--device", "cuda")
    assert "./run setup gpu" in refused("serve", *options)
    monkeypatch.setenv("RECSERVE_FLOAT16", "true")
    assert "float16 is for a GPU and onnxruntime runs on CPU" in refused("serve", *options[:-2])


def test_a_printed_key_opens_a_service_that_listens_to_everyone(
    make_bundle: Callable[..., Path], artifacts: Path, store_url: str
) -> None:
    make_bundle("v1")
    options = ("--artifacts", str(artifacts), "--redis", store_url, "--host", "0.0.0.0")
    assert "python -m service keys create" in refused("serve", "--port", "0", *options)
    create = ["keys", "create", "shop", "--scope", "recommend", "--artifacts", str(artifacts)]
    shown = subprocess.run(
        [sys.executable, "-m", "service", *create], cwd=ROOT, capture_output=True, text=True, check=True
    )
    key = shown.stdout.strip()
    with serving(*options) as service:
        url = service.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.post(f"{url}/recommend", json={}).status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.post(f"{url}/recommend", json={}, headers=headers).status_code == 200
        assert httpx.get(f"{url}/models", headers=headers).status_code == 403
        service.stop()
    assert key not in str(service.lines)
