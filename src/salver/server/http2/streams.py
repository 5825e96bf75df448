"""The streams of an HTTP/2 connection, and every way in which one ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from salver.server.http2.flood import FloodMeter
from salver.server.http2.frames import ErrorCode, Http2Error, calm, rst_stream
from salver.server.http2.sender import Sender
from salver.server.http2.windows import ReceiveWindows

if TYPE_CHECKING:
    from salver.server.http2.limits import Http2Limits
    from salver.server.http2.stream import Handler, Stream

_MAX_REMEMBERED_RESETS: Final = 1024


class Streams:
    """What is `open`, by id, with the sender and the windows that all streams share.

    `now` is the monotonic time in ns of what is being read.
    """

    def __init__(self, handler: Handler, limits: Http2Limits, now: int) -> None:
        self.now = now
        self.open: dict[int, Stream] = {}
        self.last_id = 0
        self.num_answered = 0
        self.sender = Sender(handler, limits.output_bytes, self._on_end)
        self.windows = ReceiveWindows(limits.held_bytes, self.sender.control)
        self._handler = handler
        self._resets: dict[int, None] = {}
        self._num_sent_bytes = 0
        self._sent_at = now
        self._noise = FloodMeter(limits.noise, now)
        self._unanswered = FloodMeter(limits.resets, now)

    def is_lone(self, stream: Stream) -> bool:
        """Nothing else was asked on the connection since it began."""
        return len(self.open) == 1 and stream.id == self.last_id

    def was_reset(self, stream_id: int) -> bool:
        """Frames that the peer had sent before it heard of that are no mistake."""
        return stream_id in self._resets

    def fail(self, stream: Stream, code: ErrorCode) -> None:
        """Ends a stream for what the peer did."""
        if not stream.closed:
            self.count_noise()
            self.reset_id(stream.id, code)
            self._close(stream)
            self._handler.on_reset(stream, code)

    def end_stalled(self, now: int, timeout: int) -> None:
        """Ends streams whose client has let nothing of their answers be sent for `timeout` ns.

        One that waits for the connection's window does so rightly while others use it.
        """
        sender = self.sender
        if sender.num_sent_bytes != self._num_sent_bytes:
            self._num_sent_bytes, self._sent_at = sender.num_sent_bytes, now
        for stream in list(self.open.values()):
            if not sender.starves(stream):
                stream.stalled_since = 0
                continue
            stream.stalled_since = since = stream.stalled_since or now
            if stream.send_window > 0:
                since = max(since, self._sent_at)
            if now - since > timeout:
                self.reset_id(stream.id, ErrorCode.CANCEL)
                self._close(stream)
                self._handler.on_reset(stream, ErrorCode.CANCEL)

    def reset_id(self, stream_id: int, code: int) -> None:
        """Tells the peer that a stream has ended, whether it was open or not."""
        self.sender.control(rst_stream(stream_id, code))
        self._resets[stream_id] = None
        if len(self._resets) > _MAX_REMEMBERED_RESETS:
            del self._resets[next(iter(self._resets))]

    def on_reset(self, stream_id: int, code: int) -> None:
        """The peer ends a stream. Raises: Http2Error."""
        stream = self.open.get(stream_id)
        if stream is None:
            self.check_used(stream_id)
            self.count_noise()
            return
        self._close(stream)
        self._handler.on_reset(stream, code)
        if self._unanswered.too_many(self.now, self.num_answered):
            raise calm("too many requests are reset")

    def on_closed(self, stream_id: int, stream: Stream | None) -> None:
        """A frame came for a stream whose request has ended. Raises: Http2Error."""
        self.check_used(stream_id)
        if stream is not None:
            self.fail(stream, ErrorCode.STREAM_CLOSED)
            return
        self.count_noise()
        if stream_id not in self._resets:
            self.reset_id(stream_id, ErrorCode.STREAM_CLOSED)

    def check_used(self, stream_id: int) -> None:
        """Raises: Http2Error, if there never was such a stream."""
        if stream_id == 0 or stream_id > self.last_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} is not open")

    def count_noise(self) -> None:
        """Counts a frame that asks for nothing. Raises: Http2Error, if there are too many."""
        excuses = 4 * self.num_answered + (self.sender.num_sent_bytes >> 12)
        if self._noise.too_many(self.now, excuses):
            raise calm("too many frames that ask for nothing")

    def make_room(self) -> None:
        """Ends the newest body when all that is held belongs to bodies which wait for more.

        No answer will ever free the connection's window then.
        """
        self.windows.give_back(0)
        holders = [stream for stream in self.open.values() if stream.held]
        while self.windows.left <= 0 and all(s.receiving and not s.paused for s in holders):
            self.fail(holders.pop(), ErrorCode.ENHANCE_YOUR_CALM)

    def abandon(self) -> None:
        """The transport is gone: every open stream is reported as reset."""
        for stream in list(self.open.values()):
            self._close(stream)
            self._handler.on_reset(stream, ErrorCode.CANCEL)

    def _on_end(self, stream: Stream) -> None:
        """The answer is complete; a body that still comes is not wanted any more."""
        self.num_answered += 1
        if stream.receiving:
            self.reset_id(stream.id, ErrorCode.NO_ERROR)
        self._close(stream)
        # A call knows its stream: with this the circle would keep request and answer in memory.
        stream.call = None

    def _close(self, stream: Stream) -> None:
        stream.closed = True
        stream.receiving = False
        self.open.pop(stream.id, None)
        if stream.waiting:
            self.sender.forget(stream)
        if stream.held:
            held, stream.held = stream.held, 0
            self.windows.give_back(held)
