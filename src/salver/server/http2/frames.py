"""HTTP/2 frames (RFC 9113): their numbers, and how to write them."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from salver.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
HEAD: Final = struct.Struct(">HBBBI")
"""Length (upper 16 bits, lower 8 bits), kind, flags, stream id with its reserved bit."""
SETTING: Final = struct.Struct(">HI")
STREAM_ID_MASK: Final = 0x7FFF_FFFF

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

DEFAULT_WINDOW_BYTES: Final = 65_535
MAX_WINDOW_BYTES: Final = 2**31 - 1
MIN_MAX_FRAME_BYTES: Final = 16_384
MAX_MAX_FRAME_BYTES: Final = 2**24 - 1


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(IntEnum):
    """What one side tells the other of itself (RFC 9113, section 6.5.2)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class Http2Error(InvalidInput):
    """The peer broke the protocol in a way that ends the connection."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def calm(message: str) -> Http2Error:
    """The end of a connection that costs too much."""
    return Http2Error(ErrorCode.ENHANCE_YOUR_CALM, message)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def header_frames(stream_id: int, block: bytes, end_stream: bool, max_frame_bytes: int) -> bytes:
    """A header block as one HEADERS frame and as many CONTINUATION frames as it takes."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame_bytes:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    kind, written = HEADERS, []
    for start in range(0, len(block), max_frame_bytes):
        if start + max_frame_bytes >= len(block):
            flags |= END_HEADERS
        written.append(frame(kind, flags, stream_id, block[start : start + max_frame_bytes]))
        kind, flags = CONTINUATION, 0
    return b"".join(written)


def settings(values: Mapping[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    pairs = (SETTING.pack(name, value) for name, value in values.items())
    return frame(SETTINGS, 0, 0, b"".join(pairs))


def window_update(stream_id: int, num_bytes: int) -> bytes:
    """Allows the peer `num_bytes` more; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, num_bytes.to_bytes(4, "big"))


def rst_stream(stream_id: int, code: int) -> bytes:
    """Ends one stream at once."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def goaway(last_stream_id: int, code: int, message: str = "") -> bytes:
    """Ends the connection; streams above `last_stream_id` were not and will not be processed."""
    payload = struct.pack(">II", last_stream_id, code) + message.encode()
    return frame(GOAWAY, 0, 0, payload)
