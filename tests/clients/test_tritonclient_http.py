"""Triton's HTTP clients, blocking and asyncio, against a running server."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

pytest.importorskip("tritonclient.http")
import tritonclient.http as http
from tests.clients.conftest import VERSIONS, added, counts, of_calls
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from salver.version import __version__

A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.ones((2, 4), np.float32)
MISSING = "'tow' is not served here. Did you mean 'two'?"


@pytest.fixture
def client(server):
    with http.InferenceServerClient(server.address, concurrency=4) as client:
        yield client


@pytest.fixture
def any_client(any_server):
    with http.InferenceServerClient(any_server.address, concurrency=4) as client:
        yield client


@pytest.fixture
def explicit(explicit_server):
    with http.InferenceServerClient(explicit_server.address) as client:
        yield client


def tensor(name, values, datatype="FP32", *, binary=True, module=http):
    found = module.InferInput(name, list(values.shape), datatype)
    return found.set_data_from_numpy(values, binary_data=binary)


def pair(**options):
    return [tensor("a", A, **options), tensor("b", B, **options)]


def number(name, value):
    return tensor(name, np.array([value], np.int64), "INT64")


def refused(call, *arguments, **options):
    """Status and message of what the server refuses."""
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return caught.value.status(), caught.value.message()


# State


def test_health(any_client):
    assert any_client.is_server_live()
    assert any_client.is_server_ready()
    assert any_client.is_model_ready("two")
    assert any_client.is_model_ready("two", "1")
    assert not any_client.is_model_ready("two", "3")
    assert not any_client.is_model_ready("tow")


def test_server_metadata(any_client):
    found = any_client.get_server_metadata()
    assert found["name"] == "salver"
    assert found["version"] == __version__
    assert "binary_tensor_data" in found["extensions"]


def test_model_metadata(any_client):
    client = any_client
    found = client.get_model_metadata("two")
    assert found["name"] == "two"
    assert found["versions"] == ["1", "2"]
    assert found["inputs"] == [
        {"name": name, "datatype": "FP32", "shape": [-1, 4]} for name in ("a", "b")
    ]
    assert found["outputs"] == [
        {"name": name, "datatype": "FP32", "shape": [-1, 4]} for name in ("sum", "difference")
    ]
    assert client.get_model_metadata("two", "1")["versions"] == ["1"]
    assert refused(client.get_model_metadata, "tow")[0] == "404"


def test_model_config(any_client):
    found = any_client.get_model_config("two", "2")
    told = ("name", "backend", "max_batch_size", "input", "output", "dynamic_batching")
    assert {key: found[key] for key in told} == {
        "name": "two",
        "backend": "onnx",
        "max_batch_size": 1 << 20,
        "input": [{"name": name, "data_type": "TYPE_FP32", "dims": [4]} for name in ("a", "b")],
        "output": [
            {"name": name, "data_type": "TYPE_FP32", "dims": [4]} for name in ("sum", "difference")
        ],
        "dynamic_batching": {"preferred_batch_size": [], "max_queue_delay_microseconds": 0},
    }


def test_model_config_of_code(any_client):
    found = any_client.get_model_config("echo")
    assert (found["name"], found["backend"], found["max_batch_size"]) == ("echo", "python", 0)
    assert found["input"] == [{"name": "n", "data_type": "TYPE_INT64", "dims": []}]
    assert found["output"] == [{"name": "output", "data_type": "TYPE_STRING", "dims": []}]
    assert [(group["kind"], group["count"]) for group in found["instance_group"]] == [
        ("KIND_CPU", 1)
    ]


def test_repository_index(any_client):
    assert any_client.get_model_repository_index() == [
        {"name": name, "version": version, "state": "READY", "reason": ""}
        for name, version in VERSIONS
    ]


@pytest.mark.parametrize("name", ["two", "echo"])
def test_load_and_unload(explicit, name):
    def index():
        found = explicit.get_model_repository_index()
        return [entry for entry in found if entry["name"] == name]

    versions = [version for known, version in VERSIONS if known == name]
    assert not explicit.is_model_ready(name)
    assert index() == [{"name": name}]
    explicit.load_model(name)
    assert explicit.is_model_ready(name)
    assert [(entry["version"], entry["state"]) for entry in index()] == [
        (version, "READY") for version in versions
    ]
    inputs = pair() if name == "two" else [number("n", 1)]
    assert explicit.infer(name, inputs).get_response()["model_version"] == versions[-1]
    explicit.unload_model(name)
    assert not explicit.is_model_ready(name)
    assert index() == [
        {"name": name, "version": version, "state": "UNAVAILABLE", "reason": "unloaded"}
        for version in versions
    ]


def test_a_load_of_what_is_not_there_is_refused(explicit):
    status, message = refused(explicit.load_model, "tow")
    assert status == "404"
    assert "Did you mean 'two'?" in message


def test_loading_is_refused_where_the_files_decide(client):
    status, message = refused(client.load_model, "two")
    assert status == "409"
    assert "--mode explicit" in message


def test_what_is_not_offered_is_refused_with_the_remedy(client):
    for ask, *arguments in (
        (client.register_system_shared_memory, "r", "/r", 8),
        (client.unregister_system_shared_memory,),
        (client.get_cuda_shared_memory_status, "r"),
    ):
        status, message = refused(ask, *arguments)
        assert (status, "send tensors in the request" in message) == ("501", True)
    status, message = refused(client.get_trace_settings, "two")
    assert (status, "/v2/models/stats" in message) == ("501", True)
    status, message = refused(client.update_log_settings, {"log_info": True})
    assert (status, "when the server is started" in message) == ("501", True)


@pytest.mark.parametrize(
    ("name", "inputs", "rows"), [("two", pair, 2), ("echo", lambda: [number("n", 1)], 1)]
)
def test_statistics(any_client, name, inputs, rows):
    def stats():
        (found,) = any_client.get_inference_statistics(name, "1")["model_stats"]
        assert (found["name"], found["version"]) == (name, "1")
        return found

    before = stats()
    for _ in range(3):
        any_client.infer(name, inputs(), model_version="1")
    after = stats()
    assert added(counts(before), counts(after)) == of_calls(3, rows)
    assert after["last_inference"] > before["last_inference"]
    spent, earlier = after["inference_stats"], before["inference_stats"]
    success_ns, compute_ns = (
        spent[stage]["ns"] - earlier[stage]["ns"] for stage in ("success", "compute_infer")
    )
    assert success_ns > compute_ns > 0


def test_statistics_of_everything(any_client):
    found = any_client.get_inference_statistics()["model_stats"]
    assert [(stats["name"], stats["version"]) for stats in found] == VERSIONS
    found = any_client.get_inference_statistics("two")["model_stats"]
    assert [stats["version"] for stats in found] == ["1", "2"]


# Inference


@pytest.mark.parametrize("answer_is_binary", [True, False])
@pytest.mark.parametrize("request_is_binary", [True, False])
def test_every_datatype(client, case, request_is_binary, answer_is_binary):
    if case.datatype in ("FP16", "BF16") and not request_is_binary:
        pytest.skip("the client sends this datatype only as bytes")
    inputs = [tensor("x", case.values, case.datatype, binary=request_is_binary)]
    outputs = [http.InferRequestedOutput("y", binary_data=answer_is_binary)]
    result = client.infer(case.model, inputs, outputs=outputs)
    assert result.get_output("y")["datatype"] == case.datatype
    found = result.as_numpy("y")
    if case.datatype == "BYTES":
        found = np.array([[str(item, "utf-8") if isinstance(item, bytes) else item
                           for item in found[0]]], np.object_)  # fmt: skip
    np.testing.assert_array_equal(found, case.values)


def test_names_versions_and_ids_come_back(any_client):
    client = any_client
    result = client.infer("two", pair(), model_version="1", request_id="7/a")
    assert result.get_response()["id"] == "7/a"
    assert result.get_response()["model_name"] == "two"
    assert result.get_response()["model_version"] == "1"
    assert client.infer("two", pair()).get_response()["model_version"] == "2"


def test_requested_outputs(client):
    outputs = [http.InferRequestedOutput("difference"), http.InferRequestedOutput("sum")]
    result = client.infer("two", pair(), outputs=outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["difference", "sum"]
    np.testing.assert_array_equal(result.as_numpy("sum"), A + B)
    result = client.infer("two", pair(), outputs=outputs[:1])
    assert result.as_numpy("sum") is None
    np.testing.assert_array_equal(result.as_numpy("difference"), A - B)


def test_inputs_in_both_forms_and_any_order(client):
    inputs = [tensor("b", B, binary=False), tensor("a", A)]
    np.testing.assert_array_equal(client.infer("two", inputs).as_numpy("difference"), A - B)


@pytest.mark.parametrize("is_binary", [True, False])
def test_classification(client, is_binary):
    outputs = [http.InferRequestedOutput("sum", binary_data=is_binary, class_count=2)]
    found = client.infer("two", pair(), outputs=outputs).as_numpy("sum").tolist()
    texts = [[item if isinstance(item, str) else item.decode() for item in row] for row in found]
    assert texts == [["4.000000:3:dog", "3.000000:2:cat"], ["8.000000:3:dog", "7.000000:2:cat"]]


def test_parameters_reach_the_model(any_client):
    given = {"text": "a", "number": 3, "yes": True}
    result = any_client.infer("echo", [number("n", 1)], parameters=given, priority=2, timeout=10**7)
    (name,) = [output["name"] for output in result.get_response()["outputs"]]
    assert result.as_numpy(name).item() == b'{"number": 3, "text": "a", "yes": true}'


def test_the_timeout_ends_a_request(client):
    status, message = refused(client.infer, "stuck", [number("n", 1)], timeout=20_000)
    assert status == "504"
    assert message.startswith("the request's time was over while ")


LONG = np.arange(30_000, dtype=np.float32).reshape(-1, 3)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("is_binary", [True, False])
def test_compression(client, monkeypatch, coding, is_binary):
    """Numbers as bytes hardly shrink, so only text is compressed."""
    post, codings = client._client_stub.post, []

    def noted_post(**arguments):
        answer = post(**arguments)
        sent = arguments["headers"]["Content-Encoding"]
        codings.append((sent, answer.get("Content-Encoding")))
        return answer

    monkeypatch.setattr(client._client_stub, "post", noted_post)
    result = client.infer(
        "identity_fp32",
        [tensor("x", LONG)],
        outputs=[http.InferRequestedOutput("y", binary_data=is_binary)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), LONG)
    assert codings == [(coding, None if is_binary else coding)]


def test_async_infer_batches(any_client):
    client = any_client
    pending = [client.async_infer("two", [tensor("a", A + i), tensor("b", B)]) for i in range(16)]
    for index, request in enumerate(pending):
        np.testing.assert_array_equal(request.get_result().as_numpy("sum"), A + index + B)


def test_no_rows(client):
    result = client.infer("two", [tensor("a", A[:0]), tensor("b", B[:0])])
    assert result.as_numpy("sum").shape == (0, 4)


# Errors


def test_wrong_model_and_version(client):
    status, message = refused(client.infer, "tow", pair())
    assert status == "404"
    assert message.startswith(MISSING)
    status, message = refused(client.infer, "two", pair(), "3")
    assert status == "404"
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


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize(("given", "expected"), WRONG, ids=[text for _, text in WRONG])
def test_wrong_inputs(client, given, expected, is_binary):
    inputs = [tensor(*item, binary=is_binary) for item in given]
    assert refused(client.infer, "two", inputs) == ("400", expected)


def test_wrong_output(client):
    outputs = [http.InferRequestedOutput("summ")]
    status, message = refused(client.infer, "two", pair(), outputs=outputs)
    assert status == "400"
    assert message == "unexpected output 'summ'. Did you mean 'sum'? There are: sum, difference"


def test_wrong_length_of_bytes(client):
    inputs = pair()
    inputs[0].set_shape([3, 4])
    status, message = refused(client.infer, "two", inputs)
    assert status == "400"
    assert message == "input 'a': FP32 of shape [3, 4] expects 48 bytes, got 32"


def test_wrong_number_of_values(client):
    inputs = pair(binary=False)
    inputs[0].set_shape([3, 4])
    status, message = refused(client.infer, "two", inputs)
    assert status == "400"
    assert "input 'a'" in message
    assert "12" in message
    assert "8" in message


def test_streams_need_grpc_or_the_plain_door(client):
    status, message = refused(client.infer, "count", [number("n", 2)])
    assert status == "501"
    assert "streams" in message


def test_a_client_can_go_on_after_every_error(client):
    refused(client.infer, "two", [])
    refused(client.infer, "tow", pair())
    np.testing.assert_array_equal(client.infer("two", pair()).as_numpy("sum"), A + B)


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
        assert not await client.is_model_ready("tow")
        assert (await client.get_server_metadata())["name"] == "salver"
        assert (await client.get_model_metadata("two"))["versions"] == ["1", "2"]
        assert (await client.get_model_config("two"))["name"] == "two"
        index = await client.get_model_repository_index()
        assert [(entry["name"], entry["version"]) for entry in index] == VERSIONS
        stats = await client.get_inference_statistics("two")
        assert [entry["version"] for entry in stats["model_stats"]] == ["1", "2"]

    with_aio(any_server, use)


def test_aio_load_and_unload(explicit_server):
    async def use(client):
        await client.load_model("two")
        assert await client.is_model_ready("two", "2")
        await client.unload_model("two")
        assert not await client.is_model_ready("two", "2")

    with_aio(explicit_server, use)


def test_aio_every_datatype(server, case):
    async def use(client):
        result = await client.infer(case.model, [tensor("x", case.values, case.datatype)])
        return result.as_numpy("y")

    found = with_aio(server, use)
    if case.datatype == "BYTES":
        found = np.array([[item.decode() for item in found[0]]], np.object_)
    np.testing.assert_array_equal(found, case.values)


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_aio_many_at_once(any_server, coding):
    async def use(client):
        calls = [
            client.infer(
                "two",
                [tensor("a", A + i), tensor("b", B)],
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )
            for i in range(16)
        ]
        return await asyncio.gather(*calls)

    for index, result in enumerate(with_aio(any_server, use)):
        np.testing.assert_array_equal(result.as_numpy("sum"), A + index + B)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_aio_compression(server, coding):
    async def use(client):
        post, codings = client._post, []

        async def noted_post(**arguments):
            answer = await post(**arguments)
            codings.append(answer.headers.get("Content-Encoding"))
            return answer

        client._post = noted_post
        result = await client.infer(
            "identity_fp32",
            [tensor("x", LONG)],
            outputs=[http.InferRequestedOutput("y", binary_data=False)],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
        return result.as_numpy("y"), codings

    found, codings = with_aio(server, use)
    np.testing.assert_array_equal(found, LONG)
    assert codings == [coding]


def test_aio_errors(server):
    async def use(client):
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("tow", pair())
        assert caught.value.status() == "404"
        assert caught.value.message().startswith(MISSING)

    with_aio(server, use)
