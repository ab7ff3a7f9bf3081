"""Requests that must be refused, each with the status and the code of its refusal.

They are bytes as they go over the wire, because half of what can be wrong with a request no client library would send.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from reliability.wire import request
from service.protocol import MAX_HEAD_BYTES
from service.requests import MAX_BODY_BYTES, MAX_DEPTH

ROUTES = {"recommend": "/recommend", "batch": "/recommend/batch", "events": "/events", "items": "/items"}
_EMPTY = b"{}"


@dataclass(frozen=True, slots=True)
class Poison:
    """A request and how it is refused. `wire`: all of its bytes, where the other fields cannot say it."""

    name: str
    status: int
    code: str
    path: str = "/recommend"
    body: bytes = _EMPTY
    method: str = "POST"
    headers: tuple[str, ...] = ()
    wire: bytes | None = None

    def sent(self) -> bytes:
        """What goes over the wire."""
        if self.wire is not None:
            return self.wire
        return request(self.method, self.path, self.body, *self.headers)


NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "a space": b" ",
    "half an object": b"{",
    "the other half": b"}",
    "half a word": b"nul",
    "single quotes": b"{'user_id': 'ada'}",
    "a comma too many": b'{"user_id": "ada",}',
    "two objects": b'{"user_id": "ada"} {}',
    "a comment": b'{"user_id": "ada" /* who */}',
    "NaN": b'{"value": NaN}',
    "Infinity": b'{"value": Infinity}',
    "minus Infinity": b'{"value": -Infinity}',
    "1e400": b'{"value": 1e400}',
    "minus 1e400": b'{"value": -1e400}',
    "a number of 400 digits": b'{"value": ' + b"9" * 400 + b"}",
    "a leading zero": b'{"value": 01}',
    "a plus": b'{"value": +1}',
    "a number without an end": b'{"value": 1.}',
    "hexadecimal": b'{"value": 0x10}',
    "latin-1": b'{"user_id": "\xff"}',
    "an overlong slash": b'{"user_id": "\xc0\xaf"}',
    "a surrogate in bytes": b'{"user_id": "\xed\xa0\x80"}',
    "half a character": b'{"user_id": "\xf0\x9f\x98"}',
    "beyond Unicode": b'{"user_id": "\xf4\x90\x80\x80"}',
    "a lone high surrogate": b'{"user_id": "\\ud800"}',
    "surrogates the wrong way round": b'{"user_id": "\\udc00\\ud800"}',
    "a lone surrogate as a key": b'{"\\ud800": 1}',
    "NUL in a text": b'{"user_id": "a\x00"}',
    "a newline in a text": b'{"user_id": "a\n"}',
    "an unknown escape": b'{"user_id": "\\x"}',
    "a byte order mark": b'\xef\xbb\xbf{"user_id": "ada"}',
    "UTF-16": '{"user_id": "ada"}'.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00",
    "a form": b"user_id=ada&k=3",
    "XML": b"<user>ada</user>",
}

TWO_MEANINGS: dict[str, bytes] = {
    "a key twice": b'{"user_id": "ada", "user_id": "bob"}',
    "a key twice, once escaped": b'{"user_id": "ada", "\\u0075ser_id": "bob"}',
    "a key twice deep inside": b'{"user_id": "ada", "properties": {"a": [{"b": 1, "b": 2}]}}',
    "a key twice behind escaped colons": b'{"item_id": "\\u003a\\u003A", "user_id": "ada", "user_id": "bob"}',
    "a key twice among ten thousand": b"{" + b",".join(b'"f%d": 1' % n for n in range(10_000)) + b', "f7": 2}',
}

DEEP: dict[str, bytes] = {
    "one list too deep": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "one object too deep": b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
    "lists too deep in a field": b'{"history": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "a hundred thousand lists": b"[" * 100_000,
    "a hundred thousand objects": b'{"a":' * 100_000,
}

NOT_WANTED: dict[str, bytes] = {  # JSON, but no body of any route
    "null": b"null",
    "true": b"true",
    "a number": b"1",
    "a text": b'"ada"',
    "a list": b"[]",
    "a list of objects": b"[{}]",
    "no name": b'{"": ""}',
    "a prototype": b'{"__proto__": {}}',
    "an operator for an id": b'{"user_id": {"$gt": ""}}',
    "a number for an id": b'{"user_id": 7, "item_id": 8}',
    "a large number for an id": b'{"user_id": 99999999999999999999999999}',
    "true for an id": b'{"user_id": true}',
    "half a megabyte for an id": b'{"user_id": "' + b"x" * 500_000 + b'"}',
    "ten thousand fields": b"{" + b",".join(b'"f%d": 1' % n for n in range(10_000)) + b"}",
    "ninety thousand fields": b"{" + b",".join(b'"%x": 1' % n for n in range(90_000)) + b"}",
    "half a megabyte for a name": b'{"' + b"k" * 500_000 + b'": 1}',
}

WRONG: dict[str, list[tuple[str, str, bytes]]] = {
    "/recommend": [
        ("k is 0", "invalid_request", b'{"k": 0}'),
        ("k is 501", "invalid_request", b'{"k": 501}'),
        ("k is a text", "invalid_request", b'{"k": "10"}'),
        ("k is a fraction", "invalid_request", b'{"k": 1.5}'),
        ("k is true", "invalid_request", b'{"k": true}'),
        ("k is beyond 64 bits", "invalid_request", b'{"k": 18446744073709551616}'),
        ("a history of numbers", "invalid_request", b'{"history": [1, 2]}'),
        ("a history of one text", "invalid_request", b'{"history": "i1"}'),
        ("a history with an empty id", "invalid_request", b'{"history": [""]}'),
        ("200,000 numbers as a history", "invalid_request", b'{"history": [' + b",".join([b"1"] * 200_000) + b"]}"),
        ("an unknown history_mode", "invalid_request", b'{"history_mode": "prepend"}'),
        ("exclude_seen is 1", "invalid_request", b'{"exclude_seen": 1}'),
        ("no candidates", "invalid_request", b'{"candidates": []}'),
        ("a filter of nothing", "invalid_request", b'{"filter": {}}'),
        ("a filter by code", "invalid_request", b'{"filter": {"$where": "sleep(1)"}}'),
        ("a filter of 17 levels", "invalid_request", b'{"filter": ' + b'{"not":' * 17 + _EMPTY + b"}" * 18),
        ("a filter of an unknown attribute", "invalid_request", b'{"filter": {"eq": {"nothing": 1}}}'),
        ("a version that is not there", "version_not_found", b'{"model_version": "../../etc/passwd"}'),
        ("an unknown field", "invalid_request", b'{"user": "ada"}'),
    ],
    "/recommend/batch": [
        ("no queries", "invalid_request", b'{"queries": []}'),
        ("257 queries", "invalid_request", b'{"queries": [' + b",".join([_EMPTY] * 257) + b"]}"),
        ("queries that are an object", "invalid_request", b'{"queries": {"length": 3}}'),
        ("a field beside queries", "invalid_request", b'{"queries": [{}], "k": 3}'),
    ],
    "/events": [
        ("no user", "no_valid_event", b'{"item_id": "i1"}'),
        ("an empty user", "no_valid_event", b'{"user_id": "", "item_id": "i1"}'),
        ("an id of 260 bytes", "no_valid_event", b'{"user_id": "u", "item_id": "' + b"\xf0\x9f\x98\x80" * 65 + b'"}'),
        ("a time without a zone", "no_valid_event", b'{"user_id":"u","item_id":"i","timestamp":"2026-05-01T12:00:00"}'),
        ("a time before 1970", "no_valid_event", b'{"user_id": "u", "item_id": "i", "timestamp": -1}'),
        ("a time far ahead", "no_valid_event", b'{"user_id":"u","item_id":"i","timestamp":"2999-01-01T00:00:00Z"}'),
        ("a time that is a fraction", "no_valid_event", b'{"user_id": "u", "item_id": "i", "timestamp": 1.5}'),
        ("a value that is a text", "no_valid_event", b'{"user_id": "u", "item_id": "i", "value": "5"}'),
        ("properties that are a list", "no_valid_event", b'{"user_id": "u", "item_id": "i", "properties": []}'),
        (
            "properties of 5 KB",
            "no_valid_event",
            b'{"user_id": "u", "item_id": "i", "properties": {"a": "' + b"x" * 5000 + b'"}}',
        ),
        ("no events", "invalid_request", b'{"events": []}'),
        ("events that are an object", "invalid_request", b'{"events": {"length": 3}}'),
        ("1,001 events", "invalid_request", b'{"events": [' + b",".join([_EMPTY] * 1001) + b"]}"),
        ("a field beside events", "invalid_request", b'{"events": [{}], "user_id": "u"}'),
        ("events in events", "no_valid_event", b'{"events": [{"events": []}]}'),
    ],
    "/items": [
        ("no items", "invalid_request", b'{"items": []}'),
        ("1,001 items", "invalid_request", b'{"items": [' + b",".join([b'{"item_id": "i"}'] * 1001) + b"]}"),
        ("an item twice", "invalid_request", b'{"items": [{"item_id": "i1"}, {"item_id": "i1"}]}'),
        ("availability that is 1", "invalid_request", b'{"items": [{"item_id": "i1", "available": 1}]}'),
        (
            "300,000 lists for attributes",
            "invalid_request",
            b'{"items": ['
            + b",".join([b'{"item_id": "i1", "attributes": {"a": [' + b",".join([b"[]"] * 300) + b"]}}"] * 1000)
            + b"]}",
        ),
        ("an attribute in an attribute", "invalid_request", b'{"items": [{"item_id": "i1", "attributes": {"a": {}}}]}'),
    ],
}

_TOO_LARGE = b" " * (MAX_BODY_BYTES + 1)
_LONG = "x" * (MAX_HEAD_BYTES + 1)

AROUND: list[Poison] = [
    Poison("a body of a byte too much", 413, "body_too_large", body=_TOO_LARGE),
    Poison("items of a byte too much", 413, "body_too_large", "/items", _TOO_LARGE, "PUT"),
    Poison("a body that only says it is large", 413, "body_too_large", headers=(f"Content-Length: {2**62}",)),
    Poison(
        "chunks of a byte too much",
        413,
        "body_too_large",
        wire=b"POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(_TOO_LARGE), _TOO_LARGE),
    ),
    Poison("a query on a route of bodies", 422, "invalid_request", "/recommend?k=5"),
    Poison("a deadline of 0", 422, "invalid_request", headers=("X-Timeout-Ms: 0",)),
    Poison("a deadline of a minute and more", 422, "invalid_request", headers=("X-Timeout-Ms: 60001",)),
    Poison("a deadline in words", 422, "invalid_request", headers=("X-Timeout-Ms: soon",)),
    Poison("a deadline in Arabic digits", 422, "invalid_request", headers=("X-Timeout-Ms: \xd9\xa3",)),
    Poison("a deadline of an event", 422, "invalid_request", "/events", headers=("X-Timeout-Ms: 100",)),
    Poison("two hosts", 422, "invalid_request", headers=("Host: localhost", "Host: localhost")),
    Poison("two keys", 422, "invalid_request", headers=("Authorization: Bearer a", "Authorization: Bearer b")),
    Poison("a page of another site", 403, "cross_origin", headers=("Origin: https://evil.example",)),
    Poison("a page of nowhere", 403, "cross_origin", headers=("Origin: null",)),
    Poison("another host", 403, "foreign_host", headers=("Host: evil.example",)),
    Poison("a method that is not there", 405, "method_not_allowed", method="PATCH"),
    Poison("reading what is written", 405, "method_not_allowed", "/events", method="GET"),
    Poison("posting items", 405, "method_not_allowed", "/items"),
    Poison("a path that is not there", 404, "not_found", "/admin"),
    Poison("a path with a slash too many", 404, "not_found", "/recommend/"),
    Poison("a path with a newline", 404, "not_found", "/recommend%0A"),
    Poison("a path that is not UTF-8", 422, "invalid_request", "/%ff%fe"),
    Poison("a user that is not UTF-8", 422, "invalid_request", "/users/%ff/history", method="GET"),
    Poison("a user that is a surrogate", 422, "invalid_request", "/users/%ed%a0%80/history", method="GET"),
    Poison("erasing a user that is not UTF-8", 422, "invalid_request", "/users/%fe", method="DELETE"),
    Poison("an item that is not UTF-8", 422, "invalid_request", "/items/%c0%af/similar", method="GET"),
    Poison("a version that is not UTF-8", 422, "invalid_request", "/models/%ff/promote"),
    Poison("a user of bytes as they are", 400, "malformed_http", "/users/\xff/history", method="GET"),
    Poison("erasing a history", 405, "method_not_allowed", "/users/ada/history", method="DELETE"),
    Poison("erasing a user with a slash", 404, "not_found", "/users/ada/bob", method="DELETE"),
    Poison("erasing a user and more", 422, "invalid_request", "/users/ada?and=bob", method="DELETE"),
    Poison("erasing a user and a body", 422, "invalid_request", "/users/ada", b'{"and": "bob"}', "DELETE"),
    Poison("a history since", 422, "invalid_request", "/users/ada/history?since=1", method="GET"),
    Poison("a body for a history", 422, "invalid_request", "/users/ada/history", b"[1]", "GET"),
    Poison("half a body for a history", 400, "malformed_json", "/users/ada/history", b"{", "GET"),
    Poison("a body too large for a history", 413, "body_too_large", "/users/ada/history", _TOO_LARGE, "GET"),
    Poison("a path up and out", 404, "not_found", "/../../etc/passwd", method="GET"),
    Poison("an item that is not there", 404, "item_not_found", "/items/%00/similar", method="GET"),
    Poison("similar items, 501", 422, "invalid_request", "/items/i1/similar?k=501", method="GET"),
    Poison("similar items, in Arabic digits", 422, "invalid_request", "/items/i1/similar?k=%D9%A3", method="GET"),
    Poison("similar items with a field", 422, "invalid_request", "/items/i1/similar?n=3", method="GET"),
    Poison("similar items twice", 422, "invalid_request", "/items/i1/similar?k=3&k=5", method="GET"),
    Poison("similar items with a body", 422, "invalid_request", "/items/i1/similar", b"1", "GET"),
    Poison("items with a query", 422, "invalid_request", "/items?k=3", b'{"items": [{"item_id": "i1"}]}', "PUT"),
    Poison("models with a query", 422, "invalid_request", "/models?version=v1", method="GET"),
    Poison("a rollback with a query", 422, "invalid_request", "/models/rollback?to=v1"),
    Poison("a version up and out", 404, "version_not_found", "/models/..%5c..%5cetc/promote"),
    Poison("a version that is not there", 404, "version_not_found", "/models/v404/promote"),
    Poison("a body for a promotion", 422, "invalid_request", "/models/v404/promote", b'{"version": "v1"}'),
    Poison("half a body for a promotion", 400, "malformed_json", "/models/v404/promote", b'{"version"'),
    Poison("a body for a rollback", 422, "invalid_request", "/models/rollback", b"[1]"),
    Poison("a rollback to nowhere", 409, "conflict", "/models/rollback"),
    Poison("a header too long", 431, "head_too_large", headers=(f"X-Long: {_LONG}",)),
    Poison("headers too many", 431, "head_too_large", headers=tuple(f"X-{n}: {'y' * 90}" for n in range(700))),
    Poison("a path too long", 431, "head_too_large", f"/{_LONG}"),
]

_HOST = b"Host: localhost\r\n"
NOT_HTTP: dict[str, bytes] = {
    "an empty line and garbage": b"\r\n\r\n\x00\x01\x02\r\n\r\n",
    "a greeting of TLS": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(range(64)),
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2 without leave": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method of lower case": b"post /recommend HTTP/1.1\r\n" + _HOST + b"\r\n",
    "a version that is none": b"POST /recommend HTTP/9.7\r\n" + _HOST + b"\r\n",
    "a version of one digit": b"POST /recommend HTTP/1\r\n" + _HOST + b"\r\n",
    "a header without a colon": b"POST /recommend HTTP/1.1\r\nHost localhost\r\n\r\n",
    "a space before a colon": b"POST /recommend HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "NUL in a header": b"POST /recommend HTTP/1.1\r\nHost: local\x00host\r\n\r\n",
    "a length that is none": b"POST /recommend HTTP/1.1\r\n" + _HOST + b"Content-Length: two\r\n\r\n{}",
    "a length below 0": b"POST /recommend HTTP/1.1\r\n" + _HOST + b"Content-Length: -2\r\n\r\n{}",
    "a length beyond 64 bits": b"POST /recommend HTTP/1.1\r\n"
    + _HOST
    + b"Content-Length: 18446744073709551616\r\n\r\n{}",
    "two lengths": b"POST /recommend HTTP/1.1\r\n" + _HOST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": b"POST /recommend HTTP/1.1\r\n"
    + _HOST
    + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a chunk's length that is none": b"POST /recommend HTTP/1.1\r\n"
    + _HOST
    + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
}


def corpus() -> Iterator[Poison]:
    """All of them."""
    for route, path in ROUTES.items():
        method = "PUT" if path == "/items" else "POST"
        for name, body in NOT_JSON.items():
            yield Poison(f"{route}: {name}", 400, "malformed_json", path, body, method)
        for name, body in TWO_MEANINGS.items():
            yield Poison(f"{route}: {name}", 400, "duplicate_key", path, body, method)
        for name, body in DEEP.items():
            yield Poison(f"{route}: {name}", 400, "too_deep", path, body, method)
        for name, body in NOT_WANTED.items():
            an_event = path == "/events" and isinstance(orjson.loads(body), dict)
            yield Poison(
                f"{route}: {name}", 422, "no_valid_event" if an_event else "invalid_request", path, body, method
            )
        for name, code, body in WRONG[path]:
            yield Poison(f"{route}: {name}", 404 if code == "version_not_found" else 422, code, path, body, method)
    yield from AROUND
    for name, wire in NOT_HTTP.items():
        yield Poison(name, 400, "malformed_http", wire=wire)
