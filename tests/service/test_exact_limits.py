"""Every limit is exact: one less and as much are taken, one more gets its documented code."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pytest

from service import filters, requests, schemas


@dataclass(frozen=True)
class Limit:
    """`body(n)`: the body, or its JSON, of a request with n of something; refused: the code when it is one too many."""

    name: str
    most: int
    body: Callable[[int], Any]
    path: str = "/recommend"
    refused: str = "invalid_request"
    headers: Callable[[int], dict[str, str]] = field(default=lambda n: {})


def event(**fields: Any) -> dict[str, Any]:
    return {"user_id": "u", "item_id": "i1", **fields}


def properties(size: int) -> dict[str, str]:
    return {"a": "x" * (size - len('{"a":""}'))}


def nested(depth: int) -> bytes:
    """An event that is so deep: two levels of it, and lists in its properties."""
    return b'{"user_id":"u","item_id":"i1","properties":{"a":' + b"[" * (depth - 2) + b"]" * (depth - 2) + b"}}"


def negated(depth: int) -> dict[str, Any]:
    return {"eq": {"genre": "x"}} if depth == 1 else {"not": negated(depth - 1)}


def a_megabyte(size: int) -> bytes:
    return b'{"user_id": "u"}'.ljust(size)


LIMITS = [
    Limit("k", schemas.MAX_K, lambda n: {"k": n}),
    Limit("k in a batch", schemas.MAX_K, lambda n: {"queries": [{"k": n}]}, "/recommend/batch"),
    Limit("queries", schemas.MAX_QUERIES, lambda n: {"queries": [{"k": 1}] * n}, "/recommend/batch"),
    Limit("history", schemas.MAX_HISTORY, lambda n: {"history": ["i1"] * n}),
    Limit("excluded items", schemas.MAX_EXCLUDED, lambda n: {"exclude_item_ids": ["i1"] * n}),
    Limit("candidates", schemas.MAX_CANDIDATES, lambda n: {"candidates": ["i1"] * n}),
    Limit("user_id of a query", schemas.MAX_ID_BYTES, lambda n: {"user_id": "u" * n}),
    Limit("id in a history", schemas.MAX_ID_BYTES, lambda n: {"history": ["i" * n]}),
    Limit("excluded id", schemas.MAX_ID_BYTES, lambda n: {"exclude_item_ids": ["i" * n]}),
    Limit("candidate id", schemas.MAX_ID_BYTES, lambda n: {"candidates": ["i" * n]}),
    Limit("bytes and not characters of an id", schemas.MAX_ID_BYTES, lambda n: {"user_id": "ä" * 2 + "u" * (n - 4)}),
    Limit("depth of a filter", filters.MAX_DEPTH, lambda n: {"filter": negated(n)}),
    Limit("parts of a filter", filters.MAX_PARTS, lambda n: {"filter": {"any": [{"eq": {"genre": "x"}}] * (n - 1)}}),
    Limit("values of a filter", filters.MAX_VALUES, lambda n: {"filter": {"in": {"genre": ["x"] * n}}}),
    Limit("deadline", requests.MAX_TIMEOUT_MS, lambda n: {}, headers=lambda n: {"X-Timeout-Ms": str(n)}),
    Limit("events", schemas.MAX_EVENTS, lambda n: {"events": [event()] * n}, "/events"),
    Limit("user_id", schemas.MAX_ID_BYTES, lambda n: event(user_id="u" * n), "/events", "no_valid_event"),
    Limit("item_id", schemas.MAX_ID_BYTES, lambda n: event(item_id="i" * n), "/events", "no_valid_event"),
    Limit("event_id", schemas.MAX_ID_BYTES, lambda n: event(event_id="e" * n), "/events", "no_valid_event"),
    Limit("type", schemas.MAX_TYPE_BYTES, lambda n: event(type="t" * n), "/events", "no_valid_event"),
    Limit(
        "recommendation_id",
        schemas.MAX_ID_BYTES,
        lambda n: event(recommendation_id="r" * n),
        "/events",
        "no_valid_event",
    ),
    Limit(
        "properties",
        schemas.MAX_OBJECT_BYTES,
        lambda n: event(properties=properties(n)),
        "/events",
        "no_valid_event",
    ),
    Limit("items", schemas.MAX_ITEMS, lambda n: {"items": [{"item_id": f"new{i}"} for i in range(n)]}, "/items"),
    Limit("id of an item", schemas.MAX_ID_BYTES, lambda n: {"items": [{"item_id": "i" * n}]}, "/items"),
    Limit(
        "attributes",
        schemas.MAX_OBJECT_BYTES,
        lambda n: {"items": [{"item_id": "new", "attributes": properties(n)}]},
        "/items",
    ),
    Limit("depth of a body", requests.MAX_DEPTH, nested, "/events", "too_deep"),
    Limit("bytes of a query", requests.MAX_BODY_BYTES, a_megabyte, refused="body_too_large"),
    Limit(
        "bytes of events",
        requests.MAX_BODY_BYTES,
        lambda n: orjson.dumps(event()).ljust(n),
        "/events",
        "body_too_large",
    ),
    Limit(
        "bytes of items",
        requests.MAX_BODY_BYTES,
        b'{"items": [{"item_id": "new"}]}'.ljust,
        "/items",
        "body_too_large",
    ),
]
STATUS = {"invalid_request": 422, "no_valid_event": 422, "too_deep": 400, "body_too_large": 413}


@pytest.fixture
def with_genres(client: httpx.Client) -> httpx.Client:
    """A service whose items have an attribute to filter by."""
    assert client.put("/items", json={"items": [{"item_id": "i1", "attributes": {"genre": "x"}}]}).status_code == 200
    return client


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_as_much_as_the_limit_is_taken_and_one_more_is_refused(with_genres: httpx.Client, limit: Limit) -> None:
    def answer(size: int) -> httpx.Response:
        body = limit.body(size)
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        method = "PUT" if limit.path == "/items" else "POST"
        return with_genres.request(method, limit.path, content=content, headers=limit.headers(size))

    for size in (limit.most - 1, limit.most):
        taken = answer(size)
        assert taken.status_code == 200, taken.text[:300]
        results = taken.json().get("results", [])
        assert not any("code" in result for result in results)
    refused = answer(limit.most + 1)
    problem = refused.json()
    if limit.path == "/recommend/batch" and "results" in problem:  # each query has its own answer
        (problem,) = problem["results"]
    else:
        assert refused.status_code == STATUS[limit.refused]
    assert (problem["status"], problem["code"]) == (STATUS[limit.refused], limit.refused), problem


@pytest.mark.parametrize("k", [0, -1])
def test_k_is_at_least_one(client: httpx.Client, k: int) -> None:
    assert client.post("/recommend", json={"k": 1}).status_code == 200
    assert client.post("/recommend", json={"k": k}).status_code == 422


def test_as_many_similar_items_as_the_limit_may_be_asked_for(client: httpx.Client) -> None:
    for k, status in ((schemas.MAX_K - 1, 200), (schemas.MAX_K, 200), (schemas.MAX_K + 1, 422)):
        assert client.get(f"/items/i1/similar?k={k}").status_code == status
