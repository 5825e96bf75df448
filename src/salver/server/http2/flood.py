"""Tells a flood from traffic: events per time, excused by useful work."""

from __future__ import annotations

from typing import Final

from salver.clock import NS_PER_S

WINDOW_NS: Final = 10 * NS_PER_S


class FloodMeter:
    """Counts events in a window of 10 s, which starts anew when it has passed."""

    __slots__ = ("_count", "_excused", "_limit", "_since")

    def __init__(self, limit: int, now: int) -> None:
        self._limit = limit
        self._count = 0
        self._since = now
        self._excused = 0

    def too_many(self, now: int, excuses: int) -> bool:
        """Counts one event; `excuses`, a growing count of useful work, allows as many more."""
        self._count += 1
        if self._count - (excuses - self._excused) <= self._limit:
            return False
        if now - self._since < WINDOW_NS:
            return True
        self._count, self._since, self._excused = 1, now, excuses
        return False
