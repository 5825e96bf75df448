"""Writes a small picture network with fixed weights: `export.py optimized_model.onnx`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

NUM_CLASSES = 10


def network() -> bytes:
    """[batch, 3, 224, 224] float32 to probabilities of ten classes: convolution, pool, linear."""
    rng = np.random.default_rng(7)
    weights = {
        "kernel": rng.normal(0, 0.3, (8, 3, 7, 7)),
        "bias": np.zeros(8),
        "linear": rng.normal(0, 1, (8, NUM_CLASSES)),
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel", "bias"], ["maps"], strides=[4, 4]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("MatMul", ["features", "linear"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["output"]),
    ]
    picture = ["batch", 3, 224, 224]
    graph = helper.make_graph(
        nodes,
        "picture",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, picture)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", NUM_CLASSES])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(network())
