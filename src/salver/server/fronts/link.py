"""The parent's end of the line to one process: what it was sent, what it told, whether it lives."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from salver.server.fronts.orders import Applied, Change, Ping, Prepare, Prepared, packed
from salver.server.fronts.pulse import Pulse

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from salver.server.fronts.orders import AnyOrder
    from salver.types import ModelRef


class Link:
    """A running front, or the host, as the parent hears of it. `applied` is 0 until it serves the
    document. Descriptors take a socket of their own, `passage`.
    """

    def __init__(self, index: int, writer: asyncio.StreamWriter, passage: socket.socket) -> None:
        self.index = index
        self.applied = 0
        self.missing: tuple[ModelRef, ...] = ()
        self.prepared: dict[int, Prepared] = {}
        self.is_open = True
        self._pulse = Pulse()
        self._preparing: set[int] = set()
        self._loads_until = 1
        self._writer = writer
        self._passage = passage

    @property
    def is_loading(self) -> bool:
        """It may hold the GIL for long."""
        return bool(self._preparing) or self.applied < self._loads_until

    def send(self, order: AnyOrder) -> None:
        """Sends without waiting; to a process that is gone it does nothing."""
        if isinstance(order, Prepare):
            self._preparing.add(order.wanted.generation)
        elif isinstance(order, Change) and any(wanted.generation for wanted in order.wanted):
            self._loads_until = order.number
        if self.is_open:
            self._writer.write(packed(order))

    def pass_on(self, descriptors: Sequence[int]) -> None:
        """Gives it descriptors, which stay open here."""
        # It is gone or hangs, and is replaced by one that gets others.
        with suppress(OSError):
            socket.send_fds(self._passage, [b" "], descriptors, socket.MSG_DONTWAIT)

    def beat(self) -> bool:
        """Asks for a sign of life if there was one since the last beat; whether it turns out to be
        hung.
        """
        if self._pulse.beat(is_loading=self.is_loading):
            self.send(Ping())
        return self._pulse.is_lost

    def heard(self, order: AnyOrder) -> None:
        """Notes what came from it."""
        self._pulse.heard()
        if isinstance(order, Prepared):
            self._preparing.discard(order.generation)
            self.prepared[order.generation] = order
        elif isinstance(order, Applied):
            self.applied, self.missing = order.number, order.missing

    def close(self) -> None:
        self.is_open = False
        self._writer.close()
        self._passage.close()
