"""Valid requests with something wrong done to them: to a value of the body, or to any bytes of the whole."""

import random
from collections.abc import Callable
from typing import Any

import orjson

from reliability.wire import request

_EVENT = {
    "user_id": "ada",
    "item_id": "item-3",
    "event_id": "e1",
    "type": "view",
    "value": 1.5,
    "properties": {"a": [1]},
}
_VALID: list[tuple[str, str, Any]] = [
    ("POST", "/recommend", {"user_id": "ada", "k": 5}),
    ("POST", "/recommend", {"history": ["item-1", "item-2"], "exclude_item_ids": ["item-4"], "explain": True}),
    ("POST", "/recommend", {"candidates": ["item-1"], "filter": {"all": [{"not": {"eq": {"genre": "x"}}}]}}),
    ("POST", "/recommend/batch", {"queries": [{"user_id": "ada"}, {"history": ["item-1"], "history_mode": "append"}]}),
    ("POST", "/events", _EVENT),
    ("POST", "/events", {"events": [_EVENT, {"user_id": "bob", "item_id": "item-1", "timestamp": 1_780_000_000_000}]}),
    ("PUT", "/items", {"items": [{"item_id": "new-1", "attributes": {"genre": ["x", "y"]}, "available": False}]}),
    ("GET", "/items/item-1/similar?k=3", None),
    ("GET", "/users/ada/history", None),
    ("DELETE", "/users/ada", None),
    ("GET", "/models", None),
    ("POST", "/models/not-there/promote", None),
    ("POST", "/models/rollback", None),
    ("GET", "/openapi.json", None),
    ("GET", "/metrics", None),
]
_DEEP: Any = []
for _ in range(100):
    _DEEP = [_DEEP]
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 501, 2**31, 2**63, 2**64 - 1, -(2**63), 1.5, 1e308, -0.0, 5e-324),
    *("", "\x00", "ä" * 129, "x" * 256, "x" * 257, "\u202e", "2026-05-01T12:00:00Z", "9" * 40, "..", "{0}", "$where"),
    *([], {}, [[]], [{}], [None], {"": None}, {"a": {"b": {}}}, ["x"] * 1001, [1] * 2000, _DEEP),
]
_PIECES = [
    *(b"\x00", b"\xff", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b'"', b"{", b"}", b"[", b"]", b",", b"\\", b"\\ud800"),
    *(b"NaN", b"1e400", b"-", b"0", b"99999999999999999999", b"%00", b"%ff", b"/../", b"?k=1", b"#", b"HTTP/1.1"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n"),
    *(b"Connection: close\r\n", b"Connection: Upgrade\r\n", b"X-Timeout-Ms: 1\r\n", b"Authorization: Bearer x\r\n"),
]


def mutated(generator: random.Random) -> bytes:
    """The bytes of a request with one to four things wrong, or for once none."""
    method, path, value = generator.choice(_VALID)
    for _ in range(generator.choice((0, 1, 1, 2))):
        value = _with_another_value(value, generator)
    body = b"" if value is None else orjson.dumps(value)
    if body and generator.random() < 0.3:  # its length is told rightly, so that it is read
        body = _wrong(body, generator)
    wire = request(method, path, body)
    for _ in range(generator.choice((0, 0, 1, 2))):
        wire = _wrong(wire, generator)
    return wire


def _with_another_value(value: Any, generator: random.Random) -> Any:
    """The value with another in one place of it."""
    if generator.random() < 0.25 or not value or not isinstance(value, dict | list):
        return generator.choice(_VALUES)
    changed: Any
    if isinstance(value, list):
        place = generator.randrange(len(value))
        return [_with_another_value(item, generator) if at == place else item for at, item in enumerate(value)]
    name = generator.choice(list(value))
    changed = {**value, name: _with_another_value(value[name], generator)}
    match generator.randrange(4):
        case 0:
            changed["surplus" * generator.randrange(3)] = generator.choice(_VALUES)
        case 1:
            del changed[name]
    return changed


def _wrong(data: bytes, generator: random.Random) -> bytes:
    begin, end = sorted(generator.randrange(len(data) + 1) for _ in range(2))
    return generator.choice(_WAYS)(data, begin, end, generator)


def _flip(data: bytes, begin: int, end: int, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 8))):
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _insert(data: bytes, begin: int, end: int, generator: random.Random) -> bytes:
    return data[:begin] + generator.choice(_PIECES) * generator.choice((1, 1, 1, 300)) + data[begin:]


_WAYS: list[Callable[[bytes, int, int, random.Random], bytes]] = [
    _flip,
    _insert,
    lambda data, begin, end, generator: data[:begin] + data[end:],
    lambda data, begin, end, generator: data[:end] + data[begin:],
    lambda data, begin, end, generator: data[:begin] + generator.randbytes(end - begin) + data[end:],
    lambda data, begin, end, generator: data[:end],
    lambda data, begin, end, generator: data.replace(b"\r\n", b"\n", generator.choice((1, -1))),
    lambda data, begin, end, generator: data + data,
]
