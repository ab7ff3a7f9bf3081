"""Bytes to JSON: what two readers could read differently is refused, and everything else is read."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Problem
from service.requests import MAX_DEPTH, parse_json


def refused(body: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        parse_json(body)
    return caught.value


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"a":1,"a":1}', "a"),
        (b'{"a": 1, "b": {"c": [{"d": 1, "d": 2}]}}', "d"),
        (b'[{"a":1},{"b":1,"b":1}]', "b"),
        (b'{"":1,"":2}', ""),
        (b'{"a":1,"\\u0061":2}', "a"),
        (b'{"\xc3\xa4":1,"\\u00e4":2}', "ä"),
        (b'{"a":"\\u003a","b":1,"b":2}', "b"),
        (b'{"a":"\\u003A\\u003a","b":1,"c":{"b":1,"b":2}}', "b"),
        (b'{"\\u003a":1,":":2}', ":"),
        (b'{"a":"\\\\u003a","b":1,"b":2}', "b"),
        (b'{"a":{"x":1,"y":2},"a":3}', "a"),
        (b'{"a":":::","a":{"x":1,"y":2,"z":3}}', "a"),
        (b"{" + b",".join(b'"f%d":1' % n for n in range(50_000)) + b',"f7":2}', "f7"),
    ],
)
def test_a_key_that_stands_twice_is_refused_wherever_it_is(body: bytes, key: str) -> None:
    problem = refused(body)
    assert (problem.status, problem.code) == (400, "duplicate_key")
    assert problem.errors[0]["field"] == key
    assert key in problem.detail


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}',
        b'{"a":":","b":"\\u003a","c":"\\\\u003a","d":"\\\\\\u003A","e":"2026-05-01T12:00:00Z"}',
        b'{"\\u003a":1,"::":{"x":[":"]}}',
        b'{"a:b":1,"a::b":2}',
        b'":"',
        b'[":",{"x":":"}]',
        b" 1 ",
    ],
)
def test_colons_and_equal_keys_of_different_objects_are_no_repetition(body: bytes) -> None:
    assert parse_json(body) == json.loads(body)


texts = st.text(alphabet=st.sampled_from('ab:\\"{}[],u03Aa\n\u0000é🙂'), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(texts, inner), max_size=3).map(tuple),
    max_leaves=12,
)


def written(value: Any, escape: bool) -> str:
    """JSON of a value in which tuples of pairs are objects, so that a key may stand twice."""
    if isinstance(value, tuple):
        return "{" + ",".join(f"{written(key, escape)}:{written(item, escape)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(written(item, escape) for item in value) + "]"
    text = json.dumps(value, ensure_ascii=escape)
    return text.replace(":", "\\u003a") if escape and isinstance(value, str) else text


def repeats(value: Any) -> bool:
    if isinstance(value, tuple):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(repeats(item) for _, item in value)
    return isinstance(value, list) and any(map(repeats, value))


@given(values, st.booleans())
def test_exactly_the_bodies_in_which_a_key_is_repeated_are_refused(value: Any, escape: bool) -> None:
    body = written(value, escape).encode()
    if repeats(value):
        assert refused(body).code == "duplicate_key"
    else:
        assert orjson.dumps(parse_json(body)) == orjson.dumps(json.loads(body))


@pytest.mark.parametrize(("opening", "inside", "closing"), [("[", "", "]"), ('{"a":', "1", "}"), ('[{"a":', "1", "}]")])
def test_a_body_may_be_as_deep_as_the_limit_and_no_deeper(opening: str, inside: str, closing: str) -> None:
    step = opening.count("[") + opening.count("{")
    for depth in (MAX_DEPTH - step, MAX_DEPTH):
        body = opening * (depth // step) + inside + closing * (depth // step)
        assert parse_json(body.encode()) == json.loads(body)
    for depth in (MAX_DEPTH + step, 1024, 1026, 5000):
        body = opening * (depth // step) + inside + closing * (depth // step)
        assert (refused(body.encode()).status, refused(body.encode()).code) == (400, "too_deep")


def test_lists_inside_of_an_object_count_too() -> None:
    assert parse_json(b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")
    assert refused(b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}").code == "too_deep"
    assert parse_json(b'{"a":[' + b",".join([b"[]"] * 5000) + b"]}")
