"""Dynamic batching: whatever waits when an instance asks becomes one batch.

While all instances are busy a batch grows by itself, so an idle server adds no delay. A delay, if
configured, holds an incomplete batch back for a while; preferred sizes release it early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from salver.clock import NS_PER_MS
from salver.schedulers.queue import QueueScheduler
from salver.types import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.config import ModelConfig
    from salver.interfaces import Slot
    from salver.schedulers.queue import Lane
    from salver.types import Call

UNLIMITED = 1 << 30


class Release(msgspec.Struct, frozen=True):
    """A batch of at most so many rows, and so much size, may leave, for this reason."""

    rows: int
    size: int
    reason: str


class DynamicScheduler(QueueScheduler):
    """Gathers calls of one group into batches of at most `max_rows` rows, 0 for any number."""

    def __init__(self, config: ModelConfig, max_rows: int) -> None:
        super().__init__(config)
        self._max_rows = max_rows or UNLIMITED
        self._delay = int(config.batching.delay_ms * NS_PER_MS)
        self._preferred = sorted(config.batching.preferred_sizes, reverse=True)

    def next(self, slot: Slot, now: int) -> Batch | None:
        for lane in self.lanes():
            first = lane.first()
            if slot.max_size and first.size > slot.max_size:
                continue
            if first.group is None:
                return Batch([self.take(lane)], first.rows, "single")
            release = self._release(lane, now)
            if release is not None:
                return self._gather(lane, release, slot.max_size or UNLIMITED)
        return None

    def _release(self, lane: Lane, now: int) -> Release | None:
        """How much of a lane may leave now, and why; None while it is better to wait."""
        if lane.rows >= self._max_rows:
            return Release(self._max_rows, UNLIMITED, "full")
        if not self._delay:
            return Release(self._max_rows, UNLIMITED, "idle")
        if now >= lane.first().queued + self._delay:
            return Release(self._max_rows, UNLIMITED, "delay")
        for rows in self._preferred:
            if lane.rows >= rows:
                return Release(rows, UNLIMITED, "preferred")
        return None

    def _gather(self, lane: Lane, release: Release, slot_size: int) -> Batch:
        max_rows, max_size = release.rows, min(release.size, slot_size)
        if lane.rows <= max_rows and lane.size <= max_size:
            return Batch(self.take_all(lane), lane.rows, release.reason)
        call = self.take(lane)
        calls, rows, size = [call], call.rows, call.size
        while lane.calls:
            head = lane.first()
            rows += head.rows
            size += head.size
            if rows > max_rows or size > max_size:
                rows -= head.rows
                break
            calls.append(self.take(lane))
        return Batch(calls, rows, release.reason)

    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
        expired, again = super().expire(now)
        if self._delay:
            for lane in self.lanes():
                release = lane.first().queued + self._delay
                if release > now:
                    again = min(again, release) if again else release
        return expired, again
