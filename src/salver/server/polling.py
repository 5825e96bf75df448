"""Busy polling: for a moment after an answer, the loop looks for the next request without sleeping.

To wake a sleeping thread costs more than to answer a small request, most of all in a virtual
machine, where its core is given away meanwhile. Linux does the same below sockets of real networks
(SO_BUSY_POLL, socket(7)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from salver.clock import Clock

_FREQUENT_WINDOWS: Final = 3
"""Answers that follow each other within so many windows make it worth while."""


class BusyPolling:
    """Polls for `window_ns` after an answer that came soon after another; 0 never does.

    It stops as soon as `is_busy()`: the cores belong to the models then.
    """

    def __init__(
        self,
        window_ns: int,
        is_busy: Callable[[], bool],
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._window = window_ns
        self._is_busy = is_busy
        self._clock = clock
        self._loop = loop
        self._answered_at = -_FREQUENT_WINDOWS * window_ns
        self._is_polling = False

    def answered(self) -> None:
        """Notes that answers were sent."""
        now = self._clock()
        is_frequent = now - self._answered_at < _FREQUENT_WINDOWS * self._window
        self._answered_at = now
        if is_frequent and not self._is_polling:
            self._is_polling = True
            self._loop.call_soon(self._poll)

    def _poll(self) -> None:
        """Something is ready to be called, so the loop does not sleep before its next turn."""
        if self._clock() - self._answered_at < self._window and not self._is_busy():
            self._loop.call_soon(self._poll)
        else:
            self._is_polling = False
