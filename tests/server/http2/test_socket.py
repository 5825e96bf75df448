"""The endpoints of HTTP/1.1 by HTTP/2, and what concerns whole connections."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import h2.errors
import h2.events
import orjson
import pytest
from tests.server.http2.client import INFER, STREAM, Http2Client, framed, infer

from salver.server.http2 import socket
from salver.types import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.conftest import Door

PATH = "/v2/models/m/infer"


@pytest.fixture
def client(door: Callable[..., Door]) -> Http2Client:
    return Http2Client(door())


def body(*values: float) -> bytes:
    data = list(values) or [1.5, 2.0, 3.0, 4.0]
    entry = {"name": "x", "shape": [len(data) // 4, 4], "datatype": "FP32", "data": data}
    return orjson.dumps({"inputs": [entry]})


def test_a_request_is_answered(client: Http2Client) -> None:
    answer = client.answer(client.request(PATH, body(), x_request_id="7"))
    assert answer.head[":status"] == "200"
    assert answer.head["content-length"] == str(len(answer.data))
    assert answer.head["x-request-id"] == "7"
    assert orjson.loads(answer.data)["outputs"][0]["data"] == [1.5, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("told", [True, False])
def test_a_body_in_pieces_is_answered(client: Http2Client, told: bool) -> None:
    data = body(*range(30_000))
    headers = {"content_length": str(len(data))} if told else {}
    stream = client.request(PATH, None, **headers)
    for start in range(0, len(data), 5000):
        client.send(stream, data[start : start + 5000])
    client.finish(stream)
    found = orjson.loads(client.answer(stream).data)
    assert found["outputs"][0]["data"] == list(range(30_000))


def test_a_body_may_end_with_an_empty_frame(client: Http2Client) -> None:
    stream = client.request(PATH, None)
    client.finish(stream)
    assert client.answer(stream).head[":status"] == "400"


@pytest.mark.parametrize("told", [True, False])
def test_a_body_above_the_limit_is_refused(door: Callable[..., Door], told: bool) -> None:
    client = Http2Client(door(body_bytes=1000))
    headers = {"content_length": "1001"} if told else {}
    stream = client.request(PATH, None, **headers)
    client.send(stream, bytes(501))
    if not told:
        client.send(stream, bytes(500))
    answer = client.answer(stream)
    assert (answer.head[":status"], answer.ended) == ("413", True)
    # What is left of the body is not wanted, and that is no error (RFC 9113 section 8.1).
    assert answer.reset == 0


def test_head_has_no_body(client: Http2Client) -> None:
    answer = client.answer(client.request("/v2", method="HEAD"))
    assert (answer.head[":status"], answer.data, answer.ended) == ("200", b"", True)
    assert int(answer.head["content-length"]) > 0


def test_options_has_no_length(client: Http2Client) -> None:
    answer = client.answer(client.request(PATH, method="OPTIONS"))
    assert answer.head[":status"] == "204"
    assert "content-length" not in answer.head


def test_a_large_answer_is_compressed_for_who_takes_it(client: Http2Client) -> None:
    data = body(*range(4000))
    answer = client.answer(client.request(PATH, data, accept_encoding="gzip"))
    assert answer.head["content-encoding"] == "gzip"
    assert answer.head["content-length"] == str(len(answer.data))
    found = orjson.loads(gzip.decompress(answer.data))
    assert found["outputs"][0]["data"] == list(range(4000))


def test_an_error_is_answered(client: Http2Client) -> None:
    answer = client.answer(client.request("/v2/models/missing/infer", body()))
    assert answer.head[":status"] == "404"
    assert "not served" in orjson.loads(answer.data)["error"]


def test_a_route_that_is_not_there(client: Http2Client) -> None:
    assert client.answer(client.request("/nowhere", method="GET")).head[":status"] == "404"


def test_the_client_may_ask_before_it_sends(client: Http2Client) -> None:
    stream = client.request(PATH, None, expect="100-continue")
    client.turn()
    informed = [e for e in client.events if isinstance(e, h2.events.InformationalResponseReceived)]
    assert len(informed) == 1
    client.send(stream, body(), end=True)
    assert client.answer(stream).heads[-1][":status"] == "200"


def test_a_body_that_would_be_refused_is_not_asked_for(door: Callable[..., Door]) -> None:
    client = Http2Client(door(api_key="secret"))
    stream = client.request(PATH, None, expect="100-continue")
    answer = client.answer(stream)
    assert [head[":status"] for head in answer.heads] == ["401"]


def test_other_origins_are_answered_where_they_may(door: Callable[..., Door]) -> None:
    client = Http2Client(door(cors_origins=("https://a",)))
    allowed = client.answer(client.request(PATH, body(), origin="https://a"))
    assert allowed.head["access-control-allow-origin"] == "https://a"
    refused = client.answer(client.request(PATH, body(), origin="https://b"))
    assert "access-control-allow-origin" not in refused.head


def test_a_streaming_answer_leaves_piece_by_piece(client: Http2Client) -> None:
    client.door.engine.holds = True
    stream = client.request("/predict/m", b'{"input": 1}', content_type="application/json")
    client.turn()
    engine = client.door.engine
    engine.push(engine.calls[0], Tensor.of([1.0]), False)
    first = client.answer(stream)
    assert first.head[":status"] == "200"
    assert (first.data.count(b"\n"), first.ended) == (1, False)
    engine.push(engine.calls[0], Tensor.of([2.0]), True)
    last = client.answer(stream)
    assert (last.data.count(b"\n"), last.ended) == (2, True)


def test_pieces_that_nobody_reads_wait(
    client: Http2Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "_KEPT_BACK_BYTES", 1 << 16)
    client.reads = False
    engine = client.door.engine
    engine.holds = True
    stream = client.request("/predict/m", b'{"input": 1}', content_type="application/json")
    client.turn()
    for _ in range(40):
        engine.push(engine.calls[0], Tensor.of([1.5] * 10_000), False)
        client.turn()
    (state,) = client.socket._http2.streams.values()
    assert state.queued < 1 << 18
    client.reads = True
    client.h2.increment_flow_control_window(1 << 24)
    client.h2.increment_flow_control_window(1 << 24, stream)
    assert client.answer(stream).data.count(b"\n") == 40


def test_a_reset_cancels(client: Http2Client) -> None:
    client.door.engine.holds = True
    stream = client.request(PATH, body())
    client.turn()
    client.h2.reset_stream(stream, 8)
    client.turn()
    assert client.door.engine.cancelled == client.door.engine.calls


def test_a_body_that_stops_coming_ends_its_stream(client: Http2Client) -> None:
    stream = client.request(PATH, None)
    client.send(stream, b"{")
    client.turn()
    client.door.pass_time(29)
    client.send(stream, b" ")
    client.turn()
    client.door.pass_time(29)
    assert not client.answer(stream).ended
    client.door.pass_time(2)
    assert client.answer(stream).head[":status"] == "504"


def test_a_connection_without_streams_is_closed(client: Http2Client) -> None:
    client.door.pass_time(119)
    assert client.goaways == 0
    client.door.pass_time(2)
    client.turn()
    assert client.transport.ended == "closed"


def test_a_head_that_does_not_end_is_cut_off(client: Http2Client) -> None:
    client.feed(b"\0\0\x05\x01")
    client.door.pass_time(11)
    assert client.transport.ended == "aborted"


def test_draining_ends_after_the_present_answers(client: Http2Client) -> None:
    engine = client.door.engine
    engine.holds = True
    stream = client.request(PATH, body())
    client.turn()
    client.socket.drain()
    client.turn()
    assert client.goaways > 0
    assert not client.transport.ended
    engine.answer(engine.calls[0])
    assert client.answer(stream).head[":status"] == "200"
    assert client.transport.ended == "closed"


def test_draining_does_not_wait_for_a_client_that_ignores_it(client: Http2Client) -> None:
    client.socket.drain()
    client.door.turn()
    assert not client.transport.ended
    client.door.pass_time(1)
    assert client.transport.ended == "closed"


def test_an_idle_client_that_ignores_its_end_is_closed(client: Http2Client) -> None:
    client.door.pass_time(121)
    assert not client.transport.ended
    client.door.pass_time(1)
    assert client.transport.ended == "closed"


def test_the_last_answer_waits_for_a_reader_that_reads_on(client: Http2Client) -> None:
    client.transport.window = 0
    client.call(INFER, infer(bytes(1 << 14)))
    client.turn()
    client.socket.drain()
    for _ in range(3):
        client.door.pass_time(4)
        client.transport.read_on(1000)
        assert client.transport.ended != "aborted"
    client.door.pass_time(1)
    assert client.transport.ended == "closed"
    client.door.pass_time(6)
    assert client.transport.ended == "aborted"


def test_a_client_that_stops_reading_is_cut_off(client: Http2Client) -> None:
    client.transport.window = 0
    client.call(INFER, infer(bytes(1 << 14)))
    client.turn()
    client.door.pass_time(1)
    client.door.pass_time(30)
    assert not client.transport.ended
    client.door.pass_time(1)
    assert client.transport.ended == "aborted"


@pytest.mark.parametrize("gives", ["stream", "connection"])
def test_an_answer_without_window_ends_and_others_go_on(client: Http2Client, gives: str) -> None:
    client.reads = False
    row = bytes(2 << 20)
    stream = client.call(INFER, infer(row))
    client.turn()
    # Each of the two windows alone lets nothing be sent.
    client.h2.increment_flow_control_window(1 << 24, stream if gives == "stream" else None)
    client.turn()
    (state,) = client.socket._http2.streams.values()
    assert state.queued
    client.door.pass_time(1)
    client.door.pass_time(30)
    assert client.answer(stream).reset is None
    client.door.pass_time(1)
    assert client.answer(stream).reset == h2.errors.ErrorCodes.CANCEL
    assert not client.socket._http2.streams
    assert state.queue is None
    client.h2.increment_flow_control_window(1 << 24)
    assert client.answer(client.call(INFER, infer())).status == "0"


def test_an_answer_that_is_taken_in_small_pieces_goes_on(client: Http2Client) -> None:
    client.reads = False
    stream = client.call(INFER, infer(bytes(2 << 20)))
    client.turn()
    client.h2.increment_flow_control_window(1 << 24)
    for _ in range(5):
        client.door.pass_time(20)
        client.h2.increment_flow_control_window(1, stream)
        client.turn()
    client.h2.increment_flow_control_window(1 << 24, stream)
    assert client.answer(stream).status == "0"


def test_answers_that_share_the_connections_window_wait_for_each_other(
    client: Http2Client,
) -> None:
    client.reads = False
    streams = [client.call(INFER, infer(bytes(1 << 19))) for _ in range(2)]
    for stream in streams:
        client.h2.increment_flow_control_window(1 << 24, stream)
    client.turn()
    for _ in range(5):
        client.door.pass_time(20)
        client.h2.increment_flow_control_window(1)
        client.turn()
    client.h2.increment_flow_control_window(1 << 24)
    assert [client.answer(stream).status for stream in streams] == ["0", "0"]


def test_a_stream_without_window_cancels_its_call(client: Http2Client) -> None:
    client.reads = False
    engine = client.door.engine
    engine.holds = True
    client.call(STREAM, infer(), ends=False)
    client.turn()
    engine.push(engine.calls[0], Tensor.of([1.0] * 500_000), False)
    client.turn()
    client.door.pass_time(1)
    client.door.pass_time(31)
    assert engine.cancelled == engine.calls


def test_a_slow_reader_is_served_at_its_own_pace(client: Http2Client) -> None:
    client.transport.window = 1000
    row = bytes(1 << 19)
    streams = [client.call(INFER, infer(row)) for _ in range(3)]
    client.turn()
    assert len(client.transport.waiting) < 1 << 20
    client.transport.read_on(1 << 30)
    client.turn()
    assert [len(client.answer(stream).data) > len(row) for stream in streams] == [True] * 3


def test_a_silent_stream_delays_no_other(client: Http2Client) -> None:
    client.reads = False
    client.door.engine.holds = True
    stream = client.call(STREAM, infer(), ends=False)
    client.turn()
    engine = client.door.engine
    engine.push(engine.calls[0], Tensor.of([1.0] * 500_000), False)
    client.h2.increment_flow_control_window(1 << 24)
    client.turn()
    engine.holds = False
    assert client.answer(client.call(INFER, infer())).status == "0"
    assert not client.answer(stream).ended


def test_a_bug_ends_the_connection_only(
    client: Http2Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client.socket, "on_request", None)
    client.request(PATH, framed(b""))
    client.turn()
    assert client.transport.ended == "aborted"
    assert "a bug in a connection" in caplog.text
