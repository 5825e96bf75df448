"""Each way to break the contract of schedulers is caught."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from salver.errors import Unavailable
from salver.interfaces import Slot
from salver.schedulers.dynamic import DynamicScheduler
from salver.testing import check_scheduler
from salver.types import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.types import Call


class LosesCalls(DynamicScheduler):
    def add(self, call: Call, now: int) -> None:
        if call.rows != 7:
            super().add(call, now)


class HandsOutTwice(DynamicScheduler):
    last: Batch | None = None

    def next(self, slot: Slot, now: int) -> Batch | None:
        self.last = super().next(slot, now) or self.last
        return self.last


class MixesGroups(DynamicScheduler):
    def next(self, slot: Slot, now: int) -> Batch | None:
        batches = [b for b in (super().next(slot, now), super().next(slot, now)) if b]
        calls = [call for batch in batches for call in batch.calls]
        return Batch(calls, sum(call.rows for call in calls), "idle") if calls else None


class IgnoresTheSlot(DynamicScheduler):
    def next(self, slot: Slot, now: int) -> Batch | None:
        return super().next(Slot(0), now)


class IgnoresMaxRows(DynamicScheduler):
    def __init__(self, config: Any, max_rows: int) -> None:
        super().__init__(config, 0)


class CountsCalls(DynamicScheduler):
    def next(self, slot: Slot, now: int) -> Batch | None:
        batch = super().next(slot, now)
        return batch and Batch(batch.calls, len(batch.calls), batch.reason)


class HasItsOwnReason(DynamicScheduler):
    def next(self, slot: Slot, now: int) -> Batch | None:
        batch = super().next(slot, now)
        return batch and Batch(batch.calls, batch.rows, "mood")


class GivesEmptyBatches(DynamicScheduler):
    def next(self, slot: Slot, now: int) -> Batch | None:
        return super().next(slot, now) or Batch([], 0, "idle")


class RefusesEarly(DynamicScheduler):
    def __init__(self, config: Any, max_rows: int) -> None:
        super().__init__(config, max_rows)
        self._max_calls //= 2


class RefusesNever(DynamicScheduler):
    def __init__(self, config: Any, max_rows: int) -> None:
        super().__init__(config, max_rows)
        self._max_calls = 1 << 20


class RefusesOtherwise(DynamicScheduler):
    def add(self, call: Call, now: int) -> None:
        if len(self) > 4:
            raise Unavailable("full")
        super().add(call, now)


class RemovesNothing(DynamicScheduler):
    def remove(self, call: Call) -> bool:
        return False


class RemovesAnything(DynamicScheduler):
    def remove(self, call: Call) -> bool:
        super().remove(call)
        return True


class ExpiresNothing(DynamicScheduler):
    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
        return [], now + 1


class ExpiresEarly(DynamicScheduler):
    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
        return super().expire(now + 15_000_000)


class ExpiresAndKeeps(DynamicScheduler):
    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
        expired, again = super().expire(now)
        for call in expired:
            self.add(call, now)
        return expired, again


class LooksNeverAgain(DynamicScheduler):
    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
        return super().expire(now)[0], None


class LooksAtOnce(DynamicScheduler):
    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
        return super().expire(now)[0], now


class WaitsForEver(DynamicScheduler):
    def next(self, slot: Slot, now: int) -> Batch | None:
        return super().next(slot, now) if len(self) > 1 else None


class LovesCheapRuns(DynamicScheduler):
    def finished(self, batch: Batch, cost_ns: int, now: int) -> None:
        assert 1 // cost_ns < 2


class KnowsNoPriorities(DynamicScheduler):
    def add(self, call: Call, now: int) -> None:
        context, call.context = call.context, replace(call.context, priority=0)
        super().add(call, now)
        call.context = context

    def remove(self, call: Call) -> bool:
        call.context = replace(call.context, priority=0)
        return super().remove(call)


class NeverAges(DynamicScheduler):
    def __init__(self, config: Any, max_rows: int) -> None:
        super().__init__(config, max_rows)
        self._ageing = 1 << 50


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (LosesCalls, "__len__ counts the calls that wait"),
        (HandsOutTwice, "hands out a call that waits, once; it gave a call that was no longer"),
        (MixesGroups, "calls of one group, or one call without a group"),
        (IgnoresTheSlot, "not larger than Slot.max_size"),
        (IgnoresMaxRows, "at most max_rows rows"),
        (CountsCalls, "Batch.rows counts its calls' rows"),
        (HasItsOwnReason, "Batch.reason is one of .*; it is 'mood'"),
        (GivesEmptyBatches, "a Batch with calls, or None"),
        (RefusesEarly, "refuses only when queue.max_calls wait"),
        (RefusesNever, "raises Overloaded when queue.max_calls wait"),
        (RefusesOtherwise, "raises Overloaded and nothing else; it raised Unavailable"),
        (RemovesNothing, "remove forgets .*; it said False of a call that waits"),
        (RemovesAnything, "remove forgets .*; it said True of a call that does not wait"),
        (ExpiresNothing, "expire gives every call whose time is over"),
        (ExpiresEarly, "expire gives calls whose time is over"),
        (ExpiresAndKeeps, "__len__ counts"),
        (LooksNeverAgain, "expire says to look again when the next call's time is over"),
        (LooksAtOnce, "expire says when to look again, which is later than now"),
        (WaitsForEver, "A call does not wait for ever"),
        (LovesCheapRuns, "finished takes any cost, in any order; it raised ZeroDivisionError"),
        (KnowsNoPriorities, r"the most urgent call first.* in the order \[3, 0, 1\]"),
        (NeverAges, "A waiting call rises one priority each queue.ageing_ms"),
    ],
)
def test_a_broken_scheduler_is_caught(make: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_scheduler(make)
