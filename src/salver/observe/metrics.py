"""Prometheus metrics, computed from the counters when somebody asks.

`inference_requests_total`, `inference_duration_seconds` and `gpu_memory_usage_bytes` are the names
that monitoring tutorials use; the rest begins with `salver_`.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import PROCESS_COLLECTOR, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from salver.observe.statistics import REASONS, Histogram, step_end_ns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from salver.observe.statistics import ModelStatistics

    Hidden = Mapping[str, Sequence[ModelStatistics]]

_NS_PER_S: Final = 1e9
_STEPS_PER_POWER: Final = 4
_BATCH_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_MODEL: Final = re.compile(r'[{,]model="((?:[^"\\]|\\.)*)"')


class Observed(NamedTuple):
    """What the metrics need to know of one version."""

    model: str
    version: str
    statistics: ModelStatistics
    queue_depth: int
    num_instances: int
    resident_bytes: int = 0
    user_metrics: Sequence[bytes] = ()
    """Expositions of the prometheus metrics that the model's own code keeps."""


class _Snapshot:
    """What a prometheus registry would be: a thing that collects."""

    def __init__(self, observed: Sequence[Observed], hidden: Hidden) -> None:
        self._observed = observed
        self._hidden = hidden

    def collect(self) -> Iterator[Metric]:
        yield from _requests(self._observed, self._hidden)
        yield from _batches(self._observed)
        yield from _state(self._observed)
        yield from PROCESS_COLLECTOR.collect()


def exposition(observed: Iterable[Observed], hidden: Hidden = MappingProxyType({})) -> bytes:
    """The text format. What a model's own code exports replaces our samples of the same names.

    `hidden` has, by model, the counters of versions that are gone: sums over versions keep them.
    """
    versions = list(observed)
    ours = generate_latest(_Snapshot(versions, hidden))
    texts = [text for version in versions for text in version.user_metrics]
    return merge(ours, texts) if texts else ours


def _requests(observed: Sequence[Observed], hidden: Hidden) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "inference_requests", "Requests by how they ended.", labels=["model", "status"]
    )
    duration = HistogramMetricFamily(
        "inference_duration_seconds", "Time from acceptance to answer.", labels=["model"]
    )
    failures = CounterMetricFamily(
        "salver_failures", "Failed requests by cause.", labels=["model", "cause"]
    )
    for model in dict.fromkeys(version.model for version in observed):
        versions = [v.statistics for v in observed if v.model == model]
        versions += hidden.get(model, ())
        requests.add_metric([model, "success"], sum(s.success.times for s in versions))
        requests.add_metric([model, "error"], sum(s.failure.times for s in versions))
        total = _sum([s.durations() for s in versions])
        duration.add_metric([model], _buckets(total), total.total_ns / _NS_PER_S)
        for cause in versions[0].outcomes():
            failures.add_metric([model, cause], sum(s.outcomes()[cause] for s in versions))
    yield from (requests, duration, failures)


def _sum(histograms: Sequence[Histogram]) -> Histogram:
    steps = [sum(counts) for counts in zip(*(h.steps for h in histograms), strict=True)]
    return Histogram(steps, sum(h.total_ns for h in histograms))


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative counts at powers of two, as seconds."""
    buckets, total = [], 0
    for step, count in enumerate(histogram.steps):
        total += count
        if step == 0 or step % _STEPS_PER_POWER == _STEPS_PER_POWER - 1:
            buckets.append((str(step_end_ns(step) / _NS_PER_S), float(total)))
    return [*buckets, ("+Inf", float(total))]


def _batches(observed: Sequence[Observed]) -> Iterator[Metric]:
    labels = ["model", "version"]
    queue = HistogramMetricFamily(
        "salver_queue_duration_seconds", "Time a call waited for an instance.", labels=labels
    )
    compute = HistogramMetricFamily(
        "salver_compute_duration_seconds", "Time one run of the model took.", labels=labels
    )
    size = HistogramMetricFamily("salver_batch_size", "Rows per run.", labels=labels)
    released = CounterMetricFamily(
        "salver_batches", "Runs by why their batch was released.", labels=[*labels, "reason"]
    )
    for version in observed:
        names, statistics = [version.model, version.version], version.statistics
        waited, computed = statistics.queue_times(), statistics.compute_times()
        queue.add_metric(names, _buckets(waited), waited.total_ns / _NS_PER_S)
        compute.add_metric(names, _buckets(computed), computed.total_ns / _NS_PER_S)
        size.add_metric(names, _size_buckets(statistics), statistics.num_rows)
        reasons = statistics.reasons()
        for reason in REASONS:
            released.add_metric([*names, reason], reasons[reason])
    yield from (queue, compute, size, released)


def _size_buckets(statistics: ModelStatistics) -> list[tuple[str, float]]:
    sizes = statistics.batches()
    buckets = [
        (str(float(bound)), float(sum(d.times for size, d in sizes.items() if size <= bound)))
        for bound in _BATCH_BOUNDS[:-1]
    ]
    return [*buckets, ("+Inf", float(statistics.num_runs))]


def _state(observed: Sequence[Observed]) -> Iterator[Metric]:
    labels = ["model", "version"]
    depth = GaugeMetricFamily("salver_queue_depth", "Calls that wait.", labels=labels)
    instances = GaugeMetricFamily("salver_instances", "Instances.", labels=labels)
    memory = GaugeMetricFamily(
        "salver_model_memory_bytes", "Memory that loading the version took.", labels=labels
    )
    ready = GaugeMetricFamily("salver_versions_ready", "Versions in service.", labels=["model"])
    counts: dict[str, int] = {}
    for version in observed:
        names = [version.model, version.version]
        depth.add_metric(names, version.queue_depth)
        instances.add_metric(names, version.num_instances)
        memory.add_metric(names, version.resident_bytes)
        counts[version.model] = counts.get(version.model, 0) + 1
    for model, count in counts.items():
        ready.add_metric([model], count)
    yield from (depth, instances, memory, ready)


def merge(ours: bytes, theirs: Sequence[bytes]) -> bytes:
    """Adds expositions of user code. Each family appears once; a family that user code exports for
    a model stands in place of our samples of that family and model.
    """
    families: dict[str, tuple[list[str], list[str]]] = {}
    for text in theirs:
        for name, (comments, samples) in _families(text.decode()).items():
            known = families.setdefault(name, (comments, []))
            known[1].extend(samples)
    lines: list[str] = []
    for name, (comments, samples) in _families(ours.decode()).items():
        added = families.pop(name, ([], []))[1]
        replaced = {model for sample in added if (model := _model_of(sample)) is not None}
        kept = [sample for sample in samples if _model_of(sample) not in replaced]
        lines += [*comments, *kept, *added]
    for comments, samples in families.values():
        lines += [*comments, *samples]
    return ("\n".join(lines) + "\n").encode()


def _families(text: str) -> dict[str, tuple[list[str], list[str]]]:
    """Comments and samples by family, in order."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith(("# HELP ", "# TYPE ")):
            name = line.split(" ", 3)[2]
            families.setdefault(name, ([], []))[0].append(line)
        elif line and not line.startswith("#"):
            families.setdefault(name, ([], []))[1].append(line)
    return families


def _model_of(sample: str) -> str | None:
    found = _MODEL.search(sample)
    return found.group(1) if found else None
