"""When a worker counts as hung: it neither answers nor computes."""

from __future__ import annotations

from typing import Final

from salver.clock import NS_PER_MS

STILL_BEATS: Final = 10
"""A worker that can answers within milliseconds; the rest is for a machine that stalls."""
IDLE_NS: Final = 20 * NS_PER_MS
"""Processor time that is no sign of life: two of the kernel's ticks."""


class Stillness:
    """Counts the server's beats since it asked a worker for a sign of life.

    Silence alone proves nothing, for a model may rightly hold the GIL for long; but then it uses a
    core. Beats and not seconds: a time in which the server did not run either proves nothing.
    """

    def __init__(self, cpu_ns: int) -> None:
        self._cpu_ns = cpu_ns
        self._beats = 0

    def beat(self, cpu_ns: int) -> bool:
        """One more beat without an answer, when the worker has used so much processor time in all;
        whether it counts as hung.
        """
        self._beats += 1
        if cpu_ns - self._cpu_ns > IDLE_NS:
            self._cpu_ns, self._beats = cpu_ns, 0
        return self._beats >= STILL_BEATS
