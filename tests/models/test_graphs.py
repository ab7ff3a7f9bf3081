"""Graphs with weights elsewhere are found wherever in a graph they are, by a reader that knows no onnx."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from models.graphs import check_graph
from models.manifest import BundleError


def outside() -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    external_data_helper.set_external_data(tensor, "elsewhere.bin", offset=0, length=16)
    tensor.ClearField("raw_data")
    return tensor


def model(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph(nodes, "g", [], [], list(weights)))


def branch(tensor: TensorProto) -> onnx.NodeProto:
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    made = model()
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    made.functions.append(helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 20)]))
    return made


PLACES: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "weights": lambda tensor: model(weights=(tensor,)),
    "constant": lambda tensor: model(helper.make_node("Constant", [], ["c"], value=tensor)),
    "branch": lambda tensor: model(branch(tensor)),
    "function": in_function,
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_in_another_file_are_found(tmp_path: Path, place: str) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(PLACES[place](numpy_helper.from_array(np.zeros(4, np.float32), "w")).SerializeToString())
    check_graph(path)
    path.write_bytes(PLACES[place](outside()).SerializeToString())
    with pytest.raises(BundleError, match=r"encoder\.onnx: keeps weights in another file"):
        check_graph(path)


@pytest.mark.parametrize(
    "content", [b"no graph", b"\xff" * 20, b"\x3a\xff\xff\xff\xff\x0f", b"\x3a", b"\x3a\x03\x0a\x7f\x00"]
)
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="is no ONNX graph"):
        check_graph(path)
