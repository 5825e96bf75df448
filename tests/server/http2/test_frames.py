"""Written frames are what `hyperframe` reads."""

from __future__ import annotations

import hyperframe.frame as oracle
import pytest

from salver.server.http2 import frames
from salver.server.http2.frames import ErrorCode, Setting


def read(data: bytes) -> list[oracle.Frame]:
    found, rest = [], memoryview(data)
    while rest:
        one, length = oracle.Frame.parse_frame_header(rest[: frames.HEAD_BYTES])
        one.parse_body(rest[frames.HEAD_BYTES : frames.HEAD_BYTES + length])
        found.append(one)
        rest = rest[frames.HEAD_BYTES + length :]
    return found


def test_settings() -> None:
    (one,) = read(frames.settings({Setting.MAX_FRAME_SIZE: 1 << 20, Setting.ENABLE_PUSH: 0}))
    assert isinstance(one, oracle.SettingsFrame)
    assert one.settings == {5: 1 << 20, 2: 0}


def test_window_update_and_reset() -> None:
    update, reset = read(frames.window_update(7, 65_535) + frames.rst_stream(7, ErrorCode.CANCEL))
    assert isinstance(update, oracle.WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (7, 65_535)
    assert isinstance(reset, oracle.RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (7, 8)


def test_goaway() -> None:
    (one,) = read(frames.goaway(9, ErrorCode.ENHANCE_YOUR_CALM, "too much"))
    assert isinstance(one, oracle.GoAwayFrame)
    assert (one.last_stream_id, one.error_code, one.additional_data) == (9, 11, b"too much")


@pytest.mark.parametrize(
    ("size", "kinds"),
    [
        (10, ["HeadersFrame"]),
        (100, ["HeadersFrame"]),
        (101, ["HeadersFrame", "ContinuationFrame"]),
        (300, ["HeadersFrame", "ContinuationFrame", "ContinuationFrame"]),
    ],
)
def test_header_blocks_are_cut_to_the_peers_frame_size(size: int, kinds: list[str]) -> None:
    block = bytes(i & 0x7F for i in range(size))
    found = read(frames.header_frames(3, block, True, 100))
    assert [type(one).__name__ for one in found] == kinds
    assert b"".join(one.data for one in found) == block  # type: ignore[attr-defined]
    assert ["END_HEADERS" in one.flags for one in found] == [False] * (len(found) - 1) + [True]
    assert "END_STREAM" in found[0].flags
