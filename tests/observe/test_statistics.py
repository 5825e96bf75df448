from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    ModelFailed,
    Overloaded,
    TooLarge,
    Unavailable,
)
from salver.observe.statistics import (
    MAX_EXACT_BATCH,
    NUM_STEPS,
    REASONS,
    ModelStatistics,
    merged,
    quantile_ns,
    step_end_ns,
    step_of,
)

MINUTE_NS = 60 * 10**9


@given(st.integers(0, MINUTE_NS))
def test_a_time_lies_in_its_step(ns: int) -> None:
    step = step_of(ns)
    assert (step_end_ns(step - 1) if step else 0) <= ns < step_end_ns(step)


@given(st.integers(2**13, MINUTE_NS))
def test_a_step_is_at_most_a_quarter_wide(ns: int) -> None:
    step = step_of(ns)
    assert step_end_ns(step) <= 1.25 * step_end_ns(step - 1)


def test_longer_times_share_the_last_step() -> None:
    assert step_of(10**18) == NUM_STEPS - 1


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9, 0.99])
def test_quantiles_come_close_to_the_exact_ones(quantile: float) -> None:
    times = np.random.default_rng(1).lognormal(np.log(2e6), 0.8, 5000).astype(int).tolist()
    steps = [0] * NUM_STEPS
    for ns in times:
        steps[step_of(ns)] += 1
    found = quantile_ns(steps, quantile)
    assert found == pytest.approx(np.quantile(times, quantile), rel=0.05)


def test_a_quantile_of_nothing_is_nothing() -> None:
    assert quantile_ns([0] * NUM_STEPS, 0.5) is None


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Overloaded(""), "rejected"),
        (DeadlineExceeded(""), "expired"),
        (Cancelled(""), "cancelled"),
        (InvalidInput(""), "invalid"),
        (TooLarge(""), "invalid"),
        (ModelFailed(""), "failed"),
        (Unavailable(""), "other"),
        (Internal(""), "other"),
    ],
)
def test_failures_are_counted_by_cause(error: Exception, cause: str) -> None:
    statistics = ModelStatistics()
    statistics.call(7, 3, error)  # type: ignore[arg-type]
    assert {name: n for name, n in statistics.outcomes().items() if n} == {cause: 1}
    assert statistics.failure == (1, 7)
    assert statistics.success == (0, 0)


def test_a_refused_call_has_no_duration() -> None:
    statistics = ModelStatistics()
    statistics.refused(Overloaded(""))
    assert statistics.failure == (1, 0)
    assert sum(statistics.durations().steps) == 0


def test_runs_are_counted_by_size_and_reason() -> None:
    statistics = ModelStatistics()
    statistics.batch(3, "full", 100)
    statistics.batch(3, "delay", 300)
    statistics.batch(1000, "full", 500)
    assert statistics.batches() == {3: (2, 400), MAX_EXACT_BATCH: (1, 500)}
    assert (statistics.num_rows, statistics.num_runs) == (1006, 3)
    assert statistics.compute_times().total_ns == 900
    assert statistics.reasons() == dict.fromkeys(REASONS, 0) | {"full": 2, "delay": 1}
    assert statistics.last_run_ms > 1_700_000_000_000


def test_the_time_of_a_shared_run_counts_for_each_of_its_calls() -> None:
    statistics = ModelStatistics()
    statistics.answered([100, 200, 300], 500, 1500)
    statistics.call(50, 40, None)
    statistics.call(9000, 8000, ModelFailed(""))
    assert statistics.waited == (4, 400 + 300 + 200 + 40)
    assert statistics.ran == (4, 3 * 1000 + 10)


def test_histograms_keep_every_call_and_the_sum_of_times() -> None:
    statistics = ModelStatistics()
    for total, waited in [(10_000, 0), (2_000_000, 500_000), (2_000_000, 400_000)]:
        statistics.call(total, waited, None)
    durations, waits = statistics.durations(), statistics.queue_times()
    assert (sum(durations.steps), durations.total_ns) == (3, 4_010_000)
    assert (sum(waits.steps), waits.total_ns) == (3, 900_000)
    assert durations.steps[step_of(2_000_000)] == 2


def test_merged_counters_add_up_and_leave_their_parts_alone() -> None:
    one, other = ModelStatistics(), ModelStatistics()
    one.call(5, 1, None)
    other.call(6, 1, None)
    other.batch(2, "idle", 9)
    total = merged([one, other])
    assert total.success == (2, 11)
    assert total.batches() == {2: (1, 9)}
    assert total.last_run_ms == other.last_run_ms
    assert one.success == (1, 5)
    assert merged([one]) is one
