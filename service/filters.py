"""Filters of a request: which items may come back, as an expression over their attributes.

    {"all": [{"in": {"genre": ["Drama", "Comedy"]}}, {"gte": {"year": 1990}}, {"not": {"eq": {"rated": "X"}}}]}

A comparison names one attribute. An item without it, or with a value of another kind, does not match; of a list any
entry may. `not` is everything that does not match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from service.errors import shorten

MAX_DEPTH = 16
MAX_PARTS = 256
MAX_VALUES = 1000  # of one `in`
MAX_ALL_VALUES = 5000  # each is looked at on the event loop
MAX_INTEGER = 2**53 - 1  # numbers are compared as floats, and to these a larger one may be another
INEXACT = "is beyond 2^53 - 1, where numbers are no longer told apart: send large ids as text"

Value = str | float | bool
Mask = NDArray[np.bool_]
Order = Literal["lt", "lte", "gt", "gte"]
_ORDERS = ("lt", "lte", "gt", "gte")
OPERATORS = ("all", "any", "not", "eq", "in", *_ORDERS)
_ONE_OPERATOR = f"{', '.join(OPERATORS[:-1])} or {OPERATORS[-1]}"

SCHEMA_REF = {"$ref": "#/components/schemas/Filter"}


def schema() -> dict[str, Any]:
    """What an expression may be, for the description of the service, where SCHEMA_REF finds it."""

    def of_one_attribute(wanted: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": wanted}

    number = {"type": "number", "minimum": -MAX_INTEGER, "maximum": MAX_INTEGER}
    value = {"anyOf": [{"type": "string"}, number, {"type": "boolean"}]}
    values = {"type": "array", "items": value, "minItems": 1, "maxItems": MAX_VALUES}
    parts = {"type": "array", "items": SCHEMA_REF, "minItems": 1}
    return {
        "type": "object",
        "description": f"One operator, with what it takes. At most {MAX_DEPTH} deep, {MAX_PARTS} parts, {MAX_VALUES} "
        f"values in an `in` and {MAX_ALL_VALUES} in all.",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": {
            "all": parts,
            "any": parts,
            "not": SCHEMA_REF,
            "eq": of_one_attribute(value),
            "in": of_one_attribute(values),
            **dict.fromkeys(_ORDERS, of_one_attribute(number)),
        },
    }


class FilterError(ValueError):
    """An expression that is none; `field` says where in it, the message what is wrong and with which value."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.value = shorten(value)


class Attributes(Protocol):
    """What is known about items; a mask is bool (rows,), True where an item matches."""

    rows: int

    def among(self, name: str, values: tuple[Value, ...]) -> Mask:
        """Items that have one of the values. Raises UnknownAttribute."""

    def compared(self, name: str, order: Order, bound: float) -> Mask:
        """Items with a number that compares so. Raises UnknownAttribute."""


class UnknownAttribute(Exception):  # noqa: N818 - a condition
    """No item has an attribute of this name; the message lists those there are."""


@dataclass(frozen=True, slots=True)
class Group:
    """All of its parts, or any."""

    every: bool
    parts: tuple[Filter, ...]

    @property
    def size(self) -> int:
        """Values it compares with."""
        return sum(part.size for part in self.parts)

    def mask(self, items: Attributes) -> Mask:
        """Items that match all or any of the parts: bool (rows,). Raises UnknownAttribute."""
        found = np.full(items.rows, self.every)
        for part in self.parts:
            if self.every:
                found &= part.mask(items)
            else:
                found |= part.mask(items)
        return found


@dataclass(frozen=True, slots=True)
class Not:
    """Everything that its part does not match."""

    part: Filter

    @property
    def size(self) -> int:
        """Values its part compares with."""
        return self.part.size

    def mask(self, items: Attributes) -> Mask:
        """Items that do not match the part: bool (rows,). Raises UnknownAttribute."""
        return ~self.part.mask(items)


@dataclass(frozen=True, slots=True)
class Among:
    """An attribute that is one of some values, each with its type: True equals 1, and is not the same."""

    name: str
    typed: tuple[tuple[type, Value], ...]

    @property
    def size(self) -> int:
        """Values it compares with."""
        return len(self.typed)

    @property
    def values(self) -> tuple[Value, ...]:
        """The values without their types."""
        return tuple(value for _, value in self.typed)

    def mask(self, items: Attributes) -> Mask:
        """Items that have one of the values: bool (rows,). Raises UnknownAttribute."""
        return items.among(self.name, self.values)


@dataclass(frozen=True, slots=True)
class Compared:
    """An attribute that is a number on one side of a bound."""

    name: str
    order: Order
    bound: float

    @property
    def size(self) -> int:
        """Values it compares with: the bound."""
        return 1

    def mask(self, items: Attributes) -> Mask:
        """Items with a number on that side of the bound: bool (rows,). Raises UnknownAttribute."""
        return items.compared(self.name, self.order, self.bound)


Filter = Group | Not | Among | Compared


def parse(expression: object) -> Filter:
    """A parsed filter, which is hashable: equal expressions need be looked up once. Raises FilterError."""
    return _Parser().part(expression, "filter", 1)


class _Parser:
    def __init__(self) -> None:
        self._parts = 0
        self._values = 0

    def part(self, raw: object, where: str, depth: int) -> Filter:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise FilterError("filter", raw, f"has more than {MAX_PARTS} parts")
        if depth > MAX_DEPTH:
            raise FilterError(where[:80], raw, f"is nested more than {MAX_DEPTH} deep")
        if not isinstance(raw, dict) or len(raw) != 1:
            raise FilterError(where, raw, f"must be an object with one key, {_ONE_OPERATOR}")
        ((operator, content),) = raw.items()
        inside = f"{where}.{operator}"
        if operator in ("all", "any"):
            if not isinstance(content, list) or not content:
                raise FilterError(inside, content, "must be a list of one filter or more")
            parts = tuple(self.part(one, f"{inside}.{number}", depth + 1) for number, one in enumerate(content))
            return Group(operator == "all", parts)
        if operator == "not":
            return Not(self.part(content, inside, depth + 1))
        if operator not in ("eq", "in", *_ORDERS):
            raise FilterError(f"{where}.{operator[:80]}", content, f"is no operator; use {_ONE_OPERATOR}")
        if not isinstance(content, dict) or len(content) != 1:
            raise FilterError(inside, content, "must be an object with one attribute and what to compare it with")
        ((name, wanted),) = content.items()
        inside = f"{inside}.{name[:80]}"
        if operator in _ORDERS:
            return Compared(name, cast(Order, operator), _number(wanted, inside))
        if operator == "eq":
            return Among(name, (_typed(wanted, inside),))
        if not isinstance(wanted, list) or not 1 <= len(wanted) <= MAX_VALUES:
            raise FilterError(inside, wanted, f"must be a list of 1 to {MAX_VALUES} values")
        self._values += len(wanted)
        if self._values > MAX_ALL_VALUES:
            raise FilterError("filter", wanted, f"has more than {MAX_ALL_VALUES} values in all its lists")
        return Among(name, tuple(_typed(one, inside, number) for number, one in enumerate(wanted)))


def _typed(raw: object, where: str, number: int | None = None) -> tuple[type, Value]:
    """A value with its type. number: its place in a list."""
    if isinstance(raw, str):
        return str, raw
    if isinstance(raw, bool):
        return bool, raw
    if not isinstance(raw, (int, float)):
        raise FilterError(_place(where, number), raw, "must be a string, a number, true or false")
    return float, _number(raw, where, number)


def _number(raw: object, where: str, number: int | None = None) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise FilterError(_place(where, number), raw, "must be a number")
    if not abs(raw) <= MAX_INTEGER:  # of integers beyond 64 bits the parser makes floats
        raise FilterError(_place(where, number), raw, INEXACT)
    return float(raw)


def _place(where: str, number: int | None) -> str:
    """Made only for what is refused: for each of some thousand values it would take longer than all else."""
    return where if number is None else f"{where}.{number}"
