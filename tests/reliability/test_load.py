"""Clients against a server with a bug: they see what it answers, and go on."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reliability.callers import Callers
from reliability.ledger import Ledger, events
from reliability.load import Answer, Load
from reliability.promises.store_faults import _ask

BUG = 5  # the request that it answers with a plain 500
GOOD = {"accepted": 1, "duplicates": 0, "items": [], "degraded": []}


@pytest.fixture
def buggy() -> Iterator[tuple[str, int]]:
    numbers = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            bug = next(numbers) == BUG
            content = b"Internal Server Error" if bug else json.dumps(GOOD).encode()
            self.send_response(500 if bug else 200)
            self.send_header("Content-Type", "text/plain" if bug else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "127.0.0.1", server.server_port
        server.shutdown()


def until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not fact() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_an_answer_that_is_no_json_is_a_surprise_and_the_event_is_sent_again(buggy: tuple[str, int]) -> None:
    ledger = Ledger()
    with Load(buggy, ledger, events(users=2), count=2 * BUG, clients=1) as load:
        load.wait(20)
    assert ledger.surprises == ['500 "Internal Server Error"']
    assert ledger.acknowledged == 2 * BUG


def test_who_asks_while_the_store_fails_sees_an_answer_that_is_no_json_and_asks_on(buggy: tuple[str, int]) -> None:
    answers: list[Answer | None] = []
    stop = threading.Event()
    asker = threading.Thread(target=_ask, args=(buggy, stop, answers), daemon=True)
    asker.start()
    until(lambda: len(answers) >= 2 * BUG)
    stop.set()
    asker.join()
    assert len(answers) >= 2 * BUG
    assert [number for number, answer in enumerate(answers, 1) if answer is None or answer.status != 200] == [BUG]


def test_a_caller_counts_an_error_without_a_code_and_goes_on(buggy: tuple[str, int]) -> None:
    with Callers(buggy, [("/recommend", {"user_id": "u"})], clients=1) as callers:
        until(lambda: callers.answered >= 2 * BUG)
    assert callers.errors == {"500 without a code": 1}
    assert callers.counts[200] == callers.answered - 1 >= 2 * BUG - 1
