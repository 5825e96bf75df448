"""The latency objective, proven by simulating a server whose large batches are slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salver.config import Batching, ModelConfig, Queue
from salver.interfaces import Slot
from salver.schedulers.cost import CostModel
from salver.schedulers.slo import SloScheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from salver.types import Call

MS = 1_000_000
SLO_MS = 20
EVERY_NS = 250_000
NUM_CALLS = 8000


def cost_ns(rows: int) -> int:
    """2 ms and 0.1 ms a row; beyond 32 rows the model falls out of its cache."""
    return 2 * MS + rows * MS // 10 + max(rows - 32, 0) * 2 * MS


class Unlearned(CostModel):
    def learn(self, size: int, cost_ns: int) -> None:
        pass


class Taught(Unlearned):
    """Knows every cost from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        for power in range(1, 10):
            size = (1 << power) - 1
            super(Unlearned, self).learn(size, cost_ns(size))


def share_in_time(make_call: Callable[..., Call], costs: type[CostModel]) -> float:
    """Four calls a millisecond with bursts of 60: the share that is answered in time."""
    config = ModelConfig(batching=Batching(slo_ms=SLO_MS), queue=Queue(max_calls=1 << 20))
    scheduler = SloScheduler(config, 0, costs)
    arrivals = sorted(
        [n * EVERY_NS for n in range(NUM_CALLS)]
        + [n * 200 * MS for n in range(1, 10) for _ in range(60)]
    )
    now, arrived, in_time = 0, 0, 0
    while arrived < len(arrivals) or len(scheduler):
        while arrived < len(arrivals) and arrivals[arrived] <= now:
            scheduler.add(make_call(arrivals[arrived]), now)
            arrived += 1
        batch = scheduler.next(Slot(0), now)
        if batch is None:
            now = arrivals[arrived]
            continue
        cost = cost_ns(batch.rows)
        now += cost
        scheduler.finished(batch, cost, now)
        in_time += sum(now - call.queued <= SLO_MS * MS for call in batch.calls)
    return in_time / len(arrivals)


def test_learned_costs_keep_the_objective(call: Callable[..., Call]) -> None:
    learned, best = share_in_time(call, CostModel), share_in_time(call, Taught)
    assert best > 0.9
    assert learned > 0.9 * best


def test_without_learning_it_is_missed(call: Callable[..., Call]) -> None:
    assert share_in_time(call, Unlearned) < 0.5


def test_costs_are_predicted_from_the_nearest_smaller_size() -> None:
    costs = CostModel()
    assert costs.predict(8) == 0
    assert costs.largest_within(1) is None
    costs.learn(1, 100)
    costs.learn(4, 200)
    assert [costs.predict(size) for size in (1, 2, 4, 8)] == [100, 200, 200, 400]
    assert costs.largest_within(399) == 7
    assert costs.largest_within(1 << 40) == 15
    assert costs.largest_within(99) == 0
    assert costs.cheapest() == 15


def test_one_interrupted_run_does_not_spoil_what_is_known() -> None:
    costs = CostModel()
    for _ in range(10):
        costs.learn(1, 1000)
    costs.learn(1, 1_000_000)
    assert costs.predict(1) < 2000
