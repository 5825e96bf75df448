"""Unary gRPC calls over a fake transport, with `h2` as the client."""

from __future__ import annotations

import gc
import gzip
from typing import TYPE_CHECKING

import pytest
from tests.server.http2.client import INFER, ROW, STREAM, WATCH, Http2Client, framed, held, infer

from salver.codecs.protobuf import message
from salver.errors import ModelFailed
from salver.types import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.conftest import Door


@pytest.fixture
def client(door: Callable[..., Door]) -> Http2Client:
    return Http2Client(door())


def test_a_unary_call_is_answered(client: Http2Client) -> None:
    answer = client.answer(client.call(INFER, infer()))
    assert answer.head[":status"] == "200"
    assert answer.head["content-type"] == "application/grpc"
    assert (answer.rows(), answer.status, answer.ended) == ([ROW], "0", True)


def test_a_head_and_a_body_in_one_piece_are_answered_alike(client: Http2Client) -> None:
    fields = {"content_type": "application/grpc", "te": "trailers"}
    answer = client.answer(client.request(INFER, framed(infer(id="7")), **fields))
    (found,) = answer.messages("inference.ModelInferResponse")
    assert (found.id, found.raw_output_contents[0]) == ("7", ROW)


def test_a_message_may_come_in_any_pieces(client: Http2Client) -> None:
    stream = client.call(INFER, ends=False)
    for byte in framed(infer()):
        client.send(stream, bytes((byte,)))
        client.turn()
    client.finish(stream)
    assert client.answer(stream).rows() == [ROW]


def test_a_large_message_is_answered(client: Http2Client) -> None:
    row = bytes(range(256)) * 4096 * 3
    assert client.answer(client.call(INFER, infer(row))).rows() == [row]


def test_what_is_answered_leaves_no_circles_behind(client: Http2Client) -> None:
    gc.disable()
    try:
        row = bytes(1 << 20)
        for _ in range(3):
            assert client.answer(client.call(INFER, infer(row))).status == "0"
            client.events.clear()
            client.door.engine.calls.clear()
        free = client.door.app.pool.take(len(row) + 100)
        assert client.door.app.pool._num_bytes <= 2 * len(free) * 1.25
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        (INFER, "3", "the call ended without a message"),
        ("/inference.GRPCInferenceService/Nothing", "12", "no gRPC method"),
        (WATCH, "3", "the call ended without a message"),
    ],
)
def test_calls_without_a_message(client: Http2Client, path: str, status: str, text: str) -> None:
    answer = client.answer(client.call(path))
    assert (answer.status, text in answer.error, answer.ended) == (status, True, True)


def test_a_unary_call_takes_one_message(client: Http2Client) -> None:
    answer = client.answer(client.call(INFER, infer(), infer()))
    assert (answer.status, answer.error) == ("3", "this method takes one message, more came")


def test_a_cut_off_message_is_refused(client: Http2Client) -> None:
    stream = client.call(INFER, ends=False)
    client.send(stream, framed(infer())[:-1], end=True)
    assert client.answer(stream).error == "the body ends inside a gRPC message"


def test_errors_of_the_engine_become_statuses(client: Http2Client) -> None:
    answer = client.answer(client.call(INFER, infer(model="missing")))
    assert (answer.status, answer.error) == ("5", "'missing' is not served here.")
    assert len(answer.heads) == 1


def test_errors_of_the_model_become_statuses(door: Callable[..., Door]) -> None:
    client = held(door)
    stream = client.call(INFER, infer())
    client.turn()
    client.door.engine.fail(client.door.engine.calls[0], ModelFailed("it broke"))
    answer = client.answer(stream)
    assert (answer.status, answer.error) == ("13", "it broke")


def test_a_bug_tells_nothing_of_itself(
    client: Http2Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.door.app.admin, "query", None)
    request = message("inference.ServerMetadataRequest")().SerializeToString()
    answer = client.answer(client.call("/inference.GRPCInferenceService/ServerMetadata", request))
    assert answer.status == "13"
    assert "internal error" in answer.error
    assert "a bug while answering" in caplog.text


def test_messages_above_the_limit_are_refused(door: Callable[..., Door]) -> None:
    client = Http2Client(door(body_bytes=100))
    answer = client.answer(client.call(INFER, infer(ROW * 10)))
    assert (answer.status, "at most 100" in answer.error) == ("8", True)


@pytest.mark.parametrize("row", [ROW, ROW * 100_000])
def test_compressed_messages_are_taken(client: Http2Client, row: bytes) -> None:
    data = gzip.compress(infer(row), 1)
    stream = client.call(INFER, ends=False, grpc_encoding="gzip")
    client.send(stream, b"\1" + framed(data)[1:], end=True)
    client.turn()
    for task in tuple(client.door.app._tasks):
        client.door.loop.run_until_complete(task)
    assert client.answer(stream).rows() == [row]


def test_a_bomb_is_refused(door: Callable[..., Door]) -> None:
    client = Http2Client(door(body_bytes=1 << 16))
    stream = client.call(INFER, ends=False, grpc_encoding="gzip")
    client.send(stream, b"\1" + framed(gzip.compress(bytes(1 << 21)))[1:], end=True)
    answer = client.answer(stream)
    assert (answer.status, "after decompression" in answer.error) == ("8", True)


def test_too_much_metadata_fails_its_call_alone(door: Callable[..., Door]) -> None:
    client = Http2Client(door(headers=20, header_bytes=4000))
    many = client.call(INFER, infer(), **{f"x_{i}": "y" for i in range(20)})
    large = client.call(INFER, infer(), x_large="y" * 10_000)
    fine = client.call(INFER, infer())
    for stream in (many, large):
        answer = client.answer(stream)
        assert (answer.head[":status"], answer.status, answer.ended) == ("200", "8", True)
        assert "at most" in answer.error
    assert client.answer(fine).status == "0"
    assert client.answer(client.request("/v2", method="GET", x_large="y" * 9000)).head == {
        ":status": "431"
    }
    assert not client.goaways


@pytest.mark.parametrize("path", [INFER, STREAM, "/inference.GRPCInferenceService/ServerLive"])
def test_a_call_without_any_time_is_over_at_once(client: Http2Client, path: str) -> None:
    answer = client.answer(client.call(path, infer(), grpc_timeout="0n"))
    assert (answer.status, answer.ended) == ("4", True)
    assert not client.door.engine.calls


@pytest.mark.parametrize(
    ("path", "status"), [(INFER, "0"), (STREAM, "0"), ("/inference.GRPCInferenceService/No", "12")]
)
def test_the_id_of_a_request_is_told_back(client: Http2Client, path: str, status: str) -> None:
    answer = client.answer(client.call(path, infer(), x_request_id="7" * 200))
    assert (answer.head["x-request-id"], answer.status) == ("7" * 128, status)
    assert "x-request-id" not in client.answer(client.call(path, infer())).head


def test_the_deadline_is_the_sooner_of_call_and_message(door: Callable[..., Door]) -> None:
    client = held(door)
    message_us = {"parameters": {"timeout": {"int64_param": 5000}}}
    request = message("inference.ModelInferRequest").FromString(infer())
    request.parameters["timeout"].int64_param = message_us["parameters"]["timeout"]["int64_param"]
    short = request.SerializeToString()
    for data, headers in (
        (infer(), {}),
        (infer(), {"grpc_timeout": "2S"}),
        (short, {}),
        (short, {"grpc_timeout": "2S"}),
        (short, {"grpc_timeout": "1m"}),
    ):
        client.call(INFER, data, **headers)
    client.turn()
    deadlines = [call.context.deadline - client.socket.now for call in client.door.engine.calls]
    ms = 1_000_000
    assert deadlines == [60_000 * ms, 2000 * ms, 5 * ms, 5 * ms, 1 * ms]


def test_a_reset_cancels_the_call(door: Callable[..., Door]) -> None:
    client = held(door)
    stream = client.call(INFER, infer())
    client.turn()
    client.h2.reset_stream(stream, 8)
    client.turn()
    assert client.door.engine.cancelled == client.door.engine.calls


def test_the_end_of_the_connection_cancels_every_call(door: Callable[..., Door]) -> None:
    client = held(door)
    client.call(INFER, infer())
    client.call(STREAM, infer(), infer())
    client.turn()
    client.socket.connection_lost(None)
    assert len(client.door.engine.cancelled) == 3


def test_a_streaming_method_cannot_be_called_by_a_unary_one(door: Callable[..., Door]) -> None:
    client = held(door)
    first, second = client.call(INFER, infer()), client.call(INFER, infer())
    client.turn()
    engine = client.door.engine
    engine.push(engine.calls[0], Tensor.of([1.0]), False)
    engine.push_nothing(engine.calls[1])
    for stream in (first, second):
        answer = client.answer(stream)
        assert (answer.status, "ModelStreamInfer" in answer.error) == ("12", True)
    assert engine.cancelled == engine.calls[:1]


def test_a_call_whose_message_does_not_come_ends(door: Callable[..., Door]) -> None:
    client = Http2Client(door())
    unary = client.call(INFER, ends=False)
    quiet = client.call(STREAM, ends=False)
    client.turn()
    client.door.pass_time(31)
    assert client.answer(unary).status == "4"
    assert client.answer(quiet).status is None


def test_calls_need_the_key_but_health_does_not(door: Callable[..., Door]) -> None:
    client = Http2Client(door(api_key="secret"))
    assert client.answer(client.call(INFER, infer())).status == "16"
    assert client.answer(client.call(INFER, infer(), authorization="Bearer secret")).status == "0"
    assert client.answer(client.call("/grpc.health.v1.Health/Check", b"")).status == "0"
