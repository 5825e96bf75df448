from __future__ import annotations

import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as pb

from salver.codecs.protobuf import pool, services
from salver.codecs.status import grpc_status
from salver.errors import InvalidInput, ModelFailed, NotFound, Unsupported
from salver.interfaces import Command, Infer, Query
from salver.protocols.kserve_v2_grpc import Answered, methods
from salver.signature import Method, TensorSpec
from salver.types import FP32, ModelRef, Response, Rows, Tensor, Tensors

METHODS = {method.path: method for method in methods()}
SERVICE = "/inference.GRPCInferenceService/"
FLOATS = np.arange(4, dtype=np.float32).reshape(1, 4)


def decode(rpc, request):
    return METHODS[SERVICE + rpc].decode(request.SerializeToString())


def encode(rpc, operation, item):
    parts = METHODS[SERVICE + rpc].encode(operation, item, True)
    return getattr(pb, f"{rpc}Response").FromString(b"".join(parts))


def encode_stream(operation, item, final=True):
    parts = METHODS[SERVICE + "ModelStreamInfer"].encode(operation, item, final)
    return pb.ModelStreamInferResponse.FromString(b"".join(parts))


def infer_request(**parameters):
    request = pb.ModelInferRequest(model_name="m", id="7")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(FLOATS.tobytes())
    for name, value in parameters.items():
        request.parameters[name].bool_param = value
    return request


STREAMING = Method(
    inputs=(),
    outputs=(TensorSpec(name="y", dtype=FP32, shape=(1, 4), labels=("a", "b", "c", "d")),),
    streams=True,
)


def response(**arrays):
    tensors = Tensors({name: Tensor.of(array) for name, array in arrays.items()})
    return Response(Rows(tensors), ModelRef("m", "1"), STREAMING, tuple(arrays))


def test_every_method_of_the_descriptors_is_in_the_table():
    kinds = {(False, False): "unary", (True, True): "stream", (False, True): "watch"}
    expected = {
        f"/{name}/{method.name}": kinds[method.client_streaming, method.server_streaming]
        for name in services()
        for method in pool().FindServiceByName(name).methods
    }
    assert {path: method.kind for path, method in METHODS.items()} == expected


def test_infer():
    operation = decode("ModelInfer", infer_request())
    assert type(operation) is Infer
    assert operation.ref == ModelRef("m")
    np.testing.assert_array_equal(operation.request.payload["x"].array(), FLOATS)
    answer = encode("ModelInfer", operation, response(y=FLOATS * 2))
    assert answer.id == "7"
    assert answer.model_version == "1"
    np.testing.assert_array_equal(triton.InferResult(answer).as_numpy("y"), FLOATS * 2)


def test_infer_classified():
    request = infer_request()
    request.outputs.add(name="y").parameters["classification"].int64_param = 2
    answer = encode("ModelInfer", decode("ModelInfer", request), response(y=FLOATS))
    texts = triton.InferResult(answer).as_numpy("y")
    assert texts.tolist() == [[b"3.000000:3:d", b"2.000000:2:c"]]


def test_stream_answers_say_whether_they_are_the_last():
    operation = decode("ModelStreamInfer", infer_request())
    assert type(operation) is Infer
    for final in (False, True):
        message = encode_stream(operation, response(y=FLOATS), final)
        assert message.error_message == ""
        answer = message.infer_response
        assert answer.id == "7"
        assert answer.parameters["triton_final_response"].bool_param is final
        np.testing.assert_array_equal(triton.InferResult(answer).as_numpy("y"), FLOATS)


@pytest.mark.parametrize("wants", [False, True])
def test_a_stream_that_ends_without_outputs(wants):
    request = infer_request(triton_enable_empty_final_response=wants)
    operation = decode("ModelStreamInfer", request)
    parts = METHODS[SERVICE + "ModelStreamInfer"].encode(operation, response(), True)
    if not wants:
        assert parts is None
        return
    answer = pb.ModelStreamInferResponse.FromString(b"".join(parts)).infer_response
    assert (answer.model_name, answer.id, len(answer.outputs)) == ("m", "7", 0)
    assert answer.parameters["triton_final_response"].bool_param


def test_stream_errors_say_whose_they_are():
    operation = decode("ModelStreamInfer", infer_request())
    message = encode_stream(operation, ModelFailed("it broke"))
    assert message.error_message == "it broke"
    assert (message.infer_response.model_name, message.infer_response.id) == ("m", "7")
    assert message.infer_response.parameters["triton_final_response"].bool_param


def test_a_wrong_request_in_a_stream_is_answered():
    request = infer_request()
    request.inputs[0].datatype = "FP33"
    operation = decode("ModelStreamInfer", request)
    assert type(operation) is Answered
    assert type(operation.item) is InvalidInput
    message = encode_stream(operation, operation.item)
    assert "FP33" in message.error_message
    assert message.infer_response.id == "7"
    operation = METHODS[SERVICE + "ModelStreamInfer"].decode(b"\x0a\xff")
    assert "ModelInferRequest" in operation.item.message


@pytest.mark.parametrize(
    ("rpc", "name"),
    [
        ("ModelReady", "is_model_ready"),
        ("ModelMetadata", "model_metadata"),
        ("ModelConfig", "model_config"),
        ("ModelStatistics", "statistics"),
    ],
)
def test_queries_of_a_model(rpc, name):
    operation = decode(rpc, getattr(pb, f"{rpc}Request")(name="m", version="2"))
    assert operation == Query(name=name, arguments={"model": "m", "version": "2"})


def test_queries_of_the_server():
    assert decode("ServerLive", pb.ServerLiveRequest()) == Query(name="live")
    assert decode("ServerReady", pb.ServerReadyRequest()) == Query(name="ready")
    assert decode("ServerMetadata", pb.ServerMetadataRequest()) == Query(name="server_metadata")
    operation = decode("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
    assert operation == Query(name="repository_index", arguments={"ready": True})


@pytest.mark.parametrize(
    ("rpc", "item", "expected"),
    [
        ("ServerLive", {"live": True}, pb.ServerLiveResponse(live=True)),
        ("ServerReady", {"ready": False}, pb.ServerReadyResponse()),
        ("ModelReady", {"name": "m", "ready": True}, pb.ModelReadyResponse(ready=True)),
        (
            "ServerMetadata",
            {"name": "salver", "version": "1", "extensions": ("statistics",), "more": [1]},
            pb.ServerMetadataResponse(name="salver", version="1", extensions=["statistics"]),
        ),
        (
            "ModelMetadata",
            {
                "name": "m",
                "versions": ["1", "2"],
                "platform": "onnxruntime_onnx",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": (-1, 4)}],
                "outputs": [],
            },
            pb.ModelMetadataResponse(
                name="m",
                versions=["1", "2"],
                platform="onnxruntime_onnx",
                inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            ),
        ),
        (
            "RepositoryIndex",
            [{"name": "m", "version": "1", "state": "READY", "reason": ""}, {"name": "n"}],
            pb.RepositoryIndexResponse(
                models=[{"name": "m", "version": "1", "state": "READY"}, {"name": "n"}]
            ),
        ),
    ],
)
def test_query_answers(rpc, item, expected):
    assert encode(rpc, Query(), item) == expected


def test_config_answer():
    config = {
        "name": "m",
        "max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
        "dynamic_batching": {"preferred_batch_size": [4], "max_queue_delay_microseconds": 100},
        "instance_group": [{"kind": "KIND_CPU", "count": 2}],
        "model_transaction_policy": {"decoupled": True},
        "optimization": {"graph": {"level": 1}},
    }
    found = encode("ModelConfig", Query(), config).config
    assert found.max_batch_size == 8
    assert found.input[0].data_type == 11
    assert found.dynamic_batching.max_queue_delay_microseconds == 100
    assert found.instance_group[0].kind == 2
    assert found.model_transaction_policy.decoupled


def test_statistics_answer():
    duration = {"count": 3, "ns": 2**60}
    item = {
        "model_stats": [
            {
                "name": "m",
                "version": "1",
                "last_inference": 1_700_000_000_000,
                "inference_count": 12,
                "execution_count": 3,
                "inference_stats": {"success": duration, "queue": duration},
                "batch_stats": [{"batch_size": 4, "compute_infer": duration}],
                "response_stats": {"0": {"success": duration}},
            }
        ]
    }
    found = encode("ModelStatistics", Query(), item).model_stats[0]
    assert (found.inference_count, found.execution_count) == (12, 3)
    assert found.inference_stats.queue.ns == 2**60
    assert found.batch_stats[0].batch_size == 4
    assert found.response_stats["0"].success.count == 3


def test_load_and_unload():
    request = pb.RepositoryModelLoadRequest(model_name="m")
    request.parameters["config"].string_param = "{}"
    request.parameters["file:1/model.onnx"].bytes_param = b"\xff"
    operation = decode("RepositoryModelLoad", request)
    assert type(operation) is Command
    assert operation.name == "load"
    assert operation.arguments == {
        "model": "m",
        "parameters": {"config": "{}", "file:1/model.onnx": b"\xff"},
    }
    assert encode("RepositoryModelLoad", operation, None).ListFields() == []
    request = pb.RepositoryModelUnloadRequest(model_name="m")
    request.parameters["unload_dependents"].bool_param = True
    operation = decode("RepositoryModelUnload", request)
    assert operation.name == "unload"
    assert operation.arguments == {"model": "m", "parameters": {"unload_dependents": True}}


@pytest.mark.parametrize("rpc", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_kserve_clients_name_the_model_in_field_1(rpc):
    operation = METHODS[SERVICE + rpc].decode(b"\x0a\x01m")
    assert operation.arguments["model"] == "m"
    assert b"".join(METHODS[SERVICE + rpc].encode(operation, {}, True)) == b"\x0a\x01m\x10\x01"


@pytest.mark.parametrize(
    ("rpc", "request_", "error"),
    [
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r"), Unsupported),
        (
            "RepositoryModelLoad",
            pb.RepositoryModelLoadRequest(repository_name="r", model_name="m"),
            Unsupported,
        ),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(), InvalidInput),
    ],
)
def test_refused_commands(rpc, request_, error):
    with pytest.raises(error):
        decode(rpc, request_)


@pytest.mark.parametrize(
    ("rpc", "remedy"),
    [
        ("SystemSharedMemoryRegister", "raw_input_contents"),
        ("CudaSharedMemoryUnregister", "raw_input_contents"),
        ("TraceSetting", "ModelStatistics"),
        ("LogSettings", "when the server is started"),
    ],
)
def test_what_is_not_offered_is_unimplemented(rpc, remedy):
    with pytest.raises(Unsupported, match=remedy) as caught:
        METHODS[SERVICE + rpc].decode(b"")
    assert grpc_status(caught.value) == 12


@pytest.mark.parametrize("rpc", ["ModelInfer", "ServerLive", "ModelReady", "RepositoryModelLoad"])
def test_no_message(rpc):
    with pytest.raises(InvalidInput, match="cut off"):
        METHODS[SERVICE + rpc].decode(b"\x0a\xff")


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
@pytest.mark.parametrize("rpc", ["Check", "Watch"])
def test_health(rpc, service, ready):
    method = METHODS[f"/grpc.health.v1.Health/{rpc}"]
    request = health_pb2.HealthCheckRequest(service=service)
    operation = method.decode(request.SerializeToString())
    assert (type(operation), operation.name) == (Query, "ready")
    parts = method.encode(operation, {"ready": ready}, True)
    answer = health_pb2.HealthCheckResponse.FromString(b"".join(parts))
    assert answer.status == (1 if ready else 2)


def test_health_of_an_unknown_service():
    data = health_pb2.HealthCheckRequest(service="x").SerializeToString()
    with pytest.raises(NotFound, match=r"inference\.GRPCInferenceService"):
        METHODS["/grpc.health.v1.Health/Check"].decode(data)
    watch = METHODS["/grpc.health.v1.Health/Watch"]
    operation = watch.decode(data)
    parts = watch.encode(operation, operation.item, True)
    assert health_pb2.HealthCheckResponse.FromString(b"".join(parts)).status == 3


def test_reflection():
    method = METHODS["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    operation = method.decode(request.SerializeToString())
    assert type(operation) is Answered
    parts = method.encode(operation, operation.item, True)
    answer = reflection_pb2.ServerReflectionResponse.FromString(b"".join(parts))
    assert len(answer.list_services_response.service) == 4
