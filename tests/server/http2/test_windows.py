"""What the peer may send, and what happens when it sends more."""

from __future__ import annotations

import hyperframe.frame as oracle
from tests.server.http2.by_hand import (
    POST_BLOCK,
    data,
    frames_of,
    goaway_code,
    request,
    started,
    written,
)

from salver.server.http2 import frames
from salver.server.http2.frames import ErrorCode
from salver.server.http2.windows import LONE_BODY_WINDOW_BYTES, STREAM_WINDOW_BYTES


def test_received_bodies_are_credited_when_their_calls_end() -> None:
    connection, _ = started([b"ok"], held_bytes=1 << 20)
    for stream_id in range(1, 21, 2):
        connection.receive(request(stream_id, bytes(200_000)), 0)
    updates = [
        one.window_increment
        for one in frames_of(written(connection))
        if isinstance(one, oracle.WindowUpdateFrame)
    ]
    assert sum(updates) > 2_000_000 - (1 << 20)
    assert not connection.failed


def test_unconsumed_bodies_hold_the_connections_window() -> None:
    connection, recorder = started(held_bytes=100_000)
    connection.receive(frames.frame(frames.HEADERS, 4, 1, POST_BLOCK) + data(1, bytes(90_000)), 0)
    assert written(connection) == b""
    connection.consumed(recorder.streams[1], 80_000)
    assert written(connection) == frames.window_update(0, 80_000)


def test_unfinished_bodies_that_fill_the_window_give_way_to_the_oldest() -> None:
    connection, recorder = started(held_bytes=100_000)
    heads = b"".join(frames.frame(frames.HEADERS, 4, i, POST_BLOCK) for i in (1, 3))
    connection.receive(heads + data(1, bytes(60_000)) + data(3, bytes(40_000)), 0)
    assert recorder.events[-1] == ("reset", 3, ErrorCode.ENHANCE_YOUR_CALM)
    assert written(connection).endswith(frames.window_update(0, 40_000))
    assert list(connection.streams) == [1]


def test_a_paused_stream_gets_no_window_until_it_is_resumed() -> None:
    connection, recorder = started()
    connection.receive(frames.frame(frames.HEADERS, 4, 1, POST_BLOCK), 0)
    connection.pause(recorder.streams[1])
    connection.receive(data(1, bytes(STREAM_WINDOW_BYTES)), 0)
    assert written(connection) == b""
    connection.resume(recorder.streams[1])
    assert written(connection) == frames.window_update(1, LONE_BODY_WINDOW_BYTES)


def test_the_peer_may_not_exceed_the_windows() -> None:
    connection, _ = started(held_bytes=70_000)
    head = frames.frame(frames.HEADERS, 4, 1, POST_BLOCK)
    connection.receive(head + data(1, bytes(70_001)), 0)
    assert goaway_code(connection) == ErrorCode.FLOW_CONTROL_ERROR
    connection, recorder = started(held_bytes=64 << 20)
    connection.receive(head, 0)
    connection.pause(recorder.streams[1])
    mega = data(1, bytes(1 << 20))
    for _ in range(17):
        connection.receive(mega, 0)
    assert recorder.events[-1] == ("reset", 1, ErrorCode.FLOW_CONTROL_ERROR)
