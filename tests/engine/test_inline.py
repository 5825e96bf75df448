from __future__ import annotations

from salver.clock import NS_PER_MS
from salver.engine.inline import INLINE_BUDGET_NS, InlineCosts, LoopBudget


def test_nothing_is_short_before_it_was_measured() -> None:
    costs = InlineCosts()
    assert costs.size is None
    costs.start(1, INLINE_BUDGET_NS * 2)
    assert costs.size == 0


def test_the_limit_grows_one_step_beyond_what_was_tried() -> None:
    costs = InlineCosts()
    costs.learn(1, 1000)
    assert costs.size == 3
    costs.learn(3, 2000)
    assert costs.size == 7
    for _ in range(3):
        assert costs.size == 7
        costs.learn(7, INLINE_BUDGET_NS * 2)
    assert costs.size == 3


def test_an_unlucky_first_run_of_a_size_is_tried_again() -> None:
    costs = InlineCosts()
    costs.start(1, 10_000)
    costs.learn(3, 50 * INLINE_BUDGET_NS)
    assert costs.size == 3
    costs.learn(3, 12_000)
    assert costs.size == 7


def test_what_was_found_short_is_not_driven_out_by_noise() -> None:
    costs = InlineCosts()
    for _ in range(20):
        costs.learn(1, INLINE_BUDGET_NS * 9 // 10)
    for _ in range(20):
        costs.learn(1, INLINE_BUDGET_NS * 3 // 2)
    assert costs.size == 3
    for _ in range(20):
        costs.learn(1, INLINE_BUDGET_NS * 3)
    assert costs.size == 0


def test_inline_runs_take_at_most_half_of_the_loop() -> None:
    budget, start = LoopBudget(), 1000 * NS_PER_MS
    assert budget.allows(start)
    budget.spend(4 * NS_PER_MS, start)
    assert budget.allows(start)
    budget.spend(2 * NS_PER_MS, start)
    assert not budget.allows(start + NS_PER_MS)
    assert budget.allows(start + 13 * NS_PER_MS)


def test_each_window_starts_anew() -> None:
    budget, start = LoopBudget(), 1000 * NS_PER_MS
    budget.spend(90 * NS_PER_MS, start)
    assert not budget.allows(start + 99 * NS_PER_MS)
    assert budget.allows(start + 101 * NS_PER_MS)
    budget.spend(NS_PER_MS, start + 101 * NS_PER_MS)
    assert budget.allows(start + 102 * NS_PER_MS)


def test_sizes_that_are_passed_over_are_tried_step_by_step() -> None:
    costs = InlineCosts()
    costs.learn(1, 10_000)
    sizes = [costs.size]
    for _ in range(5):
        for _ in range(7):
            costs.pass_over()
        assert not costs.wants_trial
        costs.pass_over()
        assert costs.wants_trial
        assert costs.size is not None
        costs.learn(costs.size, 12_000)
        sizes.append(costs.size)
    assert sizes == [3, 7, 15, 31, 63, 127]
    assert not costs.wants_trial


def test_what_only_seemed_long_gets_another_chance_after_a_while() -> None:
    costs = InlineCosts()
    costs.start(1, 2 * INLINE_BUDGET_NS)
    assert costs.size == 0
    passes = 0
    while not costs.size:
        costs.pass_over()
        passes += 1
        assert passes < 10_000
    assert passes > 100


def test_what_is_far_too_long_gets_none() -> None:
    costs = InlineCosts()
    costs.start(1, 5 * INLINE_BUDGET_NS)
    for _ in range(10_000):
        costs.pass_over()
    assert costs.size == 0
