"""What one HTTP/2 connection may cost."""

from __future__ import annotations

import msgspec


class Http2Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration allows, and what the protocol itself bounds."""

    streams: int
    """Open at once; more are refused."""
    header_bytes: int
    """Of one header list."""
    headers: int
    """Fields of one header list."""
    held_bytes: int
    """Body bytes that were received and not consumed; the connection's window."""
    output_bytes: int = 256 << 10
    """Of answers made ready for writing at once."""
    noise: int = 10_000
    """Frames in 10 s that ask for nothing, beside those that real work brings with it."""
    resets: int = 1_000
    """Unanswered requests reset by the peer in 10 s, beside as many as were answered."""

    @property
    def block_bytes(self) -> int:
        """Of a header block on the wire. A list that is too large is decoded all the same, or the
        connection could not go on (RFC 9113, section 10.5.1).
        """
        return 4 * self.header_bytes
