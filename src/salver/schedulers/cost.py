"""What a run costs, learned from the runs themselves."""

from __future__ import annotations

_NUM_BUCKETS = 40
_BLEND = 8
_FADE = 32


class CostModel:
    """Nanoseconds per run by size: one moving average per power of two."""

    __slots__ = ("_costs",)

    def __init__(self) -> None:
        self._costs = [0] * _NUM_BUCKETS

    def learn(self, size: int, cost_ns: int) -> int:
        """Notes what a run took; returns the average for runs of about that size."""
        bucket = _bucket(size)
        old = self._costs[bucket]
        # One run that was interrupted must not make a fast model look slow.
        new = old + (min(cost_ns, 4 * old) - old) // _BLEND if old else cost_ns
        self._costs[bucket] = new or 1
        return new

    def fade(self, size: int) -> int:
        """Makes what is known of a size count for a little less, so that it is tried again."""
        bucket = _bucket(size)
        self._costs[bucket] -= self._costs[bucket] // _FADE
        return self._costs[bucket]

    def predict(self, size: int) -> int:
        """Expected cost, proportional to the nearest smaller size that is known; 0 if none is."""
        bucket = _bucket(size)
        for known in range(bucket, -1, -1):
            if self._costs[known]:
                return self._costs[known] << (bucket - known)
        return 0

    def largest_within(self, budget_ns: int) -> int | None:
        """The largest size predicted to take at most `budget_ns`; 0 if even the smallest known one
        takes longer, None while nothing is known. Never more than one step beyond what was seen.
        """
        known = [bucket for bucket, cost in enumerate(self._costs) if cost]
        if not known:
            return None
        largest = 0
        for bucket in range(known[0], min(known[-1] + 2, _NUM_BUCKETS)):
            if self.predict(1 << (bucket - 1)) > budget_ns:
                break
            largest = (1 << bucket) - 1
        return largest

    def cheapest(self) -> int | None:
        """The size with the least cost per unit, or the next larger one if that is unknown yet."""
        known = [(cost / (1 << bucket), bucket) for bucket, cost in enumerate(self._costs) if cost]
        if not known:
            return None
        best = min(known)[1]
        if best + 1 < _NUM_BUCKETS and not self._costs[best + 1]:
            best += 1
        return (1 << best) - 1


def _bucket(size: int) -> int:
    return min(size.bit_length(), _NUM_BUCKETS - 1)
