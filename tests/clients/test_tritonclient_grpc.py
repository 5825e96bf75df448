"""Triton's gRPC clients, grpcio's health and reflection clients, against a running server."""

from __future__ import annotations

import asyncio
import queue

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("tritonclient.grpc")
import grpc
import tritonclient.grpc as triton
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tests.clients.conftest import VERSIONS, added, counts, of_calls
from tritonclient.grpc import aio, model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from salver.version import __version__

A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.ones((2, 4), np.float32)
MISSING = "'tow' is not served here. Did you mean 'two'?"
SERVICE = "inference.GRPCInferenceService"
WAIT_S = 30


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture
def any_client(any_server):
    with triton.InferenceServerClient(any_server.address) as client:
        yield client


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def tensor(name, values, datatype="FP32"):
    found = triton.InferInput(name, list(values.shape), datatype)
    return found.set_data_from_numpy(values)


def pair():
    return [tensor("a", A), tensor("b", B)]


def number(name, value):
    return tensor(name, np.array([value], np.int64), "INT64")


def refused(call, *arguments, **options):
    """Status and message of what the server refuses."""
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def same(result, name, case):
    found = result.as_numpy(name)
    if case.datatype == "BYTES":
        found = np.array([[item.decode() for item in found[0]]], np.object_)
    np.testing.assert_array_equal(found, case.values)


# State


def test_health(any_client):
    assert any_client.is_server_live()
    assert any_client.is_server_ready()
    assert any_client.is_model_ready("two")
    assert any_client.is_model_ready("two", "1")


def test_unknown_models_are_not_ready(client):
    assert not client.is_model_ready("tow")
    assert not client.is_model_ready("two", "3")


def test_server_metadata(any_client):
    found = any_client.get_server_metadata()
    assert (found.name, found.version) == ("salver", __version__)
    assert "binary_tensor_data" in found.extensions


def test_model_metadata(any_client):
    client = any_client
    found = client.get_model_metadata("two", as_json=True)
    assert found["versions"] == ["1", "2"]
    assert found["inputs"] == [
        {"name": name, "datatype": "FP32", "shape": ["-1", "4"]} for name in ("a", "b")
    ]
    assert found["outputs"] == [
        {"name": name, "datatype": "FP32", "shape": ["-1", "4"]} for name in ("sum", "difference")
    ]
    status, message = refused(client.get_model_metadata, "tow")
    assert status == "NOT_FOUND"
    assert message.startswith(MISSING)


def test_model_config(any_client):
    config = any_client.get_model_config("two", "2").config
    assert (config.name, config.backend, config.max_batch_size) == ("two", "onnx", 1 << 20)
    for tensors, names in ((config.input, ["a", "b"]), (config.output, ["sum", "difference"])):
        assert [tensor.name for tensor in tensors] == names
        assert {(tensor.data_type, *tensor.dims) for tensor in tensors} == {
            (model_config_pb2.TYPE_FP32, 4)
        }
    assert config.HasField("dynamic_batching")
    config = any_client.get_model_config("count").config
    assert (config.name, config.backend, config.max_batch_size) == ("count", "python", 0)
    assert [group.count for group in config.instance_group] == [1]


def test_repository_index(any_client):
    found = any_client.get_model_repository_index().models
    assert [(model.name, model.version) for model in found] == VERSIONS
    assert {(model.state, model.reason) for model in found} == {("READY", "")}


def test_load_and_unload(explicit_server):
    with triton.InferenceServerClient(explicit_server.address) as client:
        client.load_model("two")
        assert client.is_model_ready("two")
        np.testing.assert_array_equal(client.infer("two", pair()).as_numpy("sum"), A + B)
        client.unload_model("two")
        status, message = refused(client.infer, "two", pair())
        assert status == "UNAVAILABLE"
        assert message == "two is not ready (unavailable): unloaded"
        status, message = refused(client.load_model, "tow")
        assert status == "NOT_FOUND"
        assert "Did you mean 'two'?" in message


def test_loading_is_refused_where_the_files_decide(client):
    status, message = refused(client.load_model, "two")
    assert status == "FAILED_PRECONDITION"
    assert "--mode explicit" in message


def stats_of(client, name):
    found = client.get_inference_statistics(name, "1", as_json=True)
    (stats,) = found["model_stats"]
    assert (stats["name"], stats["version"]) == (name, "1")
    return counts(stats)


@pytest.mark.parametrize(
    ("name", "inputs", "rows"), [("two", pair, 2), ("echo", lambda: [number("n", 1)], 1)]
)
def test_statistics(any_client, name, inputs, rows):
    before = stats_of(any_client, name)
    for _ in range(3):
        any_client.infer(name, inputs(), model_version="1")
    assert added(before, stats_of(any_client, name)) == of_calls(3, rows)


def test_statistics_of_a_stream_that_breaks(any_client):
    before, answers = stats_of(any_client, "count"), Answers(any_client)
    answers.ask("count", [number("n", 10)])
    while answers.next()[1] is None:
        pass
    found = added(before, stats_of(any_client, "count"))
    assert (found.get("success", 0), found["fail"], found.get("queue", 0)) == (0, 1, 0)
    any_client.stop_stream()


def test_statistics_of_everything(any_client):
    found = any_client.get_inference_statistics().model_stats
    assert [(stats.name, stats.version) for stats in found] == VERSIONS


def test_shared_memory_is_refused_with_the_remedy(client):
    status, message = refused(client.register_system_shared_memory, "r", "/r", 8)
    assert status == "UNIMPLEMENTED"
    assert "raw_input_contents" in message


# Inference


def test_every_datatype(client, case):
    result = client.infer(case.model, [tensor("x", case.values, case.datatype)])
    assert result.get_output("y").datatype == case.datatype
    same(result, "y", case)


def test_names_versions_and_ids_come_back(any_client):
    client = any_client
    answer = client.infer("two", pair(), model_version="1", request_id="7/a").get_response()
    assert (answer.model_name, answer.model_version, answer.id) == ("two", "1", "7/a")
    assert client.infer("two", pair()).get_response().model_version == "2"


def test_requested_outputs(client):
    outputs = [triton.InferRequestedOutput(name) for name in ("difference", "sum")]
    result = client.infer("two", pair(), outputs=outputs)
    assert [output.name for output in result.get_response().outputs] == ["difference", "sum"]
    np.testing.assert_array_equal(result.as_numpy("sum"), A + B)
    assert client.infer("two", pair(), outputs=outputs[:1]).as_numpy("sum") is None


def test_classification(client):
    outputs = [triton.InferRequestedOutput("sum", class_count=2)]
    found = client.infer("two", pair(), outputs=outputs).as_numpy("sum")
    assert found.tolist() == [
        [b"4.000000:3:dog", b"3.000000:2:cat"],
        [b"8.000000:3:dog", b"7.000000:2:cat"],
    ]


def test_parameters_reach_the_model(any_client):
    given = {"text": "a", "number": 3, "yes": True}
    result = any_client.infer("echo", [number("n", 1)], parameters=given, priority=2, timeout=10**7)
    (output,) = result.get_response().outputs
    assert result.as_numpy(output.name).item() == b'{"number": 3, "text": "a", "yes": true}'


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(client, coding):
    values = np.arange(30_000, dtype=np.float32).reshape(-1, 3)
    result = client.infer(
        "identity_fp32", [tensor("x", values)], compression_algorithm=coding
    )  # fmt: skip
    np.testing.assert_array_equal(result.as_numpy("y"), values)


def test_large_messages(client):
    values = np.arange(3 << 20, dtype=np.float64).reshape(-1, 3)
    result = client.infer("identity_fp64", [tensor("x", values, "FP64")])
    np.testing.assert_array_equal(result.as_numpy("y"), values)


def test_async_infer_batches(any_client):
    answers: queue.Queue = queue.Queue()
    for index in range(16):
        any_client.async_infer(
            "two",
            [tensor("a", A + index), tensor("b", B)],
            lambda result, error: answers.put((result, error)),
            request_id=str(index),
        )
    seen = set()
    for _ in range(16):
        result, error = answers.get(timeout=WAIT_S)
        assert error is None
        index = int(result.get_response().id)
        seen.add(index)
        np.testing.assert_array_equal(result.as_numpy("sum"), A + index + B)
    assert seen == set(range(16))


def test_a_call_can_be_cancelled(any_client):
    answers: queue.Queue = queue.Queue()
    context = any_client.async_infer(
        "stuck", [number("n", 1)], lambda result, error: answers.put(error)
    )  # fmt: skip
    context.cancel()
    assert answers.get(timeout=WAIT_S).status() == "StatusCode.CANCELLED"


def test_timeouts_of_client_and_request(client):
    status, _ = refused(client.infer, "stuck", [number("n", 1)], client_timeout=0.05)
    assert status == "DEADLINE_EXCEEDED"
    status, message = refused(client.infer, "stuck", [number("n", 1)], timeout=20_000)
    assert status == "DEADLINE_EXCEEDED"
    assert message.startswith("the request's time was over while ")


def test_headers_and_keepalive_options(server):
    options = triton.KeepAliveOptions(
        keepalive_time_ms=100, keepalive_timeout_ms=5_000, http2_max_pings_without_data=0
    )
    with triton.InferenceServerClient(server.address, keepalive_options=options) as client:
        result = client.infer(
            "two", pair(), headers={"x-request-id": "1", "trace-bin": b"\x00\xff"}
        )
        np.testing.assert_array_equal(result.as_numpy("sum"), A + B)
        # Long enough for several pings.
        status, _ = refused(client.infer, "stuck", [number("n", 1)], timeout=400_000)
        assert status == "DEADLINE_EXCEEDED"
        assert client.is_server_live()


def test_message_limits(serve, repository, server):
    small = serve(repository / "two", "--limits-body-bytes", "1000", "--access-log", "off")
    with triton.InferenceServerClient(small.address) as client:
        np.testing.assert_array_equal(client.infer("two", pair()).as_numpy("sum"), A + B)
        large = np.ones((100, 4), np.float32)
        status, message = refused(client.infer, "two", [tensor("a", large), tensor("b", large)])
        assert status == "RESOURCE_EXHAUSTED"
        assert "1000" in message
        assert client.is_server_live()
    arguments = [("grpc.max_receive_message_length", 100)]
    with triton.InferenceServerClient(server.address, channel_args=arguments) as client:
        large = np.ones((100, 3), np.float32)
        status, _ = refused(client.infer, "identity_fp32", [tensor("x", large)])
        assert status == "RESOURCE_EXHAUSTED"
        assert client.is_server_live()


# Errors


def test_wrong_model_and_version(client):
    status, message = refused(client.infer, "tow", pair())
    assert status == "NOT_FOUND"
    assert message.startswith(MISSING)
    status, message = refused(client.infer, "two", pair(), "3")
    assert status == "NOT_FOUND"
    assert message == "'two' has no version '3'; served: 1, 2"


WRONG = [
    ([("a", A, "FP32"), ("c", B, "FP32")], "unexpected input 'c'. Expected: a, b"),
    ([("a", A, "FP32")], "missing input 'b': expected a, b, got a"),
    (
        [("a", A.astype(np.int32), "INT32"), ("b", B, "FP32")],
        "input 'a': expected datatype FP32, got INT32",
    ),
    ([("a", A[:, :3], "FP32"), ("b", B, "FP32")], "input 'a': expected shape [-1, 4], got [2, 3]"),
    (
        [("a", A[0], "FP32"), ("b", B, "FP32")],
        "input 'a': expected 2 dimensions [-1, 4], got 1: [4]",
    ),
    (
        [("a", A[:1], "FP32"), ("b", B, "FP32")],
        "input 'b': has 2 rows, the inputs before it have 1",
    ),
]


@pytest.mark.parametrize(("given", "expected"), WRONG, ids=[text for _, text in WRONG])
def test_wrong_inputs(client, given, expected):
    inputs = [tensor(*item) for item in given]
    assert refused(client.infer, "two", inputs) == ("INVALID_ARGUMENT", expected)


def test_wrong_output_and_length(client):
    outputs = [triton.InferRequestedOutput("summ")]
    status, message = refused(client.infer, "two", pair(), outputs=outputs)
    assert status == "INVALID_ARGUMENT"
    assert message == "unexpected output 'summ'. Did you mean 'sum'? There are: sum, difference"
    inputs = pair()
    inputs[0].set_shape([3, 4])
    status, message = refused(client.infer, "two", inputs)
    assert status == "INVALID_ARGUMENT"
    assert message == "input 'a': FP32 of shape [3, 4] expects 48 bytes, got 32"


def test_a_unary_call_of_a_streaming_model_is_refused(client):
    status, message = refused(client.infer, "count", [number("n", 2)])
    assert status == "UNIMPLEMENTED"
    assert "ModelStreamInfer" in message


# Streams


class Answers:
    """A stream whose answers wait in a queue."""

    def __init__(self, client):
        self._client = client
        self._queue: queue.Queue = queue.Queue()
        client.start_stream(lambda result, error: self._queue.put((result, error)))

    def ask(self, model, inputs, **options):
        self._client.async_stream_infer(model, inputs, **options)

    def next(self):
        return self._queue.get(timeout=WAIT_S)

    def is_empty(self):
        return self._queue.empty()


@pytest.fixture
def answers(any_client):
    yield Answers(any_client)
    any_client.stop_stream()


def test_a_stream_gives_every_item(answers):
    answers.ask("count", [number("n", 4)], request_id="s", enable_empty_final_response=True)
    values = []
    while True:
        result, error = answers.next()
        assert error is None
        message = result.get_response()
        assert message.id == "s"
        values += [int(result.as_numpy(output.name).item()) for output in message.outputs]
        if message.parameters["triton_final_response"].bool_param:
            break
    assert values == [0, 1, 2, 3]


def test_a_stream_carries_unary_models_in_order(answers):
    for index in range(8):
        answers.ask("two", [tensor("a", A + index), tensor("b", B)], request_id=str(index))
    for index in range(8):
        result, error = answers.next()
        assert error is None
        assert result.get_response().id == str(index)
        np.testing.assert_array_equal(result.as_numpy("sum"), A + index + B)


def test_a_stream_survives_errors(answers):
    answers.ask("tow", pair())
    result, error = answers.next()
    assert result is None
    assert error.message().startswith(MISSING)
    answers.ask("two", pair())
    result, error = answers.next()
    assert error is None
    np.testing.assert_array_equal(result.as_numpy("sum"), A + B)


def test_a_stream_that_breaks_says_so_after_its_items(answers):
    answers.ask("count", [number("n", 10)])
    for _ in range(9):
        assert answers.next()[1] is None
    _, error = answers.next()
    assert "cannot count that far" in error.message()


def test_a_stream_may_end_with_the_status_of_its_first_error(client):
    answers: queue.Queue = queue.Queue()
    headers = {"triton_grpc_error": "true"}
    client.start_stream(lambda result, error: answers.put(error), headers=headers)
    client.async_stream_infer("stuck", [number("n", 1)])
    client.async_stream_infer("tow", pair())
    assert answers.get(timeout=WAIT_S).status() == "StatusCode.NOT_FOUND"
    client.stop_stream()


def test_stopping_a_stream_cancels_what_runs(any_client):
    client = any_client
    answers = Answers(client)
    answers.ask("stuck", [number("n", 1)])
    client.stop_stream(cancel_requests=True)
    _, error = answers.next()
    assert error.status() == "StatusCode.CANCELLED"
    assert client.is_server_live()


def test_a_stream_ends_with_its_timeout(client):
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error), stream_timeout=0.05)
    client.async_stream_infer("stuck", [number("n", 1)])
    assert answers.get(timeout=WAIT_S).status() == "StatusCode.DEADLINE_EXCEEDED"
    client.stop_stream()


def test_a_stream_outlives_the_time_of_a_request(serve, repository):
    options = ("--limits-request-timeout", "0.5", "--access-log", "off")
    server = serve(repository, "--trust", "--mode", "none", *options)
    with triton.InferenceServerClient(server.address) as client:
        answers = Answers(client)
        answers.ask("stuck", [number("n", 1)])
        message = answers.next()[1].message()
        assert message.startswith("the request's time was over while ")
        answers.ask("echo", [number("n", 1)])
        assert answers.next()[1] is None


# asyncio


def with_aio(server, use):
    async def run():
        async with aio.InferenceServerClient(server.address) as client:
            return await use(client)

    return asyncio.run(run())


def test_aio_state(any_server):
    async def use(client):
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("two", "1")
        assert (await client.get_server_metadata()).name == "salver"
        assert (await client.get_model_metadata("two")).versions == ["1", "2"]
        assert (await client.get_model_config("two")).config.name == "two"
        index = (await client.get_model_repository_index()).models
        assert [(model.name, model.version) for model in index] == VERSIONS
        stats = await client.get_inference_statistics("two")
        assert [entry.version for entry in stats.model_stats] == ["1", "2"]

    with_aio(any_server, use)


def test_aio_load_and_unload(explicit_server):
    async def use(client):
        await client.load_model("echo")
        assert await client.is_model_ready("echo")
        await client.unload_model("echo")
        assert not await client.is_model_ready("echo")

    with_aio(explicit_server, use)


def test_aio_every_datatype(server, case):
    async def use(client):
        return await client.infer(case.model, [tensor("x", case.values, case.datatype)])

    same(with_aio(server, use), "y", case)


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_aio_many_at_once(any_server, coding):
    async def use(client):
        calls = [
            client.infer(
                "two", [tensor("a", A + i), tensor("b", B)], compression_algorithm=coding
            )
            for i in range(16)
        ]  # fmt: skip
        return await asyncio.gather(*calls)

    for index, result in enumerate(with_aio(any_server, use)):
        np.testing.assert_array_equal(result.as_numpy("sum"), A + index + B)


def test_aio_errors_and_timeouts(server):
    async def use(client):
        with pytest.raises(InferenceServerException, match=MISSING.replace("?", r"\?")):
            await client.infer("tow", pair())
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("stuck", [number("n", 1)], client_timeout=0.05)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"

    with_aio(server, use)


def test_aio_streams(any_server):
    async def use(client):
        async def requests():
            yield {
                "model_name": "count",
                "inputs": [number("n", 3)],
                "enable_empty_final_response": True,
            }
            yield {"model_name": "tow", "inputs": pair()}

        values, errors = [], []
        async for result, error in client.stream_infer(requests()):
            if error is None:
                outputs = result.get_response().outputs
                values += [int(result.as_numpy(output.name).item()) for output in outputs]
            else:
                errors.append(error.message())
        return values, errors

    values, errors = with_aio(any_server, use)
    assert values == [0, 1, 2]
    assert [error.startswith(MISSING) for error in errors] == [True]


def test_aio_streams_can_be_cancelled(server):
    async def use(client):
        async def requests():
            yield {"model_name": "stuck", "inputs": [number("n", 1)]}
            await asyncio.Event().wait()

        stream = client.stream_infer(requests())
        asyncio.get_running_loop().call_later(0.05, stream.cancel)
        with pytest.raises(asyncio.CancelledError):
            await anext(aiter(stream))
        assert await client.is_server_live()

    with_aio(server, use)


# grpcio's own clients


def test_health_check(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_watch_follows_the_models(serve, repository, tmp_path):
    (tmp_path / "two").symlink_to(repository / "two")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.onnx").write_bytes(b"no graph")
    server = serve(tmp_path, "--mode", "explicit", "--access-log", "off")
    with (
        grpc.insecure_channel(server.address) as channel,
        triton.InferenceServerClient(server.address) as client,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        client.load_model("two")
        status, message = refused(client.load_model, "broken")
        assert status == "INVALID_ARGUMENT"
        assert message.startswith("model.onnx: ")
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not client.is_server_ready()
        client.unload_model("broken")
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_health_watch_of_an_unknown_service(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nothing"), timeout=WAIT_S)
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


def test_reflection_lists_services(channel):
    found = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {SERVICE, "grpc.health.v1.Health"} <= set(found)


def test_reflection_is_enough_to_call(channel):
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    method = pool.FindServiceByName(SERVICE).FindMethodByName("ModelReady")
    request, response = map(GetMessageClass, (method.input_type, method.output_type))
    call = channel.unary_unary(
        f"/{SERVICE}/ModelReady", request.SerializeToString, response.FromString
    )
    assert call(request(name="two")).ready


def test_reflection_of_symbols_and_files(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        reflection_pb2.ServerReflectionRequest(file_by_filename="grpc_service.proto"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such"),
    ]
    by_symbol, by_name, missing = stub.ServerReflectionInfo(iter(requests), timeout=WAIT_S)
    assert by_symbol.file_descriptor_response.file_descriptor_proto
    assert by_name.file_descriptor_response == by_symbol.file_descriptor_response
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_an_unknown_method_is_unimplemented(channel):
    call = channel.unary_unary(f"/{SERVICE}/ModelInfe", bytes, bytes)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_typed_contents(channel):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.ModelInferRequest(model_name="two")
    for name, values in (("a", A), ("b", B)):
        entry = request.inputs.add(name=name, datatype="FP32", shape=values.shape)
        entry.contents.fp32_contents.extend(values.ravel().tolist())
    answer = triton.InferResult(stub.ModelInfer(request))
    np.testing.assert_array_equal(answer.as_numpy("sum"), A + B)
