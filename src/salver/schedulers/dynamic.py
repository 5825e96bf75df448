"""Dynamic batching: whatever waits when an instance asks becomes one batch.

While all instances are busy a batch grows by itself, so an idle server adds no delay. A delay, if
configured, holds an incomplete batch back for a while; preferred sizes release it early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from salver.clock import NS_PER_MS
from salver.schedulers.queue import CallQueue
from salver.types import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.config import ModelConfig
    from salver.interfaces import Slot
    from salver.schedulers.queue import Lane
    from salver.types import Call

UNLIMITED = 1 << 30


class DynamicScheduler:
    """Gathers calls of one group into batches of at most `max_rows` rows, 0 for any number."""

    def __init__(self, config: ModelConfig, max_rows: int) -> None:
        self._queue = CallQueue(config.queue)
        self._max_rows = max_rows or UNLIMITED
        self._delay = int(config.batching.delay_ms * NS_PER_MS)
        self._preferred = sorted(config.batching.preferred_sizes, reverse=True)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, call: Call, now: int) -> None:
        self._queue.add(call)

    def next(self, slot: Slot, now: int) -> Batch | None:
        for lane in self._queue.lanes():
            first = lane.first()
            if slot.max_size and first.size > slot.max_size:
                continue
            if first.group is None:
                return Batch([self._queue.take(lane)], first.rows, "single")
            limit, reason = self._release(lane, now)
            if limit:
                return self._gather(lane, limit, slot.max_size or UNLIMITED, reason)
        return None

    def _release(self, lane: Lane, now: int) -> tuple[int, str]:
        """How many rows may leave now, and why; 0 while it is better to wait."""
        if lane.rows >= self._max_rows:
            return self._max_rows, "full"
        if not self._delay:
            return self._max_rows, "idle"
        if now >= lane.first().queued + self._delay:
            return self._max_rows, "delay"
        for size in self._preferred:
            if lane.rows >= size:
                return size, "preferred"
        return 0, ""

    def _gather(self, lane: Lane, max_rows: int, max_size: int, reason: str) -> Batch:
        queue = self._queue
        call = queue.take(lane)
        calls, rows, size = [call], call.rows, call.size
        while lane.calls:
            head = lane.first()
            rows += head.rows
            size += head.size
            if rows > max_rows or size > max_size:
                rows -= head.rows
                break
            calls.append(queue.take(lane))
        return Batch(calls, rows, reason)

    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
        expired, again = self._queue.expire(now)
        if self._delay:
            for lane in self._queue.lanes():
                release = lane.first().queued + self._delay
                if release > now:
                    again = min(again, release) if again else release
        return expired, again

    def remove(self, call: Call) -> bool:
        return self._queue.remove(call)

    def finished(self, batch: Batch, cost_ns: int, now: int) -> None:
        pass
