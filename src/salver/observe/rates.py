"""Requests per second and latencies of the last seconds, from counters sampled once a second."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from salver.observe.statistics import quantile_ns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.observe.statistics import ModelStatistics

_WINDOW_SAMPLES = 10
NS_PER_S = 1_000_000_000


class Sample(NamedTuple):
    """One model's counters at one time."""

    at: int
    num_calls: int
    steps: list[int]


class Rates:
    """Keeps the last ten samples of every model."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[Sample]] = {}

    def sample(self, statistics: Mapping[str, ModelStatistics], now: int) -> None:
        """Notes all counters; models that are gone are forgotten."""
        for name in [name for name in self._samples if name not in statistics]:
            del self._samples[name]
        for name, counters in statistics.items():
            steps = counters.durations().steps
            samples = self._samples.setdefault(name, deque(maxlen=_WINDOW_SAMPLES + 1))
            if samples and samples[-1].num_calls > sum(steps):
                samples.clear()  # another generation started counting from nothing
            samples.append(Sample(now, sum(steps), steps))

    def of_model(self, name: str) -> dict[str, Any]:
        """`requests_per_s` of the last seconds, and `p50_ms` and `p99_ms` (None without calls)."""
        samples = self._samples.get(name)
        if not samples or len(samples) < 2:
            return {"requests_per_s": 0.0, "p50_ms": None, "p99_ms": None}
        first, last = samples[0], samples[-1]
        steps = [new - old for new, old in zip(last.steps, first.steps, strict=True)]
        recent = samples[max(len(samples) - 3, 0)]
        seconds = max(last.at - recent.at, 1) / NS_PER_S
        return {
            "requests_per_s": round((last.num_calls - recent.num_calls) / seconds, 1),
            "p50_ms": _ms(quantile_ns(steps, 0.5)),
            "p99_ms": _ms(quantile_ns(steps, 0.99)),
        }

    def total_per_s(self) -> float:
        """Requests per second over all models."""
        total: float = sum(self.of_model(name)["requests_per_s"] for name in self._samples)
        return round(total, 1)


def _ms(ns: int | None) -> float | None:
    return None if ns is None else round(ns / 1e6, 3)
