"""The two routes that carry the load, answered below the framework: bytes in, bytes out.

The framework costs a request more than the recommendation does. So these routes stand in routes.py for the
documentation and for other methods, and their POST is taken here, before the framework sees it.
"""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service import logs
from service.batcher import Closed, Overloaded
from service.errors import Problem, invalid, problem_body, shorten, unavailable
from service.recommender import NoModel, Wish
from service.requests import REQUEST_ID, bug, headers_of, read_body, request_id_of
from service.routes import NO_MODEL, Services
from service.schemas import LATER_FIELDS, RecommendRequest

logger = logging.getLogger(__name__)

_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")


class HotRoutes:
    """ASGI: answers POST /recommend and POST /events, and hands the rest to `app`."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services
        self._answers: dict[str, Callable[[bytes], Awaitable[object]]] = {
            "/recommend": self._recommend,
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
        status, kind, more = 200, _JSON, {}
        try:
            headers = headers_of(scope)
            self._services.keys.require(headers, "recommend" if path == "/recommend" else "events")
            _refuse_options(scope, headers)
            content = orjson.dumps(await answer(await read_body(headers, receive)))
        except ClientDisconnect:
            logger.debug("the client left before its request was complete")
            return
        except Exception as error:
            if not isinstance(error, Problem):
                logger.exception("a bug answered POST %s", path)
            problem = error if isinstance(error, Problem) else bug()
            status, kind, more = problem.status, _PROBLEM, problem.headers
            content = problem_body(problem, request_id)
        self._services.metrics.answered(path[1:], status, time.perf_counter() - began)
        length = (b"content-length", b"%d" % len(content))
        fields = [length, kind, (REQUEST_ID, request_id.encode())]
        fields += [(name.lower().encode(), value.encode()) for name, value in more.items()]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": content})

    async def _recommend(self, body: bytes) -> object:
        wish = _wish(_parse(body))
        try:
            found = await self._services.batcher.submit(wish)
        except Overloaded as error:
            raise unavailable("overloaded", f"{error}; come back later") from error
        except Closed as error:
            raise unavailable("shutting_down", str(error)) from error
        except NoModel as error:
            raise unavailable("no_model", NO_MODEL, retry_after_s=5) from error
        return {
            "recommendation_id": f"{random.getrandbits(64):016x}",
            "model_version": found.model_version,
            "history_length": found.history_length,
            "source": found.source,
            "scoring": found.scoring,
            "degraded": ["state_store"] if found.degraded else [],
            "items": [{"item_id": item, "score": score, "source": found.source} for item, score in found.items],
        }

    async def _events(self, body: bytes) -> object:
        return await self._services.intake.take(_parse(body))


def _refuse_options(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """A parameter or deadline that would be ignored is refused instead."""
    if scope["query_string"]:
        raise Problem("invalid_request", "this route takes no query parameters; put every field into the JSON body")
    if b"x-timeout-ms" in headers:
        raise Problem("not_supported_yet", "the header X-Timeout-Ms is not supported yet; leave it out")


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem("malformed_json", f"the body is not JSON: {error}") from error


def _wish(body: object) -> Wish:
    if isinstance(body, dict) and (later := sorted(LATER_FIELDS & body.keys())):
        errors = [
            {"field": name, "code": "not_supported_yet", "detail": "leave it out", "value": shorten(body[name])}
            for name in later
        ]
        raise Problem("not_supported_yet", f"{later[0]} is not supported yet; leave it out", errors=errors)
    try:
        asked = RecommendRequest.model_validate(body)
    except ValidationError as error:
        raise invalid(error) from error
    stored_wanted = asked.history is None or asked.history_mode == "append"
    return Wish(
        user_id=asked.user_id if stored_wanted else None,
        history=asked.history or [],
        k=asked.k,
        exclude_seen=asked.exclude_seen,
        exclude_item_ids=asked.exclude_item_ids,
    )
