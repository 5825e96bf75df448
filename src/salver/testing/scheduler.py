"""The contract of schedulers, by random traffic on a clock of our own."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, cast

from salver.clock import NS_PER_MS, NS_PER_S
from salver.config import Batching, ModelConfig, Queue
from salver.errors import Overloaded
from salver.interfaces import ANY_SLOT, Slot
from salver.observe.statistics import REASONS
from salver.testing.clauses import expect, only
from salver.types import NO_CONTEXT, Batch, Call, CallContext, Request, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from salver.interfaces import Scheduler

    Make = Callable[[ModelConfig, int], Scheduler]

_LATENESS_NS: Final = 10 * NS_PER_MS
_MAX_CALLS: Final = 24
_CONFIGS: Final = (
    ModelConfig(queue=Queue(max_calls=_MAX_CALLS)),
    ModelConfig(
        queue=Queue(
            max_calls=_MAX_CALLS, timeout_ms=15, priority_levels=3, default_priority=2, ageing_ms=5
        ),
        batching=Batching(delay_ms=2, preferred_sizes=(4, 6)),
    ),
    ModelConfig(
        queue=Queue(max_calls=_MAX_CALLS, priority_levels=2, ageing_ms=10),
        batching=Batching(slo_ms=4),
    ),
)
_COSTS_NS: Final = (0, 1, 50_000, NS_PER_MS, 1 << 50)


def check_scheduler(make: Make, *, num_steps: int = 2000, seed: int = 0) -> None:
    """Checks the schedulers that `make(config, max_rows)` gives; `max_rows` of 0 is no limit.

    Runs `num_steps` random steps for each of several configurations and limits; `seed` repeats
    them.
    Raises: AssertionError.
    """
    for config in _CONFIGS:
        for max_rows in (0, 1, 8):
            traffic = Traffic(make(config, max_rows), config, max_rows, random.Random(seed))
            for _ in range(num_steps):
                traffic.step()
            traffic.drain()
    _check_priorities(make)
    _check_ageing(make)


def _call(
    now: int, *, group: Any = None, rows: int = 1, deadline: int = 0, priority: int = 0
) -> Call:
    context = CallContext(deadline, priority) if deadline or priority else NO_CONTEXT
    # A scheduler has nothing to do with sinks and leases.
    call = Call(Request(Tensors()), cast("Any", None), context, cast("Any", None), now)
    call.rows = call.size = rows
    call.group = group
    call.method = "other" if group == "c" else "predict"
    return call


class Traffic:
    """Random calls, instances and times, and what a scheduler must know after each step."""

    def __init__(
        self, scheduler: Scheduler, config: ModelConfig, max_rows: int, chance: random.Random
    ) -> None:
        self._scheduler = scheduler
        self._timeout = int(config.queue.timeout_ms * NS_PER_MS)
        self._max_rows = max_rows
        self._chance = chance
        self._now = 1
        self._waiting: dict[Call, None] = {}
        self._gone: list[Call] = []
        self._running: list[Batch] = []
        self._steps = (self._add, self._add, self._add, self._next, self._remove, self._expire,
                       self._finish, self._wait)  # fmt: skip

    def step(self) -> None:
        self._chance.choice(self._steps)()
        self._check_len()

    def _check_len(self) -> None:
        with only("Scheduler.__len__ raises nothing"):
            length = len(self._scheduler)
        clause = "Scheduler.__len__ counts the calls that wait"
        expect(length == len(self._waiting), clause, f"{length}, not {len(self._waiting)}")

    def _wait(self) -> None:
        self._now += self._chance.randrange(2 * NS_PER_MS)

    def _add(self) -> None:
        chance = self._chance
        call = _call(
            self._now,
            group=chance.choice([None, "a", "b", ("a", 1), "c"]),
            rows=chance.choice([1, 1, 1, 2, 3, 7]),
            deadline=chance.choice([0, self._now + chance.randrange(1, 20 * NS_PER_MS)]),
            priority=chance.choice([0, 0, 1, 2, 3, 9]),
        )
        is_full = len(self._waiting) >= _MAX_CALLS
        try:
            with only("Scheduler.add raises Overloaded and nothing else", Overloaded):
                self._scheduler.add(call, self._now)
        except Overloaded:
            clause = "Scheduler.add refuses only when queue.max_calls wait"
            expect(is_full, clause, f"it did at {len(self._waiting)} of {_MAX_CALLS}")
            self._gone.append(call)
        else:
            clause = "Scheduler.add raises Overloaded when queue.max_calls wait"
            expect(not is_full, clause, f"it took call {len(self._waiting) + 1} of {_MAX_CALLS}")
            self._waiting[call] = None

    def _next(self) -> None:
        self._take(Slot(self._chance.choice([0, 0, 1, 2, 5, 16])))

    def _take(self, slot: Slot) -> Batch | None:
        with only("Scheduler.next raises nothing"):
            batch = self._scheduler.next(slot, self._now)
        if batch is None:
            return None
        calls = batch.calls
        expect(bool(calls), "Scheduler.next gives a Batch with calls, or None", "it is empty")
        self._leave(calls, "Scheduler.next hands out a call that waits, once")
        self._check_batch(batch, slot)
        self._running.append(batch)
        return batch

    def _leave(self, calls: Sequence[Call], clause: str) -> None:
        for call in calls:
            was = "was no longer its own" if call in self._gone else "it never had"
            expect(call in self._waiting, clause, f"it gave a call that {was}")
            del self._waiting[call]
            self._gone.append(call)

    def _check_batch(self, batch: Batch, slot: Slot) -> None:
        calls = batch.calls
        groups = {call.group for call in calls}
        clause = "A batch holds calls of one group, or one call without a group"
        is_one = len(groups) == 1 and (len(calls) == 1 or None not in groups)
        expect(is_one, clause, f"it holds {len(calls)} of {groups}")
        rows = sum(call.rows for call in calls)
        expect(batch.rows == rows, "Batch.rows counts its calls' rows", f"{batch.rows}, not {rows}")
        clause = f"Batch.reason is one of {', '.join(REASONS)}"
        expect(batch.reason in REASONS, clause, f"it is {batch.reason!r}")
        clause = "A batch has at most max_rows rows, unless a single call has more"
        is_fit = not self._max_rows or rows <= self._max_rows or len(calls) == 1
        expect(is_fit, clause, f"{rows} rows in {len(calls)} calls, max_rows is {self._max_rows}")
        size = sum(call.size for call in calls)
        clause = "A batch is not larger than Slot.max_size"
        expect(not slot.max_size or size <= slot.max_size, clause, f"{size} > {slot.max_size}")

    def _remove(self) -> None:
        clause = "Scheduler.remove forgets a call that waits and says True, or else False"
        for calls, expected in ((list(self._waiting), True), (self._gone, False)):
            if not calls:
                continue
            call = self._chance.choice(calls)
            with only("Scheduler.remove raises nothing"):
                found = self._scheduler.remove(call)
            state = "waits" if expected else "does not wait"
            expect(found is expected, clause, f"it said {found!r} of a call that {state}")
            if expected:
                del self._waiting[call]
                self._gone.append(call)

    def _expire(self) -> int | None:
        now = self._now
        with only("Scheduler.expire raises nothing"):
            expired, again = self._scheduler.expire(now)
        for call in expired:
            end = self._end(call)
            clause = "Scheduler.expire gives calls whose time is over"
            expect(0 < end <= now, clause, f"one ends at {end}, it is {now}")
        self._leave(expired, "Scheduler.expire gives calls that wait, once")
        late = [call for call in self._waiting if 0 < self._end(call) < now - _LATENESS_NS]
        clause = "Scheduler.expire gives every call whose time is over"
        expect(not late, clause, f"{len(late)} still wait after their time")
        clause = "Scheduler.expire says when to look again, which is later than now"
        expect(again is None or again > now, clause, f"{again} at {now}")
        ends = [self._end(call) for call in self._waiting if self._end(call)]
        if ends:
            latest = max(min(ends), now) + _LATENESS_NS
            clause = "Scheduler.expire says to look again when the next call's time is over"
            expect(again is not None and again <= latest, clause, f"{again}, not {min(ends)}")
        return again

    def _end(self, call: Call) -> int:
        """When a wait is over, by the call's deadline or the queue's limit; 0 for never."""
        ends = [call.context.deadline] if call.context.deadline else []
        ends += [call.queued + self._timeout] if self._timeout else []
        return min(ends, default=0)

    def _finish(self) -> None:
        if self._running:
            batch = self._running.pop(self._chance.randrange(len(self._running)))
            with only("Scheduler.finished takes any cost, in any order"):
                self._scheduler.finished(batch, self._chance.choice(_COSTS_NS), self._now)

    def drain(self) -> None:
        """Every call leaves in the end when instances are free and time passes."""
        while self._waiting:
            while self._running:
                self._finish()
            if self._take(ANY_SLOT) is None and self._waiting:
                again = self._expire()
                clause = "A call does not wait for ever"
                found = (
                    f"{len(self._waiting)} wait: next gives nothing, expire no time to look again"
                )
                expect(again is not None or not self._waiting, clause, found)
                self._now = again or self._now
            self._check_len()


def _check_priorities(make: Make) -> None:
    """Of calls that cannot share a batch, the most urgent leaves first."""
    config = ModelConfig(queue=Queue(priority_levels=3, default_priority=2, ageing_ms=1000))
    for groups in (("a", "b", "c"), ("a", "a", "a"), (None, None, None)):
        scheduler = make(config, 1)
        calls = [
            _call(0, group=group, priority=priority)
            for group, priority in zip(groups, (3, 0, 1), strict=True)
        ]
        for call in calls:
            scheduler.add(call, call.queued)
        left = []
        while (batch := scheduler.next(ANY_SLOT, 3)) is not None:
            left += [call.context.priority for call in batch.calls]
            scheduler.finished(batch, 1, 3)
        clause = "Scheduler.next hands out the most urgent call first: 1, and 0 is the default"
        expect(left == [1, 0, 3], clause, f"priorities left in the order {left}")


def _check_ageing(make: Make) -> None:
    """One call of low priority among a steady stream of urgent ones."""
    config = ModelConfig(queue=Queue(priority_levels=2, ageing_ms=10))
    scheduler = make(config, 1)
    low = _call(0, group="low", priority=2)
    scheduler.add(low, 0)
    for now in range(0, NS_PER_S, NS_PER_MS):
        scheduler.add(_call(now, group="urgent"), now)
        batch = scheduler.next(ANY_SLOT, now)
        if batch is not None:
            scheduler.finished(batch, NS_PER_MS, now)
            if low in batch.calls:
                return
    raise AssertionError(
        "A waiting call rises one priority each queue.ageing_ms; one of the second priority "
        "waited a hundred times as long behind urgent ones"
    )
