"""Answers on their way out: flow control, turns, bounded output."""

from __future__ import annotations

import hyperframe.frame as oracle
import pytest
from tests.server.http2.by_hand import (
    OK,
    TRAILERS,
    data,
    frames_of,
    request,
    serve,
    started,
    written,
)

from salver.server.http2 import frames
from salver.server.http2.frames import Setting


@pytest.mark.parametrize("window", [0, 10, 100_000])
def test_the_clients_initial_window_holds(window: int) -> None:
    connection, _ = serve([bytes(50)])
    connection.receive(frames.PREFACE + frames.settings({Setting.INITIAL_WINDOW_SIZE: window}), 0)
    connection.receive(request(1, b""), 0)
    sent = sum(
        len(one.data) for one in frames_of(written(connection)) if isinstance(one, oracle.DataFrame)
    )
    assert sent == min(window, 50)
    connection.receive(frames.settings({Setting.INITIAL_WINDOW_SIZE: 200_000}), 0)
    rest = frames_of(written(connection))
    assert sent + sum(len(one.data) for one in rest if isinstance(one, oracle.DataFrame)) == 50
    assert ("END_STREAM" in rest[-1].flags) is (sent < 50)


def test_waiting_streams_take_turns_of_16_kb() -> None:
    connection, recorder = started()
    connection.receive(frames.window_update(0, 1 << 20), 0)
    connection.receive(b"".join(request(i) for i in (1, 3, 5)), 0)
    for stream in recorder.streams.values():
        connection.sender.send_data(stream, [bytes(40_000)], end_stream=True)
    turns = [one.stream_id for one in frames_of(written(connection))]
    assert turns == [1, 3, 5, 1, 3, 5, 1, 3, 5]


def test_a_stream_without_window_does_not_hold_up_the_others() -> None:
    connection, recorder = started()
    connection.receive(frames.window_update(0, 1 << 20) + request(1) + request(3), 0)
    first, second = recorder.streams.values()
    connection.sender.send_data(first, [bytes(100_000)], end_stream=True)
    written(connection)
    connection.sender.send_unary(second, OK, [bytes(1000)], TRAILERS)
    assert {one.stream_id for one in frames_of(written(connection))} == {3}
    connection.receive(frames.window_update(1, 100_000), 0)
    assert frames_of(written(connection))[-1].flags == {"END_STREAM"}


def test_output_is_bounded_while_the_transport_is_full() -> None:
    connection, recorder = started(output_bytes=50_000)
    connection.receive(
        frames.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 20})
        + frames.window_update(0, 1 << 20)
        + request(1)
        + request(3),
        0,
    )
    written(connection)
    connection.sender.send_unary(recorder.streams[1], OK, [bytes(500_000)], TRAILERS)
    assert len(b"".join(connection.sender.take_output())) < 120_000
    connection.sender.pause_output()
    connection.sender.send_unary(recorder.streams[3], OK, [b"small"], TRAILERS)
    assert connection.sender.take_output() == []
    assert len(connection.streams) == 2
    connection.sender.resume_output()
    found = frames_of(written(connection))
    assert [one.stream_id for one in found if "END_STREAM" in one.flags] == [3, 1]
    assert not connection.streams


def test_a_queued_answer_is_the_same_as_one_sent_at_once() -> None:
    at_once, recorder = started([b"\0", b"answer"])
    at_once.receive(request(1, b"x"), 0)
    queued, recorder = started()
    queued.receive(request(1, b"x"), 0)
    queued.sender.pause_output()
    queued.sender.send_unary(recorder.streams[1], OK, [b"\0", b"answer"], TRAILERS)
    assert written(queued) == b""
    queued.sender.resume_output()
    assert written(queued) == written(at_once)


def test_a_reset_stream_takes_its_queue_with_it() -> None:
    connection, recorder = started()
    connection.receive(request(1) + request(3), 0)
    for stream in recorder.streams.values():
        connection.sender.send_data(stream, [bytes(70_000)], end_stream=True)
    written(connection)
    connection.receive(frames.rst_stream(1, 8) + frames.window_update(0, 100_000), 0)
    assert {one.stream_id for one in frames_of(written(connection))} == {3}
    assert recorder.streams[1].queued == 0


def test_tells_when_a_streamed_answer_can_go_on() -> None:
    connection, recorder = started()
    connection.receive(request(1), 0)
    stream = recorder.streams[1]
    connection.sender.send_headers(stream, OK)
    connection.sender.send_data(stream, [b"one"])
    written(connection)
    assert recorder.events[-1] == ("writable", 1)
    connection.sender.send_data(stream, [b"two"])
    connection.sender.send_trailers(stream, TRAILERS)
    found = frames_of(written(connection))
    assert [type(one).__name__ for one in found] == ["DataFrame", "HeadersFrame"]
    assert recorder.events.count(("writable", 1)) == 1


def test_an_empty_answer_ends_with_an_empty_frame() -> None:
    connection, recorder = started()
    connection.receive(request(1), 0)
    connection.sender.send_headers(recorder.streams[1], OK)
    connection.sender.send_data(recorder.streams[1], [], end_stream=True)
    assert written(connection).endswith(data(1, b"", end=True))


def test_a_client_with_a_smaller_table_hears_that_we_use_none() -> None:
    connection, _ = serve([b"x"])
    hello = frames.settings({Setting.HEADER_TABLE_SIZE: 100})
    connection.receive(frames.PREFACE + hello + request(1, b""), 0)
    headers = [f for f in frames_of(written(connection)) if isinstance(f, oracle.HeadersFrame)]
    assert headers[0].data == b"\x20" + OK


def test_answers_to_streams_that_are_gone_are_dropped() -> None:
    connection, recorder = started()
    connection.receive(request(1) + request(3) + frames.rst_stream(1, 8), 0)
    connection.receive(frames.window_update(3, 0), 0)
    written(connection)
    for stream in recorder.streams.values():
        connection.sender.send_unary(stream, OK, [b"late"], TRAILERS)
        connection.sender.send_data(stream, [b"late"])
    assert written(connection) == b""
