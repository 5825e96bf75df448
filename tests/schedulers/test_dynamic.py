from __future__ import annotations

from typing import TYPE_CHECKING

from salver.config import Batching, ModelConfig
from salver.interfaces import Slot
from salver.schedulers.direct import DirectScheduler
from salver.schedulers.dynamic import DynamicScheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from salver.types import Call

MS = 1_000_000
ANY = Slot(0)


def scheduler(max_rows: int = 0, **batching: object) -> DynamicScheduler:
    return DynamicScheduler(ModelConfig(batching=Batching(**batching)), max_rows)  # type: ignore[arg-type]


def test_an_idle_instance_takes_whatever_waits_at_once(call: Callable[..., Call]) -> None:
    queue = scheduler()
    calls = [call() for _ in range(7)]
    for one in calls:
        queue.add(one, 0)
    batch = queue.next(ANY, 0)
    assert batch is not None
    assert (batch.calls, batch.rows, batch.reason) == (calls, 7, "idle")
    assert queue.next(ANY, 0) is None


def test_a_hundred_calls_with_a_delay_become_four_batches(call: Callable[..., Call]) -> None:
    queue = scheduler(max_rows=32, delay_ms=50)
    for _ in range(100):
        queue.add(call(0), 0)
    sizes = []
    now = 0
    while len(queue):
        batch = queue.next(ANY, now)
        if batch is None:
            _, again = queue.expire(now)
            assert again == 50 * MS
            now = again
        else:
            sizes.append((batch.rows, batch.reason))
    assert sizes == [(32, "full"), (32, "full"), (32, "full"), (4, "delay")]


def test_preferred_sizes_leave_before_the_delay_is_over(call: Callable[..., Call]) -> None:
    queue = scheduler(max_rows=16, delay_ms=50, preferred_sizes=(4, 8))
    for _ in range(3):
        queue.add(call(), 0)
    assert queue.next(ANY, 0) is None
    queue.add(call(), 0)
    batch = queue.next(ANY, 0)
    assert batch is not None
    assert (batch.rows, batch.reason) == (4, "preferred")


def test_a_batch_never_exceeds_rows_or_the_slot(call: Callable[..., Call]) -> None:
    queue = scheduler(max_rows=8)
    for rows in (5, 2, 4):
        queue.add(call(rows=rows), 0)
    first = queue.next(ANY, 0)
    assert first is not None
    assert first.rows == 7
    queue.add(call(rows=3), 0)
    small = queue.next(Slot(4), 0)
    assert small is not None
    assert small.rows == 4
    assert queue.next(Slot(2), 0) is None


def test_calls_of_different_groups_do_not_meet(call: Callable[..., Call]) -> None:
    queue = scheduler()
    for now, group in enumerate(["a", "b", "a", None, None]):
        queue.add(call(now, group=group), now)
    batches = []
    while (batch := queue.next(ANY, 9)) is not None:
        batches.append(([one.group for one in batch.calls], batch.reason))
    assert batches == [
        (["a", "a"], "idle"),
        (["b"], "idle"),
        ([None], "single"),
        ([None], "single"),
    ]


def test_direct_hands_out_one_by_one(call: Callable[..., Call]) -> None:
    queue = DirectScheduler(ModelConfig())
    calls = [call(now) for now in range(3)]
    for one in calls:
        queue.add(one, 0)
    taken = [queue.next(ANY, 0) for _ in range(3)]
    assert [batch.calls for batch in taken if batch] == [[one] for one in calls]
    assert queue.next(ANY, 0) is None
