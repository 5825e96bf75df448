"""What a series of paired runs says about a ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES = 4_000


def order(pairs: int) -> list[tuple[int, int]]:
    """Who runs first in each pair: A B, B A, A B, … so that a drift of the machine cancels."""
    return [(0, 1) if pair % 2 == 0 else (1, 0) for pair in range(pairs)]


def bound(
    values: Sequence[float], side: Literal["lower", "upper"], confidence: float = 0.95
) -> float:
    """One-sided percentile bootstrap bound on the median (Efron and Tibshirani, 1993, ch. 13).

    The resamples are drawn from a fixed seed: equal values give equal bounds. The bound is always
    one of the values or the middle of two of them.
    """
    sample = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(sample.size, size=(RESAMPLES, sample.size))
    medians = np.median(sample[draws], axis=1)
    if side == "lower":
        return float(np.quantile(medians, 1 - confidence, method="lower"))
    return float(np.quantile(medians, confidence, method="higher"))
