"""What is stored of one user: shown, and erased. For keys with the scope `admin`: it is the raw history of a person."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.connection import StoreUnavailable
from service.failures import store_failed
from service.routes import BODILESS, KEYED, Services, admitted, check_id, json_response, problems
from service.schemas import PathId

router = APIRouter(prefix="/users", tags=["users"])


class StoredEvent(BaseModel):
    """One event of a user's history."""

    event_id: str
    item_id: str
    type: str
    timestamp: int = Field(description="epoch milliseconds")
    value: float | None


class HistoryResponse(BaseModel):
    """What recommendations for a user are made from."""

    user_id: str
    events: list[StoredEvent] = Field(description="the newest that are kept, oldest first")


class Removed(BaseModel):
    """How much an erasure took out of the store."""

    history_events: int
    event_ids: int = Field(description="ids that were remembered so that repeated events count once")
    logged_events: int = Field(description="in the store; the archive drops its own at its next compaction")


class ErasedResponse(BaseModel):
    """Nothing of the user from before is in the store any more."""

    user_id: str
    removed: Removed


@router.get(
    "/{user_id:id}/history",
    responses={200: {"model": HistoryResponse}, **problems(*BODILESS, 503)},
    openapi_extra=KEYED,
)
async def history(user_id: PathId, request: Request) -> Response:
    """The events that recommendations are made from, oldest first; none for a user who has none."""
    services: Services = request.app.state.services
    with services.metrics.observed("history"):
        await admitted(request, "admin")
        check_id("user_id", user_id)
        try:
            events = await services.store.history(user_id)
        except StoreUnavailable as error:
            advice = "the history could not be read; ask again"
            failures = services.metrics.store_read_errors
            raise store_failed(error, failures, services.log, "a history was not read: %s", advice) from error
        stored = [
            {
                "event_id": event.event_id,
                "item_id": event.item_id,
                "type": event.type,
                "timestamp": event.timestamp_ms,
                "value": event.value,
            }
            for event in events
        ]
        return json_response({"user_id": user_id, "events": stored})


@router.delete(
    "/{user_id:id}",
    responses={200: {"model": ErasedResponse}, **problems(*BODILESS, 503)},
    openapi_extra=KEYED,
)
async def erase(user_id: PathId, request: Request) -> Response:
    """Remove all that was stored of a user up to now; the archive and later trainings leave it out too.

    Answers the same when there was nothing. After any other answer ask again. What the user does later counts anew.
    """
    services: Services = request.app.state.services
    with services.metrics.observed("erase"):
        await admitted(request, "admin")
        check_id("user_id", user_id)
        try:
            erased = await services.erasure.erase(user_id)
        except StoreUnavailable as error:
            advice = "the user could not be erased, or not from everywhere; ask for the same again"
            failures = services.metrics.store_write_errors
            raise store_failed(error, failures, services.log, "a user was not erased: %s", advice) from error
        return json_response({"user_id": user_id, "removed": erased})
