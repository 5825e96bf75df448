"""The server side of HTTP/2 against `h2` as a client, and against frames no client should send."""

from __future__ import annotations

import contextlib

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hyperframe.frame as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.http2.by_hand import (
    HELLO,
    OK,
    POST,
    POST_BLOCK,
    TRAILERS,
    data,
    frames_of,
    goaway_code,
    goaway_ids,
    request,
    resets,
    serve,
    started,
    written,
)

from salver.server.http2 import frames, hpack
from salver.server.http2.connection import ROUND_TRIP_NS, Http2Connection
from salver.server.http2.frames import ErrorCode, Setting


class Client:
    """`h2` as the peer, connected without a socket."""

    def __init__(self, connection: Http2Connection) -> None:
        self.server = connection
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.exchange()

    def exchange(self) -> None:
        while True:
            out = self.h2.data_to_send()
            if out:
                self.server.receive(out, 0)
            back = written(self.server)
            if back:
                self.events += self.h2.receive_data(back)
            if not out and not back:
                return

    def post(self, body: bytes, headers: list[tuple[str, str]] | None = None) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, POST + (headers or []))
        view = memoryview(body)
        while view:
            size = min(
                len(view),
                self.h2.local_flow_control_window(stream_id),
                self.h2.max_outbound_frame_size,
            )
            assert size
            self.h2.send_data(stream_id, bytes(view[:size]))
            view = view[size:]
            self.exchange()
        self.h2.end_stream(stream_id)
        self.exchange()
        return stream_id

    def body(self, stream_id: int) -> bytes:
        return b"".join(
            event.data
            for event in self.events
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream_id
        )

    def ended(self, stream_id: int) -> bool:
        return any(
            isinstance(event, h2.events.StreamEnded) and event.stream_id == stream_id
            for event in self.events
        )


# A client and its answers.


def test_answers_a_unary_call_with_headers_data_and_trailers() -> None:
    connection, recorder = serve([b"he", b"llo"])
    client = Client(connection)
    stream_id = client.post(b"question", [("grpc-timeout", "1S")])
    assert recorder.events == [("request", 1, "/p"), ("whole", 1, b"question")]
    assert client.body(stream_id) == b"hello"
    kinds = [type(event) for event in client.events]
    assert h2.events.ResponseReceived in kinds
    assert h2.events.TrailersReceived in kinds
    assert client.ended(stream_id)
    assert not connection.streams


def test_large_bodies_pass_both_ways_through_small_windows() -> None:
    answer = bytes(range(256)) * 2000
    connection, recorder = serve([answer])
    client = Client(connection)
    body = b"abcdefgh" * 500_000
    stream_id = client.post(body)
    for _ in range(200):
        if client.ended(stream_id):
            break
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            client.h2.increment_flow_control_window(10_000, stream_id)
        client.h2.increment_flow_control_window(10_000)
        client.exchange()
    assert recorder.bodies[stream_id] == body
    assert client.body(stream_id) == answer
    assert client.ended(stream_id)


def test_of_many_windows_in_one_frame_the_last_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each costs a step for every open stream, and a frame holds more than sixty.
    connection, _ = started([bytes(50)])
    heeded = []
    monkeypatch.setattr(connection.sender, "apply", lambda *setting: heeded.append(setting[:2]))
    windows = [frames.SETTING.pack(Setting.INITIAL_WINDOW_SIZE, size) for size in range(60)]
    connection.receive(frames.frame(frames.SETTINGS, 0, 0, b"".join(windows)), 0)
    assert heeded == [(Setting.INITIAL_WINDOW_SIZE, 59)]


def test_an_answer_before_the_end_of_the_body_stops_the_body() -> None:
    connection, recorder = started()
    connection.receive(frames.frame(frames.HEADERS, 4, 1, POST_BLOCK) + data(1, b"abc"), 0)
    connection.sender.send_headers(recorder.streams[1], OK, end_stream=True)
    connection.receive(data(1, bytes(2000)) + data(1, b"", end=True) + request(3, b"x"), 0)
    assert resets(connection) == [(1, ErrorCode.NO_ERROR)]
    assert ("whole", 3, b"x") in recorder.events


# Reading.


def conversation() -> bytes:
    """One of everything that a client may say."""
    encoded = hpack.encode([*POST, ("content-length", "5")])
    return b"".join(
        (
            HELLO,
            frames.frame(frames.SETTINGS, frames.ACK, 0),
            request(1, b"first"),
            frames.frame(frames.HEADERS, 0, 3, encoded[:3]),
            frames.frame(frames.CONTINUATION, 0, 3, encoded[3:9]),
            frames.frame(frames.CONTINUATION, 4, 3, encoded[9:]),
            frames.frame(frames.DATA, frames.PADDED, 3, b"\x03abc\0\0\0"),
            frames.frame(frames.PING, 0, 0, b"12345678"),
            frames.frame(frames.DATA, frames.PADDED, 3, b"\x00de"),
            frames.frame(0x2A, 0, 0, b"unknown"),
            frames.frame(frames.HEADERS, 5, 3, hpack.encode([("checksum", "1")])),
            frames.frame(frames.HEADERS, 0x2D, 5, b"\x02\0\0\0\0\x10" + POST_BLOCK + b"\0\0"),
            frames.frame(frames.PRIORITY, 0, 7, b"\0\0\0\0\x10"),
            frames.frame(frames.HEADERS, 4, 7, POST_BLOCK),
            frames.rst_stream(7, ErrorCode.CANCEL),
            frames.frame(frames.HEADERS, 4, 9, POST_BLOCK),
            frames.frame(frames.DATA, frames.PADDED | frames.END_STREAM, 9, b"\x09abc" + bytes(9)),
            frames.goaway(0, ErrorCode.NO_ERROR),
        )
    )


EXPECTED = [
    ("request", 1, "/p"),
    ("whole", 1, b"first"),
    ("request", 3, "/p"),
    ("whole", 3, b"abcde"),
    ("request", 5, "/p"),
    ("whole", 5, b""),
    ("request", 7, "/p"),
    ("reset", 7, ErrorCode.CANCEL),
    ("request", 9, "/p"),
    ("whole", 9, b"abc"),
]


@given(st.lists(st.integers(1, 60), max_size=60), st.booleans(), st.sampled_from([None, [b"ok"]]))
def test_any_division_into_reads_means_the_same(
    sizes: list[int], as_view: bool, answers: list[bytes] | None
) -> None:
    whole = conversation()
    connection, recorder = serve(answers)
    pieces, start = [], 0
    for size in sizes:
        pieces.append(whole[start : start + size])
        start += size
    for piece in [*pieces, whole[start:]]:
        connection.receive(memoryview(piece) if as_view else piece, 0)
    assert recorder.events == EXPECTED
    assert not connection.failed
    assert not connection.mid_head
    acks = [f for f in frames_of(written(connection)) if isinstance(f, oracle.PingFrame)]
    assert [one.opaque_data for one in acks] == [b"12345678"]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_raise(noise: bytes) -> None:
    connection, _ = serve([b"ok"])
    connection.receive(HELLO + noise, 0)
    written(connection)


FRAME = st.builds(
    frames.frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=20) | st.just(POST_BLOCK),
)


@given(st.lists(FRAME, max_size=30))
def test_arbitrary_frames_never_raise_and_leave_the_windows_whole(parts: list[bytes]) -> None:
    connection, _ = serve([b"ok"])
    connection.receive(HELLO + b"".join(parts), 0)
    written(connection)
    connection.connection_lost()
    assert not connection.streams


def test_repeated_blocks_share_one_head() -> None:
    connection, recorder = started()
    heads = []
    recorder.on_request = lambda stream, head, end: heads.append(head)  # type: ignore[method-assign]
    connection.receive(b"".join(request(i) for i in (1, 3)), 0)
    connection.receive(request(5, block=POST_BLOCK + b"\x40\x01a\x01b"), 0)
    connection.receive(request(7), 0)
    assert heads[0] is heads[1]
    assert heads[2].headers["a"] == "b"
    assert heads[3] is not heads[0]


# What a client must not do.


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (b"GET / HTTP/1.1\r\n", ErrorCode.PROTOCOL_ERROR),
        (frames.PREFACE + request(1), ErrorCode.PROTOCOL_ERROR),
        (HELLO + request(2), ErrorCode.PROTOCOL_ERROR),
        (HELLO + request(0), ErrorCode.PROTOCOL_ERROR),
        (HELLO + data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (HELLO + data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.rst_stream(1, 0), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (HELLO + frames.frame(frames.HEADERS, 1, 1, POST_BLOCK) + request(3), 1),
        (HELLO + frames.frame(frames.CONTINUATION, 4, 1, POST_BLOCK), 1),
        (HELLO + frames.frame(frames.PUSH_PROMISE, 4, 1, POST_BLOCK), 1),
        (HELLO + frames.frame(frames.PING, 0, 0, b"short"), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + frames.frame(frames.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.SETTINGS, 0, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + frames.frame(frames.SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + frames.frame(frames.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.settings({Setting.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.settings({Setting.MAX_FRAME_SIZE: 100}), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**31}), 3),
        (HELLO + request(1, block=b"\xbe"), ErrorCode.COMPRESSION_ERROR),
        (HELLO + request(5) + request(3), ErrorCode.STREAM_CLOSED),
        (HELLO + frames.frame(frames.DATA, 8, 1, b"\x05"), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.DATA, 8, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.HEAD.pack(0x1000, 1, 0, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + frames.HEAD.pack(0x1000, 0, 1, 4, 1), ErrorCode.ENHANCE_YOUR_CALM),
        (HELLO + frames.HEAD.pack(0x100, 0, 4, 0, 0), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + frames.frame(frames.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.GOAWAY, 0, 0, b""), ErrorCode.FRAME_SIZE_ERROR),
        (HELLO + frames.frame(frames.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_ends_the_connection(wrong: bytes, code: int) -> None:
    connection, recorder = serve()
    connection.receive(wrong, 0)
    assert goaway_code(connection) == code
    assert connection.finished
    connection.receive(request(9), 0)
    assert 9 not in recorder.streams


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (request(1, block=hpack.encode(POST[1:])), ErrorCode.PROTOCOL_ERROR),
        (request(1, block=hpack.encode([*POST, ("A", "b")])), ErrorCode.PROTOCOL_ERROR),
        (request(1, b"abc", hpack.encode([*POST, ("content-length", "2")])), 1),
        (request(1, b"abc", hpack.encode([*POST, ("content-length", "4")])), 1),
        (request(1, block=hpack.encode([*POST, ("content-length", "4")])), 1),
        (request(1, b"") + data(1, b"x"), ErrorCode.STREAM_CLOSED),
        (request(1, b"") + request(1), ErrorCode.STREAM_CLOSED),
        (request(1, b"") + frames.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
        (request(1, b"") + frames.window_update(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.frame(frames.PRIORITY, 0, 1, b"x"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.frame(1, 4, 1, POST_BLOCK) + frames.frame(1, 4, 1, TRAILERS), 1),
        (frames.frame(1, 4, 1, POST_BLOCK) + frames.frame(1, 5, 1, OK), 1),
    ],
)
def test_ends_the_stream_only(wrong: bytes, code: int) -> None:
    connection, recorder = started()
    connection.receive(wrong + request(11, b"next"), 0)
    assert resets(connection) == [(1, code)]
    assert recorder.events[-1] == ("whole", 11, b"next")
    assert list(connection.streams) == [11]


def test_refuses_streams_beyond_the_limit() -> None:
    connection, _ = started(streams=2)
    connection.receive(b"".join(request(i) for i in (1, 3, 5)), 0)
    assert resets(connection) == [(5, ErrorCode.REFUSED_STREAM)]


def test_answers_431_to_a_header_list_beyond_the_limit() -> None:
    connection, recorder = started(headers=5)
    connection.receive(request(1, block=POST_BLOCK + hpack.encode([("a", "b"), ("c", "d")])), 0)
    found = frames_of(written(connection))
    assert hpack.Decoder(1000, 9).decode(found[0].data) == [(":status", "431")]  # type: ignore[attr-defined]
    assert recorder.events == []


def test_after_a_header_list_beyond_the_limit_the_connection_goes_on() -> None:
    connection, recorder = started(header_bytes=1000)
    insert = b"\x40\x01a\x01b" + hpack.encode([("c", "d" * 2000)])
    connection.receive(request(1, b"body", POST_BLOCK + insert), 0)
    assert [type(one) for one in frames_of(written(connection))] == [
        oracle.HeadersFrame,
        oracle.RstStreamFrame,
    ]
    connection.receive(request(3, b"more", POST_BLOCK + b"\xbe"), 0)
    assert recorder.events == [("request", 3, "/p"), ("whole", 3, b"more")]
    assert goaway_code(connection) is None


def test_a_header_block_may_not_go_on_for_ever() -> None:
    connection, _ = started()
    connection.receive(frames.frame(frames.HEADERS, 0, 1), 0)
    connection.receive(frames.frame(frames.CONTINUATION, 0, 1) * 40, 0)
    assert goaway_code(connection) == ErrorCode.ENHANCE_YOUR_CALM
    connection, _ = started(header_bytes=1000)
    connection.receive(frames.frame(frames.HEADERS, 0, 1, bytes(2100)), 0)
    connection.receive(frames.frame(frames.CONTINUATION, 0, 1, bytes(2100)), 0)
    assert goaway_code(connection) == ErrorCode.ENHANCE_YOUR_CALM
    connection, _ = started(header_bytes=1000)
    connection.receive(frames.frame(frames.HEADERS, 4, 1, bytes(4100)), 0)
    assert goaway_code(connection) == ErrorCode.ENHANCE_YOUR_CALM


# The end.


def test_shutdown_takes_requests_for_one_round_trip() -> None:
    connection, recorder = started()
    connection.shutdown(0)
    connection.receive(request(1), 0)
    out = frames_of(written(connection))
    ping = next(one for one in out if isinstance(one, oracle.PingFrame))
    connection.receive(frames.frame(frames.PING, frames.ACK, 0, ping.opaque_data), 0)
    connection.receive(request(3), 0)
    out += frames_of(written(connection))
    last_ids = [one.last_stream_id for one in out if isinstance(one, oracle.GoAwayFrame)]
    refused = [one.stream_id for one in out if isinstance(one, oracle.RstStreamFrame)]
    assert (last_ids, refused) == ([2**31 - 1, 1], [3])
    assert not connection.finished
    connection.sender.send_headers(recorder.streams[1], OK, end_stream=True)
    assert connection.finished


def test_shutdown_waits_for_an_answer_no_longer_than_a_round_trip() -> None:
    connection, recorder = started()
    connection.shutdown(1)
    connection.sweep(ROUND_TRIP_NS, 1 << 62)
    connection.receive(request(1), ROUND_TRIP_NS)
    assert goaway_ids(connection) == [2**31 - 1]
    connection.sweep(1 + ROUND_TRIP_NS, 1 << 62)
    connection.receive(request(3), 1 + ROUND_TRIP_NS)
    assert (goaway_ids(connection), list(connection.streams)) == ([1], [1])
    assert not connection.finished
    connection.sender.send_headers(recorder.streams[1], OK, end_stream=True)
    assert connection.finished


def test_shutdown_without_streams_ends_a_silent_client() -> None:
    connection, _ = started()
    connection.shutdown(1)
    connection.shutdown(ROUND_TRIP_NS)
    connection.sweep(1 + ROUND_TRIP_NS, 1 << 62)
    assert (goaway_ids(connection), connection.finished) == ([2**31 - 1, 0], True)


def test_a_lost_connection_resets_every_stream() -> None:
    connection, recorder = started()
    connection.receive(request(1) + request(3), 0)
    connection.connection_lost()
    assert recorder.events[-2:] == [("reset", 1, 8), ("reset", 3, 8)]
