from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import assume, given
from hypothesis import strategies as st
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from salver.codecs import grpc_request
from salver.codecs.grpc_request import decode_infer_request
from salver.codecs.protobuf import field, varint
from salver.codecs.recent import Recent
from salver.errors import InvalidInput, SalverError, Unsupported
from salver.types import BF16, BYTES, DTYPES, ModelRef, Packed, bf16_bits, dtype_of, pack_bytes

NUMERIC = [name for name in DTYPES if name not in {"BYTES", "BF16"}]
FLOATS = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.fixture(autouse=True)
def heads(monkeypatch):
    fresh = Recent(8)
    monkeypatch.setattr(grpc_request, "_heads", fresh)
    return fresh


def raw_request(*arrays, request_id="", outputs=(), **rest):
    request = pb.ModelInferRequest(model_name="m", id=request_id, **rest)
    for index, array in enumerate(arrays):
        request.inputs.add(name=f"x{index}", datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def typed_request(datatype, shape, **contents):
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype=datatype, shape=shape, contents=contents)
    return request


def decode(request):
    return decode_infer_request(request.SerializeToString())


def test_everything_that_a_request_says():
    request = raw_request(FLOATS, 2 * FLOATS, request_id="a", outputs=["y"], model_version="2")
    request.parameters["b"].bool_param = False
    request.parameters["i"].int64_param = -5
    request.parameters["s"].string_param = "text"
    request.parameters["d"].double_param = 0.5
    request.parameters["u"].uint64_param = 2**64 - 1
    request.parameters["timeout"].int64_param = 100
    request.parameters["priority"].int64_param = 3
    request.parameters["method"].string_param = "score"
    for _ in range(2):
        operation = decode(request)
        found = operation.request
        assert operation.ref == ModelRef("m", "2")
        assert (operation.timeout_ns, operation.priority) == (100_000, 3)
        assert operation.encoding == ({}, False)
        assert found.id == "a"
        assert found.method == "score"
        assert found.outputs == ("y",)
        assert found.parameters == {"b": False, "i": -5, "s": "text", "d": 0.5, "u": 2**64 - 1}
        assert list(found.payload) == ["x0", "x1"]
        np.testing.assert_array_equal(found.payload["x1"].array(), 2 * FLOATS)


@pytest.mark.parametrize("datatype", NUMERIC)
def test_numbers_from_the_client_library(datatype):
    array = np.arange(6).reshape(2, 3).astype(triton_to_np_dtype(datatype))
    tensor = triton.InferInput("x", [2, 3], datatype)
    tensor.set_data_from_numpy(array)
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.append(tensor._get_tensor())
    request.raw_input_contents.append(tensor._get_content())
    found = decode(request).request.payload["x"]
    assert found.dtype.name == datatype
    np.testing.assert_array_equal(found.array(), array)


def test_bf16_is_bits():
    values = np.array([0.5, -3.0], np.float32)
    tensor = triton.InferInput("x", [2], "BF16")
    tensor.set_data_from_numpy(values.astype(ml_dtypes.bfloat16))
    request = pb.ModelInferRequest(inputs=[tensor._get_tensor()])
    request.raw_input_contents.append(tensor._get_content())
    found = decode(request).request.payload["x"]
    assert found.dtype is BF16
    np.testing.assert_array_equal(found.array(), bf16_bits(values))


def test_bytes_stay_packed():
    items = np.array([[b"", "\N{SNOWMAN}".encode()], [b"\0", b"abc"]], np.object_)
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="BYTES", shape=[2, 2])
    request.raw_input_contents.append(serialize_byte_tensor(items).item())
    found = decode(request).request.payload["x"]
    assert found.dtype is BYTES
    assert type(found.data) is Packed
    np.testing.assert_array_equal(found.array(), items)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_large_inputs_are_read_only_views(kind):
    array = np.ones((1, 3, 224, 224), np.float32)
    data = kind(raw_request(array).SerializeToString())
    found = decode_infer_request(data).request.payload["x0"].array()
    np.testing.assert_array_equal(found, array)
    assert not found.flags.writeable
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    ("datatype", "field_name", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -1e30]),
        ("FP64", "fp64_contents", [0.1, -1e300]),
        ("BYTES", "bytes_contents", [b"", b"\xff\0"]),
    ],
)
def test_typed_contents(datatype, field_name, values, heads):
    found = decode(typed_request(datatype, [1, 2], **{field_name: values})).request.payload["x"]
    expected = np.array([values], dtype_of(datatype).numpy)
    assert found.array().dtype == expected.dtype
    np.testing.assert_array_equal(found.array(), expected)
    assert len(heads) == 0


def test_no_elements():
    empty = np.zeros((0, 2), np.float32)
    assert decode(raw_request(empty)).request.payload["x0"].array().shape == (0, 2)
    assert decode(typed_request("BYTES", [0])).request.payload["x"].array().shape == (0,)


def test_classes_are_asked_for_by_a_parameter():
    request = raw_request(FLOATS, outputs=["y", "z"])
    request.outputs[1].parameters["classification"].int64_param = 3
    assert decode(request).encoding.counts == {"z": 3}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda r: r.raw_input_contents.append(b""), "expected 1 entries, one per input, got 2"),
        (lambda r: r.inputs.add(name="z", datatype="FP32"), "expected 2 entries.*got 1"),
        (lambda r: r.raw_input_contents.__setitem__(0, b"123"), "expects 16 bytes, got 3"),
        (
            lambda r: r.inputs[0].shape.append(2),
            r"'x0': FP32 of shape \[1, 4, 2\] expects 32 bytes, got 16",
        ),
        (lambda r: r.inputs[0].shape.append(-1), "'x0': a dimension is negative"),
        (lambda r: r.inputs[0].shape.append(2**62), "no request can hold"),
        (lambda r: r.inputs[0].shape.extend([0, 2**60]), "no request can hold"),
        (lambda r: r.inputs[0].shape.extend([1] * 63), "at most 64 dimensions, got 65"),
        (lambda r: setattr(r.inputs[0], "datatype", "fp32"), "'x0'.*'fp32'.*Did you mean 'FP32'"),
        (lambda r: r.inputs[0].contents.SetInParent(), "send one of them"),
        (lambda r: [r.outputs.add() for _ in range(4097)], "at most 4096 outputs"),
        (lambda r: r.parameters["p"].SetInParent(), "'p': has no value"),
        (lambda r: r.parameters["triton_x"].SetInParent(), "'triton_' are reserved"),
        (lambda r: setattr(r.parameters["timeout"], "int64_param", -1), "'timeout'.*whole number"),
        (lambda r: setattr(r.parameters["priority"], "string_param", "1"), "'priority'"),
        (lambda r: setattr(r.parameters["method"], "int64_param", 1), "'method': expected a str"),
        (lambda r: r.outputs.add().parameters["classification"].SetInParent(), "classes above 0"),
    ],
)
def test_refused(change, problem):
    request = raw_request(FLOATS)
    change(request)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=problem):
            decode(request)


def test_an_input_named_twice():
    request = raw_request(FLOATS, FLOATS)
    request.inputs[1].name = "x0"
    with pytest.raises(InvalidInput, match="given twice"):
        decode(request)


def test_too_few_bytes_for_so_many_elements():
    request = pb.ModelInferRequest(raw_input_contents=[pack_bytes(["a"])])
    request.inputs.add(name="x", datatype="BYTES", shape=[2])
    with pytest.raises(InvalidInput, match=r"at least 8 bytes.*got 5"):
        decode(request)


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (typed_request("FP32", [2], fp32_contents=[1]), "expects 2 elements, got 1"),
        (typed_request("FP32", [2]), "expects 2 elements, got 0"),
        (typed_request("FP32", [1], fp64_contents=[1]), "fp32_contents for FP32, got fp64"),
        (typed_request("FP32", [1], fp32_contents=[1], int_contents=[1]), "got int_contents"),
        (typed_request("INT8", [1], int_contents=[128]), "does not fit INT8"),
        (typed_request("FP16", [1], fp32_contents=[1]), "FP16 travels in raw_input_contents only"),
        (typed_request("BF16", [1], fp32_contents=[1]), "BF16 travels in raw_input_contents only"),
        (typed_request("BYTES", [2**40], bytes_contents=[b""]), "expects 1099511627776 elements"),
    ],
)
def test_wrong_typed_contents(request_, problem):
    with pytest.raises(InvalidInput, match=problem):
        decode(request_)


def test_a_model_may_change_its_parameters():
    request = raw_request(FLOATS)
    request.parameters["p"].int64_param = 1
    for _ in range(2):
        found = decode(request).request.parameters
        assert found.pop("p") == 1


def test_shared_memory_is_refused_with_the_remedy():
    request = raw_request(FLOATS, outputs=["y"])
    request.outputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match=r"output 'y'.*raw_input_contents"):
        decode(request)
    request = typed_request("FP32", [1])
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match=r"input 'x'.*raw_input_contents"):
        decode(request)


def test_heads_are_cached_without_ids_and_within_bounds(heads):
    for index in range(50):
        found = decode(raw_request(index * FLOATS, request_id=f"{index}")).request
        assert found.id == str(index)
        np.testing.assert_array_equal(found.payload["x0"].array(), index * FLOATS)
    assert len(heads) == 1
    decode(raw_request(FLOATS, outputs=["y" * grpc_request.MAX_HEAD_BYTES]))
    assert len(heads) == 1
    for index in range(50):
        decode(raw_request(FLOATS, model_version=str(index)))
    assert len(heads) <= 16


def outcome(decoder, data):
    try:
        return decoder(data)
    except SalverError:
        return "refused"


def by_salver(data):
    operation = decode_infer_request(data)
    ref, request = operation.ref, operation.request
    tensors = [
        (name, tensor.dtype.name, tensor.shape, bytes(tensor.to_bytes()))
        for name, tensor in request.payload.items()
    ]
    return ref.name, ref.version, request.id, dict(request.parameters), request.outputs, tensors


def by_client_library(data):
    """What the message means, as the client library's classes read it."""
    try:
        request = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        raise InvalidInput("") from None
    raws = list(request.raw_input_contents)
    if raws and any(tensor.HasField("contents") for tensor in request.inputs):
        raise InvalidInput("")
    if not raws:
        raws = [np.int8(tensor.contents.int_contents).tobytes() for tensor in request.inputs]
    if len(raws) != len(request.inputs) or len({t.name for t in request.inputs}) != len(raws):
        raise InvalidInput("")
    tensors = []
    for tensor, raw in zip(request.inputs, raws, strict=True):
        size = math.prod(tensor.shape) * DTYPES[tensor.datatype].itemsize
        if any(dim < 0 for dim in tensor.shape) or size != len(raw):
            raise InvalidInput("")
        tensors.append((tensor.name, tensor.datatype, tuple(tensor.shape), raw))
    parameters = {}
    for name, value in request.parameters.items():
        if value.WhichOneof("parameter_choice") is None:
            raise InvalidInput("")
        parameters[name] = getattr(value, value.WhichOneof("parameter_choice"))
    outputs = tuple(output.name for output in request.outputs)
    version = request.model_version
    return request.model_name, version, request.id, parameters, outputs, tensors


@st.composite
def rarely(draw, one_in=10):
    return draw(st.integers(1, one_in)) == one_in


@st.composite
def wire_messages(draw):
    """Mostly the usual requests; some with fields in another order, unknown ones, overlong lengths
    and cut ends."""
    fields = [(0x0A, b"model")]
    if draw(st.booleans()):
        fields.append((0x12, b"1"))
    if draw(st.booleans()):
        fields.append((0x1A, b"\xff" if draw(rarely()) else draw(st.sampled_from([b"", b"id"]))))
        fields += fields[-1:] * draw(rarely())
    if draw(rarely()):
        parameter = pb.ModelInferRequest()
        parameter.parameters["p"].int64_param = draw(st.integers(-9, 9))
        fields.append((0x22, parameter.SerializeToString()[2:]))
    raws = []
    for name in draw(st.lists(st.sampled_from("abcd"), max_size=3, unique=not draw(rarely()))):
        shape = (-1, -1) if draw(rarely(20)) else draw(st.sampled_from([(2, 2), (0,), (100,), ()]))
        datatype = draw(st.sampled_from(["FP32", "INT8"]))
        tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
        if draw(rarely(20)):
            tensor.contents.int_contents.append(1)
        fields.append((0x2A, tensor.SerializeToString()))
        raws.append((0x3A, name.encode() * abs(int(np.prod(shape))) * DTYPES[datatype].itemsize))
    for name in draw(st.lists(st.sampled_from("yz"), max_size=2)):
        fields.append((0x32, field(0x0A, name.encode())))
    fields += raws[draw(rarely()) :]
    if draw(rarely()):
        unknown = draw(st.sampled_from([0x7A, 0x42, 0x52]))
        fields.insert(draw(st.integers(0, len(fields))), (unknown, b"unknown"))
    if draw(rarely(5)):
        fields = draw(st.permutations(fields))
    data = bytearray()
    for tag, payload in fields:
        length = varint(len(payload))
        if draw(rarely()):
            zeros = draw(st.integers(0, 3))
            length = length[:-1] + bytes((length[-1] | 0x80,)) + b"\x80" * zeros + b"\0"
        data += bytes((tag,)) + length + payload
    if draw(rarely()):
        data += draw(
            st.sampled_from([b"\x78\x01", b"\x79" + b"8" * 8, b"\x3a", b"\0", b"\x7b\x7c"])
        )
    return bytes(data[: len(data) - draw(rarely()) * draw(st.integers(1, 9))])


@given(wire_messages())
def test_means_what_protobuf_says(data):
    expected = outcome(by_client_library, data)
    for _ in range(2):
        assert outcome(by_salver, data) == expected
    assert outcome(by_salver, memoryview(bytearray(data))) == expected


@given(st.binary(max_size=64))
def test_any_bytes(data):
    outcome(by_salver, data)


@given(st.integers(0), st.integers(0, 255))
def test_a_changed_byte(at, value):
    data = bytearray(raw_request(FLOATS, request_id="a", outputs=["y"]).SerializeToString())
    data[at % len(data)] = value
    try:
        request = pb.ModelInferRequest.FromString(bytes(data))
    except DecodeError:
        assert outcome(by_salver, bytes(data)) == "refused"
        return
    assume(all(tensor.datatype in DTYPES for tensor in request.inputs))
    assert outcome(by_salver, bytes(data)) == outcome(by_client_library, bytes(data))
