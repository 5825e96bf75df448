"""The bound that decides a bar."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.statistics import bound, order
from hypothesis import given, settings
from hypothesis import strategies as st

unhurried = settings(deadline=None, max_examples=50)
ratios = st.lists(st.floats(0.01, 100), min_size=1, max_size=15)


@unhurried
@given(ratios)
def test_bounds_enclose_the_median_and_stay_within_the_values(values: list[float]) -> None:
    low, high = bound(values, "lower"), bound(values, "upper")
    assert min(values) <= low <= np.median(values) <= high <= max(values)


@unhurried
@given(st.floats(0.01, 100), st.integers(1, 15))
def test_equal_values_leave_no_doubt(value: float, count: int) -> None:
    assert bound([value] * count, "lower") == value == bound([value] * count, "upper")


@unhurried
@given(ratios)
def test_the_bound_scales_with_the_values(values: list[float]) -> None:
    doubled = [2 * value for value in values]
    assert bound(doubled, "lower") == 2 * bound(values, "lower")


@unhurried
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=15).filter(lambda v: len(v) % 2 == 1))
def test_swapping_the_sides_swaps_the_bounds(values: list[float]) -> None:
    inverse = [1 / value for value in values]
    assert bound(inverse, "upper") == pytest.approx(1 / bound(values, "lower"))


@unhurried
@given(ratios)
def test_more_confidence_is_never_closer(values: list[float]) -> None:
    assert bound(values, "lower", 0.99) <= bound(values, "lower", 0.8)
    assert bound(values, "upper", 0.99) >= bound(values, "upper", 0.8)


def test_one_disturbed_pair_of_seven_does_not_decide() -> None:
    quiet = [3.0, 3.1, 2.9, 3.0, 3.05, 2.95]
    assert bound([*quiet, 0.1], "lower") > 2.8


def test_the_bound_covers_the_true_median_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(4)
    series = np.exp(random.normal(0, 0.2, size=(120, 7)))
    below = sum(bound(values, "lower") <= 1 for values in series)
    assert below / len(series) > 0.88


def test_each_side_runs_first_in_every_other_pair() -> None:
    assert order(4) == [(0, 1), (1, 0), (0, 1), (1, 0)]
