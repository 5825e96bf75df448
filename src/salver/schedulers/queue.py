"""The bounded queue under every scheduler: priorities with ageing, groups, deadlines.

Calls of one group may share a batch; a call without a group runs alone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from salver.clock import NS_PER_MS
from salver.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.config import ModelConfig
    from salver.types import Batch, Call


class Lane:
    """Waiting calls of one priority and group, in order of arrival; `rows` and `size` are sums."""

    __slots__ = ("calls", "handicap", "key", "rows", "size")

    def __init__(self, key: tuple[int, Any], handicap: int) -> None:
        self.key = key
        self.calls: OrderedDict[Call, None] = OrderedDict()
        self.handicap = handicap
        self.rows = 0
        self.size = 0

    def first(self) -> Call:
        return next(iter(self.calls))


class QueueScheduler:
    """Calls that wait for an instance; each scheduler says by its `next` what leaves the queue.

    Adding, removing and taking cost the same at any length.
    """

    def __init__(self, config: ModelConfig) -> None:
        queue = config.queue
        self._max_calls = queue.max_calls
        self._timeout = int(queue.timeout_ms * NS_PER_MS)
        self._last_priority = queue.priority_levels - 1
        self._ageing = int(queue.ageing_ms * NS_PER_MS)
        self._lanes: dict[tuple[int, Any], Lane] = {}
        self._num_calls = 0
        self._next_expiry = 0

    def __len__(self) -> int:
        return self._num_calls

    def add(self, call: Call, now: int) -> None:
        """Raises: Overloaded with the time after which trying again makes sense."""
        if self._num_calls >= self._max_calls:
            raise Overloaded(
                f"{self._max_calls} calls already wait for this model; try again later",
                retry_after_ms=1000,
            )
        context = call.context
        key = self._key(call) if context.priority else (0, call.group)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, key[0] * self._ageing)
        lane.calls[call] = None
        lane.rows += call.rows
        lane.size += call.size
        self._num_calls += 1
        expiry = self._expiry(call) if self._timeout else context.deadline
        if expiry and (not self._next_expiry or expiry < self._next_expiry):
            self._next_expiry = expiry

    def _key(self, call: Call) -> tuple[int, Any]:
        """Priority and group; a priority that there is not counts as the nearest that there is."""
        return min(max(call.context.priority, 0), self._last_priority), call.group

    def _expiry(self, call: Call) -> int:
        deadline = call.context.deadline
        if not self._timeout:
            return deadline
        timeout = call.queued + self._timeout
        return min(timeout, deadline) if deadline else timeout

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

    def take_all(self, lane: Lane) -> list[Call]:
        """Removes and returns all calls of `lane`."""
        calls = list(lane.calls)
        self._num_calls -= len(calls)
        del self._lanes[lane.key]
        return calls

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
        lane.size -= call.size
        self._num_calls -= 1
        if not lane.calls:
            del self._lanes[lane.key]

    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
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
        self._next_expiry = max(soonest, now + NS_PER_MS) if soonest else 0
        return expired, self._next_expiry or None

    def finished(self, batch: Batch, cost_ns: int, now: int) -> None:
        """Nothing to free or to learn."""
