"""Connections of slow, endless and departed clients, over sockets."""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import orjson
import pytest
import redis

from reliability.wire import request
from service.engine import Engine, Ranking
from service.protocol import MAX_HEAD_BYTES
from tests.service.sockets import connected, rest

HEAD = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def hasty(start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str) -> httpx.Client:
    """A service that waits for nobody longer than 0.3 s."""
    make_bundle("v1")
    return start_service(store_url, receive_s=0.3)


def refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    problem = orjson.loads(body)
    assert f"x-request-id: {problem['request_id']}".encode() in head
    assert int(head.split()[1]) == problem["status"]
    return problem["status"], problem["code"]


def counted(client: httpx.Client, line: str) -> float:
    found = [
        float(text.split()[-1]) for text in client.get("/metrics").text.splitlines() if text.startswith(line + " ")
    ]
    return sum(found)


@pytest.mark.parametrize(
    "part",
    [
        b"P",
        HEAD,
        HEAD + b"X-Half: ",
        HEAD + b"Content-Length: 2\r\n\r\n",
        HEAD + b"Content-Length: 2\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"PUT /items HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
        b"POST /models/v1/promote HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
    ],
)
def test_a_client_that_stops_in_the_middle_of_its_request_gets_a_408(hasty: httpx.Client, part: bytes) -> None:
    with connected(hasty) as connection:
        connection.sendall(part)
        assert refusal(rest(connection)) == (408, "too_slow")
    assert counted(hasty, 'recserve_requests_total{route="unparsed",status="408"}') == 1
    assert hasty.get("/metrics").text.count("recserve_requests_total{") == 1  # and nowhere else


@pytest.mark.parametrize("start", [HEAD + b"X-Endless: ", HEAD + b"Content-Length: 1000\r\n\r\n"])
def test_a_byte_now_and_then_gains_no_time(hasty: httpx.Client, start: bytes) -> None:
    received = b""
    with connected(hasty) as connection:
        connection.sendall(start)
        connection.settimeout(0.1)
        for _ in range(200):
            try:
                chunk = connection.recv(1 << 16)
                received += chunk
                if not chunk:
                    break
            except TimeoutError:
                connection.sendall(b"x")
            except ConnectionError:  # a byte met the end of the connection, and what it had brought is lost
                break
        else:
            pytest.fail("it is still waiting")
    assert not received or refusal(received) == (408, "too_slow")


def test_a_request_may_come_in_pieces(client: httpx.Client) -> None:
    whole = request("POST", "/recommend", b'{"history": ["i1"]}', "Connection: close")
    with connected(client) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(whole), 7):
            connection.sendall(whole[at : at + 7])
        assert rest(connection).startswith(b"HTTP/1.1 200 ")


def test_idle_connections_are_kept(hasty: httpx.Client) -> None:
    with connected(hasty) as fresh, connected(hasty) as used:
        used.sendall(request("POST", "/recommend", b"{}"))
        assert used.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        time.sleep(1.5)
        for connection in (fresh, used):
            connection.sendall(request("POST", "/recommend", b"{}", "Connection: close"))
            assert rest(connection).startswith(b"HTTP/1.1 200 ")


def test_a_connection_is_kept_whose_body_came_after_the_answer(hasty: httpx.Client) -> None:
    with connected(hasty) as connection:
        connection.sendall(b"POST /recommend?k=5 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 422 ")
        connection.sendall(b"{}")
        time.sleep(1.5)
        connection.sendall(request("POST", "/recommend", b"{}", "Connection: close"))
        assert rest(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_head_may_be_as_large_as_the_limit_and_no_larger(client: httpx.Client, pieces: int) -> None:
    path, header = "/recommend", ("Host", "localhost")
    names = ("Content-Length", "2", "Connection", "close", "X-Long", *header)
    usual = len(path) + sum(map(len, names)) + 4 * 3  # a colon and a line end each
    for surplus, status in ((-1, 200), (0, 200), (1, 431)):
        wire = request("POST", path, b"{}", "Connection: close", f"X-Long: {'x' * (MAX_HEAD_BYTES - usual + surplus)}")
        with connected(client) as connection:
            for number in range(pieces):
                connection.sendall(wire[number * len(wire) // pieces : (number + 1) * len(wire) // pieces])
                time.sleep(0.05 * (pieces > 1))  # for them to arrive one by one
            answer = rest(connection)
        assert int(answer.split()[1]) == status
        assert status == 200 or refusal(answer) == (431, "head_too_large")


@pytest.mark.parametrize(
    "start", [b"GET /", HEAD + b"X-Endless: ", HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: "]
)
def test_an_endless_head_is_not_kept(client: httpx.Client, start: bytes) -> None:
    with connected(client) as connection:
        connection.sendall(start)
        with pytest.raises(ConnectionError):  # long before the time is up
            connection.sendall(b"x" * (1 << 26))


def test_a_large_head_behind_another_request_is_refused_and_the_request_answered(client: httpx.Client) -> None:
    large = request("POST", "/recommend", b"{}", f"X-Long: {'x' * MAX_HEAD_BYTES}")
    with connected(client) as connection:
        connection.sendall(request("POST", "/recommend", b"{}") + large)
        answer = rest(connection)
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 ") == 1


def test_a_request_counts_nothing_of_the_one_before_it(client: httpx.Client) -> None:
    first, second = request("POST", "/recommend", b" " * 142_000 + b"{}"), request("GET", "/healthz", b"")
    with connected(client) as connection:
        connection.sendall(first + second[:30])
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        connection.sendall(second[30:])
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_an_endless_body_is_refused_and_not_read_to_its_end(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
        with pytest.raises(ConnectionError):
            connection.sendall(b" " * (1 << 26))


def test_what_follows_a_request_and_is_not_http_is_not_taken_for_its_answer(client: httpx.Client) -> None:
    good = request("POST", "/recommend", b'{"history": ["i1"]}')
    with connected(client) as connection:
        connection.sendall(good + good + b"\x00\x01\x02\r\n\r\n")
        answer = rest(connection)
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 ") == 2


def test_what_follows_a_body_is_no_header(client: httpx.Client) -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\nX-Request-ID: head\r\n\r\n2\r\n{}\r\n0\r\n"
    trailers = b"X-Timeout-Ms: bogus\r\nX-Request-ID: trailer\r\nExpect: 100-continue\r\n\r\n"
    with connected(client) as connection:
        connection.sendall(chunked + trailers + request("POST", "/recommend", b"{}", "Connection: close"))
        first, second = rest(connection).split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200 ")
    assert b"x-request-id: head\r\n" in first
    assert second.startswith(b"200 ")
    assert b"trailer" not in second


def test_the_time_that_a_body_takes_is_of_its_deadline(client: httpx.Client) -> None:
    body = b'{"history": ["i1"]}'
    head = HEAD + b"X-Timeout-Ms: 200\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connected(client) as connection:
        connection.sendall(head)
        time.sleep(0.3)
        connection.sendall(body)
        assert refusal(rest(connection)) == (504, "deadline_exceeded")


def test_headers_count_with_what_stands_between_them(client: httpx.Client) -> None:
    for fields, status in ((16_000, 200), (16_384, 431)):
        with connected(client) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + b"a:\r\n" * fields + b"\r\n")
            assert int(rest(connection).split()[1]) == status


@pytest.mark.parametrize(("sent", "answered"), [(100, 100), (101, 100)])
def test_a_hundred_requests_may_wait_on_one_connection_and_no_more(
    client: httpx.Client, sent: int, answered: int
) -> None:
    wires = [request("GET", "/healthz", b"", f"X-Request-ID: n{number}") for number in range(sent)]
    wires[-1] = wires[-1].replace(b"Host", b"Connection: close\r\nHost")
    with connected(client) as connection:
        connection.sendall(b"".join(wires))
        answer = rest(connection)
    assert re.findall(rb"x-request-id: n(\d+)\r", answer) == [b"%d" % number for number in range(answered)]
    assert answer.count(b"HTTP/1.1 200 ") == answered
    assert answer.count(b"connection: close") == 1
    assert b"connection: close" in answer.rpartition(b"HTTP/1.1 ")[2]


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"POST /events HTTP/1.1", b"POST /events?a HTTP/1.1"])
def test_thousands_of_requests_at_once_hold_nobody_up(client: httpx.Client, line: bytes) -> None:
    with connected(client) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall((line + b"\r\n\r\n") * 10_000)
        assert rest(connection).count(b"HTTP/1.1 ") <= 101  # the first may be answered before the others wait
    assert client.get("/healthz").status_code == 200


def test_a_client_that_leaves_amid_many_requests_leaves_no_bug_behind(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    good = request("POST", "/recommend", orjson.dumps({"history": ["i1"]}))
    slow = request("GET", "/metrics", b"")
    for wire in (good * 20, slow * 20, (good + slow) * 20):
        for _ in range(5):
            with connected(client) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                connection.sendall(wire)
    assert client.post("/recommend", json={}).status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_client_that_does_not_read_its_answers_is_left(hasty: httpx.Client) -> None:
    body = orjson.dumps({"queries": [{"k": 12}] * 256})
    with connected(hasty, buffer_bytes=4096) as connection:
        connection.sendall(request("POST", "/recommend/batch", body) * 40)  # some 7 MB of answers
        for _ in range(200):
            time.sleep(0.1)
            if counted(hasty, 'recserve_requests_total{route="recommend/batch",status="200"}') > 5:
                break
        time.sleep(2.5)
        received = rest(connection)
    assert received.count(b"HTTP/1.1 200 ") < 40


def test_an_offer_of_another_protocol_is_passed_over_and_with_a_body_refused(client: httpx.Client) -> None:
    offer = b"Host: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n"
    with connected(client) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + offer + b"\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 200 ")
    hidden = request("POST", "/events", b'{"user_id": "hidden", "item_id": "i1"}')
    with connected(client) as connection:
        connection.sendall(b"POST /recommend HTTP/1.1\r\n" + offer + b"Content-Length: %d\r\n\r\n" % len(hidden))
        with contextlib.suppress(ConnectionError):
            connection.sendall(hidden)
        assert refusal(rest(connection)) == (400, "malformed_http")
    assert client.post("/recommend", json={"user_id": "hidden"}).json()["history_length"] == 0


def test_a_client_that_has_left_costs_no_ranking(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("v1")
    service = start_service(store_url, max_batch=1)
    wire = request("POST", "/recommend/batch", orjson.dumps({"queries": [{"history": ["i1"]}] * 256}))
    rounds, abandoned = 0, 0.0
    while not abandoned and rounds < 20:  # the client may itself be held up while it leaves
        rounds += 1
        with connected(service) as first, connected(service) as second, connected(service) as third:
            for patient in (first, second, third):
                patient.sendall(wire)
            with connected(service) as leaving:
                leaving.sendall(wire)
            for patient in (first, second, third):
                assert patient.recv(100).startswith(b"HTTP/1.1 200 ")
        for _ in range(100):
            if counted(service, "recserve_waiting_requests") == 0:
                break
            time.sleep(0.1)
        abandoned = counted(service, "recserve_abandoned_requests_total")
    ranked = counted(service, "recserve_batch_size_sum")
    assert abandoned > 0
    assert ranked + abandoned <= rounds * 4 * 256
    assert ranked < rounds * 4 * 256


def test_an_answer_that_nobody_gets_is_not_counted(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("v1")
    service = start_service(store_url)
    answered = 'recserve_requests_total{route="events",status="200"}'
    with redis.Redis.from_url(store_url) as store, connected(service) as leaving:
        store.client_pause(200, all=False)  # writes
        leaving.sendall(request("POST", "/events", b'{"user_id": "ada", "item_id": "i1"}'))
    until = time.monotonic() + 20
    while counted(service, 'recserve_events_total{outcome="accepted"}') < 1:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert counted(service, answered) == 0
    assert service.post("/events", json={"user_id": "ada", "item_id": "i2"}).status_code == 200
    assert counted(service, answered) == 1


def test_similar_items_are_looked_for_for_nobody_who_has_left(
    start_service: Callable[..., httpx.Client],
    make_bundle: Callable[..., Path],
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go, find, looked = threading.Event(), threading.Event(), Engine.similar, []

    def held(self: Engine, index: int, k: int) -> Ranking:
        looked.append(index)
        begun.set()
        go.wait(20)
        return find(self, index, k)

    monkeypatch.setattr(Engine, "similar", held)
    make_bundle("v1")
    service = start_service(store_url)
    with connected(service) as patient, contextlib.ExitStack() as leaving:
        patient.sendall(request("GET", "/items/i1/similar", b""))
        assert begun.wait(20)
        for _ in range(5):
            leaving.enter_context(connected(service)).sendall(request("GET", "/items/i2/similar", b""))
        until = time.monotonic() + 20
        while counted(service, "recserve_waiting_requests") < 5:
            assert time.monotonic() < until
            time.sleep(0.01)
        leaving.close()
        for _ in range(3):  # rounds of its loop, in which it hears of that
            service.get("/healthz")
        go.set()
        assert patient.recv(100).startswith(b"HTTP/1.1 200 ")
    assert service.get("/items/i3/similar").status_code == 200
    assert looked == [1, 3]
    assert counted(service, "recserve_abandoned_requests_total") == 5
    assert counted(service, 'recserve_requests_total{route="similar",status="200"}') == 2
