"""The ranker graph: vectors and an item matrix in, the k best items out, in four operators; and the scan's graph.

The item matrix is an input rather than a constant, so that one small file serves every catalogue, processes share the
mapped matrix, and rows can change live. Exclusion happens here, before top-k: over-fetching and filtering afterwards
would return fewer than k.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.neighbours import RECENT, asked, weights
from models.runtime import EXCLUDED_SCORE
from models.shortlist import LOWEST

OPSET = 20
IR_VERSION = 10  # the oldest that this opset allows, which the oldest supported onnxruntime reads


def build_ranker(*, neighbours: int = 0) -> bytes:
    """A serialised graph; neighbours: how many an item keeps at most, 0 for a model that is served alone.

    Inputs: vectors float32 (batch, dim), items float32 (rows, dim), excluded int64 (batch, width), k int64 (1,).
    Outputs: indices int64 (batch, k), scores float32 (batch, k), best first, ties in item order. An excluded item
    scores EXCLUDED_SCORE, the lowest finite number.
    With neighbours also recent int64 (batch, RECENT), newest first and padded with 0, and neighbours int32 and
    affinities float32, both (rows * neighbours,): the arrays of models.neighbours, laid flat. They are scattered into
    the scores, which is less work than to add a dense matrix.
    """
    lowest = helper.make_tensor("lowest", TensorProto.FLOAT, [1], np.array([EXCLUDED_SCORE], np.float32))
    scoring = [helper.make_node("Gemm", ["vectors", "items"], ["all_scores"], transB=1)]
    constants: list[onnx.TensorProto] = []
    if neighbours:
        ages, ranks = asked(neighbours)
        scoring = [
            helper.make_node("Gemm", ["vectors", "items"], ["model_scores"], transB=1),
            helper.make_node("Gather", ["recent", "ages"], ["speakers"], axis=1),  # (batch, asked)
            helper.make_node("Mul", ["speakers", "row_size"], ["row_starts"]),
            helper.make_node("Add", ["row_starts", "ranks"], ["places"]),
            helper.make_node("Gather", ["neighbours", "places"], ["cells"]),
            helper.make_node("Gather", ["affinities", "places"], ["fresh_gains"]),
            helper.make_node("Mul", ["fresh_gains", "weights"], ["gains"]),
            helper.make_node(
                "ScatterElements", ["model_scores", "cells", "gains"], ["all_scores"], axis=1, reduction="add"
            ),
        ]
        constants = [
            numpy_helper.from_array(ages, "ages"),
            numpy_helper.from_array(ranks, "ranks"),
            numpy_helper.from_array(weights(ages), "weights"),
            numpy_helper.from_array(np.array(neighbours, np.int64), "row_size"),
        ]
    nodes = [
        *scoring,
        helper.make_node("Shape", ["excluded"], ["excluded_shape"]),
        helper.make_node("ConstantOfShape", ["excluded_shape"], ["excluded_scores"], value=lowest),
        helper.make_node("ScatterElements", ["all_scores", "excluded", "excluded_scores"], ["eligible"], axis=1),
        helper.make_node("TopK", ["eligible", "k"], ["scores", "indices"], axis=1, largest=1, sorted=1),
    ]
    inputs = [
        helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", "dim"]),
        helper.make_tensor_value_info("items", TensorProto.FLOAT, ["rows", "dim"]),
        helper.make_tensor_value_info("excluded", TensorProto.INT64, ["batch", "width"]),
        helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
    ]
    if neighbours:
        inputs += [
            helper.make_tensor_value_info("recent", TensorProto.INT64, ["batch", RECENT]),
            helper.make_tensor_value_info("neighbours", TensorProto.INT32, ["entries"]),
            helper.make_tensor_value_info("affinities", TensorProto.FLOAT, ["entries"]),
        ]
    outputs = [
        helper.make_tensor_value_info("indices", TensorProto.INT64, ["batch", "top"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "top"]),
    ]
    return _serialised(helper.make_graph(nodes, "ranker", inputs, outputs, constants))


def build_shortlist() -> bytes:
    """A serialised graph that ranks by rounded scores, for models.shortlist.

    Inputs: vectors float16 (batch, dim), items float16 (rows, dim), excluded int64 (batch, width), k int64 (1,).
    Outputs: indices int64 (batch, k), scores float32 (batch, k), best first. An excluded item scores LOWEST.
    """
    lowest = helper.make_tensor("lowest", TensorProto.FLOAT16, [1], np.array([LOWEST], np.float16))
    nodes = [
        helper.make_node("Gemm", ["vectors", "items"], ["all_scores"], transB=1),
        helper.make_node("Shape", ["excluded"], ["excluded_shape"]),
        helper.make_node("ConstantOfShape", ["excluded_shape"], ["excluded_scores"], value=lowest),
        helper.make_node("ScatterElements", ["all_scores", "excluded", "excluded_scores"], ["eligible"], axis=1),
        helper.make_node("TopK", ["eligible", "k"], ["best", "indices"], axis=1, largest=1, sorted=1),
        helper.make_node("Cast", ["best"], ["scores"], to=TensorProto.FLOAT),
    ]
    inputs = [
        helper.make_tensor_value_info("vectors", TensorProto.FLOAT16, ["batch", "dim"]),
        helper.make_tensor_value_info("items", TensorProto.FLOAT16, ["rows", "dim"]),
        helper.make_tensor_value_info("excluded", TensorProto.INT64, ["batch", "width"]),
        helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info("indices", TensorProto.INT64, ["batch", "top"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "top"]),
    ]
    return _serialised(helper.make_graph(nodes, "shortlist", inputs, outputs))


def build_scan(*, quantised: bool) -> bytes:
    """A serialised graph that scores a chunk of items and keeps maxima of neighbours, for models.scan.

    Inputs: queries (dim, batch), items (rows, dim), both float32 or int8 and uint8 if quantised, and shape int64 (4,):
    blocks, groups a block, items a group, batch. Outputs, float32 or int32: groups (blocks, groups a block, batch) and
    blocks (blocks, batch), the maxima.
    """
    product, query, item, score = (
        ("MatMulInteger", TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32)
        if quantised
        else ("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT)
    )
    nodes = [
        helper.make_node(product, ["items", "queries"], ["scores"]),
        helper.make_node("Reshape", ["scores", "shape"], ["grouped"]),
        helper.make_node("ReduceMax", ["grouped", "items_of"], ["groups"], keepdims=0),
        helper.make_node("ReduceMax", ["groups", "groups_of"], ["blocks"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info("queries", query, ["dim", "batch"]),
        helper.make_tensor_value_info("items", item, ["rows", "dim"]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [4]),
    ]
    outputs = [
        helper.make_tensor_value_info("groups", score, ["blocks", "block", "batch"]),
        helper.make_tensor_value_info("blocks", score, ["blocks", "batch"]),
    ]
    axes = {"items_of": 2, "groups_of": 1}
    constants = [numpy_helper.from_array(np.array([axis], np.int64), name) for name, axis in axes.items()]
    return _serialised(helper.make_graph(nodes, "scan", inputs, outputs, constants))


def _serialised(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
