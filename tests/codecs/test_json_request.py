from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager, nullcontext, suppress
from unittest import mock

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from tests.codecs.arrays import NAMED
from tritonclient.http import InferenceServerClient, InferInput

from salver.codecs import json_request, long_array
from salver.codecs.json_numbers import MAX_VALUES
from salver.codecs.json_request import decode_request
from salver.codecs.long_array import LongArray
from salver.codecs.v2 import MAX_RANK
from salver.codecs.values import narrowed
from salver.errors import InvalidInput, SalverError, TooLarge, Unsupported
from salver.observe.memory import resident_bytes
from salver.types import (
    BF16,
    BYTES,
    DTYPES,
    INT8,
    INT64,
    UINT64,
    Tensor,
    bf16_floats,
)


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


@contextmanager
def short_parts():
    """Every array is a long one, of several parts."""
    options = {"PART_BYTES": 2, "LONG_BYTES": 1, "_AROUND_BYTES": 40}
    with (
        mock.patch.object(json_request, "LONG_BYTES", 1),
        mock.patch.multiple(long_array, **options),
    ):
        yield


@pytest.fixture(params=["small", "large", "long"])
def padding(request):
    """Spaces after a request, so that it is decoded as a small, a large or a long one."""
    if request.param == "long":
        with short_parts():
            yield 2000
    else:
        yield 2000 if request.param == "large" else 0


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


@pytest.mark.parametrize("shape", [(60_000,), (15_000, 4), (1, 2, 30_000)])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64"])
def test_no_step_decodes_more_than_a_part(shape, datatype):
    lengths = []
    texts = LongArray.texts

    def noted(self, parse):
        return texts(self, lambda text: lengths.append(len(text)) or parse(text))

    array = (np.random.default_rng(0).normal(size=shape) * 1e9).astype(DTYPES[datatype].numpy)
    value = one(datatype, shape, array, parameters={})
    value["inputs"] *= 2
    value["inputs"][1] = {**value["inputs"][1], "name": "z", "datatype": "INT8", "data": [7]}
    value["inputs"][1]["shape"] = [1]
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    with mock.patch.object(LongArray, "texts", noted):
        found = decode_request(body, 64).tensors
    np.testing.assert_array_equal(found["x"].array(), array)
    assert found["z"].array("z").tolist() == [7]
    assert len(lengths) > 4
    assert max(lengths) <= long_array.LONG_BYTES


TEXTS = ["a", "", 'a "quoted", one', "[", "]", "{,", "é\\\\", "1,2"]


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP32", [0.5, "NaN"] * 40_000, [0.5, np.nan] * 40_000),
        ("FP64", ["-Infinity", 1, 2, 3] * 20_000, [-np.inf, 1, 2, 3] * 20_000),
        ("FP64", ["NaN", *[1.5] * 80_000], [np.nan, *[1.5] * 80_000]),
        ("BOOL", [True, False] * 40_000, [True, False] * 40_000),
        ("BYTES", TEXTS * 10_000, [text.encode() for text in TEXTS] * 10_000),
        ("BYTES", ["x" * 300_000, *TEXTS], [b"x" * 300_000, *[text.encode() for text in TEXTS]]),
    ],
)
def test_words_and_texts_are_decoded_in_parts(datatype, data, expected):
    lengths = []
    texts = LongArray.texts

    def noted(self, parse):
        return texts(self, lambda text: lengths.append(len(text)) or parse(text))

    value = one(datatype, [len(data)], data)
    value["inputs"].append({**one("INT8", [1], [7])["inputs"][0], "name": "z"})
    with (
        mock.patch.object(LongArray, "texts", noted),
        mock.patch.object(json_request, "_decode_large", side_effect=AssertionError),
    ):
        found = decode_request(orjson.dumps(value), 64).tensors
    np.testing.assert_array_equal(found["x"].array(), expected)
    assert found["z"].array("z").tolist() == [7]
    assert max(lengths) <= max(
        long_array.LONG_BYTES, len(data[0]) + 100 if datatype == "BYTES" else 0
    )


@pytest.mark.parametrize("odd", ['"x"', "null", "[1]", '{"a":1}', "1", "\\ud800"])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL"])
def test_what_is_odd_in_many_values_is_told_as_in_few(datatype, odd):
    good = {"FP32": '"NaN"', "BYTES": '"a"', "BOOL": "true"}[datatype]

    def outcome(num_values):
        head = '{"inputs":[{"name":"x","datatype":"%s","shape":[%d],"data":['
        body = head % (datatype, num_values + 1) + f"{good}," * num_values + odd + "]}]}"
        try:
            return decode_request(body.encode(), 64).tensors["x"].array("x").tolist()[-1]
        except InvalidInput as error:
            return re.sub(r"element \d+|\d+", "", error.message)

    assert outcome(100_000) == outcome(1)


def test_many_bare_words_are_decoded_in_parts():
    numbers = np.random.default_rng(0).normal(size=30_000)
    numbers[::7] = np.nan
    body = json.dumps(one("FP64", [30_000], numbers.tolist())).encode()
    with mock.patch.object(json_request, "_decode_other", side_effect=AssertionError):
        found = decode_request(body, 64).tensors["x"].array()
    np.testing.assert_array_equal(found, numbers)


def test_what_stands_for_a_long_array_may_be_data():
    value = one("FP32", [60_000], np.ones(60_000).tolist())
    value["inputs"].insert(0, {**one("FP32", [1], 0)["inputs"][0], "name": "y"})
    found = decode_request(orjson.dumps(value), 64).tensors
    assert found["x"].array("x").sum() == 60_000
    assert found["y"].array("y").tolist() == [0]


@pytest.mark.parametrize("depth", [300, 5000, 1_000_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b"[", b"")])
@pytest.mark.parametrize(
    "field",
    [
        b'"data":[1]}],"unknown":%b',
        b'"data":[1],"unknown":%b}]',
        b'"data":[1],"parameters":{"a":%b}}]',
        b'"data":[1]}],"outputs":[{"name":"y","unknown":%b}]',
        b'"data":%b}]',
    ],
)
def test_no_nesting_is_too_deep_to_be_judged(field, opening, closing, depth):
    nested = opening * depth + b"1" + closing * depth
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],' + field % nested + b"}"
    # What is only skipped may be somewhat deeper.
    with suppress(TooLarge) if depth == 300 else pytest.raises(TooLarge, match="than 64 levels"):
        assert decode_request(body, 64).tensors["x"].array("x").tolist() == [1]


@pytest.mark.parametrize("mark", [b'"data":[', b'"data":["",', b'"data":[1,1,'])
def test_what_only_looks_like_many_inputs_is_soon_given_up(mark):
    with (
        mock.patch.object(long_array, "_end_of_data", return_value=-1) as looked_for,
        pytest.raises(InvalidInput),
    ):
        decode_request(b'{"inputs":[' + mark * 100_000, 64)
    assert looked_for.call_count == 1024


def test_a_long_array_elsewhere_is_no_input():
    value = one("FP32", [1], [1.0])
    value["parameters"] = {"data": np.ones(60_000).tolist()}
    found = decode_request(orjson.dumps(value), 64)
    assert found.parameters == value["parameters"]
    assert found.tensors["x"].array("x").tolist() == [1.0]


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
    is_long=st.booleans(),
)
def test_any_value_is_a_tensor_or_an_error(datatype, shape, data, padding, is_long):
    try:
        body = orjson.dumps(one(datatype, shape, data)) + b" " * padding
    except TypeError:
        return
    with suppress(SalverError), short_parts() if is_long else nullcontext():
        tensor = decode_request(body, 8).tensors["x"]
        assert tensor.array("x").shape == tensor.shape


@pytest.mark.parametrize("num_rows", [1, 2000])
def test_null_stands_for_what_is_left_out(num_rows):
    value = one("FP32", [num_rows, 4], [1.0] * 4 * num_rows)
    body = orjson.dumps({**value, "id": None, "parameters": None, "outputs": None})
    found = decode_request(body, 64)
    assert (found.id, found.parameters, found.outputs) == ("", None, None)
    assert found.tensors["x"].shape == (num_rows, 4)


@pytest.mark.parametrize("value", ["[]", "{}", '""', "[0]"])
def test_more_values_than_memory_is_meant_for_are_never_built_at_once(value):
    data = ",".join([value] * (MAX_VALUES + 1))
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[[[%b],0]]}]}'
    before = resident_bytes(os.getpid())
    told = nullcontext() if value == "[]" else pytest.raises(TooLarge, match=str(MAX_VALUES))
    with told:
        # Lists of nothing add nothing to the one value, and are read some at a time.
        assert decode_request(body % data.encode(), 64).tensors["x"].array().tolist() == [0]
    assert resident_bytes(os.getpid()) - before < 8 * len(data)
