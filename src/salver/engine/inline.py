"""When a run may happen on the loop itself: it is certainly short, and the loop has time left."""

from __future__ import annotations

from typing import Final

from salver.clock import NS_PER_MS, NS_PER_US
from salver.schedulers.cost import CostModel

INLINE_BUDGET_NS: Final = 100 * NS_PER_US
_STAYING_FACTOR: Final = 2
"""What was found short stays so up to this times the budget, or noise would drive it to and fro."""
MAYBE_SHORT_NS: Final = 4 * INLINE_BUDGET_NS
"""What seems this long may still be short: it was seen on a busy machine, or in a first run."""
_TRIALS: Final = 3
"""Runs of a size before it is found long: first ones are slower, and one may be unlucky."""
_PASSED_BEFORE_TRIAL: Final = 8
_PASSED_BEFORE_FADING: Final = 32
_WINDOW_NS: Final = 100 * NS_PER_MS


class InlineCosts:
    """One method's costs, and the largest size that is taken for short: `size`, None if unknown."""

    __slots__ = ("_costs", "_is_short", "_passed", "_trials", "size")

    def __init__(self) -> None:
        self._costs = CostModel()
        self._is_short: dict[int, bool] = {}
        self._trials: dict[int, list[int]] = {}
        self._passed = 0
        self.size: int | None = None

    def start(self, size: int, cost_ns: int) -> bool:
        """Notes the best of several runs in a warm-up; whether `size` changes by it."""
        return self._judge(size, self._costs.learn(size, cost_ns))

    def learn(self, size: int, cost_ns: int) -> bool:
        """Notes what a run on the loop took; whether `size` changes by it.

        Runs in threads say nothing: much of their time is waiting for the interpreter.
        """
        self._passed = 0
        if not self._is_judged(size):
            bucket = size.bit_length()
            trials = self._trials.setdefault(bucket, [])
            trials.append(cost_ns)
            if cost_ns > INLINE_BUDGET_NS and len(trials) < _TRIALS:
                return False
            cost_ns = min(self._trials.pop(bucket))
        return self._judge(size, self._costs.learn(size, cost_ns))

    def pass_over(self) -> bool:
        """Notes that a run was too large for the loop; whether `size` changes by it. The size at
        which that begins gets another chance after a while, for it may only have seemed long on a
        busy machine; what is far too long does not.
        """
        if self.size is None:
            return False
        self._passed += 1
        blocked = self.size + 1
        if self._passed % _PASSED_BEFORE_FADING or not self._is_judged(blocked):
            return False
        if self._costs.predict(blocked) > MAYBE_SHORT_NS:
            return False
        return self._judge(blocked, self._costs.fade(blocked))

    @property
    def wants_trial(self) -> bool:
        """Larger runs were passed over for a while, and nobody knows what `size` itself costs."""
        return (
            self._passed >= _PASSED_BEFORE_TRIAL
            and self.size is not None
            and not self._is_judged(self.size)
        )

    def _is_judged(self, size: int) -> bool:
        return size.bit_length() in self._is_short

    def _judge(self, size: int, cost_ns: int) -> bool:
        """Works the limit out anew when a size becomes known or changes sides."""
        bucket = size.bit_length()
        was_short = self._is_short.get(bucket)
        is_short = cost_ns <= INLINE_BUDGET_NS * (_STAYING_FACTOR if was_short else 1)
        if was_short is is_short:
            return False
        self._is_short[bucket] = is_short
        self.size = self._largest()
        return True

    def _largest(self) -> int:
        """The largest size found short, or the next step beyond if nobody tried it.

        A step doubles the size, so that a try costs at most about twice the budget, once.
        """
        bucket = smallest = min(self._is_short)
        while self._is_short.get(bucket, False):
            bucket += 1
        if bucket > smallest and bucket not in self._is_short:
            bucket += 1
        return (1 << (bucket - 1)) - 1 if bucket > smallest else 0


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
