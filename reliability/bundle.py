"""The smallest bundles that serve: what follows an item depends on that item alone."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.bundle import Golden
from models.draft import Content, write_bundle
from models.manifest import DataWindow, Manifest, Parity, Scoring
from models.neighbours import Neighbours
from models.quantised import Quantised
from models.registry import Registry
from training.ranker import build_ranker, build_scan, build_shortlist

_GOLDEN = np.array([[1, 2], [2, 0], [0, 0]])  # histories of two items, one and none
_CASES = 16
_WIDTH = 6
_K = 10


def last_item_encoder(table: NDArray[np.floating], *, reads_inputs: bool = False) -> bytes:
    """Graph whose vector is the table's row of a history's last item; row 0 is that of an empty history.

    reads_inputs: the same row of the bundle's inputs is added.
    """
    nodes = [
        helper.make_node("Sub", ["lengths", "one"], ["shifted"]),
        helper.make_node("Max", ["shifted", "zero"], ["last"]),  # an empty history is a row of padding
        helper.make_node("Unsqueeze", ["last", "axis"], ["column"]),
        helper.make_node("GatherElements", ["sequences", "column"], ["item"], axis=1),
        helper.make_node("Squeeze", ["item", "axis"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["rows" if reads_inputs else "vectors"], axis=0),
    ]
    inputs = [
        helper.make_tensor_value_info("sequences", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
    ]
    if reads_inputs:
        nodes.append(helper.make_node("Gather", ["inputs", "index"], ["more"], axis=0))
        nodes.append(helper.make_node("Add", ["rows", "more"], ["vectors"]))
        inputs.append(helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["items", table.shape[1]]))
    constants = [
        numpy_helper.from_array(np.array(1), "one"),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array([1]), "axis"),
        numpy_helper.from_array(table.astype(np.float32), "table"),
    ]
    outputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", table.shape[1]])]
    graph = helper.make_graph(nodes, "last_item", inputs, outputs, constants)
    opset = helper.make_opsetid("", 20)
    encoder: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    return encoder


def promoted_bundle(artifacts: Path, items: int = 97, *, version: str = "tiny", seed: int = 1, dim: int = 8) -> None:
    """Write and promote a bundle of items item-0, item-1, ... with random scores."""
    generator = np.random.default_rng(seed)
    table = generator.normal(size=(items + 1, dim)).astype(np.float32)
    matrix = generator.normal(size=(items + 1, dim)).astype(np.float32)
    matrix[0] = 0
    vectors = table[[2, 2, 0]]
    scores = (vectors @ matrix.T)[:, 1:]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    content = Content(
        manifest=_manifest(version, items, dim),
        encoder=last_item_encoder(table),
        ranker=build_ranker(),
        items=matrix,
        ids=_ids(items),
        popularity=_popularity(items),
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
    Registry(artifacts).promote(version)


def whole_bundle(artifacts: Path, version: str, items: int = 1600) -> Path:
    """Write a bundle with every file there can be, all of which decide its golden answers, and return its folder."""
    generator = np.random.default_rng(2)
    dim = 16
    table, inputs, matrix = generator.normal(size=(3, items + 1, dim)).astype(np.float32)
    matrix[0] = 0
    beside = generator.integers(1, items + 1, (items + 1, _WIDTH)).astype(np.int32)
    affinities = generator.uniform(1, 2, beside.shape).astype(np.float32)
    beside[0], affinities[0] = 0, 0
    neighbours = Neighbours(beside, affinities)
    sequences = generator.integers(1, items + 1, (_CASES, 4))
    lengths = np.arange(_CASES) % 5
    sequences[np.arange(4) >= lengths[:, None]] = 0
    last = np.where(lengths > 0, sequences[np.arange(_CASES), np.maximum(lengths - 1, 0)], 0)
    vectors = table[last] + inputs[last]
    histories = [row[:length] for row, length in zip(sequences, lengths, strict=True)]
    scores = (vectors @ matrix.T + neighbours.bonus(histories))[:, 1:].astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :_K]
    content = Content(
        manifest=_manifest(version, items, dim, Scoring(kind="int8")),
        encoder=last_item_encoder(table, reads_inputs=True),
        ranker=build_ranker(neighbours=_WIDTH),
        items=matrix,
        ids=_ids(items),
        popularity=_popularity(items),
        attributes={"brand": [None, *(f"brand {row % 7}" for row in range(items))]},
        golden=Golden(
            sequences=sequences,
            lengths=lengths,
            excluded=np.zeros((_CASES, 1), np.int64),
            vectors=vectors,
            indices=order + 1,
            scores=np.take_along_axis(scores, order, 1),
        ),
        neighbours=neighbours,
        inputs=inputs,
        scan=build_scan(quantised=True),
        quantised=Quantised.of(matrix),
        shortlist=build_shortlist(),
    )
    return write_bundle(artifacts, content)


def _manifest(version: str, items: int, dim: int, scoring: Scoring | None = None) -> Manifest:
    return Manifest(
        version=version,
        created="2026-01-01T00:00:00Z",
        model="last_item",
        items=items,
        dim=dim,
        length=50,
        config={},
        seed=1,
        data=DataWindow(files={}, users=1, items=items, interactions=1),
        metrics={},
        parity=Parity(cases=1, largest_difference=0.0, top_k_agreed=True),
        scoring=scoring or Scoring(),
    )


def _ids(items: int) -> list[str]:
    return ["", *(f"item-{row}" for row in range(items))]


def _popularity(items: int) -> NDArray[np.float32]:
    return np.arange(items, -1, -1, dtype=np.float32) * (np.arange(items + 1) > 0)
