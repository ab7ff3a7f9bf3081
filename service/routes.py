"""The routes of the framework: those of operators, and the documentation of the hot ones, which hot.py answers."""

import contextlib
import logging
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

from service import metrics as prometheus
from service.attributes import ItemState
from service.auth import Keys, require
from service.batcher import Abandoned, Batcher
from service.connection import StoreUnavailable
from service.engine import Ranking
from service.erasure import Erasure
from service.errors import Problem, invalid, invalid_field, shorten, unavailable
from service.failures import NO_MODEL, UNANSWERED, store_failed, unanswered
from service.intake import Intake
from service.items import LiveItems, TooManyItems
from service.keyfile import Scope
from service.limits import Limits
from service.logs import Seldom
from service.metrics import Metrics
from service.recommender import Likeness, NoModel, Recommendation, Wish
from service.requests import (
    CONNECTION,
    MAX_TIMEOUT_MS,
    headers_of,
    parse_json,
    read_body,
    refuse_body,
    refuse_deadline,
    surplus_parameter,
    timeout_s_of,
)
from service.schemas import (
    MAX_ID_BYTES,
    MAX_K,
    BatchResponse,
    EventsResponse,
    HealthResponse,
    ItemsRequest,
    ItemsResponse,
    PathId,
    ReadyResponse,
    RecommendResponse,
    SimilarResponse,
)
from service.sequences import SequenceStore
from service.slot import Slot

logger = logging.getLogger(__name__)

router = APIRouter()
_BELOW = "there is nothing at this path; see /docs"  # what these stand for is answered in hot.py, below the framework


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes call, made and closed by app.running."""

    keys: Keys
    limits: Limits
    slot: Slot
    batcher: Batcher[Wish, Recommendation]
    aside: Batcher[Wish, Recommendation]  # for wishes that are not plain
    similar: Batcher[Likeness, Ranking]
    intake: Intake
    items: LiveItems
    store: SequenceStore
    erasure: Erasure
    metrics: Metrics
    log: Seldom = field(default_factory=lambda: Seldom(logger))


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of the problems a route may answer with, and where a key lets in, that it may not so often."""
    statuses += (429,) * (401 in statuses)
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemResponse"}}}
    return {status: {"description": "a problem (RFC 9457)", "content": content} for status in statuses}


KEYED: dict[str, Any] = {"security": [{}, {"key": []}]}
BODILESS = (400, 401, 403, 408, 413, 422)  # what a keyed route that takes no body may refuse with
_K = {
    "name": "k",
    "in": "query",
    "description": "how many",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": 10},
}
_DEADLINE = {
    "name": "X-Timeout-Ms",
    "in": "header",
    "description": "milliseconds that the answer may take; then it is 504, and of a batch each query's own",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
}


def _body_of(*schemas: str, example: dict[str, Any]) -> dict[str, Any]:
    refs = [{"$ref": f"#/components/schemas/{name}"} for name in schemas]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}, **KEYED}


@router.post(
    "/recommend",
    tags=["recommend"],
    responses={200: {"model": RecommendResponse}, **problems(400, 401, 403, 404, 408, 413, 422, 503, 504)},
    openapi_extra=_body_of("RecommendRequest", example={"history": ["50", "181", "174"], "k": 5})
    | {"parameters": [_DEADLINE]},
)
async def recommend() -> None:
    """Items for a user or a history, best first. Nothing is stored."""
    raise Problem("not_found", _BELOW)


@router.post(
    "/recommend/batch",
    tags=["recommend"],
    responses={200: {"model": BatchResponse}, **problems(400, 401, 403, 408, 413, 422, 503)},
    openapi_extra=_body_of(
        "RecommendBatchRequest", example={"queries": [{"history": ["50"]}, {"user_id": "ada", "k": 5}]}
    )
    | {"parameters": [_DEADLINE]},
)
async def recommend_batch() -> None:
    """Up to 256 such queries at once, each with its own result or problem."""
    raise Problem("not_found", _BELOW)


@router.post(
    "/events",
    tags=["events"],
    responses={200: {"model": EventsResponse}, **problems(400, 401, 403, 408, 413, 422, 503)},
    openapi_extra=_body_of("EventRequest", "EventsRequest", example={"user_id": "ada", "item_id": "50"}),
)
async def events() -> None:
    """Store one event or up to 1,000. Acknowledged means stored; send again what was not."""
    raise Problem("not_found", _BELOW)


@router.put(
    "/items",
    tags=["items"],
    responses={200: {"model": ItemsResponse}, **problems(400, 401, 403, 408, 409, 413, 422, 503)},
    openapi_extra=_body_of("ItemsRequest", example={"items": [{"item_id": "50", "available": False}]}),
)
async def put_items(request: Request) -> Response:
    """Attributes and availability of up to 1,000 items: here when this answers, in other workers within a second."""
    services: Services = request.app.state.services
    with services.metrics.observed("items"):
        body = await admitted(request, "items", takes_body=True)
        try:
            asked = ItemsRequest.model_validate(parse_json(body))
        except ValidationError as error:
            raise invalid(error) from error
        states = {item.item_id: ItemState(item.attributes, item.available) for item in asked.items}
        if len(states) < len(asked.items):
            raise _twice([item.item_id for item in asked.items])
        try:
            await services.items.put(states)
        except TooManyItems as error:
            raise Problem(
                "too_many_items", f"{error}; put what is no longer needed back to what its bundle says"
            ) from error
        except StoreUnavailable as error:
            advice = "the items could not be stored; send the same items again"
            failures = services.metrics.store_write_errors
            raise store_failed(error, failures, services.log, "items were not stored: %s", advice) from error
        engine = services.slot.engine
        known = 0 if engine is None else sum(engine.bundle.known(list(states)))
        return json_response({"accepted": len(states), "unknown_items": len(states) - known})


@router.get(
    "/items/{item_id:id}/similar",
    tags=["items"],
    responses={200: {"model": SimilarResponse}, **problems(*BODILESS, 404, 503, 504)},
    openapi_extra={"parameters": [_K, _DEADLINE], **KEYED},
)
async def similar(item_id: PathId, request: Request) -> Response:
    """The available items that lie nearest in the model's item space, nearest first."""
    services: Services = request.app.state.services
    with services.metrics.observed("similar"):
        await admitted(request, "recommend", parameters={"k"}, reads_deadline=True)
        check_id("item_id", item_id)
        k = request.query_params.get("k", "10")
        if not (k.isascii() and k.isdigit() and len(k) <= 3 and 1 <= int(k) <= MAX_K):
            raise invalid_field("k", "out_of_range", f"must be 1 to {MAX_K}", shorten(k))
        timeout_s = timeout_s_of(dict(request.scope["headers"]).get(b"x-timeout-ms"))
        engine = services.slot.engine
        if engine is None:
            raise unanswered(NoModel())
        index = engine.bundle.index_of.get(item_id)
        if index is None:
            raise Problem("item_not_found", f"{engine.version} does not know the item {shorten(item_id)}")
        try:
            caller = request.scope["state"].get(CONNECTION)  # None under another server
            found = await services.similar.submit(Likeness(engine, index, int(k)), timeout_s=timeout_s, caller=caller)
        except Abandoned as error:
            raise ClientDisconnect from error
        except UNANSWERED as error:
            raise unanswered(error, timeout_s) from error
        ids = engine.bundle.ids
        items = [{"item_id": ids[row], "score": score} for row, score in zip(found.indices, found.scores, strict=True)]
        return json_response({"item_id": item_id, "model_version": engine.version, "items": items})


@router.get("/healthz", tags=["operation"], responses={200: {"model": HealthResponse}, **problems(503)})
async def healthz(request: Request) -> Response:
    """Whether the scoring worker of the process that answers lives; restart it if not, as several workers do."""
    services: Services = request.app.state.services
    if not services.metrics.healthy():
        raise unavailable("unhealthy", "the scoring worker has stopped or is stuck; restart the service")
    return json_response({"status": "ok"})


@router.get("/readyz", tags=["operation"], responses={200: {"model": ReadyResponse}, **problems(503)})
async def readyz(request: Request) -> Response:
    """Whether a tested bundle serves in the process that answers; and why events are refused while none is tried.

    A store that is away makes nobody less ready: who serves goes on without it.
    """
    services: Services = request.app.state.services
    slot = services.slot
    if slot.engine is None:
        reason = f"{slot.refused.version} was refused: {slot.refused.reason}" if slot.refused else NO_MODEL
        raise unavailable("no_model", reason, retry_after_s=5)
    refused = services.store.connection.refusing
    return json_response({"status": "ready", "model_version": slot.engine.version, "events_refused": refused})


@router.get("/metrics", tags=["operation"], response_class=PlainTextResponse, responses=problems(503))
async def metrics(request: Request) -> Response:
    """Counts and times of all workers, in Prometheus's text format."""
    services: Services = request.app.state.services
    log_fill = None
    with contextlib.suppress(StoreUnavailable):
        log_fill = await services.store.log_fill()
    try:
        text = await services.metrics.text(log_fill)
    except TimeoutError as error:
        raise unavailable("totals_unavailable", "the supervisor of the workers did not answer in time") from error
    return Response(text, media_type=prometheus.CONTENT_TYPE)


async def admitted(
    request: Request,
    scope: Scope,
    *,
    parameters: Set[str] = frozenset(),
    takes_body: bool = False,
    reads_deadline: bool = False,
) -> bytes:
    """The body of a request that may do this. parameters: those of its query.

    Raises Problem if it may not, or not now, or if it says what would be ignored: another parameter, a body that is not
    taken, a deadline that nobody reads.
    """
    services: Services = request.app.state.services
    headers = headers_of(request.scope["headers"])
    key = services.keys.recognise(headers)
    if key is not None:
        if key.limit is not None:
            request.state.more_headers = await services.limits.admit(key.id, key.limit)
        require(key, scope)
    for name, value in request.query_params.multi_items():
        if name not in parameters:
            raise surplus_parameter(name, value)
        given = request.query_params.getlist(name)
        if len(given) > 1:
            raise invalid_field(name, "repeated", "stands twice; give it once", shorten(given))
    if not reads_deadline:
        refuse_deadline(headers)
    body = await read_body(headers, request.receive)
    if not takes_body:
        refuse_body(body)
    return body


def check_id(field: str, found: str) -> None:
    """Raises Problem for what is no id, in a path: in a body the schema says so."""
    size = len(found.encode())
    if not size:
        raise invalid_field(field, "too_short", "must not be empty", shorten(found))
    if size > MAX_ID_BYTES:
        raise invalid_field(field, "too_long", f"must be at most {MAX_ID_BYTES} bytes of UTF-8", f"{size} bytes")


def json_response(body: object) -> Response:
    """The answer that says this; of a dataclass, its fields."""
    return Response(orjson.dumps(body), media_type="application/json")


def _twice(ids: Sequence[str]) -> Problem:
    """What a list of items gets in which at least one stands twice; the first that does is told."""
    first = {item_id: number for number, item_id in reversed([*enumerate(ids)])}
    number = next(number for number, item_id in enumerate(ids) if first[item_id] < number)
    detail = "stands twice; say everything about an item once"
    return invalid_field(f"items.{number}.item_id", "duplicate_item", detail, shorten(ids[number]))
