from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from salver.config import Limits
from salver.errors import InvalidInput, NotFound
from salver.interfaces import Command, Query
from salver.protocols.kserve_v2 import KserveV2
from salver.signature import Method, TensorSpec
from salver.testing import check_protocol
from salver.types import FP32, ModelRef, Raw, Response, Rows, Tensor, Tensors

KSERVE = KserveV2(Limits())
ENDPOINTS = {endpoint.path: endpoint for endpoint in KSERVE.endpoints()}
INFER = "/v2/models/{model}/infer"
INFER_VERSION = "/v2/models/{model}/versions/{version}/infer"
SCORES = TensorSpec(name="y", dtype=FP32, shape=(-1, 3), labels=("a", "b", "c"))
METHOD = Method(inputs=(), outputs=(SCORES,), batching="rows")


def decode(body, length=None, path=INFER, **arguments):
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    head = SimpleNamespace(headers=headers)
    return ENDPOINTS[path].decode(head, {"model": "m", **arguments}, body)


def triton_request(outputs=None, binary=True, **options):
    given_input = InferInput("x", [1, 2], "FP32")
    given_input.set_data_from_numpy(np.float32([[1, 2]]), binary_data=binary)
    return InferenceServerClient.generate_request_body([given_input], outputs=outputs, **options)


def answered(operation, values=((0.5, 2.0, 1.0),)):
    rows = Rows(Tensors({"y": Tensor.of(np.float32(values)), "z": Tensor.of(np.int64([7]))}))
    names = operation.request.outputs or ("y", "z")
    answer = ENDPOINTS[INFER].encode(operation, Response(rows, ModelRef("m", "3"), METHOD, names))
    assert answer.status == 200
    lines = answer.headers.decode().removesuffix("\r\n").split("\r\n")
    headers = dict(line.split(": ") for line in lines)
    length = headers.get("Inference-Header-Content-Length")
    return headers, InferenceServerClient.parse_response_body(
        b"".join(map(bytes, answer.body)), header_length=int(length) if length else None
    )


def test_a_plain_request():
    operation = decode(triton_request(binary=False)[0], version="2", path=INFER)
    assert operation.ref == ModelRef("m", "2")
    assert operation.request.payload["x"].array().tolist() == [[1.0, 2.0]]
    assert operation.timeout_ns == 0


def test_everything_that_tritons_client_can_say():
    body, length = triton_request(
        [InferRequestedOutput("y", binary_data=False)],
        request_id="7",
        priority=2,
        timeout=1000,
        parameters={"own": 1.5, "method": "score"},
    )
    operation = decode(body, length)
    assert operation.request.method == "score"
    assert operation.request.id == "7"
    assert operation.request.outputs == ("y",)
    assert operation.request.parameters == {"own": 1.5}
    assert (operation.timeout_ns, operation.priority) == (1_000_000, 1)
    headers, result = answered(operation)
    assert headers == {"Content-Type": "application/json"}
    assert result.get_response()["id"] == "7"
    assert result.get_response()["model_version"] == "3"
    assert result.as_numpy("y").tolist() == [[0.5, 2.0, 1.0]]


def test_binary_outputs_beside_plain_ones():
    outputs = [InferRequestedOutput("y", True), InferRequestedOutput("z", False)]
    headers, result = answered(decode(*triton_request(outputs)))
    assert headers["Content-Type"] == "application/octet-stream"
    assert result.as_numpy("y").tolist() == [[0.5, 2.0, 1.0]]
    assert result.as_numpy("z").tolist() == [7]
    assert "data" in result.get_output("z")
    assert "data" not in result.get_output("y")


def test_all_outputs_binary_is_the_clients_default():
    _, result = answered(decode(*triton_request()))
    assert result.get_output("z")["parameters"] == {"binary_data_size": 8}


@pytest.mark.parametrize("binary", [False, True])
def test_classification(binary):
    outputs = [InferRequestedOutput("y", binary_data=binary, class_count=2)]
    _, result = answered(decode(*triton_request(outputs)))
    texts = [t if isinstance(t, str) else t.decode() for t in result.as_numpy("y").ravel()]
    assert texts == ["2.000000:1:b", "1.000000:2:c"]
    assert result.get_output("y")["shape"] == [1, 2]


@pytest.mark.parametrize("count", [-1, 1.5, True, "2"])
def test_classification_wants_a_number(count):
    value = orjson.loads(triton_request(binary=False)[0])
    value["outputs"] = [{"name": "y", "parameters": {"classification": count}}]
    with pytest.raises(InvalidInput, match="'y': classification"):
        decode(orjson.dumps(value))


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"timeout": -1}, "'timeout'"),
        ({"timeout": 1.5}, "'timeout'"),
        ({"timeout": 2**60}, "'timeout'"),
        ({"priority": True}, "'priority'"),
        ({"method": 1}, "'method'"),
        ({"own": None}, "'own'"),
        ({"own": [1]}, "'own'"),
        ({"own": 1 << 64}, "'own'"),
    ],
)
def test_parameters_that_are_none(parameters, match):
    value = {**orjson.loads(triton_request(binary=False)[0]), "parameters": parameters}
    with pytest.raises(InvalidInput, match=match):
        decode(json.dumps(value).encode())


@pytest.mark.parametrize("length", ["-1", "x", "", "1e2", "²", "9" * 5000])
def test_the_length_of_the_json_must_be_a_number(length):
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        decode(b"{}", length)


def test_the_repository():
    index = "/v2/repository/index"
    assert decode(b"", path=index) == Query(name="repository_index", arguments={"ready": False})
    assert decode(b'{"ready": true}', path=index).arguments == {"ready": True}
    load = "/v2/repository/models/{model}/load"
    expected = Command(name="load", arguments={"model": "m", "parameters": {"a": 1}})
    assert decode(b'{"parameters": {"a": 1}}', path=load) == expected
    for body in (b"[]", b"{", b'{"ready": 1}'):
        with pytest.raises(InvalidInput):
            decode(body, path=index)


def test_health_is_a_status():
    live = ENDPOINTS["/v2/health/live"]
    assert live.encode(Query(), {"live": True}).status == 200
    assert live.encode(Query(), {"ready": False}).status == 503


def test_it_keeps_its_contract():
    outputs = [InferRequestedOutput("y", binary_data=False, class_count=1)]
    infer, _ = triton_request(outputs, binary=False, request_id="7", parameters={"own": 1})
    index = "/v2/repository/index"
    check_protocol(KSERVE, {INFER: infer, INFER_VERSION: infer, index: b'{"ready": true}'})


def test_errors():
    answer = KSERVE.refuse(NotFound("nothing here"))
    assert answer.status == 404
    assert orjson.loads(answer.body[0]) == {"error": "nothing here"}


def test_a_body_without_json_is_the_only_input_and_answered_in_bytes():
    operation = decode(b"\0\0\x80\x3f", 0)
    assert operation.request.payload == Raw(b"\0\0\x80\x3f", "application/octet-stream")
    headers, found = answered(operation)
    assert headers["Content-Type"] == "application/octet-stream"
    np.testing.assert_array_equal(found.as_numpy("y"), [[0.5, 2.0, 1.0]])
