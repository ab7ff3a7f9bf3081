"""A log's newest interactions in a service whose store was empty, through the command that a person types."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.keyfile import KeyFolder
from training import backfill

START = 1_700_000_000_000


@pytest.fixture
def send(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Backfill a log of these lines: exit status, standard output, standard error."""

    def run(url: str, *lines: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        log = tmp_path / "log.csv"
        log.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.utime(log, (START / 1000, START / 1000))
        return command("backfill", "--data", log, "--to", url, *options)

    return run


def history(client: httpx.Client, user: str) -> list[tuple[str, int, str, float | None]]:
    events = client.get(f"/users/{user}/history").json()["events"]
    return [(event["item_id"], event["timestamp"], event["type"], event["value"]) for event in events]


def test_the_newest_of_each_user_are_stored_and_recommended_from(client: httpx.Client, send: Any) -> None:
    url = str(client.base_url)
    lines = ["user_id,item_id,timestamp,value", f"bob,i9,{START + 9},4.5"]
    lines += [f"ann,i{step},{START + step}," for step in range(1, 6)]
    options = ("--newest", "3", "--value-column", "value")
    status, out, error = send(url, *lines, options=options)
    assert (status, error) == (0, "")
    assert "6 of 6 rows kept" in out
    assert "4 events of 2 users stored; 0 are repeats\n" in out
    assert history(client, "ann") == [(f"i{step}", START + step, "interaction", None) for step in (3, 4, 5)]
    assert history(client, "bob") == [("i9", START + 9, "interaction", 4.5)]
    found = client.post("/recommend", json={"user_id": "ann", "k": 1}).json()
    assert (found["items"][0]["item_id"], found["items"][0]["source"]) == ("i6", "model")
    assert "0 events of 2 users stored; 4 are repeats" in send(url, *lines, options=options)[1]


def test_a_column_of_values_that_nobody_named_and_rows_without_an_id_keep_no_other_back(
    client: httpx.Client, send: Any
) -> None:
    lines = ["user_id,item_id,timestamp,value", f"bob,i9,{START},purchase", f",i9,{START},", f"ann,i8,{START},9"]
    status, out, error = send(str(client.base_url), *lines)
    assert (status, error) == (0, "")
    assert "2 of 3 rows kept" in out
    assert history(client, "ann") == [("i8", START, "interaction", None)]
    assert len(history(client, "bob")) == 1


def test_rows_without_times_keep_their_order_and_are_the_same_events_again(client: httpx.Client, send: Any) -> None:
    url, lines = str(client.base_url), ["user_id,item_id", "ann,i3", "bob,i1", "ann,i3", "ann,i2"]
    status, out, _ = send(url, *lines, options=("--type", "view"))
    assert status == 0
    assert "no timestamps: the order of the rows" in out
    assert history(client, "ann") == [
        (item, START - before, "view", None) for item, before in (("i3", 3), ("i3", 1), ("i2", 0))
    ]
    assert "4 are repeats" in send(url, *lines, options=("--type", "view"))[1]


def test_requests_are_as_large_as_the_service_takes(client: httpx.Client, send: Any) -> None:
    wide = "é" * 120  # 240 bytes
    lines = [f"{wide}{user},{wide}{step},{START + step}" for user in range(45) for step in range(50)]
    status, out, error = send(str(client.base_url), "user_id,item_id,timestamp", *lines)
    assert (status, error) == (0, "")
    assert "2,250 events of 45 users stored" in out
    assert "2,250 are of items that the served model does not know" in out
    assert len(history(client, f"{wide}44")) == 50


def test_what_the_service_rejects_is_counted_with_its_reason(client: httpx.Client, send: Any) -> None:
    lines = ["user_id,item_id,timestamp", f"ann,i1,{START}", "ann,i2,4000000000000", "bob,i2,4000000000001"]
    status, out, error = send(str(client.base_url), *lines)
    assert (status, error) == (0, "")
    assert "1 events of 2 users stored; 0 are repeats; 2 rejected\n" in out
    assert "2  timestamp_ahead, first: timestamp is 4000000000000: must not be" in out
    assert out.count("timestamp_ahead") == 1
    assert "1  no_valid_event, first: none of 1 event(s)" in send(str(client.base_url), lines[0], lines[2])[1]


@pytest.fixture
def guarded(
    make_bundle: Callable[..., Path], start_service: Any, store_url: str, tmp_path: Path
) -> tuple[httpx.Client, str]:
    """A service that wants a key, and one."""
    make_bundle("v1")
    keys = KeyFolder(tmp_path / "keys")
    _, key = keys.create("loader", ["events"])
    return start_service(store_url, keys=keys.folder), key


def test_a_key_is_asked_for_and_used(
    guarded: tuple[httpx.Client, str], send: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, key = guarded
    lines = ["user_id,item_id,timestamp", f"ann,i1,{START}"]
    status, _, error = send(str(client.base_url), *lines)
    assert status == 1
    assert error.startswith(f"error: {client.base_url}/events answered 401: ")
    monkeypatch.setenv("BACKFILL_KEY", key)
    assert "1 events of 1 users stored" in send(str(client.base_url), *lines)[1]
    monkeypatch.setenv("BACKFILL_KEY", key + "\n")
    status, _, error = send(str(client.base_url), *lines)
    assert status == 1
    assert "the key is not as" in error
    assert key not in error


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://shop", "http://", "http://[", "http://me:secret@shop", "http://shop/ä"]
)
def test_what_is_no_url_is_told(send: Any, url: str) -> None:
    status, _, error = send(url, "user_id,item_id", "ann,i1")
    assert status == 1
    assert error.startswith(f"error: {url!r} is not the URL of a service")


def test_a_service_that_is_not_there_is_one_sentence_at_once(send: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    status, _, error = send(url, "user_id,item_id", "ann,i1")
    assert status == 1
    assert error.startswith(f"error: {url}/events takes no events (")
    assert error.count("\n") == 1


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[tuple[int, bytes]], list[dict[str, Any]]]]:
    """A server that answers what it is told to, in turn: its URL, the answers, and what it was asked."""
    answers: list[tuple[int, bytes]] = []
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(dict(self.headers))
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = answers.pop(0)
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers, asked
        server.shutdown()
        thread.join()


TAKEN = b'{"accepted": 1, "duplicates": 0, "rejected": [], "unknown_items": 0}'


def test_what_is_refused_for_a_while_is_sent_again(stranger: Any, send: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, answers, asked = stranger
    monkeypatch.setattr(backfill, "_EVENTS", 1)
    answers += [(200, TAKEN), (503, b'{"detail": "overloaded"}'), (429, b"<html>"), (200, TAKEN)]
    status, out, _ = send(url, "user_id,item_id", "ann,i1", "bob,i2")
    assert status == 0
    assert "2 events of 2 users stored" in out
    assert out.count("takes no events just now, which is tried for 400 s (503: overloaded)") == 1
    assert len(asked) == 4
    monkeypatch.setattr(backfill, "_PATIENCE_S", -1.0)
    answers += [(200, TAKEN), (503, b'{"detail": "the store is away"}')]
    status, _, error = send(url, "user_id,item_id", "ann,i1", "bob,i2")
    assert status == 1
    assert "takes no events (503: the store is away); 1 of 2 events were sent, the same command goes on" in error


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((302, b""), "answered 302: no reason given"),  # not followed, or the key would be
        ((404, b'{"detail": "there is no such path"}'), "answered 404: there is no such path"),
        ((200, b"<html>welcome</html>"), "it did not say what it stored"),
        ((200, b"[]"), "it did not say what it stored"),
        ((422, b'{"code": "invalid_request", "detail": "too deep"}'), "refused the request: too deep"),
    ],
)
def test_an_answer_of_something_else_is_told(stranger: Any, send: Any, answer: tuple[int, bytes], said: str) -> None:
    url, answers, asked = stranger
    answers.append(answer)
    status, _, error = send(url, "user_id,item_id", "ann,i1")
    assert status == 1
    assert said in error
    assert len(asked) == 1
