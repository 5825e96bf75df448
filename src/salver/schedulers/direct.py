"""One call, one run: for models that cannot batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salver.schedulers.queue import QueueScheduler
from salver.types import Batch

if TYPE_CHECKING:
    from salver.interfaces import Slot


class DirectScheduler(QueueScheduler):
    """Hands calls out singly, the most urgent first."""

    def next(self, slot: Slot, now: int) -> Batch | None:
        for lane in self.lanes():
            if not slot.max_size or lane.first().size <= slot.max_size:
                call = self.take(lane)
                return Batch([call], call.rows, "direct")
        return None
