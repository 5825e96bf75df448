"""HTTP/2 for the server role (RFC 9113), without sockets: bytes in, requests to a handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from salver.server.http2 import frames, hpack
from salver.server.http2.blocks import BlockReader
from salver.server.http2.flood import FloodMeter
from salver.server.http2.frames import ErrorCode, Http2Error, Setting
from salver.server.http2.head import MalformedHead
from salver.server.http2.hpack import HeaderListTooLarge
from salver.server.http2.sender import Sender
from salver.server.http2.stream import Stream

if TYPE_CHECKING:
    from salver.errors import InvalidInput
    from salver.server.http2.stream import Handler
    from salver.types import Buffer

STREAM_WINDOW_BYTES: Final = 1 << 20
"""What a stream may send at first."""
LONE_BODY_WINDOW_BYTES: Final = 16 << 20
"""What it may send ahead while nothing else was asked on the connection since it began."""
LONG_BODY_WINDOW_BYTES: Final = 256 << 10
"""The same beside others: small, or short messages wait behind long bodies in the peer."""
MAX_FRAME_BYTES: Final = 1 << 20

_UNPACK_HEAD: Final = frames.HEAD.unpack_from
_MAX_CONTROL_BYTES: Final = 64 * frames.SETTING.size
_MIN_USEFUL_BYTES: Final = 1024
_MAX_CONTINUATIONS: Final = 32
_MAX_UNREAD_FRAMES: Final = 1000
_MAX_REMEMBERED_RESETS: Final = 1024
_SHUTDOWN_PING: Final = b"\0salver\0"
_TOO_LARGE_BLOCK: Final = hpack.SHRINK_TABLE_TO_ZERO + hpack.encode([(":status", "431")])


class Http2Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may cost."""

    streams: int = 256
    """Open at once; more are refused."""
    header_bytes: int = 32 << 10
    """Of one header list, and of its block on the wire."""
    headers: int = 100
    held_bytes: int = 128 << 20
    """Body bytes that were received and not consumed; the connection's window."""
    output_bytes: int = 256 << 10
    """Of answers made ready for writing at once."""
    noise: int = 10_000
    """Frames in 10 s that ask for nothing, beside those that real work brings with it."""
    resets: int = 1_000
    """Unanswered requests reset by the peer in 10 s, beside as many as were answered."""


class Http2Connection:
    """Reads one client's frames and keeps its streams. Answers go through `sender`.

    After `receive` and after answering, the transport writes what `sender.take_output()` gives, and
    closes once `finished` is true.
    """

    def __init__(self, handler: Handler, limits: Http2Limits, now: int) -> None:
        self.streams: dict[int, Stream] = {}
        self.num_requests = 0
        self.num_answered = 0
        self.failed = False
        """The peer broke the protocol: nothing more is read."""
        self.draining = False
        """New requests are refused."""
        self.sender = Sender(handler, limits.output_bytes, self._on_end)
        self._handler = handler
        self._limits = limits
        self._now = now
        self._last_id = 0
        self._resets: dict[int, None] = {}
        self._noise = FloodMeter(limits.noise, now)
        self._unanswered = FloodMeter(limits.resets, now)
        # Header blocks.
        self._blocks = BlockReader(limits.header_bytes, limits.headers)
        self._block: list[bytes] | None = None
        self._block_bytes = 0
        self._block_stream = 0
        self._block_ends = False
        # Received bytes.
        self._rest = b""
        self._greeted = False
        self._settled = False
        self._data_stream: Stream | None = None
        self._data_left = 0
        self._data_ends = False
        self._padding_left = 0
        # The connection's receive window: window + held by streams + credit = limit.
        self._window = max(limits.held_bytes, frames.DEFAULT_WINDOW_BYTES)
        self._credit = 0
        self._credit_step = self._window // 4
        self._on_frame = {
            frames.HEADERS: self._on_headers,
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_rst_stream,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_push_promise,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window_update,
            frames.CONTINUATION: self._on_continuation,
        }
        self._announce()

    @property
    def finished(self) -> bool:
        """Nothing more will come of this connection: write what is left and close."""
        return self.failed or (self.draining and not self.streams)

    @property
    def mid_head(self) -> bool:
        """The peer owes the rest of the preface, a frame's head or a header block."""
        return bool(self._rest) or self._block is not None or not self._settled

    def receive(self, data: Buffer, now: int) -> None:
        """Reads what came, at monotonic `now` in ns. `data` is not kept."""
        if self.failed:
            return
        self._now = now
        try:
            self._parse(data)
            if self.sender.num_unread > _MAX_UNREAD_FRAMES:
                raise _calm("frames are sent and none is read")
        except Http2Error as error:
            self.goaway(error.code, error.message)

    def consumed(self, stream: Stream, num_bytes: int) -> None:
        """Body bytes were used and freed before the answer ends, as streams of messages do."""
        num_bytes = min(num_bytes, stream.held)
        stream.held -= num_bytes
        self._give_credit(num_bytes)

    def pause(self, stream: Stream) -> None:
        """Lets the stream's window run out."""
        stream.paused = True

    def resume(self, stream: Stream) -> None:
        """Takes data of a paused stream again."""
        stream.paused = False
        self._top_up(stream)

    def reset(self, stream: Stream, code: int) -> None:
        """Ends one stream at once; the handler is not told."""
        if not stream.closed:
            self._reset_id(stream.id, code)
            self._close(stream)
            stream.call = None

    def shutdown(self) -> None:
        """Ends gracefully: requests on their way are still taken for one round trip."""
        if not self.draining and not self.failed:
            control = self.sender.control
            control(frames.goaway(frames.MAX_WINDOW_BYTES, ErrorCode.NO_ERROR))
            control(frames.frame(frames.PING, 0, 0, _SHUTDOWN_PING))

    def goaway(self, code: ErrorCode, message: str = "") -> None:
        """Takes no further requests; unless the code is NO_ERROR, reads nothing more at all."""
        if self.failed or (self.draining and code == ErrorCode.NO_ERROR):
            return
        self.sender.control(frames.goaway(self._last_id, code, message))
        self.draining = True
        self.failed = code != ErrorCode.NO_ERROR

    def connection_lost(self) -> None:
        """The transport is gone: every open stream is reported as reset."""
        self.failed = True
        for stream in list(self.streams.values()):
            self._close(stream)
            self._handler.on_reset(stream, ErrorCode.CANCEL)

    def _announce(self) -> None:
        values = {
            Setting.MAX_CONCURRENT_STREAMS: self._limits.streams,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            Setting.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: self._limits.header_bytes,
        }
        self.sender.control(frames.settings(values))
        if more := self._window - frames.DEFAULT_WINDOW_BYTES:
            self.sender.control(frames.window_update(0, more))

    # Frames.

    def _parse(self, data: Buffer) -> None:
        if self._rest:
            data = b"".join((self._rest, data))
            self._rest = b""
        position, end = 0, len(data)
        if not self._greeted:
            position = self._greet(data)
        elif self._data_left or self._padding_left:
            position = self._on_data_bytes(data, 0, end)
        while end - position >= frames.HEAD_BYTES and not self.failed:
            high, low, kind, flags, stream_id = _UNPACK_HEAD(data, position)
            length = high << 8 | low
            stream_id &= frames.STREAM_ID_MASK
            start = position + frames.HEAD_BYTES
            stop = start + length
            if self._block is not None or not self._settled:
                self._check_order(kind, stream_id)
            if stop > end or length > _MAX_CONTROL_BYTES:
                self._check_length(kind, length)
            if kind == frames.DATA:
                if start == end and length and flags & frames.PADDED:
                    break
                start = self._on_data_head(stream_id, flags, length, data, start)
                position = self._on_data_bytes(data, start, end)
            elif kind not in self._on_frame:
                self._count_noise()
                self._data_stream, self._data_left = None, length
                position = self._on_data_bytes(data, start, end)
            elif stop > end:
                break
            elif kind == frames.HEADERS and flags == frames.END_HEADERS:
                body = _whole_body(data, stop, end, stream_id)
                if self._on_block(stream_id, False, bytes(data[start:stop]), body):
                    stop += frames.HEAD_BYTES + len(body or b"")
                position = stop
            else:
                self._on_frame[kind](stream_id, flags, bytes(data[start:stop]))
                position = stop
        if position < end and not self.failed:
            self._rest = bytes(data[position:])

    def _greet(self, data: Buffer) -> int:
        """Checks the preface, as far as it came; returns where frames begin."""
        preface = frames.PREFACE
        came = bytes(data[: len(preface)])
        if not preface.startswith(came):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "the connection preface is wrong")
        if len(came) < len(preface):
            self._rest = came
            return len(data)
        self._greeted = True
        return len(preface)

    def _check_order(self, kind: int, stream_id: int) -> None:
        if self._block is None:
            if kind != frames.SETTINGS:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")
        elif kind != frames.CONTINUATION or stream_id != self._block_stream:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")

    def _check_length(self, kind: int, length: int) -> None:
        """Refuses a frame before its payload is waited for."""
        if kind in (frames.HEADERS, frames.CONTINUATION):
            if length > self._limits.header_bytes:
                raise _calm(f"a header block of more than {self._limits.header_bytes} bytes")
        elif length > MAX_FRAME_BYTES or (kind in self._on_frame and length > _MAX_CONTROL_BYTES):
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")

    # Bodies.

    def _on_data_head(
        self, stream_id: int, flags: int, length: int, data: Buffer, start: int
    ) -> int:
        """Accounts for a DATA frame as soon as its head is there; returns where its data starts."""
        padding = 0
        if flags & frames.PADDED:
            padding = data[start] + 1 if length else 1
            start += 1
            if padding > length:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding exceeds its frame")
        self._window -= length
        if self._window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is exceeded")
        num_bytes = length - padding
        self._data_left = num_bytes
        self._padding_left = max(padding - 1, 0)
        stream = self.streams.get(stream_id)
        if stream is None or not stream.receiving:
            self._data_stream = None
            self._give_credit(length)
            if length < _MIN_USEFUL_BYTES or stream_id not in self._resets:
                self._on_closed(stream_id, stream)
            return start
        ends = bool(flags & frames.END_STREAM)
        self._data_stream, self._data_ends = stream, ends
        stream.held += num_bytes
        stream.receive_window -= length
        if padding:
            self._give_credit(padding)
        if not num_bytes and not ends:
            self._count_noise()
        if stream.receive_window < 0:
            self._fail(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif stream.body_left >= 0:
            stream.body_left -= num_bytes
            if stream.body_left < 0 or (ends and stream.body_left):
                self._fail(stream, ErrorCode.PROTOCOL_ERROR)
        if not ends:
            self._top_up(stream)
        if self._window <= 0:
            self._make_room()
        return start

    def _on_data_bytes(self, data: Buffer, start: int, end: int) -> int:
        """Hands on what came of a frame's payload; returns where it ends."""
        left = self._data_left
        stop = min(start + left, end)
        left -= stop - start
        self._data_left = left
        stream = self._data_stream
        if stream is not None and stream.receiving:
            if self._data_ends and not left:
                stream.receiving = False
                self._handler.on_data(stream, data[start:stop], True)
            elif stop > start:
                self._handler.on_data(stream, data[start:stop], False)
        if self._padding_left:
            skipped = min(self._padding_left, end - stop)
            self._padding_left -= skipped
            stop += skipped
        return stop

    def _top_up(self, stream: Stream) -> None:
        is_lone = len(self.streams) == 1 and stream.id == self._last_id
        window = LONE_BODY_WINDOW_BYTES if is_lone else LONG_BODY_WINDOW_BYTES
        enough = STREAM_WINDOW_BYTES // 2 if is_lone else LONG_BODY_WINDOW_BYTES // 2
        more = window - stream.receive_window
        if stream.receive_window < enough and stream.receiving and not stream.paused:
            self.sender.control(frames.window_update(stream.id, more))
            stream.receive_window += more

    def _give_credit(self, num_bytes: int) -> None:
        credit = self._credit + num_bytes
        if credit and (credit >= self._credit_step or self._window < self._credit_step):
            self.sender.control(frames.window_update(0, credit))
            self._window += credit
            credit = 0
        self._credit = credit

    def _make_room(self) -> None:
        """Ends the newest body when all that is held belongs to bodies which wait for more.

        No answer will ever free the window then.
        """
        self._give_credit(0)
        holders = [stream for stream in self.streams.values() if stream.held]
        while self._window <= 0 and all(s.receiving and not s.paused for s in holders):
            self._fail(holders.pop(), ErrorCode.ENHANCE_YOUR_CALM)

    # Requests.

    def _on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            payload = _strip(flags, payload)
        ends = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, ends, payload)
        else:
            self._block, self._block_bytes = [payload], len(payload)
            self._block_stream, self._block_ends = stream_id, ends

    def _on_continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "CONTINUATION continues nothing")
        block.append(payload)
        self._block_bytes += len(payload)
        if self._block_bytes > self._limits.header_bytes or len(block) > _MAX_CONTINUATIONS:
            raise _calm(f"a header block of {len(block)} frames, {self._block_bytes} bytes")
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(stream_id, self._block_ends, b"".join(block))

    def _on_block(
        self, stream_id: int, ends: bool, block: bytes, body: Buffer | None = None
    ) -> bool:
        """Opens a stream, or ends one by its trailers; returns whether it took the `body`, too."""
        if not stream_id & 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"a request on stream {stream_id}")
        if stream_id <= self._last_id:
            self._on_trailers(stream_id, ends, block)
            return False
        self._last_id = stream_id
        try:
            head = self._blocks.request(block)
        except (HeaderListTooLarge, MalformedHead) as error:
            self._refuse_head(stream_id, ends, error)
            return False
        if self.draining or len(self.streams) >= self._limits.streams:
            self._count_noise()
            self._reset_id(stream_id, ErrorCode.REFUSED_STREAM)
            return False
        stream = Stream(stream_id, self.sender.initial_window, STREAM_WINDOW_BYTES)
        self.streams[stream_id] = stream
        self.num_requests += 1
        length = head.content_length
        if ends:
            stream.receiving = False
            if length > 0:
                self.reset(stream, ErrorCode.PROTOCOL_ERROR)
            else:
                self._handler.on_request(stream, head, b"")
            return False
        if body is None or len(body) > self._window or length not in (-1, len(body)):
            stream.body_left = length
            self._handler.on_request(stream, head, None)
            return False
        stream.receiving = False
        stream.held = len(body)
        self._window -= stream.held
        self._handler.on_request(stream, head, body)
        return True

    def _refuse_head(self, stream_id: int, ends: bool, error: InvalidInput) -> None:
        self._count_noise()
        if isinstance(error, MalformedHead):
            self._reset_id(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        control = self.sender.control
        control(frames.header_frames(stream_id, _TOO_LARGE_BLOCK, True, MAX_FRAME_BYTES))
        if not ends:
            self._reset_id(stream_id, ErrorCode.NO_ERROR)

    def _on_trailers(self, stream_id: int, ends: bool, block: bytes) -> None:
        stream = self.streams.get(stream_id)
        malformed = not ends
        try:
            self._blocks.trailers(block)
        except (HeaderListTooLarge, MalformedHead):
            malformed = True
        if stream is None or not stream.receiving:
            if stream is None and stream_id not in self._resets:
                raise Http2Error(ErrorCode.STREAM_CLOSED, f"stream {stream_id} was closed")
            self._on_closed(stream_id, stream)
        elif malformed or stream.body_left > 0:
            self._fail(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.receiving = False
            self._handler.on_data(stream, b"", True)

    # The end of streams.

    def _on_end(self, stream: Stream) -> None:
        """The answer is complete; a body that still comes is not wanted any more."""
        self.num_answered += 1
        if stream.receiving:
            self._reset_id(stream.id, ErrorCode.NO_ERROR)
        self._close(stream)
        # A call knows its stream: with this the circle would keep request and answer in memory.
        stream.call = None

    def _close(self, stream: Stream) -> None:
        stream.closed = True
        stream.receiving = False
        self.streams.pop(stream.id, None)
        if stream.waiting:
            self.sender.forget(stream)
        if stream.held:
            held, stream.held = stream.held, 0
            self._give_credit(held)

    def _fail(self, stream: Stream, code: ErrorCode) -> None:
        if not stream.closed:
            self._count_noise()
            self._reset_id(stream.id, code)
            self._close(stream)
            self._handler.on_reset(stream, code)

    def _reset_id(self, stream_id: int, code: int) -> None:
        self.sender.control(frames.rst_stream(stream_id, code))
        self._resets[stream_id] = None
        if len(self._resets) > _MAX_REMEMBERED_RESETS:
            del self._resets[next(iter(self._resets))]

    def _on_closed(self, stream_id: int, stream: Stream | None) -> None:
        """A frame came for a stream whose request has ended."""
        if stream_id == 0 or stream_id > self._last_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} is not open")
        if stream is not None:
            self._fail(stream, ErrorCode.STREAM_CLOSED)
            return
        self._count_noise()
        if stream_id not in self._resets:
            self._reset_id(stream_id, ErrorCode.STREAM_CLOSED)

    def _on_rst_stream(self, stream_id: int, flags: int, payload: bytes) -> None:
        _check_size("RST_STREAM", payload, 4)
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id == 0 or stream_id > self._last_id:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} is not open")
            self._count_noise()
            return
        self._close(stream)
        self._handler.on_reset(stream, int.from_bytes(payload, "big"))
        if self._unanswered.too_many(self._now, self.num_answered):
            raise _calm("too many requests are reset")

    # Control frames.

    def _count_noise(self) -> None:
        excuses = 4 * self.num_answered + (self.sender.num_sent_bytes >> 12)
        if self._noise.too_many(self._now, excuses):
            raise _calm("too many frames that ask for nothing")

    def _on_settings(self, stream_id: int, flags: int, payload: bytes) -> None:
        self._settled = True
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        self._count_noise()
        if flags & frames.ACK:
            _check_size("SETTINGS with ACK", payload, 0)
            return
        if len(payload) % frames.SETTING.size:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        for name, value in frames.SETTING.iter_unpack(payload):
            self.sender.apply(name, value, self.streams.values())
        self.sender.control(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _on_ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        _check_size("PING", payload, 8)
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"PING on stream {stream_id}")
        self._count_noise()
        if not flags & frames.ACK:
            self.sender.control(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _SHUTDOWN_PING:
            self.goaway(ErrorCode.NO_ERROR)

    def _on_goaway(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"GOAWAY on stream {stream_id}")
        if len(payload) < 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        self._count_noise()
        self._handler.on_goaway(int.from_bytes(payload[4:8], "big"))

    def _on_window_update(self, stream_id: int, flags: int, payload: bytes) -> None:
        _check_size("WINDOW_UPDATE", payload, 4)
        self._count_noise()
        num_bytes = int.from_bytes(payload, "big") & frames.MAX_WINDOW_BYTES
        if stream_id == 0:
            if not num_bytes:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 bytes")
            self.sender.add_window(num_bytes)
            return
        if stream_id > self._last_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} is not open")
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if not num_bytes:
            self._fail(stream, ErrorCode.PROTOCOL_ERROR)
        elif not self.sender.add_stream_window(stream, num_bytes):
            self._fail(stream, ErrorCode.FLOW_CONTROL_ERROR)

    def _on_priority(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._count_noise()
        if len(payload) != 5:
            stream = self.streams.get(stream_id)
            if stream is None:
                self._reset_id(stream_id, ErrorCode.FRAME_SIZE_ERROR)
            else:
                self._fail(stream, ErrorCode.FRAME_SIZE_ERROR)

    def _on_push_promise(self, stream_id: int, flags: int, payload: bytes) -> None:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a client may not push")


def _calm(message: str) -> Http2Error:
    return Http2Error(ErrorCode.ENHANCE_YOUR_CALM, message)


def _check_size(name: str, payload: bytes, num_bytes: int) -> None:
    if len(payload) != num_bytes:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"{name} of {len(payload)} bytes")


def _whole_body(data: Buffer, position: int, end: int, stream_id: int) -> Buffer | None:
    """All of a body, if it came behind its head in one frame, as small ones do."""
    start = position + frames.HEAD_BYTES
    if start > end:
        return None
    high, low, kind, flags, of_stream = _UNPACK_HEAD(data, position)
    size = high << 8 | low
    if kind != frames.DATA or flags != frames.END_STREAM or of_stream != stream_id:
        return None
    return data[start : start + size] if start + size <= end and size <= MAX_FRAME_BYTES else None


def _strip(flags: int, payload: bytes) -> bytes:
    """A HEADERS payload without its padding and priority.

    Raises: Http2Error.
    """
    start, stop = 0, len(payload)
    if flags & frames.PADDED:
        start = 1
        stop -= payload[0] if payload else 1
    if flags & frames.HAS_PRIORITY:
        start += 5
    if start > stop:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding exceeds its frame")
    return payload[start:stop]
