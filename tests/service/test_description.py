"""Whatever the description allows is answered as it says, and whatever it does not allow is refused as it says."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Schema = dict[str, Any]
Strategy = st.SearchStrategy[Any]

ANYTHING: Strategy = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
IDS = st.sampled_from(["i1", "i2", "i12", "ada", "v1", "popular"])  # some that are there


class Description:
    """The service's own, and values for its schemas."""

    def __init__(self, document: Schema) -> None:
        self.document = document

    def operations(self) -> Iterator[tuple[str, str, Schema]]:
        for path, methods in self.document["paths"].items():
            for method, operation in methods.items():
                yield method.upper(), path, operation

    def values(self, schema: Schema) -> Strategy:
        """What the schema allows, most of it."""
        if "$ref" in schema:
            return self.values(self.document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]])
        if "anyOf" in schema:
            return st.one_of(*(self.values(option) for option in schema["anyOf"]))
        if "enum" in schema or "const" in schema:
            return st.sampled_from(schema.get("enum") or [schema["const"]])
        if schema.get("type") == "array":
            least = schema.get("minItems", 0)
            return st.lists(self.values(schema["items"]), min_size=least, max_size=least + 4)
        if schema.get("type") == "object":
            return self._objects(schema)
        text = st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 20), 60))
        scalars: dict[str, Strategy] = {
            "string": IDS | text,
            "integer": st.integers(schema.get("minimum", -(2**63)), schema.get("maximum", 2**63)),
            "number": st.floats(allow_nan=False, allow_infinity=False),
            "boolean": st.booleans(),
            "null": st.none(),
        }
        return scalars.get(schema.get("type", ""), ANYTHING)

    def _objects(self, schema: Schema) -> Strategy:
        if "properties" not in schema:
            inside = schema.get("additionalProperties")
            values = self.values(inside) if isinstance(inside, dict) else ANYTHING
            return st.dictionaries(st.text(max_size=8), values, max_size=3)
        fields = {name: self.values(of) for name, of in schema["properties"].items()}
        required = schema.get("required", [])
        return st.fixed_dictionaries(
            {name: fields[name] for name in required},
            optional={name: of for name, of in fields.items() if name not in required},
        )

    def wrong(self, right: Strategy) -> Strategy:
        """What the schema allows, with something else in one or more places."""

        def changed(value: Any, draw: Callable[[Strategy], Any]) -> Any:
            if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
                return draw(ANYTHING)
            if isinstance(value, list):
                place = draw(st.integers(0, len(value) - 1))
                return [*value[:place], changed(value[place], draw), *value[place + 1 :]]
            name = draw(st.sampled_from(sorted(value)))
            return {**value, draw(st.sampled_from([name, f"{name}x"])): changed(value[name], draw)}

        @st.composite
        def values(draw: Callable[[Strategy], Any]) -> Any:
            return changed(draw(right), draw)

        return values()

    def requests(self, path: str, operation: Schema) -> Strategy:
        """Paths with their parameters, and bodies (None: without one)."""
        inside: dict[str, Strategy] = {}
        behind: dict[str, Strategy] = {}
        for parameter in operation.get("parameters", []):
            group = inside if parameter["in"] == "path" else behind
            group[parameter["name"]] = self.values(parameter["schema"])
        body: Strategy = st.none()
        if "requestBody" in operation:
            right = self.values(operation["requestBody"]["content"]["application/json"]["schema"])
            body = right | self.wrong(right)

        def filled(values: dict[str, Any]) -> str:
            return path.format(**{name: quote(str(value), safe="") for name, value in values.items()})

        query = st.fixed_dictionaries({}, optional=behind)
        return st.tuples(st.fixed_dictionaries(inside).map(filled), query, body)

    def check(self, operation: Schema, response: httpx.Response) -> None:
        """That this answer is one of those described."""
        described = operation["responses"]
        assert str(response.status_code) in described, (response.status_code, sorted(described), response.text[:300])
        content = described[str(response.status_code)].get("content", {})
        kind = response.headers["content-type"].partition(";")[0]
        assert response.status_code < 400 or kind in content
        if schema := content.get(kind, {}).get("schema"):
            jsonschema.validate(response.json(), {**schema, "components": self.document["components"]})


def test_every_answer_is_one_that_is_described(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("v1", attributes={"genre": [None, *["x", "y"] * 6]})
    client = start_service(store_url)
    description = Description(client.get("/openapi.json").json())
    seen = set()

    def tried(method: str, path: str, operation: Schema) -> None:
        @settings(max_examples=60, database=None, suppress_health_check=list(HealthCheck))
        @given(description.requests(path, operation))
        def answered(request: tuple[str, dict[str, Any], Any]) -> None:
            at, query, body = request
            content = None if body is None else json.dumps(body).encode()
            response = client.request(method, at, params=query or None, content=content)
            assert response.status_code < 500, response.text
            description.check(operation, response)
            seen.add((method, path, response.status_code))

        answered()

    for method, path, operation in description.operations():
        tried(method, path, operation)
    for route in ("/recommend", "/recommend/batch", "/events"):
        assert {("POST", route, 200), ("POST", route, 422)} <= seen
    assert {("PUT", "/items", 200), ("PUT", "/items", 422), ("GET", "/healthz", 200)} <= seen
