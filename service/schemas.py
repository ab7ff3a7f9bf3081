"""Shapes of requests and responses: what the HTTP API promises, as types.

Requests are parsed strictly: a number is not an id, "10" is not a k, and a field that does nothing is refused, because
an option that is silently ignored is a bug found in production. Responses are described here for the documentation
and written by hand, since validating our own answers costs more than computing them.
"""

import hashlib
import json
import math
import re
from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from models.eventlog import LAST_TIMESTAMP_MS
from service.errors import TABLE
from service.filters import INEXACT, MAX_INTEGER, OPERATORS, SCHEMA_REF

MAX_K = 500
MAX_HISTORY = 10_000  # far above what a model reads, below what would make one request a load
MAX_EXCLUDED = 1000
MAX_EVENTS = 1000
MAX_ID_BYTES = 256
MAX_TYPE_BYTES = 256
MAX_OBJECT_BYTES = 4096  # of properties, and of attributes
MAX_AHEAD_MS = 5 * 60 * 1000
MAX_CANDIDATES = 10_000
MAX_QUERIES = 256
MAX_ITEMS = 1000
MAX_FIELDS = 64  # of one object, whether they exist or not

_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:)(\d\d(?:\.\d+)?)(Z|[+-]\d\d:\d\d)", re.ASCII)


def _bytes_at_most(limit: int) -> AfterValidator:
    def check(text: str) -> str:
        if not text:
            raise PydanticCustomError("too_short", "must not be empty")
        if len(text) > limit or len(text.encode()) > limit:
            raise PydanticCustomError("too_long", f"must be at most {limit} bytes of UTF-8")
        return text

    return AfterValidator(check)


def _milliseconds(value: object) -> object:
    """Epoch milliseconds of an RFC 3339 time; anything else is left to the integer's own check."""
    if not isinstance(value, str):
        return value
    try:
        parts = _RFC_3339.fullmatch(value.upper())
        if not parts:
            raise ValueError
        minute, seconds, zone = parts.groups()
        leap = seconds.startswith("60")  # the second after 59, which Python knows nothing of
        moment = datetime.fromisoformat(f"{minute}59{seconds[2:]}{zone}" if leap else value.upper())
        return (math.floor(moment.timestamp()) + leap) * 1000 + moment.microsecond // 1000
    except (ValueError, OverflowError):
        raise PydanticCustomError(
            "timestamp", "must be integer epoch milliseconds or an RFC 3339 time with a zone, 2026-05-01T12:00:00Z"
        ) from None


def _written(value: object) -> bytes:
    """The JSON of an object that came in a body. Refuses what is too large, before anything in it is looked at."""
    if not isinstance(value, dict):
        raise PydanticCustomError("dict_type", "must be an object")
    try:
        written = orjson.dumps(value)
    except TypeError:  # an integer of more than 64 bits
        written = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    if len(written) > MAX_OBJECT_BYTES:
        raise PydanticCustomError("too_long", f"must be at most {MAX_OBJECT_BYTES} bytes of JSON")
    return written


def _small(attributes: object) -> object:
    _written(attributes)
    return attributes


def _exact(value: object) -> object:
    for one in value if isinstance(value, list) else (value,):
        if not isinstance(one, str | float | int):  # said once, where the union would say it for each of its types
            raise PydanticCustomError("attribute", "must be a string, a number, true or false, or a list of these")
        if isinstance(one, (int, float)) and abs(one) > MAX_INTEGER:  # beyond 64 bits the parser makes floats
            raise PydanticCustomError("inexact", f"{one} {INEXACT}")
    return value


_ID_LENGTH = Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ID_BYTES})  # no schema counts bytes
Id = Annotated[str, _bytes_at_most(MAX_ID_BYTES), _ID_LENGTH]
PathId = Annotated[str, _ID_LENGTH]  # described here and checked by its route, which refuses in the agreed form
Ids = Annotated[list[Id], Field(fail_fast=True)]  # one that is wrong is told, and not each of ten thousand
EventType = Annotated[
    str, _bytes_at_most(MAX_TYPE_BYTES), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_TYPE_BYTES})
]
_Milliseconds = Annotated[int, Field(ge=0, le=LAST_TIMESTAMP_MS)]
_Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
TimestampMs = Annotated[
    _Milliseconds,
    BeforeValidator(_milliseconds, json_schema_input_type=_Milliseconds | _Moment),
    Field(description="epoch milliseconds, or RFC 3339 with a zone; default: now, so give it or event_id if you retry"),
]
Expression = Annotated[dict[str, Any], WithJsonSchema(SCHEMA_REF)]  # what is in it is the business of filters.py
Properties = Annotated[bytes, BeforeValidator(_written, json_schema_input_type=dict[str, Any])]  # as it is stored
_BOUNDS: JsonDict = {"minimum": -MAX_INTEGER, "maximum": MAX_INTEGER}  # which _exact checks
Scalar = str | Annotated[float, Field(allow_inf_nan=False, json_schema_extra=_BOUNDS)] | bool
Attributes = Annotated[dict[str, Annotated[Scalar | list[Scalar], BeforeValidator(_exact)]], BeforeValidator(_small)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, fields: object) -> object:
        """A body of a megabyte has room for a hundred thousand fields that do not exist: no list of all of them."""
        if isinstance(fields, dict) and len(fields) > MAX_FIELDS:
            raise PydanticCustomError(
                "too_many_fields", f"has {len(fields)} fields, of {len(cls.model_fields)} there are"
            )
        return fields


class EventRequest(_Request):
    """One event: a user did something with an item."""

    user_id: Id
    item_id: Id = Field(description="an item that the model does not know is stored all the same")
    timestamp: TimestampMs | None = None
    event_id: Id | None = Field(
        None, description="key of deduplication; default: a digest of user, item, type and time"
    )
    type: EventType = Field("interaction", description="which types count as history is a setting of the service")
    value: float | None = Field(None, allow_inf_nan=False, description="rating or weight")
    recommendation_id: Id | None = Field(None, description="the ranking that caused the event")
    properties: Properties | None = Field(None, description="at most 4 KiB, logged, never interpreted")


class EventsRequest(_Request):
    """Many events; each is accepted or rejected by itself."""

    events: list[EventRequest] = Field(min_length=1, max_length=MAX_EVENTS)


class RecommendRequest(_Request):
    """For whom, or after which history, to recommend. With neither, the answer is what is popular."""

    user_id: Id | None = Field(None, description="whose stored history to use; an unknown user is no error")
    history: Ids | None = Field(None, max_length=MAX_HISTORY, description="item ids, oldest first")
    history_mode: Literal["replace", "append"] = Field(
        "replace", description="whether `history` stands in for the stored history or continues it"
    )
    k: int = Field(10, ge=1, le=MAX_K)
    exclude_seen: bool = Field(True, description="leave out items of the history")
    # A factory, because a default list is copied for every request.
    exclude_item_ids: Ids = Field(default_factory=list, max_length=MAX_EXCLUDED, json_schema_extra={"default": []})
    filter: Expression | None = Field(
        None,
        description=f"which items may come back, over attributes that items have: one of {', '.join(OPERATORS)}. Where "
        'they have genre and year: {"all": [{"in": {"genre": ["Drama", "Comedy"]}}, {"gte": {"year": 1990}}]}',
    )
    candidates: Ids | None = Field(
        None,
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="rank only these; those that the model does not know cannot be ranked",
    )
    model_version: Id | None = Field(None, description="answer with this version, which must be in memory")
    explain: bool = Field(False, description="tell for each item which events of the history moved its score most")


class RecommendBatchRequest(_Request):
    """Many queries; each has its own result or problem."""

    queries: list[RecommendRequest] = Field(min_length=1, max_length=MAX_QUERIES)


class ItemRequest(_Request):
    """What is said about an item; it stands until it is said anew, and over new versions of the model."""

    item_id: Id
    attributes: Attributes | None = Field(
        None,
        description="instead of those of the bundle, all of them; text, numbers below 2^53, booleans or lists of "
        "these. They place an item that the model does not know",
    )
    available: bool = Field(True, description="an item that is not available is in no answer")


class ItemsRequest(_Request):
    """Items with attributes and availability, all of which take effect or none."""

    items: Annotated[list[ItemRequest], Field(fail_fast=True)] = Field(
        min_length=1, max_length=MAX_ITEMS, description="each item once", json_schema_extra={"uniqueItems": True}
    )


class RejectedEvent(BaseModel):
    """An event of the request that was not stored, and what is wrong with it."""

    index: int = Field(description="position in `events`")
    code: str
    detail: str


class EventsResponse(BaseModel):
    """What became of the events; those that were neither rejected nor duplicates are new."""

    accepted: int = Field(description="events that are stored now")
    duplicates: int = Field(description="events that were stored before")
    rejected: list[RejectedEvent]
    unknown_items: int = Field(description="valid events on items that the loaded model does not know")


class Cause(BaseModel):
    """An event of the history that moved an item's score."""

    item_id: str
    effect: float = Field(description="what the score loses without this event")


class RecommendedItem(BaseModel):
    """An item of a ranking, best first."""

    item_id: str
    score: float = Field(description="compares only within one response; of a popular item, its interactions")
    source: Literal["model", "cold", "popular"] = Field(
        description="cold: the item is newer than the model and stands where its attributes or first events place it"
    )
    because: list[Cause] | None = Field(None, description="only with explain: at most three, the strongest first")


class RecommendResponse(BaseModel):
    """A ranking, the model that made it, and what it was made from."""

    recommendation_id: str
    model_version: str
    history_length: int = Field(description="ids in the history used, those unknown to the model included")
    source: Literal["model", "popular"]
    scoring: Literal["exact", "approximate"] = Field(
        description="exact: no item could rank higher, of however large a catalogue; no search is approximate today"
    )
    degraded: list[Literal["state_store"]] = Field(description="what was missing")
    items: list[RecommendedItem]


class BatchResponse(BaseModel):
    """What came of each of several queries: a ranking, or the problem that kept it from one."""

    results: list["RecommendResponse | ProblemResponse"] = Field(description="one for each query, in their order")


class ItemsResponse(BaseModel):
    """How many items have the attributes and availability now that were sent."""

    accepted: int
    unknown_items: int = Field(description="items that the loaded model does not know")


class SimilarItem(BaseModel):
    """An item that is near another in the model's item space."""

    item_id: str
    score: float = Field(description="cosine, at most 1")


class SimilarResponse(BaseModel):
    """The available items nearest to one, nearest first; fewer than k where there are no more."""

    item_id: str
    model_version: str
    items: list[SimilarItem]


class HealthResponse(BaseModel):
    """The process that answered lives, and so does its scoring worker."""

    status: Literal["ok"]


class ReadyResponse(BaseModel):
    """A tested bundle serves in the process that answered."""

    status: Literal["ready"]
    model_version: str
    events_refused: Literal["store_unfit", "store_unreachable"] | None = Field(
        description="why, while no event is even tried"
    )


_CODES = "\n".join(
    [
        "What comes with 429 or 503 may be sent again after the seconds of `Retry-After`.",
        "",
        *(f"- `{code}` ({status}): {title}" for code, (status, title) in TABLE.items()),
    ]
)


class ProblemResponse(BaseModel):
    """application/problem+json (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, WithJsonSchema({"type": "string", "enum": list(TABLE), "description": _CODES})]
    errors: list[dict[str, Any]]
    request_id: str | None


def default_event_id(user_id: str, item_id: str, type_: str, timestamp_ms: int) -> str:
    """Sixteen hex digits that depend on all four; as a JSON list no two different events run together."""
    return hashlib.sha256(orjson.dumps([user_id, item_id, type_, timestamp_ms])).hexdigest()[:16]
