"""Time as a parameter: everything that decides by time takes `now` in nanoseconds."""

from __future__ import annotations

import time
from typing import Protocol

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """Returns a monotonic time in nanoseconds; tests pass a clock that they advance."""

    def __call__(self) -> int: ...


system_clock: Clock = time.monotonic_ns
