from __future__ import annotations

import itertools
from contextlib import suppress

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ml_dtypes import bfloat16
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from salver.codecs.json_numbers import NON_FINITE
from salver.codecs.json_request import decode_request
from salver.codecs.json_response import encode_response, encode_with_binary, wants_binary
from salver.codecs.v2 import MAX_RANK
from salver.codecs.values import narrowed
from salver.errors import InvalidInput, SalverError, Unsupported
from salver.observe.memory import resident_bytes
from salver.signature import Method
from salver.types import (
    BF16,
    BYTES,
    DTYPES,
    INT8,
    INT64,
    UINT64,
    ModelRef,
    Response,
    Rows,
    Tensor,
    Tensors,
    bf16_floats,
)

METHOD = Method(inputs=(), outputs=(), batching="rows")
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
TEXT = st.binary(max_size=5).filter(lambda raw: not raw.endswith(b"\0"))


def arrays(dtype):
    if dtype is BYTES:
        return hnp.arrays(np.object_, SHAPES, elements=TEXT)
    if dtype is BF16:
        floats = hnp.arrays(np.uint16, SHAPES).map(bf16_floats)
        return floats.map(lambda array: np.where(np.isnan(array), np.float32(0), array))
    return hnp.arrays(dtype.numpy, SHAPES)


NAMED = st.sampled_from(sorted(DTYPES.values(), key=lambda dtype: dtype.name)).flatmap(
    lambda dtype: st.tuples(st.just(dtype), arrays(dtype))
)


def response(start=0, stop=-1, names=None, **tensors):
    made = Tensors({name: Tensor.of(value) for name, value in tensors.items()})
    return Response(Rows(made), ModelRef("m", "1"), METHOD, names or tuple(made), start, stop)


def one(datatype, shape, data, **more):
    entry = {"name": "x", "datatype": datatype, "shape": shape, **more}
    if data is not None:
        entry["data"] = data
    return {"inputs": [entry]}


def decoded(value, padding=0):
    """The input `x`, decoded as a small body and, with padding, as a large one."""
    body = orjson.dumps(value) + b" " * padding
    tensor = decode_request(body, 64).tensors["x"]
    return Tensor(tensor.dtype, tensor.shape, tensor.array("x"))


def refused(value, match=None, padding=0):
    with pytest.raises(InvalidInput, match=match):
        decoded(value, padding)


@given(named=NAMED, binary=st.booleans())
def test_what_the_triton_client_sends_arrives(named, binary):
    dtype, array = named
    if dtype is BYTES and not binary:
        array = np.array([item.hex().encode() for item in array.flat], np.object_).reshape(
            array.shape
        )
    if not binary and dtype is not BYTES and dtype.is_float:
        array = np.where(np.isfinite(array), array, array.dtype.type(0))
    if dtype.name in ("FP16", "BF16"):
        binary = True
    given_input = InferInput("x", list(array.shape), dtype.name)
    sent = array.astype(bfloat16) if dtype is BF16 else array
    given_input.set_data_from_numpy(sent, binary_data=binary)
    body, json_bytes = InferenceServerClient.generate_request_body(
        [given_input], request_id="7", parameters={"a": 1}
    )
    found = decode_request(body, 64, -1 if json_bytes is None else json_bytes)
    tensor = found.tensors["x"]
    assert tensor.dtype is dtype
    assert tensor.shape == array.shape
    got = bf16_floats(tensor.array()) if dtype is BF16 else tensor.array()
    np.testing.assert_array_equal(got, array)
    assert found.id == "7"
    assert found.parameters["a"] == 1


@given(named=NAMED, start=st.integers(0, 2), binary=st.booleans())
def test_the_triton_client_reads_what_is_answered(named, start, binary):
    dtype, array = named
    if dtype is BF16:
        return
    if dtype is BYTES and not binary:
        array = np.array([item.hex().encode() for item in array.flat], np.object_).reshape(
            array.shape
        )
    if not binary and dtype.is_float:
        array = np.where(np.isfinite(array), array, array.dtype.type(0))
    rows = response(y=array)
    expected = array
    if array.ndim and len(array) > start:
        rows.start, rows.stop = start, len(array)
        expected = array[start:]
    if binary:
        head, *tail = encode_with_binary(rows, "7", ["y"])
        raw = b"".join([head, *map(bytes, tail)])
        result = InferenceServerClient.parse_response_body(raw, header_length=len(head))
    else:
        result = InferenceServerClient.parse_response_body(encode_response(rows, "7"))
    assert result.get_response()["id"] == "7"
    assert result.get_output("y")["shape"] == list(expected.shape)
    got = result.as_numpy("y")
    if dtype is BYTES and not binary:
        got = np.array([item.encode() for item in got.flat], np.object_).reshape(got.shape)
    np.testing.assert_array_equal(got, expected)


@given(
    array=hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(0, 70))), data=st.data()
)
def test_every_call_of_a_batch_gets_its_rows(array, data):
    whole = response(y=array)
    edges = sorted({0, len(array), *data.draw(st.lists(st.integers(0, len(array))))})
    for start, stop in itertools.pairwise(edges):
        part = Response(whole.rows, whole.ref, METHOD, ("y",), start, stop)
        (output,) = orjson.loads(encode_response(part))["outputs"]
        assert output["shape"] == [stop - start, array.shape[1]]
        flat = [NON_FINITE.get(x, x) for x in output["data"]]
        np.testing.assert_array_equal(np.array(flat, np.float32), array[start:stop].ravel())


def test_several_outputs_parameters_and_strange_names():
    made = response(**{'a"b': np.ones((1, 2)), "c": np.array(["é"], np.object_)})
    made.parameters = {"p": True}
    value = orjson.loads(encode_response(made, 'i"d'))
    assert value["id"] == 'i"d'
    assert value["parameters"] == {"p": True}
    assert [output["name"] for output in value["outputs"]] == ['a"b', "c"]
    assert value["outputs"][1] == {"name": "c", "datatype": "BYTES", "shape": [1], "data": ["é"]}


@pytest.mark.parametrize("padding", [0, 2000])
class TestSmallAndLarge:
    @pytest.mark.parametrize("name", [n for n, d in DTYPES.items() if d.is_integer])
    def test_integers_keep_their_range(self, padding, name):
        bounds = np.iinfo(DTYPES[name].numpy)
        values = [int(bounds.min), int(bounds.max)]
        assert decoded(one(name, [2], values), padding).array().tolist() == values
        for value in (bounds.min - 1, bounds.max + 1):
            if -(2**63) <= value < 2**64:
                refused(one(name, [1], [int(value)]), "does not fit", padding)

    def test_integers_beyond_every_range(self, padding):
        body = b'{"inputs":[{"name":"x","datatype":"INT64","shape":[1],"data":[1%b]}]}%b'
        with pytest.raises(InvalidInput, match="INT64"):
            decode_request(body % (b"0" * 30, b" " * padding), 64).tensors["x"].array("x")

    @pytest.mark.parametrize(("name", "value"), [("FP32", -1e60), ("FP16", 7e4), ("BF16", 1e60)])
    def test_floats_beyond_every_range(self, padding, name, value):
        refused(one(name, [1], [value]), f"'x': a value does not fit {name}$", padding)

    def test_nested_data_is_flattened(self, padding):
        nested = one("FP32", [2, 2], [[1, 2], [3, 4.5]])
        assert decoded(nested, padding).array().tolist() == [[1, 2], [3, 4.5]]

    @pytest.mark.parametrize("words", [["NaN", "-Infinity", 1], "[NaN,-Infinity,1]"])
    def test_non_finite_numbers(self, padding, words):
        if isinstance(words, str):
            body = orjson.dumps(one("FP32", [3], ["here"])).replace(b'["here"]', words.encode())
            array = decode_request(body + b" " * padding, 64).tensors["x"].array()
        else:
            array = decoded(one("FP32", [3], words), padding).array()
        np.testing.assert_array_equal(array, np.array([np.nan, -np.inf, 1], np.float32))

    def test_the_count_must_fit_the_shape(self, padding):
        refused(one("FP32", [2, 2], [1, 2, 3]), r"\[2, 2\] expects 4 elements, got 3", padding)
        refused(one("FP32", [], []), "expects 1 elements, got 0", padding)
        refused(one("FP32", [2], [[1, 2], [3]]), "got 3", padding)
        assert decoded(one("FP32", [1] * MAX_RANK, [1.5]), padding).array().ndim == MAX_RANK
        refused(one("FP32", [1] * (MAX_RANK + 1), [1.5]), "shape", padding)

    @pytest.mark.parametrize(
        "shape",
        [[-1], [2**62, 4], [2**40] * 4, [0, 2**39, 2**39], [1] * 65, [1.5], ["1"], "1"],
    )
    def test_impossible_shapes(self, padding, shape):
        refused(one("FP32", shape, [1.0]), padding=padding)
        refused(one("FP32", shape, []), padding=padding)

    def test_empty_tensors(self, padding):
        assert decoded(one("FP32", [0, 4], []), padding).array().shape == (0, 4)

    def test_a_name_is_given_once(self, padding):
        value = one("FP32", [1], [1])
        refused({"inputs": value["inputs"] * 2}, "given twice", padding)

    @pytest.mark.parametrize(
        ("datatype", "data"),
        [
            ("FP32", ["a"]),
            ("FP32", [True]),
            ("FP32", [None]),
            ("FP32", [{}]),
            ("INT32", [1.5]),
            ("INT32", ["1"]),
            ("INT32", [False]),
            ("BOOL", [1]),
            ("BYTES", [1]),
            ("BYTES", [["a", 1]]),
        ],
    )
    def test_values_of_another_type(self, padding, datatype, data):
        refused(one(datatype, [1], data), "'x'", padding)

    def test_unknown_types(self, padding):
        refused(one("FLOAT", [1], [1]), "FLOAT", padding)
        refused(one("fp32", [1], [1]), "Did you mean 'FP32'", padding)

    @pytest.mark.parametrize(
        "value",
        [
            {},
            [],
            {"inputs": {}},
            {"inputs": 5},
            {"inputs": [1]},
            {"inputs": [{"name": 1}]},
            one("FP32", [1], None),
        ],
    )
    def test_requests_of_another_form(self, padding, value):
        refused(value, padding=padding)

    def test_everything_else_of_a_request(self, padding):
        value = {
            **one("FP32", [1], [1]),
            "id": "7",
            "parameters": {"timeout": 5, "deep": {"a": [1]}},
            "outputs": [{"name": "y", "parameters": {"classification": 2}}],
        }
        found = decode_request(orjson.dumps(value) + b" " * padding, 64)
        assert found.id == "7"
        assert found.parameters == value["parameters"]
        assert found.outputs[0].name == "y"
        assert found.outputs[0].parameters == {"classification": 2}
        with pytest.raises(InvalidInput, match="id"):
            decode_request(orjson.dumps({**value, "id": 7}) + b" " * padding, 64)


@pytest.mark.parametrize("depth", range(7))
@pytest.mark.parametrize(("name", "value"), [("FP32", 1.5), ("INT64", 2**60), ("BYTES", b"a")])
def test_data_nested_to_any_depth(depth, name, value):
    data = value.decode() if name == "BYTES" else value
    for _ in range(depth):
        data = [data]
    assert decoded(one(name, [1] * (depth + 1), [data])).array().ravel().tolist() == [value]


@pytest.mark.parametrize("data", [[[1.0], 2.0], [1.0, [2.0]], [[[1.0]], [2.0]]])
def test_data_nested_unevenly_are_refused(data):
    refused(one("FP32", [2], data), "'x': ")


@pytest.mark.parametrize("body", [b'{"inputs": NaN}', b'{"inputs": {"a": NaN}}', b"NaN"])
def test_bare_words_in_requests_of_another_form(body):
    with pytest.raises(InvalidInput):
        decode_request(body, 64)


def test_a_long_body_leaves_no_memory_behind():
    body = orjson.dumps(one("FP32", [2_000_000], [1.0] * 2_000_000))
    before = resident_bytes()
    decode_request(body, 64)
    assert resident_bytes() - before < 7 * len(body)


def test_narrowed_checks_signs():
    for value, dtype in ((np.array([-1]), UINT64), (np.array([2**63], np.uint64), INT64)):
        with pytest.raises(InvalidInput, match="does not fit"):
            narrowed(value, dtype, "x")
    with pytest.raises(InvalidInput, match="-128 to 127"):
        narrowed(np.array([128.0]), INT8, "x")


def binary_request(size, payload, shape=(2,), datatype="FP32", json_extra=0):
    value = one(datatype, list(shape), None, parameters={"binary_data_size": size})
    text = orjson.dumps(value)
    return text + payload, len(text) + json_extra


@pytest.mark.parametrize(
    ("size", "payload", "match"),
    [
        (8, b"1234567", "7 bytes are left"),
        (7, b"1234567", "expects 8 bytes, got 7"),
        (8, b"123456789", "add up to 8"),
        (-1, b"", "-1"),
        (True, b"1", "True"),
        ("8", b"12345678", "8"),
    ],
)
def test_binary_sizes_must_fit(size, payload, match):
    body, json_bytes = binary_request(size, payload)
    with pytest.raises(InvalidInput, match=match):
        decode_request(body, 64, json_bytes)


def test_binary_needs_its_header():
    body, json_bytes = binary_request(8, b"12345678")
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        decode_request(body[:json_bytes], 64)
    with pytest.raises(InvalidInput, match="the body has"):
        decode_request(body, 64, len(body) + 1)


@pytest.mark.parametrize(
    "payload", [b"", b"\x01\0\0", b"\xff\xff\xff\xffa", b"\x01\0\0\0a\x01\0\0\0", b"\0" * 12]
)
def test_broken_bytes_elements(payload):
    body, json_bytes = binary_request(len(payload), payload, datatype="BYTES")
    with pytest.raises(InvalidInput, match="BYTES"):
        decode_request(body, 64, json_bytes)


@pytest.mark.parametrize("shape", [(2**40, 2**40), (0, 2**39, 2**39)])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_impossible_shapes_of_binary_data(shape, datatype):
    body, json_bytes = binary_request(0, b"", shape, datatype)
    with pytest.raises(InvalidInput, match="'x'"):
        decode_request(body, 64, json_bytes)


def test_binary_data_is_not_copied():
    payload = np.arange(2, dtype=np.float32).tobytes()
    body, json_bytes = binary_request(8, payload)
    buffer = bytearray(body)
    array = decode_request(memoryview(buffer), 64, json_bytes).tensors["x"].array()
    buffer[-4:] = np.float32(9).tobytes()
    assert array.tolist() == [0.0, 9.0]


def test_shared_memory_is_refused_with_its_name():
    value = one("FP32", [1], None, parameters={"shared_memory_region": "r"})
    with pytest.raises(Unsupported, match="shared memory"):
        decode_request(orjson.dumps(value), 64)


def test_which_outputs_are_binary():
    def wanted(parameters, *outputs):
        value = {**one("FP32", [1], [1]), "parameters": parameters, "outputs": list(outputs)}
        return wants_binary(decode_request(orjson.dumps(value), 64), ("a", "b"))

    plain, binary = {"name": "a"}, {"name": "b", "parameters": {"binary_data": True}}
    assert wanted({}) == []
    assert wanted({"binary_data_output": True}) == ["a", "b"]
    assert wanted({}, plain, binary) == ["b"]
    assert wanted({"binary_data_output": True}, plain) == ["a"]
    with pytest.raises(Unsupported, match="shared memory"):
        wanted({}, {"name": "a", "parameters": {"shared_memory_region": "r"}})


def test_the_triton_clients_wishes_are_understood():
    outputs = [InferRequestedOutput("a", binary_data=True), InferRequestedOutput("b", False)]
    given_input = InferInput("x", [1], "FP32")
    given_input.set_data_from_numpy(np.ones(1, np.float32))
    body, length = InferenceServerClient.generate_request_body([given_input], outputs=outputs)
    assert wants_binary(decode_request(body, 64, length), ("a", "b")) == ["a"]


@given(body=st.binary(max_size=80), json_bytes=st.integers(-1, 90))
def test_any_bytes_are_a_request_or_an_error(body, json_bytes):
    with suppress(SalverError):
        decode_request(body, 8, json_bytes)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["inputs", "name", "shape", "data"]), inner, max_size=4),
    ),
    max_leaves=8,
)


@given(
    datatype=st.sampled_from([*DTYPES, "x"]),
    shape=JSON,
    data=JSON,
    padding=st.sampled_from([0, 1100]),
)
def test_any_value_is_a_tensor_or_an_error(datatype, shape, data, padding):
    try:
        body = orjson.dumps(one(datatype, shape, data)) + b" " * padding
    except TypeError:
        return
    with suppress(SalverError):
        tensor = decode_request(body, 8).tensors["x"]
        assert tensor.array("x").shape == tensor.shape
