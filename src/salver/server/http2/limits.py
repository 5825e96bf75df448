"""What one HTTP/2 connection may cost."""

from __future__ import annotations

import msgspec


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
