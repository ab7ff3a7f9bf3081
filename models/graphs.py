"""What a graph keeps outside its own file, found without onnx: a bundle's graphs must bring all their weights along.

A tensor of an ONNX file may name any file to be read in its place, which no digest of the bundle would cover.
"""

from collections.abc import Iterator
from pathlib import Path

from models.manifest import BundleError, open_own

# Of each protobuf message, the fields that lead to tensors (onnx.proto3) and what they are.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_ELSEWHERE = {13, 14}  # of a tensor: where its data is, and that it is elsewhere
_DEEPEST = 64  # messages in messages; graphs are in nodes only for branches and loops
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def check_graph(path: Path) -> None:
    """Raise BundleError if a file is no ONNX graph, or one with tensors in other files."""
    with open_own(path) as file:
        content = memoryview(file.read())
    try:
        outside = any(_elsewhere(content, "model", 0))
    except (ValueError, IndexError) as error:
        raise BundleError(f"{path}: is no ONNX graph: {error or 'it ends too early'}") from error
    if outside:
        raise BundleError(f"{path}: keeps weights in another file; export the model again, in one file")


def _elsewhere(content: memoryview, kind: str, depth: int) -> Iterator[bool]:
    """For each tensor's field that says that its data is elsewhere: True."""
    if depth > _DEEPEST:
        raise ValueError(f"it nests deeper than {_DEEPEST}")
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        number, wire = key >> 3, key & 7
        value = 0
        begin = place
        if wire == _VARINT:
            value, place = _varint(content, place)
        elif wire == _LENGTH:
            value, begin = _varint(content, place)
            place = begin + value
        elif wire in (_FIXED64, _FIXED32):
            place += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
        if place > len(content):
            raise ValueError("it ends too early")
        if kind == "tensor" and number in _ELSEWHERE and value:
            yield True
        elif wire == _LENGTH and number in _INSIDE[kind]:
            yield from _elsewhere(content[begin:place], _INSIDE[kind][number], depth + 1)


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number has no end")
