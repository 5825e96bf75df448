"""Flow control of what the peer sends (RFC 9113, section 5.2): how much more it may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from salver.server.http2.frames import DEFAULT_WINDOW_BYTES, window_update

if TYPE_CHECKING:
    from collections.abc import Callable

    from salver.server.http2.stream import Stream

STREAM_WINDOW_BYTES: Final = 1 << 20
"""What a stream may send at first."""
LOW_WINDOW_BYTES: Final = STREAM_WINDOW_BYTES // 2
"""A stream that may send as much is not topped up."""
LONE_BODY_WINDOW_BYTES: Final = 16 << 20
"""What it may send ahead while nothing else was asked on the connection since it began."""
LONG_BODY_WINDOW_BYTES: Final = 256 << 10
"""The same beside others: small, or short messages wait behind long bodies in the peer."""


class ReceiveWindows:
    """The window of a connection, and the windows of its streams.

    For the connection, `left` + bytes held by streams + credit not yet told = `held_bytes`. `write`
    takes a frame.
    """

    __slots__ = ("_credit", "_held_bytes", "_step", "_write", "left")

    def __init__(self, held_bytes: int, write: Callable[[bytes], None]) -> None:
        self.left = self._held_bytes = max(held_bytes, DEFAULT_WINDOW_BYTES)
        self._credit = 0
        self._step = self.left // 4
        self._write = write

    def announce(self) -> None:
        """Tells the peer that its window is larger than every connection's is at first."""
        if more := self.left - DEFAULT_WINDOW_BYTES:
            self._write(window_update(0, more))

    def widen(self, held_bytes: int) -> None:
        """Lets the peer send more; a window that has been told cannot be taken back."""
        if (more := held_bytes - self._held_bytes) > 0:
            self._held_bytes, self._step = held_bytes, held_bytes // 4
            self.left += more
            self._write(window_update(0, more))

    def give_back(self, num_bytes: int) -> None:
        """Bytes are not held any more; the peer hears of it when it is worth a frame."""
        credit = self._credit + num_bytes
        if credit and (credit >= self._step or self.left < self._step):
            self._write(window_update(0, credit))
            self.left += credit
            credit = 0
        self._credit = credit

    def top_up(self, stream: Stream, is_lone: bool) -> None:
        """Lets a stream send on, if it has more to send and may."""
        window = LONE_BODY_WINDOW_BYTES if is_lone else LONG_BODY_WINDOW_BYTES
        enough = LOW_WINDOW_BYTES if is_lone else LONG_BODY_WINDOW_BYTES // 2
        more = window - stream.receive_window
        if stream.receive_window < enough and stream.receiving and not stream.paused:
            self._write(window_update(stream.id, more))
            stream.receive_window += more
