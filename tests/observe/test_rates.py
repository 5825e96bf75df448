from __future__ import annotations

from salver.clock import NS_PER_MS, NS_PER_S
from salver.observe.rates import Rates
from salver.observe.statistics import ModelStatistics

NOTHING = {"requests_per_s": 0.0, "p50_ms": None, "p99_ms": None}


def count(statistics: ModelStatistics, num_calls: int, ms: float = 1.0) -> None:
    for _ in range(num_calls):
        statistics.call(int(ms * NS_PER_MS), 0, None)


def test_nothing_is_known_before_two_samples() -> None:
    rates, statistics = Rates(), ModelStatistics()
    count(statistics, 5)
    assert rates.of_model("a") == NOTHING
    rates.sample({"a": statistics}, 0)
    assert rates.of_model("a") == NOTHING


def test_rates_are_of_the_last_two_seconds() -> None:
    rates, statistics = Rates(), ModelStatistics()
    for second, num_calls in enumerate([0, 1000, 20, 40]):
        count(statistics, num_calls)
        rates.sample({"a": statistics}, second * NS_PER_S)
    assert rates.of_model("a")["requests_per_s"] == 30.0


def test_latencies_are_of_the_last_ten_seconds() -> None:
    rates, statistics = Rates(), ModelStatistics()
    rates.sample({"a": statistics}, 0)
    count(statistics, 100, ms=500)
    for second in range(1, 13):
        rates.sample({"a": statistics}, second * NS_PER_S)
        count(statistics, 10, ms=2)
    found = rates.of_model("a")
    assert 1.5 < found["p50_ms"] < 2.5
    assert found["p99_ms"] < 3


def test_models_add_up_and_gone_ones_are_forgotten() -> None:
    rates, one, other = Rates(), ModelStatistics(), ModelStatistics()
    rates.sample({"a": one, "b": other}, 0)
    count(one, 3)
    count(other, 4)
    rates.sample({"a": one, "b": other}, NS_PER_S)
    assert rates.total_per_s() == 7.0
    rates.sample({"a": one}, 2 * NS_PER_S)
    assert rates.of_model("b") == NOTHING


def test_a_name_that_comes_back_counts_from_nothing() -> None:
    rates, old, new = Rates(), ModelStatistics(), ModelStatistics()
    count(old, 50)
    rates.sample({"a": old}, 0)
    rates.sample({"a": new}, NS_PER_S)
    count(new, 6)
    rates.sample({"a": new}, 2 * NS_PER_S)
    assert rates.of_model("a")["requests_per_s"] == 6.0
