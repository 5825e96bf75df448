"""Frames that ask for nothing, in numbers."""

from __future__ import annotations

import pytest
from tests.server.http2.by_hand import (
    POST_BLOCK,
    data,
    goaway_code,
    request,
    started,
)

from salver.server.http2 import frames
from salver.server.http2.flood import WINDOW_NS
from salver.server.http2.frames import ErrorCode, Setting

FLOODS = {
    "ping": frames.frame(frames.PING, 0, 0, bytes(8)),
    "settings": frames.settings({Setting.ENABLE_PUSH: 0}),
    "priority": frames.frame(frames.PRIORITY, 0, 9, bytes(5)),
    "window update": frames.window_update(0, 1),
    "empty data": data(1, b""),
    "padding": frames.frame(frames.DATA, frames.PADDED, 1, b"\x02\0\0"),
    "unknown": frames.frame(0x77, 0, 0, b""),
    "closed stream": frames.rst_stream(1, 0),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_floods_end_the_connection(flood: str) -> None:
    connection, _ = started(noise=100)
    head = frames.frame(frames.HEADERS, 4, 1, POST_BLOCK)
    connection.receive(head + FLOODS[flood] * 90, 0)
    assert not connection.failed
    connection.receive(FLOODS[flood] * 20, WINDOW_NS - 1)
    assert goaway_code(connection) == ErrorCode.ENHANCE_YOUR_CALM


def test_the_same_frames_over_a_longer_time_are_no_flood() -> None:
    connection, _ = started(noise=100)
    for i in range(10):
        connection.receive(FLOODS["ping"] * 90, i * WINDOW_NS)
    assert not connection.failed


def test_control_frames_that_come_with_work_are_no_flood() -> None:
    connection, _ = started([b"ok"], noise=10)
    for stream_id in range(1, 201, 2):
        connection.receive(FLOODS["ping"] + frames.window_update(0, 10) + request(stream_id), 0)
    assert not connection.failed


def test_rapid_resets_end_the_connection() -> None:
    connection, recorder = started(resets=50)
    for stream_id in range(1, 201, 2):
        connection.receive(request(stream_id) + frames.rst_stream(stream_id, 8), 0)
    assert goaway_code(connection) == ErrorCode.ENHANCE_YOUR_CALM
    assert len(recorder.streams) == 51


def test_acknowledgements_that_nobody_reads_end_the_connection() -> None:
    connection, _ = started()
    connection.sender.pause_output()
    connection.receive(FLOODS["ping"] * 1100, 0)
    assert connection.failed
