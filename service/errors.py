"""Problems the service answers with: one table of codes, statuses and titles, and how they look on the wire.

Everything that can go wrong in a request becomes an RFC 9457 `application/problem+json` here, so that no other module
knows an HTTP status of an error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

# code -> (status, title)
TABLE: dict[str, tuple[int, str]] = {
    "malformed_http": (400, "The request is not HTTP"),
    "malformed_json": (400, "The body is not JSON"),
    "duplicate_key": (400, "A key of the body stands twice"),
    "too_deep": (400, "The body is nested too deeply"),
    "unauthorized": (401, "A valid key is needed"),
    "forbidden": (403, "The key lacks a scope"),
    "cross_origin": (403, "The request comes from a page of another site"),
    "foreign_host": (403, "The request is addressed to another host"),
    "not_found": (404, "There is no such resource"),
    "item_not_found": (404, "The model does not know the item"),
    "version_not_found": (404, "There is no such version"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "too_slow": (408, "The request did not arrive in time"),
    "conflict": (409, "The state of the service does not allow this"),
    "too_many_items": (409, "No more items can be kept"),
    "version_damaged": (409, "The version must not serve"),
    "body_too_large": (413, "The body is too large"),
    "invalid_request": (422, "The request is not valid"),
    "no_valid_event": (422, "No event could be accepted"),
    "rate_limited": (429, "The key has made all requests it may for now"),
    "head_too_large": (431, "The head of the request is too large"),
    "internal_error": (500, "The service made a mistake"),
    "artifacts_unavailable": (503, "The artifacts folder cannot be changed"),
    "no_model": (503, "No model is loaded"),
    "overloaded": (503, "The service is overloaded"),
    "shutting_down": (503, "The service is shutting down"),
    "deadline_exceeded": (504, "There was no answer in the time the request allowed"),
    "unhealthy": (503, "The scoring worker does not answer"),
    "store_unavailable": (503, "The sequence store cannot be used now"),
    "totals_unavailable": (503, "The counts of all workers could not be read"),
}
_PLAINER = {
    "missing": "is required",
    "extra_forbidden": "there is no such field; leave it out",
    "dict_type": "must be an object",
    "model_type": "must be an object",
}
_SHOWN = 80  # characters of a refused value that an answer repeats
_MAX_ERRORS = 20  # listed; one wrong list of 1,000 entries should not become an answer of a megabyte


class Problem(Exception):  # noqa: N818 - named by its RFC
    """A request that cannot be answered as asked; `code` is one of TABLE, `detail` a sentence for the caller."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        own_status, own_title = TABLE[code]
        self.status = status or own_status
        self.title = own_title


def unavailable(code: str, detail: str, *, retry_after_s: int = 1) -> Problem:
    """A 503 that tells the client when to come back."""
    return Problem(code, detail, headers={"Retry-After": str(retry_after_s)})


def invalid(error: ValidationError) -> Problem:
    """The 422 for a body that does not fit its schema: every field, its value (shortened) and what is wrong."""
    found = field_errors(error)
    surplus = error.error_count() - len(found)
    detail = f"{error.error_count()} field(s) are not valid: {describe(found[0])}"
    if surplus > 0:
        detail += f"; {surplus} more are not listed"
    return Problem("invalid_request", detail, errors=found)


def invalid_field(field: str, code: str, detail: str, value: str | None) -> Problem:
    """The 422 for one field, header or parameter; value: as `shorten` gives it, None where it is not to be shown."""
    entry = {"field": field[:_SHOWN], "code": code, "detail": detail, "value": value}
    return Problem("invalid_request", describe(entry), errors=[entry])


def field_errors(error: ValidationError) -> list[dict[str, Any]]:
    """`{"field", "code", "detail", "value"}` of the first errors, in the order of the schema."""
    return [
        {
            "field": ".".join(map(str, entry["loc"]))[:_SHOWN],  # the name of a surplus field is the client's own
            "code": entry["type"],
            "detail": _PLAINER.get(entry["type"], entry["msg"]),
            "value": None if entry["type"] == "missing" else shorten(entry["input"]),
        }
        for entry in error.errors(include_url=False, include_context=False)[:_MAX_ERRORS]
    ]


def describe(entry: Mapping[str, Any]) -> str:
    """One field error as a sentence's part."""
    field = entry["field"] or "the value"
    return f"{field} {entry['detail']}" if entry["value"] is None else f"{field} is {entry['value']}: {entry['detail']}"


def shorten(value: object) -> str:
    """A value as JSON, cut to what a reader needs to recognise it."""
    if isinstance(value, str | bytes | list | dict) and len(value) > 10 * _SHOWN:
        return f"{type(value).__name__} of length {len(value)}"
    try:
        text = orjson.dumps(value, default=str).decode()
    except TypeError:  # nested too deeply to be written
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def problem_fields(problem: Problem, request_id: str | None) -> dict[str, Any]:
    """A problem as an object."""
    return {
        "type": f"urn:recserve:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "errors": problem.errors,
        "request_id": request_id,
    }


def problem_body(problem: Problem, request_id: str | None) -> bytes:
    """The JSON of a problem."""
    return orjson.dumps(problem_fields(problem, request_id))


def problem_response(problem: Problem, request_id: str | None) -> Response:
    """A problem as a response."""
    return Response(
        problem_body(problem, request_id),
        status_code=problem.status,
        headers=problem.headers,
        media_type="application/problem+json",
    )


def install(app: FastAPI) -> None:
    """Answer problems, and what the framework itself refuses, as problem+json; bugs are requests.py's."""

    async def on_problem(request: Request, error: Exception) -> Response:
        problem = error if isinstance(error, Problem) else Problem("internal_error", "an unknown problem occurred")
        return problem_response(problem, getattr(request.state, "request_id", None))

    async def on_http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        if status == 404:
            problem = Problem("not_found", f"there is nothing at {shorten(request.url.path)}; see /docs")
        elif status == 405:
            if headers.get("Allow") == "GET":
                headers["Allow"] = "GET, HEAD"  # see RequestScope
            allowed = headers.get("Allow", "another method")
            problem = Problem(
                "method_not_allowed", f"{request.method} is not allowed here, {allowed} is", headers=headers
            )
        else:
            code = "invalid_request" if status < 500 else "internal_error"
            detail = str(getattr(error, "detail", "the request was refused"))
            problem = Problem(code, detail, headers=headers, status=status)
        return problem_response(problem, getattr(request.state, "request_id", None))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
