"""What a run costs, learned from runs; and how much of the loop's time inline runs may take."""

from __future__ import annotations

from salver.clock import NS_PER_MS

INLINE_BUDGET_NS = 100_000
_WINDOW_NS = 100 * NS_PER_MS
_NUM_BUCKETS = 40
_BLEND = 8


class CostModel:
    """Nanoseconds per run by size, one moving average per power of two.

    `inline_size` is the largest size that is predicted to stay within the inline budget; 0 if even
    the smallest does not, None while nothing is known.
    """

    __slots__ = ("_costs", "inline_size")

    def __init__(self) -> None:
        self._costs = [0] * _NUM_BUCKETS
        self.inline_size: int | None = None

    def learn(self, size: int, cost_ns: int) -> None:
        bucket = min(size.bit_length(), _NUM_BUCKETS - 1)
        old = self._costs[bucket]
        # One run that was interrupted must not make a fast model look slow.
        new = old + (min(cost_ns, 4 * old) - old) // _BLEND if old else cost_ns
        self._costs[bucket] = max(new, 1)
        if not old or (old <= INLINE_BUDGET_NS) != (new <= INLINE_BUDGET_NS):
            self.inline_size = self._largest_within(INLINE_BUDGET_NS)

    def predict(self, size: int) -> int:
        """Expected cost, proportional to the nearest smaller size that is known; 0 if none is."""
        bucket = min(size.bit_length(), _NUM_BUCKETS - 1)
        for known in range(bucket, -1, -1):
            if self._costs[known]:
                return self._costs[known] << (bucket - known)
        return 0

    def _largest_within(self, budget_ns: int) -> int:
        largest = 0
        for bucket in range(1, _NUM_BUCKETS):
            cost = self.predict(1 << (bucket - 1))
            if cost > budget_ns:
                break
            if cost:
                largest = (1 << bucket) - 1
        return largest


class LoopBudget:
    """Keeps inline runs under half of the loop's time, over windows of a tenth of a second."""

    __slots__ = ("_spent", "_window_start")

    def __init__(self) -> None:
        self._window_start = 0
        self._spent = 0

    def spend(self, cost_ns: int, now: int) -> None:
        if now - self._window_start > _WINDOW_NS:
            self._window_start = now
            self._spent = 0
        self._spent += cost_ns

    def allows(self, now: int) -> bool:
        elapsed = now - self._window_start
        return elapsed > _WINDOW_NS or self._spent * 2 < max(elapsed, _WINDOW_NS // 10)
