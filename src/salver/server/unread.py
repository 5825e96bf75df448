"""Whether a client takes what is written to it."""

from __future__ import annotations

import fcntl
import sys
import termios
from typing import TYPE_CHECKING

from salver.clock import NS_PER_S

if TYPE_CHECKING:
    import asyncio


class Unread:
    """What waits on its way to one client: `num_bytes`, which have not changed `since`."""

    __slots__ = ("num_bytes", "since")

    def __init__(self) -> None:
        self.num_bytes = 0
        self.since = 0

    def look(self, transport: asyncio.Transport, now: int) -> None:
        """Notes how much waits at monotonic `now` in ns."""
        num_bytes = unread_bytes(transport)
        if num_bytes != self.num_bytes:
            self.num_bytes, self.since = num_bytes, now

    def has_stalled(self, now: int, timeout_s: float) -> bool:
        """Whether something waits, and for so long nothing of it has left."""
        return self.num_bytes > 0 and now - self.since > timeout_s * NS_PER_S


def unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes that wait in a transport and behind it in the kernel (SIOCOUTQ of tcp(7) and unix(7)).

    The kernel takes more only when much of what it holds has left, so it alone knows whether a slow
    client reads on; and under TLS a transport does not count what it has given to the one below.
    0 if a plain transport holds nothing, whatever the kernel has.
    """
    waiting = transport.get_write_buffer_size()
    if not waiting and transport.get_extra_info("ssl_object") is None:
        return 0
    connection = transport.get_extra_info("socket")
    # Between the end of a connection and the turn in which we hear of it there is no socket.
    if connection is None or connection.fileno() < 0:
        return waiting
    queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    return waiting + int.from_bytes(queued, sys.byteorder)
