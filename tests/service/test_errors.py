"""Whatever a client sends, it gets a problem in the agreed form, and the service goes on; see test_poison.py too."""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.errors import TABLE

PROBLEM = {"type", "title", "status", "detail", "code", "errors", "request_id"}


def check(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == PROBLEM
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text


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


def test_head_is_answered_wherever_get_is(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()["paths"]
    paths = [path for path, operations in described.items() if "get" in operations]
    for path in ["/", "/docs", "/openapi.json", "/items/other/similar", *paths]:
        url = path.replace("{item_id}", "i1").replace("{user_id}", "ada")
        head, whole = client.head(url), client.get(url)
        assert (head.status_code, head.content) == (whole.status_code, b""), url
        assert head.headers["content-type"] == whole.headers["content-type"]
        if url != "/metrics":  # which counts these too
            assert head.headers["content-length"] == str(len(whole.content)), url
    assert client.head("/recommend").status_code == 405


@pytest.mark.parametrize("name", ["Authorization", "Host", "Origin", "X-Timeout-Ms"])
@pytest.mark.parametrize("path", ["/recommend", "/models/rollback"])
def test_a_repeated_header_that_decides_something_is_refused(client: httpx.Client, path: str, name: str) -> None:
    url = urlsplit(str(client.base_url))
    repeated = f"{name}: localhost\r\n" * 2
    host = "" if name == "Host" else "Host: localhost\r\n"
    request = f"POST {path} HTTP/1.1\r\n{host}{repeated}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    with socket.create_connection((url.hostname, url.port), timeout=5) as connection:
        connection.sendall(request.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 422")
    assert f'"detail":"{name.lower()} is repeated; send it once"' in answer
    assert f'"field":"{name.lower()}"' in answer


@pytest.mark.parametrize(
    ("call", "sent", "field", "value"),
    [
        ("GET /items/i1/similar?k=501", {}, "k", '"501"'),
        ("GET /items/i1/similar?k=3&k=5", {}, "k", '["3","5"]'),
        ("GET /models?version=v1", {}, "version", '"v1"'),
        ("POST /recommend?k=3", {}, "k", '"3"'),
        ("POST /events?dry", {}, "dry", '""'),
        ("POST /recommend", {"headers": {"X-Timeout-Ms": "0"}}, "X-Timeout-Ms", '"0"'),
        ("POST /events", {"headers": {"X-Timeout-Ms": "50"}}, "X-Timeout-Ms", '"50"'),
        ("PUT /items", {"headers": {"X-Timeout-Ms": "50"}}, "X-Timeout-Ms", '"50"'),
        ("GET /users/ada/history", {"headers": {"X-Timeout-Ms": "50"}}, "X-Timeout-Ms", '"50"'),
        ("POST /models/rollback", {"json": [1]}, "body", "[1]"),
        ("POST /events", {"json": [1]}, "body", "[1]"),
        ("POST /events", {"json": {"events": 1}}, "events", "1"),
        ("POST /recommend/batch", {"json": 1}, "queries", "1"),
    ],
)
def test_what_is_refused_is_named_with_its_value(
    client: httpx.Client, call: str, sent: dict[str, Any], field: str, value: str
) -> None:
    response = client.request(*call.split(), **sent)
    check(response, 422, "invalid_request")
    (entry,) = response.json()["errors"]
    assert set(entry) == {"field", "code", "detail", "value"}
    assert (entry["field"], entry["value"]) == (field, value)
    assert response.json()["detail"] == f"{field} is {value}: {entry['detail']}"


@pytest.mark.parametrize(("path", "body"), [("/recommend", []), ("/recommend", 1), ("/events", {"events": ["x"]})])
def test_what_is_no_object_is_told_so_in_no_words_of_ours(client: httpx.Client, path: str, body: object) -> None:
    response = client.post(path, json=body)
    assert (response.status_code, response.json()["errors"][0]["detail"]) == (422, "must be an object")
    assert "Request" not in response.text


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
    for insane in (b"", b"x" * 129, b"a b", b'"', "é".encode(), b"{}"):
        given = client.get("/healthz", headers={b"X-Request-ID": insane}).headers["x-request-id"]
        assert len(given) == 16


def test_the_documentation_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    for part in page.text.split('"'):
        if part.startswith("/static"):
            assert client.get(part).status_code == 200
    assert 'href="docs"' in client.get("/").text


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


def test_the_description_says_what_every_route_answers(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            ((kind, content),) = operation["responses"]["200"]["content"].items()
            assert content["schema"], (method, path)
            assert client.head(path).headers["content-type"].startswith(kind) or "{" in path or method != "get"
    assert "503" in description["paths"]["/recommend/batch"]["post"]["responses"]
    said = description["components"]["schemas"]["Filter"]
    assert said["properties"]["not"] == {"$ref": "#/components/schemas/Filter"}
    assert all(str(limit) in said["description"] for limit in (16, 256, 1000, 5000))


def test_the_description_lists_the_codes_of_problems_with_their_statuses_and_titles(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    code = schemas["ProblemResponse"]["properties"]["code"]
    assert code["enum"] == list(TABLE)
    assert "- `overloaded` (503): The service is overloaded" in code["description"].splitlines()
    assert len(code["description"].splitlines()) == len(TABLE) + 2
    assert "429 or 503 may be sent again after the seconds of `Retry-After`" in code["description"]


def test_the_description_says_what_numbers_and_times_may_be(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    (_, k, deadline) = description["paths"]["/items/{item_id}/similar"]["get"]["parameters"]
    assert (deadline["name"], deadline["schema"]["maximum"]) == ("X-Timeout-Ms", 60_000)
    assert (k["name"], k["schema"]) == ("k", {"type": "integer", "minimum": 1, "maximum": 500, "default": 10})
    (time, _) = description["components"]["schemas"]["EventRequest"]["properties"]["timestamp"]["anyOf"]
    milliseconds, moment = time["anyOf"]
    assert milliseconds == {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
    assert moment == {"type": "string", "format": "date-time"}


def test_every_example_of_the_description_is_accepted(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                response = client.request(method, path, json=content["example"])
                assert response.status_code == 200, response.text
