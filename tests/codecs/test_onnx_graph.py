from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from salver.codecs.onnx_graph import Value, read_graph

if TYPE_CHECKING:
    from pathlib import Path


def small_model() -> bytes:
    """One of each: symbols, unnamed dimensions, sequence, map, optional, initializer, external."""
    tensor = helper.make_tensor_type_proto(TensorProto.INT8, [2])
    inside = helper.make_tensor("inside", TensorProto.FLOAT, [2], [1, 2])
    outside = onnx.numpy_helper.from_array(np.ones(2, np.float32), "outside")
    onnx.external_data_helper.set_external_data(outside, "weights.bin")
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["a"], ["b"]),
            helper.make_node("ZipMap", ["b"], ["c"], classlabels_int64s=[-1, 300]),
        ],
        "graph",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", None, 3]),
            helper.make_tensor_value_info("inside", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("anything", TensorProto.STRING, None),
            helper.make_value_info("maybe", helper.make_optional_type_proto(tensor)),
        ],
        [
            helper.make_value_info("many", helper.make_sequence_type_proto(tensor)),
            helper.make_value_info(
                "c",
                helper.make_sequence_type_proto(
                    helper.make_map_type_proto(
                        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
                    )
                ),
            ),
        ],
        [inside, outside],
    )
    data: bytes = helper.make_model(graph).SerializeToString()
    return data


def test_the_outside_of_a_graph_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(small_model())
    graph = read_graph(file)
    assert graph.inputs == (
        Value("a", "tensor(float)", ("n", None, 3)),
        Value("anything", "tensor(string)", None),
        Value("maybe", "optional(tensor(int8))", (2,)),
    )
    assert graph.outputs == (
        Value("many", "seq(tensor(int8))", ()),
        Value("c", "seq(map(int64,tensor(float)))", ()),
    )
    assert graph.external == ("weights.bin",)
    assert graph.last is not None
    assert graph.last == ("ZipMap", ("c",), {"classlabels_int64s": (-1, 300)})


@pytest.mark.parametrize("element", [*range(1, 14), *range(16, 21)])
def test_types_are_named_as_onnx_runtime_names_them(tmp_path: Path, element: int) -> None:
    value = helper.make_tensor_value_info("x", element, ["n"])
    shape = helper.make_tensor_value_info("s", TensorProto.INT64, [1])
    node = helper.make_node("Shape", ["x"], ["s"])
    graph = helper.make_graph([node], "graph", [value], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    file = tmp_path / "model.onnx"
    onnx.save(model, file)
    session = onnxruntime.InferenceSession(file)
    assert read_graph(file).inputs[0].type == session.get_inputs()[0].type


def test_damaged_files_only_raise_value_errors(tmp_path: Path) -> None:
    whole, chance = small_model(), random.Random(0)
    file = tmp_path / "model.onnx"
    refused = 0
    for turn in range(2000):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if turn % 2 else whole)
        for _ in range(turn % 5):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(damaged)
        try:
            read_graph(file)
        except ValueError:
            refused += 1
    assert refused > 500


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    nested = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    inner = nested.SerializeToString()

    def wrap(field: int, data: bytes) -> bytes:
        size, out = len(data), bytearray([field << 3 | 2])
        while size > 127:
            out.append(size & 127 | 128)
            size >>= 7
        return bytes(out) + bytes([size]) + data

    for _ in range(2000):
        inner = wrap(4, wrap(1, inner))
    file = tmp_path / "model.onnx"
    file.write_bytes(wrap(7, wrap(11, wrap(1, b"x") + wrap(2, inner))))
    with pytest.raises(ValueError, match="not an ONNX model"):
        read_graph(file)
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        read_graph(tmp_path / "m.onnx")
