"""The ranker graph: vectors and an item matrix in, the k best items out, in four operators.

The item matrix is an input rather than a constant, so that one small file serves every catalogue, processes share the
mapped matrix, and rows can change live. Exclusion happens here, before top-k: over-fetching and filtering afterwards
would return fewer than k.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.runtime import EXCLUDED_SCORE

OPSET = 20
IR_VERSION = 10  # the oldest that this opset allows, which the oldest supported onnxruntime reads


def build_ranker() -> bytes:
    """A serialised graph.

    Inputs: vectors float32 (batch, dim), items float32 (rows, dim), excluded int64 (batch, width), k int64 (1,).
    Outputs: indices int64 (batch, k), scores float32 (batch, k), best first, ties in item order. An excluded item
    scores EXCLUDED_SCORE, the lowest finite number.
    """
    lowest = helper.make_tensor("lowest", TensorProto.FLOAT, [1], np.array([EXCLUDED_SCORE], np.float32))
    nodes = [
        helper.make_node("Gemm", ["vectors", "items"], ["all_scores"], transB=1),
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
    outputs = [
        helper.make_tensor_value_info("indices", TensorProto.INT64, ["batch", "top"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "top"]),
    ]
    graph = helper.make_graph(nodes, "ranker", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
