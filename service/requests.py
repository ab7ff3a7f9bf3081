"""What every request passes through: it gets an id, and a bug in it becomes an answer.

Pure ASGI: the framework's own kind of middleware costs two thirds of a small endpoint's throughput. The framework's
routes read their bodies here too, because reading it is where a request can be too large.
"""

import gc
import json
import logging
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import orjson
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.errors import Problem, invalid_field, problem_response, shorten

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 20
MAX_TIMEOUT_MS = 60_000
MAX_DEPTH = 254  # of lists and objects in each other: as deep as can be written again, for the store or the log
_SMALL_BYTES = 65_536
REQUEST_ID = b"x-request-id"
CONNECTION = "connection"  # where the state of a scope names the connection, whose client may be gone
_DECIDING = (b"authorization", b"host", b"origin", b"x-timeout-ms")
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The client's id of a request, if that is a short plain word, else a new one."""
    given = headers.get(REQUEST_ID, b"")
    # Not a secret: the system's own randomness costs a system call.
    return given.decode() if _SANE_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


def timeout_s_of(given: bytes | None) -> float | None:
    """What the header X-Timeout-Ms allows, in seconds; None without it. Raises Problem if it is no such number."""
    if given is None:
        return None
    if not given.isdigit() or len(given) > 5 or not 1 <= int(given) <= MAX_TIMEOUT_MS:
        found = shorten(given.decode("latin-1"))
        raise invalid_field("X-Timeout-Ms", "out_of_range", f"must be 1 to {MAX_TIMEOUT_MS} milliseconds", found)
    return int(given) / 1000


def refuse_deadline(headers: Mapping[bytes, bytes]) -> None:
    """Raises Problem for X-Timeout-Ms, on a route where it would be ignored."""
    given = headers.get(b"x-timeout-ms")
    if given is not None:
        detail = "this route has no deadline; leave it out"
        raise invalid_field("X-Timeout-Ms", "extra_forbidden", detail, shorten(given.decode("latin-1")))


def surplus_parameter(name: str, value: str) -> Problem:
    """What a request gets for a parameter in its URL that would be ignored."""
    return invalid_field(
        name, "extra_forbidden", "this route has no such query parameter; leave it out", shorten(value)
    )


def headers_of(fields: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name in lower case, the last of several. Raises Problem as `refuse_repeated`."""
    headers = dict(fields)
    refuse_repeated(headers, fields)
    return headers


def refuse_repeated(headers: Mapping[bytes, bytes], fields: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises Problem if one of the fields that decide something is repeated; headers: what dict makes of them.

    A proxy that looks at another of the two than we do could be told one thing and we another.
    """
    if len(headers) < len(fields):
        names = [name for name, _ in fields]
        for name in _DECIDING:
            if names.count(name) > 1:
                raise invalid_field(name.decode(), "repeated", "is repeated; send it once", None)


class RequestScope:
    """Gives a request its id and the path to find its route by, and answers 500 for an exception.

    HEAD is answered as GET is, everywhere; the server leaves the body out.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(dict(scope["headers"]))
        scope.setdefault("state", {})["request_id"] = request_id
        logs.request_id.set(request_id)  # the server runs each request in a context of its own
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                more = scope["state"].get("more_headers", {})
                added = [(name.lower().encode(), value.encode()) for name, value in more.items()]
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID, request_id.encode()), *added]
            await send(message)

        try:
            scope["path"] = _path_of(scope["raw_path"])
        except Problem as problem:
            await problem_response(problem, request_id)(scope, receive, send_with_id)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.debug("the client left before its request was complete")
        except Exception:
            route = getattr(scope.get("route"), "path", "a path")  # its pattern, for the path may name a user
            logger.exception("a bug answered %s %s", scope["method"], route)
            if started:
                raise  # half an answer is out; only closing the connection tells the client
            await problem_response(bug(), request_id)(scope, receive, send_with_id)


def bug() -> Problem:
    """What a request gets whose answer failed by a mistake of ours."""
    return Problem("internal_error", "the service made a mistake; its log has more under this request_id")


def check_declared(headers: Mapping[bytes, bytes]) -> None:
    """Raises Problem if a request says that its body is larger than MAX_BODY_BYTES."""
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:20]) > MAX_BODY_BYTES:
        raise too_large(f"{declared[:20].decode()} bytes")


async def read_body(headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
    """The whole body. Raises Problem if it is, or says it is, larger than MAX_BODY_BYTES; the rest is not read then.

    Raises ClientDisconnect if the client leaves before it is complete.
    """
    check_declared(headers)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise too_large("longer")
        if not message.get("more_body", False):
            return bytes(body)


def refuse_body(body: bytes) -> None:
    """Raises Problem if a body says anything, on a route where that would be ignored."""
    if body and (found := parse_json(body)) != {}:
        raise invalid_field("body", "extra_forbidden", "this route takes none; leave it out", shorten(found))


def parse_json(body: bytes) -> object:
    """What the bytes of a body say. Raises Problem if they are not JSON, or JSON that two readers may read differently.

    A repeated key is dropped without a word by every quick parser, so that a proxy and this service could take another
    of the two. A parser that sees pairs takes ten times as long, and this look adds 0.3 microseconds to the usual body:
    every key has a colon, and what was read has, written again, as many as the body, unless something was dropped.
    """
    try:
        found = orjson.loads(body) if len(body) <= _SMALL_BYTES else _read_large(body)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("depth limit"):
            raise _too_deep() from error
        raise Problem("malformed_json", f"the body is not JSON: {error}") from error
    colons = body.count(b":")
    if type(found) is dict and len(found) == colons and body.count(b"[") < MAX_DEPTH:
        return found  # the usual body has no object inside, and no colon in a text
    try:
        written = orjson.dumps(found)
    except TypeError as error:  # the writer's limit is MAX_DEPTH, the parser's four times that
        raise _too_deep() from error
    if b"\\u003" in body:  # a colon may be written as an escape
        escapes = body.replace(b"\\\\", b"..")
        colons += escapes.count(b"\\u003a") + escapes.count(b"\\u003A")
    if written.count(b":") != colons:
        raise _repeated(body)
    return found


def _read_large(body: bytes) -> object:
    """Like orjson.loads, without collections of garbage amid a large body: of many small lists they are most of it."""
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        gc.enable()


def _repeated(body: bytes) -> Problem:
    """Names the first key of JSON that is repeated in its object."""

    def look(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _RepeatedKey(name)
            seen.add(name)

    try:
        json.loads(body, object_pairs_hook=look)
    except _RepeatedKey as error:
        field = error.name[:80]
        entry = {"field": field, "code": "duplicate_key", "detail": "stands twice in one object", "value": None}
        return Problem("duplicate_key", f"{shorten(field)} stands twice in one object; send it once", errors=[entry])
    return bug()


class _RepeatedKey(Exception):  # noqa: N818 - found, not failed
    def __init__(self, name: str) -> None:
        self.name = name


def _too_deep() -> Problem:
    return Problem("too_deep", f"the body is nested more than {MAX_DEPTH} deep; send it flatter")


def too_large(found: str) -> Problem:
    """What a request gets whose body is so large; found: how large it is."""
    return Problem("body_too_large", f"the body is {found}, at most {MAX_BODY_BYTES} bytes are read; send less at once")


def _path_of(raw: bytes) -> str:
    """The path of a request, as sent, decoded; but within a segment a slash stays %2F, and a percent sign %25.

    The server decodes it so that an id with a slash could pass for another route, and ids that are not UTF-8 all pass
    for one. Raises Problem if it is not UTF-8.
    """
    try:
        segments = [unquote_to_bytes(segment).decode() for segment in raw.split(b"/")]
    except UnicodeDecodeError as error:
        sent = shorten(raw.decode("latin-1"))
        raise invalid_field("path", "not_utf_8", "must be UTF-8, percent-encoded", sent) from error
    return "/".join([segment.replace("%", "%25").replace("/", "%2F") for segment in segments])


class _Id(Convertor[str]):
    """A segment of a path as `_path_of` leaves it, `{name:id}`: the text that was meant."""

    regex = "[^/]*"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        return value.replace("%", "%25").replace("/", "%2F")


register_url_convertor("id", _Id())
