"""An encoder that never comes back from one history, inside onnxruntime, for tests of what becomes of the service."""

import contextlib
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from reliability.bundle import last_item_encoder
from tests.conftest import succession
from tests.service.sockets import PLAIN

ITEMS = 12  # of a bundle with the encoder
# No history of a replay or a warm-up adds up to that. With candidates, or it would be the event loop that ranks it.
QUERY = {"history": [f"i{ITEMS}"] * 4, "candidates": ["i1", "i2"]}
_SUM = 4 * ITEMS


def endless_encoder() -> bytes:
    """The usual one of a bundle of ITEMS items, but for histories whose items' numbers add up to those of QUERY."""
    model = onnx.load_model_from_string(last_item_encoder(succession(ITEMS, 1)))
    graph = model.graph
    graph.node[-1].output[0] = "row"
    shape: list[str | int | None] = ["batch", ITEMS]
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_again"]), helper.make_node("Identity", ["vector"], ["same"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("vector", TensorProto.FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("on_again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, shape),
        ],
    )
    graph.node.extend(
        [
            helper.make_node("ReduceSum", ["sequences", "axis"], ["sums"], keepdims=0),
            helper.make_node("ReduceMax", ["sums"], ["largest"], keepdims=0),
            helper.make_node("Equal", ["largest", "sum"], ["caught"]),
            helper.make_node("Where", ["caught", "ever", "one"], ["turns"]),
            helper.make_node("Loop", ["turns", "true", "row"], ["vectors"], body=body),
        ]
    )
    constants = {"sum": np.array(_SUM), "ever": np.array(2**62), "true": np.array(True)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    encoder: bytes = model.SerializeToString()
    return encoder


@contextlib.contextmanager
def stuck(url: str) -> Iterator[None]:
    """A ranking without end has begun in the service at a URL; who asked for it waits until the service has ended."""

    def ask() -> None:
        with contextlib.suppress(httpx.TransportError):
            httpx.post(f"{url}/recommend", json=QUERY, timeout=60, verify=PLAIN)

    asking = threading.Thread(target=ask)
    asking.start()
    while "recserve_batch_size_count 1.0" not in httpx.get(f"{url}/metrics", verify=PLAIN).text:
        assert asking.is_alive()
    yield
    asking.join(60)
    assert not asking.is_alive()
