from __future__ import annotations

import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import triton_to_np_dtype

from salver.codecs.grpc_response import encode_infer_response
from salver.signature import Method, TensorSpec
from salver.types import (
    BF16,
    BYTES,
    DTYPES,
    ModelRef,
    Packed,
    Response,
    Rows,
    Tensor,
    Tensors,
    bf16_bits,
    pack_bytes,
)


def encode(response, *arguments):
    parts = encode_infer_response(response, *arguments)
    return pb.ModelInferResponse.FromString(b"".join(parts))


def answer(*, stop=-1, start=0, parameters=None, **tensors):
    specs = [TensorSpec(name=n, dtype=t.dtype, shape=t.shape) for n, t in tensors.items()]
    method = Method(inputs=(), outputs=tuple(specs))
    rows, names = Rows(Tensors(tensors)), tuple(tensors)
    return Response(rows, ModelRef("m", "3"), method, names, start, stop, parameters)


def part_of(response, names, start, stop):
    return Response(response.rows, response.ref, response.method, names, start, stop)


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BF16"])
def test_outputs_for_the_client_library(datatype):
    array = np.arange(6).reshape(2, 3).astype(triton_to_np_dtype(datatype))
    if datatype == "BYTES":
        array = np.array([["a", b"b", ""], ["c", b"\0", "\N{SNOWMAN}"]], np.object_)
    message = encode(answer(y=Tensor.of(array)), "an id")
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "an id")
    found = triton.InferResult(message).as_numpy("y")
    if datatype == "BYTES":
        array = np.array([[b"a", b"b", b""], [b"c", b"\0", "\N{SNOWMAN}".encode()]], np.object_)
    np.testing.assert_array_equal(found, array)
    assert message.outputs[0].datatype == datatype


def test_bf16_output():
    bits = bf16_bits(np.array([0.5, 2.0], np.float32))
    message = encode(answer(y=Tensor(BF16, (2,), bits)))
    np.testing.assert_array_equal(triton.InferResult(message).as_numpy("y"), [0.5, 2.0])


def test_rows_of_a_batch():
    numbers = np.arange(12, dtype=np.int16).reshape(6, 2)
    words = np.array([b"%d" % i for i in range(6)], np.object_)
    response = answer(n=Tensor.of(numbers), w=Tensor.of(words), e=Tensor.of(np.zeros((6, 0))))
    for start, stop in [(0, 1), (1, 3), (3, 3), (3, 6)]:
        part = part_of(response, ("w", "n", "e"), start, stop)
        result = triton.InferResult(encode(part))
        np.testing.assert_array_equal(result.as_numpy("n"), numbers[start:stop])
        np.testing.assert_array_equal(result.as_numpy("w"), words[start:stop])
        assert result.as_numpy("e").shape == (stop - start, 0)
        only = part_of(response, ("n",), start, stop)
        assert [output.name for output in encode(only).outputs] == ["n"]


def test_each_output_has_a_raw_entry():
    response = answer(a=Tensor.of(np.zeros((0, 3))), b=Tensor.of(np.float32(7)), c=Tensor.of([]))
    assert list(encode(response).raw_output_contents) == [b"", np.float32(7).tobytes(), b""]


def test_large_outputs_are_views():
    array = np.ones((4, 10_000), np.float32)
    parts = encode_infer_response(answer(y=Tensor.of(array), start=1, stop=3))
    assert np.shares_memory(np.frombuffer(parts[-1], np.uint8), array)
    np.testing.assert_array_equal(
        triton.InferResult(pb.ModelInferResponse.FromString(b"".join(parts))).as_numpy("y"),
        array[1:3],
    )


def test_arrays_of_any_layout():
    array = np.arange(20_000, dtype=np.float32).reshape(100, 200).T
    for part in (array, array[:3, ::2]):
        message = encode(answer(y=Tensor.of(part)))
        np.testing.assert_array_equal(triton.InferResult(message).as_numpy("y"), part)


def test_packed_outputs_and_lists_travel_as_they_are():
    packed = pack_bytes(["a", "bc"])
    response = answer(p=Tensor(BYTES, (2,), Packed(packed)), n=Tensor(DTYPES["INT8"], (2,), [1, 2]))
    assert list(encode(response).raw_output_contents) == [packed, b"\x01\x02"]


def test_shapes_do_not_mix_up():
    for size in (1, 2, 1, 300):
        message = encode(answer(y=Tensor.of(np.zeros(size, np.int8))))
        assert list(message.outputs[0].shape) == [size]
        assert len(message.raw_output_contents[0]) == size


def test_response_parameters():
    parameters = {"b": True, "i": -1, "f": 0.5, "s": "x"}
    found = encode(answer(y=Tensor.of([1]), parameters=parameters)).parameters
    assert {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in found.items()} == parameters


def test_classified_output():
    response = answer(y=Tensor.of(np.array([[1, 5], [7, 2]])), z=Tensor.of([1]))
    result = triton.InferResult(encode(response, "", {"y": 1}))
    assert result.as_numpy("y").tolist() == [[b"5:1"], [b"7:0"]]
    assert result.as_numpy("z").tolist() == [1]
    assert response.tensor("y").dtype.name == "INT64"
