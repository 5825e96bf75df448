"""When a front counts as hung: it has left the parent's pings unanswered for too long."""

from __future__ import annotations

from typing import Final

HEARTBEAT_S: Final = 1.0
SILENT_BEATS: Final = 10
"""A front whose loop runs answers within milliseconds; the rest is for a machine that stalls."""
SILENT_LOADING_BEATS: Final = 300
"""Code that loads a model may rightly hold the GIL for long."""


class Pulse:
    """Counts the parent's beats for which nothing came from a front.

    Beats and not seconds: a time in which the parent did not run either proves nothing.
    """

    def __init__(self) -> None:
        self._silent = 0
        self._limit = SILENT_BEATS

    @property
    def is_lost(self) -> bool:
        """With this beat it counts as hung."""
        return self._silent == self._limit + 1

    def heard(self) -> None:
        """Something came from the front."""
        self._silent = 0

    def beat(self, *, is_loading: bool) -> bool:
        """One more beat; whether the front is to be pinged now. What it does then decides how long
        it may be silent.
        """
        self._silent += 1
        if self._silent > 1:
            return False
        self._limit = SILENT_LOADING_BEATS if is_loading else SILENT_BEATS
        return True
