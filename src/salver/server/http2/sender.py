"""The sending side of an HTTP/2 connection: flow control, turns of the streams, bounded output."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from salver.server.http2.frames import (
    DATA,
    DEFAULT_WINDOW_BYTES,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEAD_BYTES,
    HEADERS,
    MAX_MAX_FRAME_BYTES,
    MAX_WINDOW_BYTES,
    MIN_MAX_FRAME_BYTES,
    ErrorCode,
    Http2Error,
    Setting,
    header_frames,
)
from salver.server.http2.hpack import DEFAULT_TABLE_BYTES, SHRINK_TABLE_TO_ZERO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from salver.server.http2.stream import Handler, Stream
    from salver.types import Buffer

TURN_BYTES: Final = 16_384
"""What a stream may write while others wait."""
_PACK: Final = HEAD.pack
# Kind and flags as the lower half of a frame's first five bytes; both are 0 for data.
_HEADERS: Final = HEADERS << 8 | END_HEADERS
_TRAILERS: Final = _HEADERS | END_STREAM


class Sender:
    """Turns answers into frames. Answers to streams that are gone are dropped.

    Header blocks come from `hpack.encode`, which needs no table. Data parts are bytes or
    memoryviews of bytes, lent until written. `output_bytes` bounds what is ready at once; the rest
    stays queued per stream, so a slow reader holds no more than its streams' answers.
    """

    def __init__(
        self, handler: Handler, output_bytes: int, on_end: Callable[[Stream], None]
    ) -> None:
        self.window = DEFAULT_WINDOW_BYTES
        self.initial_window = DEFAULT_WINDOW_BYTES
        self.max_frame_bytes = MIN_MAX_FRAME_BYTES
        self.paused = False
        self.num_sent_bytes = 0
        """Bytes of data that went through a queue."""
        self.num_unread = 0
        """Frames written although the peer does not read."""
        self.shrinks_table = False
        """The peer made its table smaller and waits to hear that we use none."""
        self._handler = handler
        self._on_end = on_end
        self._output_bytes = output_bytes
        self._output: list[Buffer] = []
        self._ready_bytes = 0
        self._ready: OrderedDict[int, Stream] = OrderedDict()
        self._blocked: dict[int, Stream] = {}
        """Streams that wait for the connection's window."""

    def send_unary(
        self, stream: Stream, headers: bytes, parts: Sequence[Buffer], trailers: bytes
    ) -> None:
        """Sends a whole answer: header block, data, trailer block."""
        size = sum(map(len, parts))
        if (
            size > TURN_BYTES
            or size > self.window
            or size > stream.send_window
            or self.paused
            or self._ready_bytes > self._output_bytes
            or stream.closed
            or stream.waiting
        ):
            self.send_headers(stream, headers)
            self.send_data(stream, parts)
            self.send_trailers(stream, trailers)
            return
        if self.shrinks_table:
            headers = SHRINK_TABLE_TO_ZERO + headers
        self.window -= size
        self._ready_bytes += size
        stream_id = stream.id.to_bytes(4, "big")
        self._output.append(
            b"".join(
                (
                    (len(headers) << 16 | _HEADERS).to_bytes(5, "big"),
                    stream_id,
                    headers,
                    (size << 16).to_bytes(5, "big"),
                    stream_id,
                    *parts,
                    (len(trailers) << 16 | _TRAILERS).to_bytes(5, "big"),
                    stream_id,
                    trailers,
                )
            )
        )
        self._on_end(stream)

    def send_headers(self, stream: Stream, block: bytes, end_stream: bool = False) -> None:
        """Sends a header block; the answer's first, or an informational one before it."""
        if stream.closed or stream.ending:
            return
        if self.shrinks_table:
            block = SHRINK_TABLE_TO_ZERO + block
        frames = header_frames(stream.id, block, end_stream, self.max_frame_bytes)
        if self.paused:
            stream.lead += frames
            if end_stream:
                stream.ending = True
            self._enqueue(stream)
            return
        self._emit(frames)
        if end_stream:
            self._on_end(stream)

    def send_data(self, stream: Stream, parts: Iterable[Buffer], end_stream: bool = False) -> None:
        """Queues data; `on_writable` tells when all of it has been taken for writing."""
        if stream.closed or stream.ending:
            return
        if stream.queue is None:
            stream.queue = deque()
        for part in parts:
            if part:
                stream.queue.append(part)
                stream.queued += len(part)
        stream.ending = end_stream
        self._enqueue(stream)

    def send_trailers(self, stream: Stream, block: bytes) -> None:
        """Ends the answer with a trailer block, behind its data."""
        if stream.closed or stream.ending:
            return
        stream.tail = header_frames(stream.id, block, True, self.max_frame_bytes)
        stream.ending = True
        self._enqueue(stream)

    def control(self, frame: bytes) -> None:
        """Writes a frame that is no answer."""
        self._emit(frame)

    @property
    def has_output(self) -> bool:
        """Something may be written."""
        return bool(self._output or self._ready)

    def take_output(self) -> list[Buffer]:
        """What to write now, in one go. Call again until it is empty or writing is paused."""
        if self._ready and not self.paused:
            self._pump()
        output = self._output
        if output:
            self._output = []
            self._ready_bytes = 0
        return output

    def pause_output(self) -> None:
        """The transport has enough: answers stay in their queues."""
        self.paused = True

    def resume_output(self) -> None:
        """The transport has drained; `take_output` has more."""
        self.paused = False
        self.num_unread = 0

    def forget(self, stream: Stream) -> None:
        """Drops what a stream that is over had queued."""
        if stream.waiting:
            stream.waiting = False
            self._ready.pop(stream.id, None)
            self._blocked.pop(stream.id, None)
            stream.queue = None
            stream.lead = stream.tail = b""
            stream.queued = 0

    def starves(self, stream: Stream) -> bool:
        """The stream has something to send, but no window, its own or the connection's."""
        return stream.waiting and stream.id not in self._ready

    def add_window(self, num_bytes: int) -> None:
        """The peer takes `num_bytes` more on the connection. Raises: Http2Error."""
        self.window += num_bytes
        if self.window > MAX_WINDOW_BYTES:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window overflowed")
        if self._blocked and self.window > 0:
            self._ready.update(self._blocked)
            self._blocked.clear()

    def add_stream_window(self, stream: Stream, num_bytes: int) -> bool:
        """The peer takes `num_bytes` more (or fewer) on a stream; False if that overflows."""
        stream.send_window += num_bytes
        if stream.waiting and stream.send_window > 0 and stream.id not in self._blocked:
            self._ready[stream.id] = stream
        return stream.send_window <= MAX_WINDOW_BYTES

    def apply(self, name: int, value: int, streams: Iterable[Stream]) -> None:
        """Heeds one of the peer's settings; those about pushes concern nothing that we do.

        Raises: Http2Error.
        """
        if name == Setting.INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW_BYTES:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, f"a window of {value} bytes")
            change, self.initial_window = value - self.initial_window, value
            if not all(self.add_stream_window(stream, change) for stream in streams):
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window overflowed")
        elif name == Setting.MAX_FRAME_SIZE:
            if not MIN_MAX_FRAME_BYTES <= value <= MAX_MAX_FRAME_BYTES:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"frames of {value} bytes")
            self.max_frame_bytes = value
        elif name == Setting.HEADER_TABLE_SIZE:
            self.shrinks_table = self.shrinks_table or value < DEFAULT_TABLE_BYTES
        elif name == Setting.ENABLE_PUSH and value > 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")

    def _emit(self, frames: bytes) -> None:
        self._output.append(frames)
        self._ready_bytes += len(frames)
        if self.paused:
            self.num_unread += 1

    def _enqueue(self, stream: Stream) -> None:
        if not stream.waiting:
            stream.waiting = True
            self._ready[stream.id] = stream

    def _pump(self) -> None:
        ready = self._ready
        while ready and self._ready_bytes < self._output_bytes:
            _, stream = ready.popitem(last=False)
            self._take_turn(stream, TURN_BYTES if ready else self._output_bytes)

    def _take_turn(self, stream: Stream, turn_bytes: int) -> None:
        if stream.lead:
            self._emit(stream.lead)
            stream.lead = b""
        while stream.queue:
            room = min(turn_bytes, stream.send_window, self.window, self.max_frame_bytes)
            if room <= 0:
                self._wait(stream, turn_bytes)
                return
            turn_bytes -= self._data_frame(stream, stream.queue, room)
        if not stream.ending:
            stream.waiting = False
            self._handler.on_writable(stream)
            return
        if stream.tail:
            self._emit(stream.tail)
        elif stream.queue is not None:
            self._emit(_PACK(0, 0, DATA, END_STREAM, stream.id))
        self._on_end(stream)

    def _wait(self, stream: Stream, turn_bytes: int) -> None:
        """A stream without window of its own waits outside until `add_stream_window`."""
        if turn_bytes <= 0:
            self._ready[stream.id] = stream
        elif stream.send_window > 0:
            self._blocked[stream.id] = stream

    def _data_frame(self, stream: Stream, queue: deque[Buffer], room: int) -> int:
        """Writes one frame of at most `room` bytes from the queue; returns its bytes."""
        size = 0
        pieces: list[Buffer] = []
        while queue and size < room:
            part = queue.popleft()
            if len(part) > room - size:
                view = memoryview(part)
                queue.appendleft(view[room - size :])
                part = view[: room - size]
            pieces.append(part)
            size += len(part)
        flags = 0
        if stream.ending and not queue and not stream.tail:
            flags, stream.queue = END_STREAM, None
        self._output.append(_PACK(size >> 8, size & 0xFF, DATA, flags, stream.id))
        self._output += pieces
        self._ready_bytes += size + HEAD_BYTES
        self.num_sent_bytes += size
        self.window -= size
        stream.send_window -= size
        stream.queued -= size
        stream.stalled_since = 0
        return size
