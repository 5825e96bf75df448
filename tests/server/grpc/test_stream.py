"""gRPC streams over a fake transport, with `h2` as the client."""

from __future__ import annotations

import gzip
import itertools
from typing import TYPE_CHECKING

import pytest
from tests.server.http2.client import INFER, ROW, STREAM, WATCH, Http2Client, framed, held, infer

from salver.codecs.protobuf import message
from salver.errors import DeadlineExceeded, InvalidInput
from salver.server.grpc import stream as stream_module
from salver.server.grpc.stream import StreamCall
from salver.server.http2.windows import LONG_BODY_WINDOW_BYTES, STREAM_WINDOW_BYTES
from salver.types import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.conftest import Door

STREAM_ANSWER = "inference.ModelStreamInferResponse"


@pytest.fixture
def client(door: Callable[..., Door]) -> Http2Client:
    return Http2Client(door())


def test_a_compressed_stream_message_keeps_its_turn(client: Http2Client) -> None:
    row = ROW * 100_000
    stream = client.call(STREAM, ends=False, grpc_encoding="gzip")
    client.send(stream, b"\1" + framed(gzip.compress(infer(row), 1))[1:])
    client.send(stream, framed(infer()), end=True)
    client.turn()
    for task in tuple(client.door.app._tasks):
        client.door.loop.run_until_complete(task)
    answers = client.answer(stream).messages(STREAM_ANSWER)
    assert [a.infer_response.raw_output_contents[0] for a in answers] == [row, ROW]


def test_requests_of_a_long_stream_have_deadlines_of_their_own(door: Callable[..., Door]) -> None:
    client = held(door)
    stream = client.call(STREAM, ends=False)
    client.turn()
    client.door.pass_time(3600)
    client.send(stream, framed(infer()))
    client.turn()
    deadline = client.door.engine.calls[0].context.deadline
    assert deadline == client.door.time + 60_000_000_000


def test_a_stream_ends_at_its_deadline(client: Http2Client) -> None:
    stream = client.call(STREAM, ends=False, grpc_timeout="5S")
    client.turn()
    client.door.pass_time(4)
    assert not client.answer(stream).ended
    client.door.pass_time(2)
    assert client.answer(stream).status == "4"


def test_a_request_that_outlives_the_deadline_of_its_stream_ends_it(
    door: Callable[..., Door],
) -> None:
    client = held(door)
    stream = client.call(STREAM, infer(), infer(), ends=False, grpc_timeout="5S")
    client.turn()
    engine = client.door.engine
    engine.fail(engine.calls[0], DeadlineExceeded("its own"))
    client.door.time += 5_000_000_000
    engine.fail(engine.calls[1], DeadlineExceeded("of the call"))
    answer = client.answer(stream)
    assert [a.error_message for a in answer.messages(STREAM_ANSWER)] == ["its own"]
    assert (answer.status, answer.error) == ("4", "of the call")


def test_answers_of_a_stream_keep_the_order_of_requests(door: Callable[..., Door]) -> None:
    client = held(door)
    stream = client.call(STREAM, *(infer(id=str(i)) for i in range(3)))
    client.turn()
    engine = client.door.engine
    engine.answer(engine.calls[2])
    engine.answer(engine.calls[1])
    assert client.answer(stream).data == b""
    engine.answer(engine.calls[0])
    answer = client.answer(stream)
    assert [a.infer_response.id for a in answer.messages(STREAM_ANSWER)] == ["0", "1", "2"]
    assert (answer.status, answer.ended) == ("0", True)


def test_items_leave_at_once(door: Callable[..., Door]) -> None:
    client = held(door)
    stream = client.call(STREAM, infer(), ends=False)
    client.turn()
    engine = client.door.engine
    engine.push(engine.calls[0], Tensor.of([1.0]), False)
    assert len(client.answer(stream).messages(STREAM_ANSWER)) == 1
    engine.push_nothing(engine.calls[0])
    assert not client.answer(stream).ended
    client.finish(stream)
    assert client.answer(stream).status == "0"


def test_a_failed_request_leaves_its_stream_open(client: Http2Client) -> None:
    stream = client.call(STREAM, infer(model="missing", id="a"), b"\xff", infer(id="c"))
    answer = client.answer(stream)
    first, second, third = answer.messages(STREAM_ANSWER)
    assert "not served" in first.error_message
    assert first.infer_response.id == "a"
    assert second.error_message
    assert third.infer_response.raw_output_contents[0] == ROW
    assert answer.status == "0"


def test_the_first_error_ends_a_stream_that_asks_for_it(door: Callable[..., Door]) -> None:
    client = held(door)
    stream = client.call(STREAM, infer(), infer(), infer(), ends=False, triton_grpc_error="true")
    client.turn()
    engine = client.door.engine
    engine.answer(engine.calls[0])
    engine.fail(engine.calls[1], InvalidInput("wrong"))
    answer = client.answer(stream)
    assert len(answer.messages(STREAM_ANSWER)) == 1
    assert (answer.status, answer.error) == ("3", "wrong")
    assert engine.cancelled == [engine.calls[2]]


def test_a_half_closed_stream_waits_for_its_answers(door: Callable[..., Door]) -> None:
    client = held(door)
    stream = client.call(STREAM, infer())
    assert not client.answer(stream).ended
    client.door.engine.answer(client.door.engine.calls[0])
    assert client.answer(stream).ended


def test_a_stream_without_requests_ends_well(client: Http2Client) -> None:
    answer = client.answer(client.call(STREAM))
    assert (answer.status, answer.data) == ("0", b"")


@pytest.fixture
def small(door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch) -> Http2Client:
    """A client whose streams may have 8 unanswered requests."""
    monkeypatch.setattr(stream_module, "MAX_ASKED", 8)
    return held(door)


def ids(client: Http2Client, stream: int) -> list[str]:
    """What has been answered so far."""
    answers = client.answer(stream).messages(STREAM_ANSWER)
    return [a.infer_response.id or a.error_message for a in answers]


def answer_all(client: Http2Client) -> None:
    """Answers in steps, and never finds more than 8 requests that wait."""
    client.turn()
    calls = client.door.engine.calls
    while open_calls := [call for call in calls if not call.ended]:
        assert len(open_calls) <= 8
        for call in open_calls[:3]:
            client.door.engine.answer(call)
        client.turn()


@pytest.mark.parametrize("ends", [True, False])
def test_a_burst_of_requests_waits_for_answers(small: Http2Client, ends: bool) -> None:
    names = [str(i) for i in range(200)]
    stream = small.call(STREAM, *(infer(id=name) for name in names), ends=ends)
    small.turn()
    assert len(small.door.engine.calls) == 8
    answer_all(small)
    assert ids(small, stream) == names
    assert small.answer(stream).status == ("0" if ends else None)


def test_a_burst_in_one_frame_is_read_in_turns(
    small: Http2Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "READ_BYTES", 100)
    stream = small.call(STREAM, ends=False)
    small.send(stream, b"".join(framed(infer(id=str(i))) for i in range(100)))
    small.turn()
    assert len(small.door.engine.calls) == 8
    answer_all(small)
    assert ids(small, stream) == [str(i) for i in range(100)]


def test_a_burst_of_thousands_is_answered(client: Http2Client) -> None:
    stream = client.call(STREAM, *[infer()] * 3000)
    assert len(client.answer(stream).messages(STREAM_ANSWER)) == 3000


def test_no_turn_of_the_loop_takes_more_than_some_of_a_burst(
    client: Http2Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, seen = client.door.engine, [0]
    read_on = StreamCall._read_on

    def counted(call: StreamCall) -> None:
        seen.append(len(engine.calls))
        read_on(call)

    monkeypatch.setattr(StreamCall, "_read_on", counted)
    stream = client.call(STREAM, ends=False)
    client.send(stream, framed(infer()) * 600, end=True)
    client.turn()
    steps = [after - before for before, after in itertools.pairwise([*seen, len(engine.calls)])]
    assert sum(steps) == 600
    assert max(steps) == 256


def test_a_stream_that_stops_within_a_message_ends(client: Http2Client) -> None:
    stream = client.call(STREAM, ends=False)
    client.send(stream, framed(infer())[:-3])
    client.turn()
    client.door.pass_time(31)
    assert client.answer(stream).status == "4"


def test_a_burst_whose_answers_are_empty_is_read_on(small: Http2Client) -> None:
    stream = small.call(STREAM, *[infer()] * 50)
    small.turn()
    for call in small.door.engine.calls:
        small.door.engine.push_nothing(call)
        small.turn()
    answer = small.answer(stream)
    assert (len(small.door.engine.calls), answer.data, answer.status) == (50, b"", "0")


def test_what_waits_is_no_more_than_the_window(small: Http2Client) -> None:
    stream = small.call(STREAM, *[infer()] * 8, ends=False)
    small.turn()
    body = framed(infer(bytes(1 << 16))) * 17
    sent = small.h2.local_flow_control_window(stream)
    small.send(stream, body[:sent])
    small.turn()
    (state,) = small.socket._http2.streams.values()
    assert small.h2.local_flow_control_window(stream) == 0
    assert state.held == STREAM_WINDOW_BYTES
    answer_all(small)
    small.send(stream, body[sent:], end=True)
    answer_all(small)
    assert len(ids(small, stream)) == 8 + 17
    assert state.held == 0


def test_requests_that_fail_at_once_wait_like_others(small: Http2Client) -> None:
    wrong = [infer(model="missing", id=str(i)) for i in range(2000)]
    stream = small.call(STREAM, *[infer(id="first")] * 8, *wrong, infer(id="last"))
    answer_all(small)
    assert ids(small, stream)[7:9] == ["first", "0"]
    assert len(ids(small, stream)) == 2009
    assert small.answer(stream).status == "0"


def test_requests_that_wait_have_their_time_from_when_they_are_read(small: Http2Client) -> None:
    small.call(STREAM, *[infer()] * 9, ends=False)
    small.turn()
    small.door.pass_time(50)
    answer_all(small)
    deadlines = [call.context.deadline for call in small.door.engine.calls]
    assert deadlines[8] - deadlines[7] == 50 * 1_000_000_000


def test_a_reset_drops_what_waits(small: Http2Client) -> None:
    stream = small.call(STREAM, *[infer()] * 50)
    small.turn()
    small.h2.reset_stream(stream, 8)
    small.turn()
    assert len(small.door.engine.calls) == len(small.door.engine.cancelled) == 8


def test_a_body_that_is_cut_off_behind_what_waits_is_refused(small: Http2Client) -> None:
    stream = small.call(STREAM, *[infer()] * 9, ends=False)
    small.send(stream, b"\0\0", end=True)
    answer_all(small)
    assert small.answer(stream).error == "the body ends inside a gRPC message"


def test_a_stream_is_not_read_on_while_its_answers_are_not_read(
    door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "PAUSE_UNREAD_BYTES", 1 << 16)
    client = Http2Client(door(), window=1000)
    client.reads = False
    row = bytes(1 << 14)
    stream = client.call(STREAM, *[infer(row)] * 4, ends=False)
    client.turn()
    for _ in range(30):
        client.send(stream, framed(infer(row)))
        client.turn()
    assert 4 < len(client.door.engine.calls) < 10
    client.reads = True
    client.h2.increment_flow_control_window(1 << 24)
    client.h2.increment_flow_control_window(1 << 24, stream)
    client.finish(stream)
    answer = client.answer(stream)
    assert (len(answer.messages(STREAM_ANSWER)), answer.status) == (34, "0")


def test_a_stream_that_asks_for_much_is_not_read_on(
    door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "MAX_ASKED_BYTES", 1000)
    client = held(door)
    client.call(INFER, ends=False)  # a stream that is not alone gets less ahead
    row = bytes(STREAM_WINDOW_BYTES // 100 * 16)
    stream = client.call(STREAM, *[infer(row)] * 6, ends=False)
    client.turn()
    assert client.h2.local_flow_control_window(stream) < LONG_BODY_WINDOW_BYTES // 2
    assert len(client.door.engine.calls) == 1
    answer_all(client)
    assert client.h2.local_flow_control_window(stream) == LONG_BODY_WINDOW_BYTES
    client.finish(stream)
    assert len(client.answer(stream).messages(STREAM_ANSWER)) == 6


def test_large_answers_wait_for_their_reader(
    door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "PAUSE_UNREAD_BYTES", 1 << 15)
    monkeypatch.setattr(stream_module, "MAX_UNREAD_BYTES", 1 << 16)
    client = Http2Client(door(), window=1000)
    client.reads = False
    stream = client.call(STREAM, *[infer(bytes(1 << 15))] * 6)
    client.turn()
    (state,) = client.socket._http2.streams.values()
    assert state.queued < 1 << 17
    client.reads = True
    client.h2.increment_flow_control_window(1 << 24)
    client.h2.increment_flow_control_window(1 << 24, stream)
    answer = client.answer(stream)
    assert (len(answer.messages(STREAM_ANSWER)), answer.status) == (6, "0")


@pytest.mark.parametrize("num_rows", [1_000, 300_000])
def test_decompressed_requests_count_as_what_they_have_become(
    door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    client = held(door)
    row = bytes(num_rows * 16)
    monkeypatch.setattr(stream_module, "MAX_ASKED_BYTES", 5 * len(row) // 2)
    one = b"\1" + framed(gzip.compress(infer(row)))[1:]
    stream = client.call(STREAM, ends=False, grpc_encoding="gzip")
    client.send(stream, one * 10, end=True)
    engine, numbers = client.door.engine, []
    for _ in range(20):
        client.turn()
        for task in tuple(client.door.app._tasks):
            client.door.loop.run_until_complete(task)
        waiting = [call for call in engine.calls if not call.ended]
        numbers.append(len(waiting))
        for call in waiting:
            engine.answer(call, Tensor.of([1.0]))
    assert max(numbers) <= max(3, stream_module.MAX_INFLATING)
    assert client.answer(stream).status == "0"
    assert sum(numbers) == 10


def test_answers_that_nobody_reads_end_a_stream(
    door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "MAX_UNREAD_BYTES", 1 << 16)
    client = held(door)
    client.reads = False
    stream = client.call(STREAM, infer(), infer(), ends=False)
    client.turn()
    engine = client.door.engine
    for _ in range(12):
        engine.push(engine.calls[0], Tensor.of([1.0] * 20_000), False)
        client.turn()
    assert engine.cancelled == engine.calls
    assert sum(s.queued for s in client.socket._http2.streams.values()) < 1 << 18
    assert client.answer(stream).status is None


def test_watch_tells_news_only(client: Http2Client) -> None:
    name = "grpc.health.v1.HealthCheckResponse"
    stream = client.call(WATCH, b"")
    client.door.pass_time(1)
    assert [m.status for m in client.answer(stream).messages(name)] == [1]
    client.door.app.admin.query = lambda query: {"ready": False}  # type: ignore[method-assign]
    client.door.pass_time(1)
    client.door.pass_time(1)
    assert [m.status for m in client.answer(stream).messages(name)] == [1, 2]


def test_watch_of_an_unknown_service_stays_open(client: Http2Client) -> None:
    request = message("grpc.health.v1.HealthCheckRequest")(service="x").SerializeToString()
    answer = client.answer(client.call(WATCH, request))
    (found,) = answer.messages("grpc.health.v1.HealthCheckResponse")
    assert (found.status, answer.ended) == (3, False)


def test_a_stream_ends_with_the_server_when_it_is_answered(door: Callable[..., Door]) -> None:
    client = held(door)
    busy = client.call(STREAM, infer(), ends=False)
    idle = client.call(STREAM, ends=False)
    client.turn()
    client.socket.drain()
    assert client.answer(idle).status == "14"
    assert not client.answer(busy).ended
    client.door.engine.answer(client.door.engine.calls[0])
    answer = client.answer(busy)
    assert (len(answer.messages(STREAM_ANSWER)), answer.status) == (1, "14")
    assert client.transport.ended == "closed"
