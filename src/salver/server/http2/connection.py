"""HTTP/2 for the server role (RFC 9113), without sockets: bytes in, requests to a handler."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from salver.clock import NS_PER_MS
from salver.server.http2 import frames, hpack
from salver.server.http2.blocks import BlockReader, PartialBlock, strip
from salver.server.http2.control import SHUTDOWN_PING, ControlFrames
from salver.server.http2.frames import ErrorCode, Http2Error, Setting, calm
from salver.server.http2.head import MalformedHead
from salver.server.http2.hpack import HeaderListTooLarge
from salver.server.http2.stream import Stream
from salver.server.http2.streams import Streams
from salver.server.http2.windows import LOW_WINDOW_BYTES, STREAM_WINDOW_BYTES

if TYPE_CHECKING:
    from salver.server.http2.limits import Http2Limits
    from salver.server.http2.stream import Handler
    from salver.types import Buffer

MAX_FRAME_BYTES: Final = 1 << 20
ROUND_TRIP_NS: Final = 500 * NS_PER_MS
"""For requests that come after a shutdown from a client that does not answer our PING."""

_UNPACK_HEAD: Final = frames.HEAD.unpack_from
_MAX_CONTROL_BYTES: Final = 64 * frames.SETTING.size
_MIN_USEFUL_BYTES: Final = 1024
_MAX_UNREAD_FRAMES: Final = 1000


class Http2Connection:
    """Reads one client's frames and keeps its streams. Answers go through `sender`.

    After `receive` and after answering, the transport writes what `sender.take_output()` gives, and
    closes once `finished` is true. It calls `sweep` now and then.
    """

    def __init__(self, handler: Handler, limits: Http2Limits, now: int) -> None:
        self.failed = False
        """The peer broke the protocol: nothing more is read."""
        self.draining = False
        """New requests are refused."""
        self._streams = Streams(handler, limits, now)
        self.streams = self._streams.open
        self.sender = self._streams.sender
        self._windows = self._streams.windows
        self._shutdown_at = 0
        self._handler = handler
        self._limits = limits
        self._blocks = BlockReader(limits.header_bytes, limits.headers)
        self._block: PartialBlock | None = None
        # Received bytes.
        self._rest = b""
        self._greeted = False
        self._settled = False
        self._data_stream: Stream | None = None
        self._data_left = 0
        self._data_ends = False
        self._padding_left = 0
        control = ControlFrames(self._streams, partial(self.goaway, ErrorCode.NO_ERROR))
        self._on_frame = {
            frames.HEADERS: self._on_headers,
            frames.CONTINUATION: self._on_continuation,
            **control.handlers(),
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
        self._streams.now = now
        try:
            self._parse(data)
            if self.sender.num_unread > _MAX_UNREAD_FRAMES:
                raise calm("frames are sent and none is read")
        except Http2Error as error:
            self.goaway(error.code, error.message)

    def consumed(self, stream: Stream, num_bytes: int) -> None:
        """Body bytes were used and freed before the answer ends, as streams of messages do."""
        num_bytes = min(num_bytes, stream.held)
        stream.held -= num_bytes
        self._windows.give_back(num_bytes)

    def pause(self, stream: Stream) -> None:
        """Lets the stream's window run out."""
        stream.paused = True

    def resume(self, stream: Stream) -> None:
        """Takes data of a paused stream again."""
        stream.paused = False
        self._windows.top_up(stream, self._streams.is_lone(stream))

    def shutdown(self, now: int) -> None:
        """Ends gracefully: requests on their way are still taken for one round trip."""
        if not (self._shutdown_at or self.draining):
            self._shutdown_at = now
            control = self.sender.control
            control(frames.goaway(frames.MAX_WINDOW_BYTES, ErrorCode.NO_ERROR))
            control(SHUTDOWN_PING)

    def sweep(self, now: int, timeout: int) -> None:
        """Goes on with a shutdown that the peer does not answer, and ends streams for which it has
        given no window for `timeout` ns.
        """
        self._streams.end_stalled(now, timeout)
        if self._shutdown_at and now - self._shutdown_at >= ROUND_TRIP_NS:
            self.goaway(ErrorCode.NO_ERROR)

    def widen(self, held_bytes: int) -> None:
        """Lets bodies hold as much, if that is more than before."""
        self._windows.widen(held_bytes)

    def goaway(self, code: ErrorCode, message: str = "") -> None:
        """Takes no further requests; unless the code is NO_ERROR, reads nothing more at all."""
        if self.failed or (self.draining and code == ErrorCode.NO_ERROR):
            return
        self.sender.control(frames.goaway(self._streams.last_id, code, message))
        self.draining = True
        self.failed = code != ErrorCode.NO_ERROR

    def connection_lost(self) -> None:
        """The transport is gone: every open stream is reported as reset."""
        self.failed = True
        self._streams.abandon()

    def _announce(self) -> None:
        values = {
            Setting.MAX_CONCURRENT_STREAMS: self._limits.streams,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            Setting.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: self._limits.header_bytes,
        }
        self.sender.control(frames.settings(values))
        self._windows.announce()

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
                self._streams.count_noise()
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
            self._settled = True
        elif kind != frames.CONTINUATION or stream_id != self._block.stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")

    def _check_length(self, kind: int, length: int) -> None:
        """Refuses a frame before its payload is waited for."""
        if kind in (frames.HEADERS, frames.CONTINUATION):
            if length > self._limits.block_bytes:
                raise calm(f"a header block of more than {self._limits.block_bytes} bytes")
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
        windows, streams = self._windows, self._streams
        windows.left -= length
        if windows.left < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is exceeded")
        num_bytes = length - padding
        self._data_left = num_bytes
        self._padding_left = max(padding - 1, 0)
        stream = self.streams.get(stream_id)
        if stream is None or not stream.receiving:
            self._data_stream = None
            windows.give_back(length)
            if length < _MIN_USEFUL_BYTES or not streams.was_reset(stream_id):
                streams.on_closed(stream_id, stream)
            return start
        ends = bool(flags & frames.END_STREAM)
        self._data_stream, self._data_ends = stream, ends
        stream.held += num_bytes
        stream.receive_window -= length
        if padding:
            windows.give_back(padding)
        if not num_bytes and not ends:
            streams.count_noise()
        if stream.receive_window < 0:
            streams.fail(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif stream.body_left >= 0:
            stream.body_left -= num_bytes
            if stream.body_left < 0 or (ends and stream.body_left):
                streams.fail(stream, ErrorCode.PROTOCOL_ERROR)
        if not ends and stream.receive_window < LOW_WINDOW_BYTES:
            windows.top_up(stream, streams.is_lone(stream))
        if windows.left <= 0:
            streams.make_room()
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

    # Requests.

    def _on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            payload = strip(flags, payload)
        ends = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, ends, payload)
        else:
            self._block = PartialBlock(stream_id, ends, payload)

    def _on_continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "CONTINUATION continues nothing")
        block.add(payload, self._limits.block_bytes)
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(stream_id, block.ends, block.whole())

    def _on_block(
        self, stream_id: int, ends: bool, block: bytes, body: Buffer | None = None
    ) -> bool:
        """Opens a stream, or ends one by its trailers; returns whether it took the `body`, too."""
        if not stream_id & 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"a request on stream {stream_id}")
        streams = self._streams
        if stream_id <= streams.last_id:
            self._on_trailers(stream_id, ends, block)
            return False
        streams.last_id = stream_id
        try:
            head = self._blocks.request(block)
        except (HeaderListTooLarge, MalformedHead) as error:
            self._refuse_head(stream_id, ends, error)
            return False
        if self.draining or len(self.streams) >= self._limits.streams:
            streams.count_noise()
            streams.reset_id(stream_id, ErrorCode.REFUSED_STREAM)
            return False
        length = head.content_length
        if ends and length > 0:
            streams.count_noise()
            streams.reset_id(stream_id, ErrorCode.PROTOCOL_ERROR)
            return False
        stream = Stream(stream_id, self.sender.initial_window, STREAM_WINDOW_BYTES)
        self.streams[stream_id] = stream
        if ends:
            stream.receiving = False
            self._handler.on_request(stream, head, b"")
            return False
        if body is None or len(body) > self._windows.left or length not in (-1, len(body)):
            stream.body_left = length
            self._handler.on_request(stream, head, None)
            return False
        stream.receiving = False
        stream.held = len(body)
        self._windows.left -= stream.held
        self._handler.on_request(stream, head, body)
        return True

    def _refuse_head(
        self, stream_id: int, ends: bool, error: HeaderListTooLarge | MalformedHead
    ) -> None:
        streams = self._streams
        streams.count_noise()
        if isinstance(error, MalformedHead):
            streams.reset_id(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        block = hpack.SHRINK_TABLE_TO_ZERO + self._handler.refusal(error)
        self.sender.control(frames.header_frames(stream_id, block, True, MAX_FRAME_BYTES))
        if not ends:
            streams.reset_id(stream_id, ErrorCode.NO_ERROR)

    def _on_trailers(self, stream_id: int, ends: bool, block: bytes) -> None:
        streams = self._streams
        stream = streams.open.get(stream_id)
        malformed = not ends
        try:
            self._blocks.trailers(block)
        except (HeaderListTooLarge, MalformedHead):
            malformed = True
        if stream is None or not stream.receiving:
            if stream is None and not streams.was_reset(stream_id):
                raise Http2Error(ErrorCode.STREAM_CLOSED, f"stream {stream_id} was closed")
            streams.on_closed(stream_id, stream)
        elif malformed or stream.body_left > 0:
            streams.fail(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.receiving = False
            self._handler.on_data(stream, b"", True)


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
