"""The bounded queue under every scheduler: priorities with ageing, groups, deadlines.

Calls of one group may share a batch; a call without a group runs alone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from salver.clock import NS_PER_MS, NS_PER_S
from salver.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.config import ModelConfig, Queue
    from salver.types import Batch, Call


class Lane:
    """Waiting calls of one priority and group, in order of arrival."""

    __slots__ = ("calls", "handicap", "rows")

    def __init__(self, handicap: int) -> None:
        self.calls: OrderedDict[Call, None] = OrderedDict()
        self.handicap = handicap
        self.rows = 0

    def first(self) -> Call:
        return next(iter(self.calls))


class CallQueue:
    """Calls that wait for an instance. Adding, removing and taking cost the same at any length."""

    def __init__(self, config: Queue) -> None:
        self._max_calls = config.max_calls
        self._timeout = int(config.timeout_ms * NS_PER_MS)
        self._last_priority = config.priority_levels - 1
        self._ageing = int(config.ageing_ms * NS_PER_MS)
        self._lanes: dict[tuple[int, Any], Lane] = {}
        self._num_calls = 0
        self._next_expiry = 0

    def __len__(self) -> int:
        return self._num_calls

    def add(self, call: Call) -> None:
        """Raises: Overloaded with the time after which trying again makes sense."""
        if self._num_calls >= self._max_calls:
            raise Overloaded(
                f"{self._max_calls} calls already wait for this model; try again later",
                retry_after_ms=1000,
            )
        key = self._key(call)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key[0] * self._ageing)
        lane.calls[call] = None
        lane.rows += call.rows
        self._num_calls += 1
        expiry = self._expiry(call)
        if expiry and (not self._next_expiry or expiry < self._next_expiry):
            self._next_expiry = expiry

    def _key(self, call: Call) -> tuple[int, Any]:
        """Priority and group; a priority that there is not counts as the nearest that there is."""
        priority = call.priority
        if priority and not 0 < priority <= self._last_priority:
            priority = self._last_priority if priority > 0 else 0
        return priority, call.group

    def _expiry(self, call: Call) -> int:
        if not self._timeout:
            return call.deadline
        timeout = call.queued + self._timeout
        return min(timeout, call.deadline) if call.deadline else timeout

    def lanes(self) -> list[Lane]:
        """All lanes, the most urgent first: by age, each lower priority counted as less waiting."""
        lanes = list(self._lanes.values())
        if len(lanes) > 1:
            lanes.sort(key=lambda lane: lane.first().queued + lane.handicap)
        return lanes

    def take(self, lane: Lane) -> Call:
        """Removes and returns the first call of `lane`."""
        call, _ = lane.calls.popitem(last=False)
        self._forget(call, lane)
        return call

    def remove(self, call: Call) -> bool:
        """Takes a call out wherever it stands. False: it does not wait here."""
        lane = self._lanes.get(self._key(call))
        if lane is None or call not in lane.calls:
            return False
        del lane.calls[call]
        self._forget(call, lane)
        return True

    def _forget(self, call: Call, lane: Lane) -> None:
        lane.rows -= call.rows
        self._num_calls -= 1
        if not lane.calls:
            del self._lanes[self._key(call)]

    def expire(self, now: int) -> tuple[list[Call], int | None]:
        """Takes out the calls whose time is over; also when to look again."""
        if not self._next_expiry:
            return [], None
        if self._next_expiry > now:
            return [], self._next_expiry
        expired: list[Call] = []
        soonest = 0
        for lane in list(self._lanes.values()):
            for call in list(lane.calls):
                expiry = self._expiry(call)
                if expiry and expiry <= now:
                    del lane.calls[call]
                    self._forget(call, lane)
                    expired.append(call)
                elif expiry and (not soonest or expiry < soonest):
                    soonest = expiry
        # A flood of different deadlines must not scan the queue once for each.
        self._next_expiry = max(soonest, now + NS_PER_S // 1000) if soonest else 0
        return expired, self._next_expiry or None


class QueueScheduler:
    """What schedulers on one queue do alike; each says by `next` what leaves it."""

    def __init__(self, config: ModelConfig) -> None:
        self._queue = CallQueue(config.queue)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, call: Call, now: int) -> None:
        self._queue.add(call)

    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
        return self._queue.expire(now)

    def remove(self, call: Call) -> bool:
        return self._queue.remove(call)

    def finished(self, batch: Batch, cost_ns: int, now: int) -> None:
        """Nothing to free or to learn."""
