"""The routes that carry the load, answered below the framework: bytes in, bytes out.

The framework costs a request more than the recommendation does. So these routes stand in routes.py for the
documentation and for other methods, and their POST is taken here, before the framework sees it.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service import filters, logs
from service.batcher import Abandoned, Caller, Closed, Expired, Overloaded
from service.engine import Engine
from service.errors import Problem, invalid, problem_body, problem_fields, shorten, unavailable
from service.filters import Filter, UnknownAttribute
from service.recommender import NoModel, Wish
from service.requests import CONNECTION, REQUEST_ID, bug, headers_of, parse_json, read_body, request_id_of
from service.routes import NO_MODEL, Services
from service.schemas import MAX_QUERIES, MAX_TIMEOUT_MS, RecommendRequest
from service.scoring import ScoringStopped

logger = logging.getLogger(__name__)

_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")


class HotRoutes:
    """ASGI: answers POST to /recommend, /recommend/batch and /events, and hands the rest to `app`."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services
        self._answers: dict[str, Callable[[bytes, float | None, Caller | None], Awaitable[object]]] = {
            "/recommend": self._recommend,
            "/recommend/batch": self._batch,
            "/events": self._events,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answers.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if answer is None:
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        path: str = scope["path"]
        request_id = request_id_of(dict(scope["headers"]))
        logs.request_id.set(request_id)  # the server runs each request in a context of its own
        status, kind = 200, _JSON
        more: dict[str, str] = {}
        connection = scope.get("state", {}).get(CONNECTION)  # None under another server
        try:
            headers = headers_of(scope)
            key = self._services.keys.require(headers, "events" if path == "/events" else "recommend")
            if key is not None and key.limit is not None:
                more = await self._services.limits.admit(key.id, key.limit)
            timeout_s = _timeout_s(scope, headers)
            if path == "/recommend":
                self._check_room()  # before the body is looked at: a refusal should cost as little as it can
            body = await read_body(headers, receive)
            if timeout_s is not None:
                timeout_s = max(0.0, timeout_s - (time.perf_counter() - began))
            content = orjson.dumps(await answer(body, timeout_s, connection))
        except (ClientDisconnect, Abandoned):
            logger.debug("the client left before it had an answer")
            return
        except Exception as error:
            if not isinstance(error, Problem):
                logger.exception("a bug answered POST %s", path)
            problem = error if isinstance(error, Problem) else bug()
            status, kind, more = problem.status, _PROBLEM, more | problem.headers
            content = problem_body(problem, request_id)
        self._services.metrics.answered(path[1:], status, time.perf_counter() - began)
        length = (b"content-length", b"%d" % len(content))
        fields = [length, kind, (REQUEST_ID, request_id.encode())]
        fields += [(name.lower().encode(), value.encode()) for name, value in more.items()]
        if connection is not None and connection.answer(scope, status, fields, content):
            return
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": content})

    def _check_room(self) -> None:
        try:
            self._services.batcher.check_room()
        except Overloaded as error:
            raise _overloaded(error) from error

    async def _recommend(self, body: bytes, timeout_s: float | None, caller: Caller | None) -> object:
        return await self._ranked(parse_json(body), timeout_s, caller)

    async def _batch(self, body: bytes, timeout_s: float | None, caller: Caller | None) -> object:
        queries = _queries(parse_json(body))
        found = await asyncio.gather(
            *(self._ranked(query, timeout_s, caller) for query in queries), return_exceptions=True
        )
        return {"results": [_result(one) for one in found]}

    async def _events(self, body: bytes, timeout_s: float | None, caller: Caller | None) -> object:
        if timeout_s is not None:
            raise Problem("invalid_request", "X-Timeout-Ms is for recommendations; an event is stored or refused")
        return await self._services.intake.take(parse_json(body))

    async def _ranked(self, query: object, timeout_s: float | None, caller: Caller | None) -> dict[str, object]:
        """The answer to one parsed query."""
        wish = self._wish(query)
        try:
            batcher = self._services.batcher if wish.plain else self._services.aside
            found = await batcher.submit(wish, timeout_s=timeout_s, caller=caller)
        except Overloaded as error:
            raise _overloaded(error) from error
        except Expired as error:
            raise Problem(
                "deadline_exceeded", f"{error}: X-Timeout-Ms allowed {1000 * (timeout_s or 0):.0f} ms"
            ) from error
        except Closed as error:
            raise unavailable("shutting_down", str(error)) from error
        except ScoringStopped as error:
            raise unavailable("unhealthy", str(error)) from error
        except NoModel as error:
            raise unavailable("no_model", NO_MODEL, retry_after_s=5) from error
        except UnknownAttribute as error:
            asked = query["filter"] if isinstance(query, dict) else query
            raise _bad_filter("filter", shorten(asked), str(error)) from error
        items: list[dict[str, object]] = [
            {"item_id": item, "score": score, "source": found.source} for item, score in found.items
        ]
        for place in found.cold:
            items[place]["source"] = "cold"
        if found.because is not None:
            for item, causes in zip(items, found.because, strict=True):
                item["because"] = [{"item_id": cause, "effect": effect} for cause, effect in causes]
        return {
            "recommendation_id": f"{random.getrandbits(64):016x}",
            "model_version": found.model_version,
            "history_length": found.history_length,
            "source": found.source,
            "scoring": found.scoring,
            "degraded": ["state_store"] if found.degraded else [],
            "items": items,
        }

    def _wish(self, query: object) -> Wish:
        try:
            asked = RecommendRequest.model_validate(query)
        except ValidationError as error:
            raise invalid(error) from error
        stored_wanted = asked.history is None or asked.history_mode == "append"
        return Wish(
            user_id=asked.user_id if stored_wanted else None,
            history=asked.history or [],
            k=asked.k,
            exclude_seen=asked.exclude_seen,
            exclude_item_ids=asked.exclude_item_ids,
            wanted=None if asked.filter is None else _filter(asked.filter),
            candidates=asked.candidates,
            explain=asked.explain,
            pinned=None if asked.model_version is None else self._resident(asked.model_version),
        )

    def _resident(self, version: str) -> Engine:
        resident = self._services.slot.resident()
        if version not in resident:
            there = ", ".join(sorted(resident)) or "none"
            raise Problem("version_not_found", f"model_version {shorten(version)} is not in memory; there are: {there}")
        return resident[version]


def _timeout_s(scope: Scope, headers: Mapping[bytes, bytes]) -> float | None:
    """What X-Timeout-Ms allows, in seconds. A parameter that would be ignored is refused instead."""
    if scope["query_string"]:
        raise Problem("invalid_request", "this route takes no query parameters; put every field into the JSON body")
    given = headers.get(b"x-timeout-ms")
    if given is None:
        return None
    if not given.isdigit() or len(given) > 5 or not 1 <= int(given) <= MAX_TIMEOUT_MS:
        found = shorten(given.decode("latin-1"))
        raise Problem("invalid_request", f"the header X-Timeout-Ms is {found}; give 1 to {MAX_TIMEOUT_MS} milliseconds")
    return int(given) / 1000


def _overloaded(error: Overloaded) -> Problem:
    return unavailable("overloaded", f"{error}; come back later")


def _queries(body: object) -> list[object]:
    """The queries of a batch, unchecked: each is checked by itself."""
    queries = body.get("queries") if isinstance(body, dict) and len(body) == 1 else None
    if not isinstance(queries, list) or not 1 <= len(queries) <= MAX_QUERIES:
        found = f"{len(queries)} queries" if isinstance(queries, list) else shorten(body)
        detail = f'must be {{"queries": [1 to {MAX_QUERIES} queries]}} and nothing else'
        error = {"field": "queries", "code": "queries_count", "detail": detail, "value": found}
        raise Problem("invalid_request", f"the body has {found}: it {detail}", errors=[error])
    return queries


def _result(found: dict[str, object] | BaseException) -> dict[str, object]:
    if isinstance(found, dict):
        return found
    if isinstance(found, Problem):
        return problem_fields(found, None)
    if isinstance(found, Abandoned) or not isinstance(found, Exception):  # the request is being given up
        raise found
    logger.error("a bug answered one of several queries", exc_info=found)
    return problem_fields(bug(), None)


def _filter(expression: object) -> Filter:
    try:
        return filters.parse(expression)
    except filters.FilterError as error:
        raise _bad_filter(error.field, error.value, str(error)) from error


def _bad_filter(field: str, value: str, reason: str) -> Problem:
    entry = {"field": field, "code": "filter", "detail": reason, "value": value}
    return Problem("invalid_request", f"{field} is {value}: {reason}", errors=[entry])
