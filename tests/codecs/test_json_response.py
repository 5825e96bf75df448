from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.codecs.arrays import NAMED
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from salver.codecs import json_numbers
from salver.codecs.json_numbers import NON_FINITE, PART_VALUES, LongText
from salver.codecs.json_request import decode_request
from salver.codecs.json_response import (
    encode_response,
    encode_with_binary,
    response_parts,
    wants_binary,
)
from salver.errors import InvalidInput, Unsupported
from salver.signature import Method
from salver.types import BF16, BYTES, ModelRef, Response, Rows, Tensor, Tensors

METHOD = Method(inputs=(), outputs=(), batching="rows")


def response(start=0, stop=-1, names=None, **tensors):
    made = Tensors({name: Tensor.of(value) for name, value in tensors.items()})
    return Response(Rows(made), ModelRef("m", "1"), METHOD, names or tuple(made), start, stop)


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


def test_which_outputs_are_binary():
    entry = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}

    def wanted(parameters, *outputs):
        value = {"inputs": [entry], "parameters": parameters, "outputs": list(outputs)}
        return wants_binary(decode_request(orjson.dumps(value), 64), ("a", "b"))

    plain, binary = {"name": "a"}, {"name": "b", "parameters": {"binary_data": True}}
    assert wanted({}) == []
    assert wanted({"binary_data_output": True}) == ["a", "b"]
    assert wanted({}, plain, binary) == ["b"]
    assert wanted({"binary_data_output": True}, plain) == ["a"]
    with pytest.raises(Unsupported, match="shared memory"):
        wanted({}, {"name": "a", "parameters": {"shared_memory_region": "r"}})


@pytest.mark.parametrize(
    "wish",
    [
        {"parameters": {"binary_data_output": "false"}},
        {"outputs": [{"name": "a", "parameters": {"binary_data": 0}}]},
    ],
)
def test_wishes_are_true_or_false(wish):
    body = orjson.dumps({"inputs": [], **wish})
    with pytest.raises(InvalidInput, match="expected true or false"):
        wants_binary(decode_request(body, 64), ("a",))


def test_the_triton_clients_wishes_are_understood():
    outputs = [InferRequestedOutput("a", binary_data=True), InferRequestedOutput("b", False)]
    given_input = InferInput("x", [1], "FP32")
    given_input.set_data_from_numpy(np.ones(1, np.float32))
    body, length = InferenceServerClient.generate_request_body([given_input], outputs=outputs)
    assert wants_binary(decode_request(body, 64, length), ("a", "b")) == ["a"]


@given(named=NAMED, is_part=st.booleans(), id=st.sampled_from(["", "7"]))
def test_parts_give_what_the_whole_gives(named, is_part, id):
    dtype, array = named
    if dtype is BYTES:
        array = np.array([item.hex().encode() for item in array.flat], np.object_).reshape(
            array.shape
        )
    tensors = Tensors(a=Tensor(dtype, array.shape, array), b=Tensor.of(np.arange(9.0)))
    made = Response(Rows(tensors), ModelRef("m", "1"), METHOD, ("a", "b"))
    if is_part and array.ndim and len(array) > 1:
        made.start, made.stop = 1, min(len(array), 9)
    with mock.patch.object(json_numbers, "PART_VALUES", 4):
        found = list(response_parts(made, id))
    assert b"".join(found) == encode_response(made, id)


@pytest.mark.parametrize(
    ("array", "num_steps"),
    [
        (np.arange(PART_VALUES, dtype=np.float32), 1),
        (np.arange(PART_VALUES + 1, dtype=np.float32), 2),
        (np.zeros((9, PART_VALUES), np.int64), 9),
        (np.array([b"a"] * (2 * PART_VALUES), np.object_), 2),
    ],
)
def test_no_step_writes_more_than_a_part(array, num_steps):
    made = response(y=array)
    sizes = []
    tensor_text = json_numbers.tensor_text

    def noted(tensor, name, *, flat):
        sizes.append(tensor.array().size)
        return tensor_text(tensor, name, flat=flat)

    with mock.patch("salver.codecs.json_response.tensor_text", noted):
        body = b"".join(response_parts(made))
    assert len(sizes) == num_steps
    assert max(sizes) <= PART_VALUES
    assert len(orjson.loads(body)["outputs"][0]["data"]) == array.size
    if num_steps > 1:
        with pytest.raises(LongText):
            encode_response(made)


def test_long_calls_of_a_batch_are_not_written_with_it():
    whole = response(y=np.zeros((20 * PART_VALUES, 1), np.float32))
    short, long = (
        Response(whole.rows, whole.ref, METHOD, ("y",), start, stop)
        for start, stop in ((0, 1), (1, 20 * PART_VALUES))
    )
    assert orjson.loads(encode_response(short))["outputs"][0]["data"] == [0]
    with pytest.raises(LongText):
        encode_response(long)


def test_long_numbers_beside_binary_data_are_written():
    made = response(a=np.zeros(2 * PART_VALUES), b=np.zeros(1))
    head, tail = encode_with_binary(made, "", ["b"])
    assert len(orjson.loads(head)["outputs"][0]["data"]) == 2 * PART_VALUES
    assert bytes(tail) == bytes(8)
