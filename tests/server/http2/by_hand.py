"""Frames that tests write by hand, and a handler that notes what came of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hyperframe.frame as oracle

from salver.server.http2 import frames, hpack
from salver.server.http2.connection import Http2Connection
from salver.server.http2.limits import Http2Limits

if TYPE_CHECKING:
    from salver.server.http2.head import RequestHead
    from salver.server.http2.hpack import HeaderListTooLarge
    from salver.server.http2.stream import Stream

POST = [(":method", "POST"), (":scheme", "http"), (":path", "/p"), (":authority", "h")]
POST_BLOCK = hpack.encode(POST)
OK = hpack.encode([(":status", "200")])
TRAILERS = hpack.encode([("grpc-status", "0")])
LIMITS = {"streams": 256, "header_bytes": 32 << 10, "headers": 100, "held_bytes": 128 << 20}
HELLO = frames.PREFACE + frames.settings({})


class Recorder:
    """Notes what happens; `answers` makes it answer every whole request."""

    def __init__(self, answers: list[Any] | None = None) -> None:
        self.events: list[Any] = []
        self.streams: dict[int, Stream] = {}
        self.bodies: dict[int, bytes] = {}
        self.answers = answers
        self.connection: Http2Connection

    def on_request(self, stream: Stream, head: RequestHead, body: Any) -> None:
        self.events.append(("request", stream.id, head.path))
        self.streams[stream.id] = stream
        self.bodies[stream.id] = bytes(body or b"")
        if body is not None:
            self.on_whole(stream)

    def refusal(self, error: HeaderListTooLarge) -> bytes:
        return hpack.encode([(":status", "431")])

    def on_data(self, stream: Stream, data: Any, end_stream: bool) -> None:
        self.bodies[stream.id] += bytes(data)
        if end_stream:
            self.on_whole(stream)

    def on_whole(self, stream: Stream) -> None:
        self.events.append(("whole", stream.id, self.bodies[stream.id]))
        if self.answers is not None:
            self.connection.sender.send_unary(stream, OK, self.answers, TRAILERS)

    def on_reset(self, stream: Stream, code: int) -> None:
        self.events.append(("reset", stream.id, code))

    def on_writable(self, stream: Stream) -> None:
        self.events.append(("writable", stream.id))


def serve(answers: list[Any] | None = None, **limits: int) -> tuple[Http2Connection, Recorder]:
    recorder = Recorder(answers)
    connection = Http2Connection(recorder, Http2Limits(**LIMITS | limits), 0)
    recorder.connection = connection
    return connection, recorder


def started(answers: list[Any] | None = None, **limits: int) -> tuple[Http2Connection, Recorder]:
    """A connection after the greeting, whose output is empty."""
    connection, recorder = serve(answers, **limits)
    connection.receive(HELLO, 0)
    written(connection)
    return connection, recorder


def written(connection: Http2Connection) -> bytes:
    data = b""
    while parts := connection.sender.take_output():
        data += b"".join(parts)
    return data


def frames_of(data: bytes) -> list[oracle.Frame]:
    found, rest = [], memoryview(data)
    while rest:
        one, length = oracle.Frame.parse_frame_header(rest[:9])
        one.parse_body(rest[9 : 9 + length])
        found.append(one)
        rest = rest[9 + length :]
    return found


def request(stream_id: int, body: bytes | None = None, block: bytes = POST_BLOCK) -> bytes:
    if body is None:
        return frames.frame(frames.HEADERS, 5, stream_id, block)
    return frames.frame(frames.HEADERS, 4, stream_id, block) + data(stream_id, body, end=True)


def data(stream_id: int, body: bytes, end: bool = False) -> bytes:
    return frames.frame(frames.DATA, int(end), stream_id, body)


def goaway_code(connection: Http2Connection) -> int | None:
    codes = [
        one.error_code
        for one in frames_of(written(connection))
        if isinstance(one, oracle.GoAwayFrame)
    ]
    return codes[-1] if codes else None


def resets(connection: Http2Connection) -> list[tuple[int, int]]:
    return [
        (one.stream_id, one.error_code)
        for one in frames_of(written(connection))
        if isinstance(one, oracle.RstStreamFrame)
    ]


def goaway_ids(connection: Http2Connection) -> list[int]:
    out = frames_of(written(connection))
    return [one.last_stream_id for one in out if isinstance(one, oracle.GoAwayFrame)]
