"""Whatever a client sends, it gets a problem in the agreed form, and the service goes on."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

PROBLEM = {"type", "title", "status", "detail", "code", "errors", "request_id"}


def check(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == PROBLEM
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text


NOT_JSON = [
    b"",
    b" ",
    b"{",
    b"}",
    b"nul",
    b"{'user_id': 'ada'}",
    b'{"user_id": "ada",}',
    b'{"user_id": "ada"} {}',
    b'{"value": NaN}',
    b'{"value": Infinity}',
    b'{"value": -Infinity}',
    b'{"value": 1e400}',
    b'{"value": 01}',
    b'{"user_id": "\xff"}',
    b'{"user_id": "\xc0\xaf"}',
    b'{"user_id": "\xed\xa0\x80"}',
    b'{"user_id": "\\ud800"}',
    b'{"user_id": "\\udc00\\ud800"}',
    b'{"user_id": "a\x00"}',
    b'{"user_id": "\\x"}',
    b'\xef\xbb\xbf{"user_id": "ada"}',
    b"\x1f\x8b\x08\x00",
    b"user_id=ada&k=3",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    '{"user_id": "ada"}'.encode("utf-16"),
]


@pytest.mark.parametrize("route", ["/recommend", "/events"])
def test_a_body_that_is_not_json_is_a_400_that_says_where(client: httpx.Client, route: str) -> None:
    for body in NOT_JSON:
        response = client.post(route, content=body)
        check(response, 400, "malformed_json")
        assert "line 1" in response.json()["detail"]
        assert len(response.content) < 1000


POISON = [
    b"null",
    b"true",
    b"1",
    b'"ada"',
    b"[]",
    b"[{}]",
    b'{"": ""}',
    b'{"user_id": {"$gt": ""}}',
    b'{"__proto__": {}}',
    b'{"user_id": 1e308}',
    b'{"user_id": 99999999999999999999999999}',
    b'{"user_id": "' + b"x" * 500_000 + b'"}',
    b'{"item_id": "' + b"\xf0\x9f\x98\x80" * 65 + b'", "user_id": "u"}',
    b"{" + b",".join(b'"f%d": 1' % n for n in range(50_000)) + b"}",
    b'{"' + b"k" * 500_000 + b'": 1}',
    b'{"history": [' + b",".join([b"1"] * 200_000) + b"]}",
    b'{"exclude_item_ids": [' + b"[" * 500 + b"]" * 500 + b"]}",
    b'{"history": ["' + b"i" * 300_000 + b'"]}',
    b'{"user_id": "u", "item_id": "i", "properties": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
    b'{"k": 9223372036854775808}',
    b'{"events": {"length": 3}}',
    b'{"events": [' + b",".join([b"{}"] * 1001) + b"]}",
]


@pytest.mark.parametrize("route", ["/recommend", "/events"])
def test_poisonous_bodies_are_refused_shortly_and_harm_nobody(client: httpx.Client, route: str) -> None:
    for body in POISON:
        response = client.post(route, content=body)
        assert response.status_code == 422, (body[:60], response.text[:200])
        assert response.headers["content-type"] == "application/problem+json"
        assert len(response.content) < 10_000, body[:60]
    assert client.post("/recommend", json={"history": ["i1"]}).status_code == 200


def test_ids_with_odd_characters_are_ids_like_all_others(client: httpx.Client) -> None:
    for odd in ("\x00", "\u202e", "a b", "🙂" * 64, "{1}", "../..", "\n", "'; drop", "recserve:{0}:log"):
        assert client.post("/events", json={"user_id": odd, "item_id": "i1"}).json()["accepted"] == 1
        assert client.post("/recommend", json={"user_id": odd}).json()["history_length"] == 1


@pytest.mark.parametrize("route", ["/recommend", "/events"])
def test_a_body_of_a_mebibyte_is_read_and_one_byte_more_is_not(client: httpx.Client, route: str) -> None:
    limit = 1 << 20
    assert client.post(route, content=b" " * limit).status_code == 400
    check(client.post(route, content=b" " * (limit + 1)), 413, "body_too_large")

    def chunks() -> Iterator[bytes]:
        yield from (b" " * 65_536 for _ in range(17))

    check(client.post(route, content=chunks()), 413, "body_too_large")


def test_a_body_that_only_says_it_is_too_large_is_refused_before_it_is_sent(client: httpx.Client) -> None:
    url = urlsplit(str(client.base_url))
    with socket.create_connection((url.hostname, url.port), timeout=5) as connection:
        connection.sendall(b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048577\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(client: httpx.Client) -> None:
    url = urlsplit(str(client.base_url))
    for _ in range(20):
        with socket.create_connection((url.hostname, url.port), timeout=5) as connection:
            connection.sendall(b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert client.post("/recommend", json={}).status_code == 200


def test_paths_and_methods_that_do_not_exist_are_problems_too(client: httpx.Client) -> None:
    check(client.get("/nothing"), 404, "not_found")
    for path in ("/recommend/", "/events/", "/models/rollback/", "/recommend%0A", "/events%0A"):
        check(client.post(path, json={}), 404, "not_found")
    response = client.get("/recommend")
    check(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("name", ["Authorization", "Host", "Origin"])
@pytest.mark.parametrize("path", ["/recommend", "/models/rollback"])
def test_a_repeated_header_that_decides_who_may_call_is_refused(client: httpx.Client, path: str, name: str) -> None:
    url = urlsplit(str(client.base_url))
    repeated = f"{name}: localhost\r\n" * 2
    host = "" if name == "Host" else "Host: localhost\r\n"
    request = f"POST {path} HTTP/1.1\r\n{host}{repeated}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    with socket.create_connection((url.hostname, url.port), timeout=5) as connection:
        connection.sendall(request.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 422")
    assert f"the header {name.lower()} is repeated; send it once" in answer


def test_another_repeated_header_is_nobodys_business(client: httpx.Client) -> None:
    assert client.post("/recommend", json={}, headers=[("X-Other", "a"), ("X-Other", "b")]).status_code == 200


def test_every_response_carries_a_request_id(client: httpx.Client) -> None:
    answers = [client.get("/healthz"), client.get("/nothing"), client.post("/recommend", json={}), client.get("/docs")]
    answers += [client.post("/recommend", content=b"{"), client.get("/metrics"), client.get("/")]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == len(answers)


def test_a_sane_request_id_is_kept_and_another_is_replaced(client: httpx.Client) -> None:
    for sane in ("a", "A-1._:z", "x" * 128):
        assert client.get("/nothing", headers={"X-Request-ID": sane}).json()["request_id"] == sane
    for insane in ("", "x" * 129, "a b", '"', "é".encode(), "{}"):
        given = client.get("/healthz", headers={"X-Request-ID": insane}).headers["x-request-id"]
        assert len(given) == 16


def test_the_documentation_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    for part in page.text.split('"'):
        if part.startswith("/static"):
            assert client.get(part).status_code == 200
    assert client.get("/").headers["location"] == "/docs"


def test_the_description_lists_the_hot_routes_with_their_bodies(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    for route in ("/recommend", "/events"):
        operation = description["paths"][route]["post"]
        assert operation["requestBody"]["required"]
        assert {"200", "400", "413", "422", "503"} <= set(operation["responses"])
    text = client.get("/openapi.json").text
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= set(description["components"]["schemas"])
    assert {"RecommendRequest", "EventRequest", "EventsRequest", "RecommendResponse", "ProblemResponse"} <= names
