"""What the HTTP and gRPC forms of the Open Inference Protocol refuse in the same words."""

from __future__ import annotations

import json

import pytest
from tritonclient.grpc import service_pb2 as pb

from salver.codecs.grpc_request import decode_infer_request
from salver.codecs.json_request import decode_request
from salver.errors import InvalidInput


def by_http(inputs, data):
    if isinstance(data, bytes):
        inputs = [{**given, "parameters": {"binary_data_size": len(data)}} for given in inputs]
        head = json.dumps({"inputs": inputs}).encode()
        decode_request(head + data * len(inputs), 16, len(head))
    else:
        inputs = [{**given, "data": data} for given in inputs]
        decode_request(json.dumps({"inputs": inputs}).encode(), 16)


def by_grpc(inputs, data):
    request = pb.ModelInferRequest(model_name="m")
    for given in inputs:
        tensor = request.inputs.add(**given)
        if isinstance(data, bytes):
            request.raw_input_contents.append(data)
        else:
            tensor.contents.fp32_contents.extend(data)
    decode_infer_request(request.SerializeToString())


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", [1, 2], [1, 2, 3], "input 'x': shape [1, 2] expects 2 elements, got 3"),
        ("FP32", [1, 2], b"1234", "input 'x': FP32 of shape [1, 2] expects 8 bytes, got 4"),
        ("BYTES", [2], b"1234", "input 'x': 2 BYTES elements need at least 8 bytes, got 4"),
        ("FP32", [2, -1], [1, 2], "input 'x': a dimension is negative: [2, -1]"),
        ("FP32", [2, -1], b"12345678", "input 'x': a dimension is negative: [2, -1]"),
        (
            "FP33", [1], [1],
            "input 'x': unknown datatype 'FP33'. Did you mean 'FP32'?",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("send", [by_http, by_grpc])
def test_refusals_of_an_input(send, datatype, shape, data, message):
    with pytest.raises(InvalidInput) as refusal:
        send([{"name": "x", "datatype": datatype, "shape": shape}], data)
    assert refusal.value.message == message


@pytest.mark.parametrize("send", [by_http, by_grpc])
def test_an_input_that_is_given_twice(send):
    with pytest.raises(InvalidInput, match=r"^an input is given twice: x, x$"):
        send([{"name": "x", "datatype": "FP32", "shape": [1]}] * 2, b"1234")
