"""The routes that carry the load, answered below the framework: bytes in, bytes out.

The framework costs a request more than the recommendation does. So these routes stand in routes.py for the
documentation and for other methods, and their POST is taken here, before the framework sees it.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import orjson
from pydantic import ValidationError

from service import filters, logs
from service.auth import require
from service.batcher import Abandoned, Caller, Closed, Overloaded, Pending
from service.engine import Engine
from service.errors import Problem, invalid, invalid_field, problem_body, problem_fields, shorten, unavailable
from service.exchange import Exchange, Route
from service.failures import UNANSWERED, unanswered
from service.filters import Filter, UnknownAttribute
from service.keyfile import Key, Limit
from service.recommender import Recommendation, Wish
from service.requests import (
    bug,
    check_declared,
    parse_json,
    refuse_deadline,
    refuse_repeated,
    request_id_of,
    surplus_parameter,
    timeout_s_of,
)
from service.routes import Services
from service.schemas import MAX_QUERIES, RecommendRequest
from service.turns import Turns

logger = logging.getLogger(__name__)

_LARGE_BYTES = 1 << 13  # of a body that is checked in a turn of its own: some tenths of a millisecond's work
_MOST_BYTES = 1 << 26  # of such bodies that may wait; what comes beyond gets its 503 at once
_JSON = b"application/json"
_PROBLEM = b"application/problem+json"

# From a body, the seconds that it may take, and who waits: what there will be to answer.
_Handler = Callable[[bytes, float | None, Caller], Pending[Any]]


class HotRoutes:
    """POST to /recommend, /recommend/batch and /events; `routes` by path."""

    def __init__(self, services: Services) -> None:
        self._services = services
        large = Turns()
        handlers: dict[str, _Handler] = {
            "recommend": self._one,
            "recommend/batch": self._batch,
            "events": self._events,
        }
        self.routes: dict[bytes, Route] = {
            b"/%b" % name.encode(): partial(_Call, services, large, name, handler) for name, handler in handlers.items()
        }

    def _one(self, body: bytes, timeout_s: float | None, caller: Caller) -> Pending[Recommendation]:
        return self._recommend(parse_json(body), timeout_s, caller)

    def _recommend(self, query: object, timeout_s: float | None, caller: Caller) -> Pending[Recommendation]:
        wish = self._wish(query)
        batcher = self._services.batcher if wish.plain else self._services.aside
        try:
            future = batcher.enqueue(wish, timeout_s=timeout_s, caller=caller)
        except (Overloaded, Closed) as error:
            raise unanswered(error) from error
        return Pending(future, partial(_recommended, query, timeout_s))

    def _batch(self, body: bytes, timeout_s: float | None, caller: Caller) -> Pending[Any]:
        asked: list[Pending[Recommendation] | dict[str, object]] = []
        for query in _queries(parse_json(body)):
            try:
                asked.append(self._recommend(query, timeout_s, caller))
            except Exception as error:  # noqa: BLE001 - its own result says so, and those of others are as they are
                asked.append(_refused_query(error))
        futures = [one.future for one in asked if isinstance(one, Pending)]
        together = asyncio.gather(*futures, return_exceptions=True)
        return Pending(together, lambda _: {"results": [_result(one) for one in asked]})

    def _events(self, body: bytes, timeout_s: float | None, caller: Caller) -> Pending[Any]:
        return self._services.intake.take(body)

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


class _Call:
    """One request to a hot route, on its way through the checks to the batch and back."""

    __slots__ = (
        "_began",
        "_exchange",
        "_handler",
        "_large",
        "_more",
        "_name",
        "_request_id",
        "_services",
        "_timeout_s",
    )

    def __init__(self, services: Services, large: Turns, name: str, handler: _Handler, exchange: Exchange) -> None:
        self._services = services
        self._large = large
        self._name = name
        self._handler = handler
        self._exchange = exchange
        self._began = time.perf_counter()
        self._request_id = ""
        self._timeout_s: float | None = None
        self._more: dict[str, str] = {}

    def open(self) -> None:
        """See who asks, how often they may, how long it may take, and whether there is room."""
        fields = self._exchange.headers
        headers = dict(fields)
        self._request_id = request_id_of(headers)
        context = logs.request_id.set(self._request_id)  # what is called later is called in a copy of it
        try:
            refuse_repeated(headers, fields)
            key = self._services.keys.recognise(headers)
            if key is not None and key.limit is not None:
                admitted = self._services.limits.admit_now(key.id, key.limit)
                if admitted is None:
                    self._exchange.run(self._admit(key, key.limit, headers))
                    return
                self._more = admitted
            self._check(key, headers)
        except Exception as error:  # noqa: BLE001 - `refuse` tells a problem from a bug
            self.refuse(error)
        finally:
            logs.request_id.reset(context)

    async def _admit(self, key: Key, limit: Limit, headers: Mapping[bytes, bytes]) -> None:
        """Go on when the store has said that the key's limit allows it."""
        try:
            self._more = await self._services.limits.admit(key.id, limit)
            self._check(key, headers)
        except asyncio.CancelledError:
            self.refuse(unavailable("shutting_down", "the service is shutting down"))
            raise
        except Exception as error:  # noqa: BLE001 - as above
            self.refuse(error)

    def _check(self, key: Key | None, headers: Mapping[bytes, bytes]) -> None:
        """Raises Problem for what needs no body to be refused: a refusal should cost as little as it can."""
        if key is not None:
            require(key, "events" if self._name == "events" else "recommend")
        if self._name == "events":
            refuse_deadline(headers)
        self._timeout_s = _timeout_s(self._exchange, headers)
        check_declared(headers)
        if self._name == "events":
            self._services.intake.check_room()
        if self._name == "recommend":
            try:
                self._services.batcher.check_room()
            except Overloaded as error:
                raise unanswered(error) from error
        self._exchange.opened(self)

    def take(self, body: bytes) -> None:
        """Ask for the answer to a body."""
        context = logs.request_id.set(self._request_id)
        try:
            if len(body) > _LARGE_BYTES and self._name != "events":  # those have turns of their own, behind their bound
                self._wait_for_turn(body)
            else:
                self._ask(body)
        finally:
            logs.request_id.reset(context)

    def _wait_for_turn(self, body: bytes) -> None:
        if self._large.bytes + len(body) <= _MOST_BYTES:
            self._large.add(partial(self._ask_in_turn, body), len(body))
        else:
            self.refuse(unanswered(Overloaded(f"{self._large.bytes >> 20} MiB of large requests are waiting already")))

    def _ask_in_turn(self, body: bytes) -> None:
        """Ask, unless the client has left meanwhile."""
        if not self._exchange.line.gone:
            self._ask(body)

    def _ask(self, body: bytes) -> None:
        timeout_s = self._timeout_s
        if timeout_s is not None:
            timeout_s = max(0.0, timeout_s - (time.perf_counter() - self._began))
        try:
            pending = self._handler(body, timeout_s, self._exchange.line)
        except Exception as error:  # noqa: BLE001 - as above
            self.refuse(error)
        else:
            pending.future.add_done_callback(partial(self._tell, pending))

    def _tell(self, pending: Pending[Any], future: "asyncio.Future[Any]") -> None:
        try:
            content = orjson.dumps(pending.told(future))
        except Abandoned:
            logger.debug("the client left before it had an answer")
        except Exception as error:  # noqa: BLE001 - as above
            self.refuse(error)
        else:
            self._answer(200, _JSON, content)

    def refuse(self, error: Exception) -> None:
        """Answer with a problem, which another error is by a mistake of ours."""
        if not isinstance(error, Problem):
            logger.error("a bug answered POST /%s", self._name, exc_info=error)
        problem = error if isinstance(error, Problem) else bug()
        self._more |= problem.headers
        self._answer(problem.status, _PROBLEM, problem_body(problem, self._request_id))

    def _answer(self, status: int, kind: bytes, content: bytes) -> None:
        if self._exchange.disconnected:  # nobody gets it, and it does not count
            return
        self._services.metrics.answered(self._name, status, time.perf_counter() - self._began)
        head = b"content-type: %b\r\nx-request-id: %b\r\n" % (kind, self._request_id.encode())
        self._exchange.answer(status, head, content, self._more)


def _recommended(query: object, timeout_s: float | None, future: "asyncio.Future[Recommendation]") -> dict[str, object]:
    """The answer to one query. Raises Problem if there is none."""
    try:
        found = future.result()
    except UNANSWERED as error:
        raise unanswered(error, timeout_s) from error
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
        "scoring": "exact",
        "degraded": ["state_store"] if found.degraded else [],
        "items": items,
    }


def _timeout_s(exchange: Exchange, headers: Mapping[bytes, bytes]) -> float | None:
    """What X-Timeout-Ms allows, in seconds. A parameter that would be ignored is refused instead."""
    query = exchange.url.partition(b"?")[2]
    if query:
        for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
            raise surplus_parameter(name, value)
    return timeout_s_of(headers.get(b"x-timeout-ms"))


def _queries(body: object) -> list[object]:
    """The queries of a batch, unchecked: each is checked by itself."""
    queries = body.get("queries") if isinstance(body, dict) and len(body) == 1 else None
    if not isinstance(queries, list) or not 1 <= len(queries) <= MAX_QUERIES:
        found = f"{len(queries)} queries" if isinstance(queries, list) else shorten(body)
        detail = f'the body must be {{"queries": [1 to {MAX_QUERIES} queries]}} and nothing else'
        raise invalid_field("queries", "queries_count", detail, found)
    return queries


def _result(asked: Pending[Recommendation] | dict[str, object]) -> dict[str, object]:
    """What came of one of several queries."""
    if isinstance(asked, dict):
        return asked
    try:
        return asked.told(asked.future)
    except Abandoned:  # all of the request is given up
        raise
    except Exception as error:  # noqa: BLE001 - its own result says so
        return _refused_query(error)


def _refused_query(error: Exception) -> dict[str, object]:
    if isinstance(error, Problem):
        return problem_fields(error, None)
    logger.error("a bug answered one of several queries", exc_info=error)
    return problem_fields(bug(), None)


def _filter(expression: object) -> Filter:
    try:
        return filters.parse(expression)
    except filters.FilterError as error:
        raise _bad_filter(error.field, error.value, str(error)) from error


def _bad_filter(field: str, value: str, reason: str) -> Problem:
    return invalid_field(field, "filter", reason, value)
