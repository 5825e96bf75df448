"""Triton's HTTP clients, blocking and asyncio, against a running server."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

pytest.importorskip("tritonclient.http")
import tritonclient.http as http
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.ones((2, 4), np.float32)
MISSING = "'tow' is not served here. Did you mean 'two'?"


@pytest.fixture
def client(server):
    with http.InferenceServerClient(server.address, concurrency=4) as client:
        yield client


@pytest.fixture
def explicit(serve, repository):
    server = serve(repository, "--trust", "--mode", "explicit", "--access-log", "off")
    with http.InferenceServerClient(server.address) as client:
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


def test_health(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("two")
    assert client.is_model_ready("two", "1")
    assert not client.is_model_ready("two", "3")
    assert not client.is_model_ready("tow")


def test_server_metadata(client):
    found = client.get_server_metadata()
    assert found["name"] == "salver"
    assert "binary_tensor_data" in found["extensions"]


def test_model_metadata(client):
    found = client.get_model_metadata("two")
    assert found["name"] == "two"
    assert found["versions"] == ["1", "2"]
    assert found["inputs"] == [
        {"name": name, "datatype": "FP32", "shape": [-1, 4]} for name in ("a", "b")
    ]
    assert [output["name"] for output in found["outputs"]] == ["sum", "difference"]
    assert client.get_model_metadata("two", "1")["versions"] == ["1"]
    assert refused(client.get_model_metadata, "tow")[0] == "404"


def test_model_config(client):
    found = client.get_model_config("two", "2")
    assert found["name"] == "two"
    assert found["max_batch_size"] > 0
    assert found["input"][0] == {"name": "a", "data_type": "TYPE_FP32", "dims": [4]}


def test_repository_index(client):
    found = {(entry["name"], entry["version"]): entry for entry in
             client.get_model_repository_index()}  # fmt: skip
    assert found["two", "1"]["state"] == "READY"
    assert found["count", "1"]["state"] == "READY"


def test_load_and_unload(explicit):
    assert not explicit.is_model_ready("two")
    assert {"name": "two"} in explicit.get_model_repository_index()
    explicit.load_model("two")
    assert explicit.is_model_ready("two")
    explicit.unload_model("two")
    assert not explicit.is_model_ready("two")
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


def test_statistics(client):
    client.infer("two", pair(), model_version="1")
    (found,) = client.get_inference_statistics("two", "1")["model_stats"]
    assert found["name"] == "two"
    assert found["inference_count"] >= 2
    assert found["inference_stats"]["success"]["count"] >= 1
    names = {stats["name"] for stats in client.get_inference_statistics()["model_stats"]}
    assert {"two", "count", "identity_fp32"} <= names


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


def test_names_versions_and_ids_come_back(client):
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


def test_parameters_reach_the_model(client):
    given = {"text": "a", "number": 3, "yes": True}
    result = client.infer("echo", [number("n", 1)], parameters=given, priority=2, timeout=10**7)
    (name,) = [output["name"] for output in result.get_response()["outputs"]]
    assert result.as_numpy(name).item() == b'{"number": 3, "text": "a", "yes": true}'


def test_the_timeout_ends_a_request(client):
    status, message = refused(client.infer, "stuck", [number("n", 1)], timeout=20_000)
    assert status == "504"
    assert message.startswith("the request's time was over while ")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(client, coding):
    values = np.arange(30_000, dtype=np.float32).reshape(-1, 3)
    result = client.infer(
        "identity_fp32",
        [tensor("x", values)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), values)


def test_async_infer_batches(client):
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


def test_aio_state(server):
    async def use(client):
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("two", "1")
        assert not await client.is_model_ready("tow")
        assert (await client.get_server_metadata())["name"] == "salver"
        assert (await client.get_model_metadata("two"))["versions"] == ["1", "2"]
        assert (await client.get_model_config("two"))["name"] == "two"
        index = await client.get_model_repository_index()
        assert {"name": "two", "version": "2", "state": "READY", "reason": ""} in index
        stats = await client.get_inference_statistics("two")
        assert [entry["version"] for entry in stats["model_stats"]] == ["1", "2"]

    with_aio(server, use)


def test_aio_every_datatype(server, case):
    async def use(client):
        result = await client.infer(case.model, [tensor("x", case.values, case.datatype)])
        return result.as_numpy("y")

    found = with_aio(server, use)
    if case.datatype == "BYTES":
        found = np.array([[item.decode() for item in found[0]]], np.object_)
    np.testing.assert_array_equal(found, case.values)


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_aio_many_at_once(server, coding):
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

    for index, result in enumerate(with_aio(server, use)):
        np.testing.assert_array_equal(result.as_numpy("sum"), A + index + B)


def test_aio_errors(server):
    async def use(client):
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("tow", pair())
        assert caught.value.status() == "404"
        assert caught.value.message().startswith(MISSING)

    with_aio(server, use)
