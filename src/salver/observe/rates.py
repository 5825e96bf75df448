"""Requests per second and latencies of the last seconds, from counters sampled once a second."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from salver.clock import NS_PER_MS, NS_PER_S
from salver.observe.statistics import quantile_ns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.observe.statistics import ModelStatistics

_LATENCY_SAMPLES: Final = 10
_RATE_SAMPLES: Final = 2


class Sample(NamedTuple):
    """One model's answered calls by duration, at one time."""

    at: int
    steps: list[int]
    num_calls: int


class Rates:
    """Keeps the last ten seconds of every model, if `sample` is called once a second."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[Sample]] = {}

    def sample(self, statistics: Mapping[str, ModelStatistics], now: int) -> None:
        """Notes all counters at `now` (ns); models that are gone are forgotten."""
        for name in self._samples.keys() - statistics.keys():
            del self._samples[name]
        for name, counters in statistics.items():
            steps = counters.durations().steps
            sample = Sample(now, steps, sum(steps))
            samples = self._samples.setdefault(name, deque(maxlen=_LATENCY_SAMPLES + 1))
            if samples and samples[-1].num_calls > sample.num_calls:
                samples.clear()  # a name that came back counts from nothing
            samples.append(sample)

    def of_model(self, name: str) -> dict[str, Any]:
        """`requests_per_s` of the last seconds, and `p50_ms` and `p99_ms` (None without calls)."""
        samples = self._samples.get(name)
        if samples is None or len(samples) < 2:
            return {"requests_per_s": 0.0, "p50_ms": None, "p99_ms": None}
        first, last = samples[0], samples[-1]
        recent = samples[max(len(samples) - 1 - _RATE_SAMPLES, 0)]
        seconds = max(last.at - recent.at, 1) / NS_PER_S
        steps = [new - old for new, old in zip(last.steps, first.steps, strict=True)]
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
    return None if ns is None else round(ns / NS_PER_MS, 3)
