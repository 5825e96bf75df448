"""One call, one run: for models that cannot batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salver.schedulers.queue import CallQueue
from salver.types import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.config import ModelConfig
    from salver.interfaces import Slot
    from salver.types import Call


class DirectScheduler:
    """Hands calls out singly, the most urgent first."""

    def __init__(self, config: ModelConfig) -> None:
        self._queue = CallQueue(config.queue)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, call: Call, now: int) -> None:
        self._queue.add(call)

    def next(self, slot: Slot, now: int) -> Batch | None:
        for lane in self._queue.lanes():
            if not slot.max_size or lane.first().size <= slot.max_size:
                call = self._queue.take(lane)
                return Batch([call], call.rows, "direct")
        return None

    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
        return self._queue.expire(now)

    def remove(self, call: Call) -> bool:
        return self._queue.remove(call)

    def finished(self, batch: Batch, cost_ns: int, now: int) -> None:
        pass
