"""What is sent for an answer of the hot routes, in one write where it can be, over sockets."""

import re
import socket
import time

import httpx
import orjson
import pytest

from reliability.wire import request
from tests.service.sockets import connected, rest

BODY = b'{"history": ["i1"], "k": 3}'


def heads(received: bytes) -> list[bytes]:
    """The heads of answers that stand one behind the other. Each answer is as long as it says, and JSON."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        length = re.findall(rb"\r\ncontent-length: (\d+)", head)
        assert len(length) == 1
        orjson.loads(received[: int(length[0])])
        received = received[int(length[0]) :]
        found.append(head)
    return found


def test_a_connection_is_kept_from_answer_to_answer(client: httpx.Client) -> None:
    with connected(client) as connection:
        for _ in range(3):
            connection.sendall(request("POST", "/recommend", BODY))
            (head,) = heads(connection.recv(1 << 16))
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\ndate: " in head
            assert b"connection" not in head


@pytest.mark.parametrize(
    ("version", "headers"),
    [(b"1.1", ("Connection: close",)), (b"1.0", ()), (b"1.0", ("Connection: keep-alive",))],
)
@pytest.mark.parametrize(("body", "status"), [(BODY, b"200"), (b"{", b"400")])
def test_a_client_that_keeps_no_connection_is_told_once_that_it_ends(
    client: httpx.Client, version: bytes, headers: tuple[str, ...], body: bytes, status: bytes
) -> None:
    wire = request("POST", "/recommend", body, *headers).replace(b"HTTP/1.1", b"HTTP/" + version)
    with connected(client) as connection:
        connection.sendall(wire)
        (head,) = heads(rest(connection))
    assert head.startswith(b"HTTP/1.1 " + status)
    assert head.count(b"connection: close") == 1


def test_a_client_that_asks_whether_it_may_send_its_body_is_told_so_or_refused(client: httpx.Client) -> None:
    wire = request("POST", "/recommend", BODY, "Expect: 100-continue", "Connection: close")
    head, body = wire[: -len(BODY)], wire[-len(BODY) :]
    with connected(client) as connection:
        connection.sendall(head)
        assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert [answer[9:12] for answer in heads(rest(connection))] == [b"200"]
    with connected(client) as connection:
        connection.sendall(head.replace(b"/recommend", b"/recommend?k=3"))
        assert [answer[9:12] for answer in heads(rest(connection))] == [b"422"]


def test_requests_behind_one_another_are_answered_in_their_order(client: httpx.Client) -> None:
    kinds = [
        ("POST", "/recommend", BODY, b"200"),
        ("GET", "/models", b"", b"200"),  # answered by the framework
        ("POST", "/recommend/batch", b'{"queries": [%s, {}]}' % BODY, b"200"),
        ("POST", "/recommend", b"{", b"400"),
        ("POST", "/events", b'{"user_id": "ada", "item_id": "i1"}', b"200"),
    ]
    sent = [(f"n{number}", *kinds[number % len(kinds)]) for number in range(60)]
    wires = [request(method, path, body, f"X-Request-ID: {name}") for name, method, path, body, _ in sent]
    with connected(client) as connection:
        connection.sendall(b"".join(wires) + request("POST", "/recommend", BODY, "Connection: close"))
        *answers, last = heads(rest(connection))
    assert [answer[9:12] for answer in answers] == [status for *_, status in sent]
    assert re.findall(rb"x-request-id: (n\d+)", b"".join(answers)) == [name.encode() for name, *_ in sent]
    assert b"connection: close" in last


@pytest.mark.parametrize("target", ["/recommend?", "/%72ecommend", "/recommend#top", "http://localhost/recommend"])
def test_a_path_may_be_spelled_otherwise(client: httpx.Client, target: str) -> None:
    with connected(client) as connection:
        connection.sendall(request("POST", target, BODY, "Connection: close"))
        assert [answer[9:12] for answer in heads(rest(connection))] == [b"200"]


@pytest.mark.parametrize("target", ["/recommend/", "/Recommend", "//recommend", "/recommend%2Fbatch/"])
def test_another_path_is_another_path(client: httpx.Client, target: str) -> None:
    with connected(client) as connection:
        connection.sendall(request("POST", target, BODY, "Connection: close"))
        assert [answer[9:12] for answer in heads(rest(connection))] == [b"404"]


def test_a_client_that_reads_late_gets_every_answer_whole(client: httpx.Client) -> None:
    batch = request("POST", "/recommend/batch", orjson.dumps({"queries": [{"k": 12}] * 256}))
    with connected(client, buffer_bytes=4096) as connection:
        connection.sendall(batch * 40 + request("POST", "/recommend", BODY, "Connection: close"))  # 7 MB of answers
        time.sleep(1)  # long before that the server can send no more
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        answers = heads(rest(connection))
    assert [answer[9:12] for answer in answers] == [b"200"] * 41
