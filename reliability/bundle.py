"""The smallest bundle that serves: what follows an item depends on that item alone."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.bundle import Content, DataWindow, Golden, Manifest, Parity, write_bundle
from models.registry import Registry
from training.ranker import build_ranker

_GOLDEN = np.array([[1, 2], [2, 0], [0, 0]])  # histories of two items, one and none


def last_item_encoder(table: NDArray[np.floating]) -> bytes:
    """Graph whose vector is the table's row of a history's last item; row 0 is that of an empty history."""
    nodes = [
        helper.make_node("Sub", ["lengths", "one"], ["shifted"]),
        helper.make_node("Max", ["shifted", "zero"], ["last"]),  # an empty history is a row of padding
        helper.make_node("Unsqueeze", ["last", "axis"], ["column"]),
        helper.make_node("GatherElements", ["sequences", "column"], ["item"], axis=1),
        helper.make_node("Squeeze", ["item", "axis"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["vectors"], axis=0),
    ]
    constants = [
        numpy_helper.from_array(np.array(1), "one"),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array([1]), "axis"),
        numpy_helper.from_array(table.astype(np.float32), "table"),
    ]
    inputs = [
        helper.make_tensor_value_info("sequences", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", table.shape[1]])]
    graph = helper.make_graph(nodes, "last_item", inputs, outputs, constants)
    opset = helper.make_opsetid("", 20)
    encoder: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    return encoder


def promoted_bundle(artifacts: Path, items: int = 97) -> None:
    """Write and promote a bundle of items item-0, item-1, ... with random scores."""
    generator = np.random.default_rng(1)
    table = generator.normal(size=(items + 1, 8)).astype(np.float32)
    matrix = generator.normal(size=(items + 1, 8)).astype(np.float32)
    matrix[0] = 0
    vectors = table[[2, 2, 0]]
    scores = (vectors @ matrix.T)[:, 1:]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    manifest = Manifest(
        version="tiny",
        created="2026-01-01T00:00:00Z",
        model="last_item",
        items=items,
        dim=8,
        length=50,
        config={},
        seed=1,
        data=DataWindow(files={}, users=1, items=items, interactions=1),
        metrics={},
        parity=Parity(cases=1, largest_difference=0.0, top_k_agreed=True),
    )
    content = Content(
        manifest=manifest,
        encoder=last_item_encoder(table),
        ranker=build_ranker(),
        items=matrix,
        ids=["", *(f"item-{row}" for row in range(items))],
        popularity=np.arange(items, -1, -1, dtype=np.float32) * (np.arange(items + 1) > 0),
        attributes=None,
        golden=Golden(
            sequences=_GOLDEN,
            lengths=np.array([2, 1, 0]),
            excluded=np.zeros((3, 1), np.int64),
            vectors=vectors,
            indices=order + 1,
            scores=np.take_along_axis(scores, order, 1),
        ),
    )
    write_bundle(artifacts, content)
    Registry(artifacts).promote("tiny")
