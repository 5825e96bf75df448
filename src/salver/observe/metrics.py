"""Prometheus metrics, written from the counters when somebody asks (text format 0.0.4).

`inference_requests_total`, `inference_duration_seconds` and `gpu_memory_usage_bytes` are the names
that monitoring tutorials use; the rest begins with `salver_` or is prometheus_client's own.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import PROCESS_COLLECTOR, generate_latest

from salver.clock import NS_PER_S
from salver.observe.statistics import NUM_STEPS, STEPS_PER_POWER, step_end_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from salver.observe.statistics import Gauges, Histogram, ModelStatistics
    from salver.observe.user_metrics import Family

_LINES_PER_PIECE: Final = 500
_BATCH_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64)
_MODEL: Final = re.compile(r'[{,]model="((?:[^"\\]|\\.)*)"')


class ObservedModel(NamedTuple):
    """A name that is served: what its versions counted, past ones too, and how many are ready."""

    name: str
    statistics: ModelStatistics
    num_ready: int


class ObservedVersion(NamedTuple):
    """A version in service. `statistics` begins with its load."""

    model: str
    version: str
    statistics: ModelStatistics


Sample = tuple[str, "int | float | str"]
"""What follows the metric's name, a suffix and labels; and the value."""


def exposition(
    models: Sequence[ObservedModel],
    versions: Sequence[ObservedVersion],
    devices: Mapping[str, int],
    user: Mapping[str, Family],
) -> Iterator[bytes]:
    """The text in pieces, so that whoever sends it can do other things in between.

    `devices` is memory in use by device. What user code exports under a name of ours stands in
    place of our samples of the models that it names; a family of another type is left out.
    """
    lines = _merged(models, versions, devices, dict(user))
    while piece := list(islice(lines, _LINES_PER_PIECE)):
        yield ("\n".join(piece) + "\n").encode()
    yield generate_latest(PROCESS_COLLECTOR)


def _merged(
    models: Sequence[ObservedModel],
    versions: Sequence[ObservedVersion],
    devices: Mapping[str, int],
    user: dict[str, Family],
) -> Iterator[str]:
    for name, kind, meaning, samples in _ours(models, versions, devices):
        theirs = user.pop(name, None)
        yield f"# HELP {name} {meaning}"
        yield f"# TYPE {name} {kind}"
        if theirs is None or theirs.kind != kind:
            yield from (f"{name}{key} {value}" for key, value in samples)
        else:
            replaced = {_subject(key) for key in theirs.samples}
            kept = (sample for sample in samples if _subject(sample[0]) not in replaced)
            yield from (f"{name}{key} {value}" for key, value in kept)
            yield from (f"{key} {value}" for key, value in theirs.samples.items())
    for family in user.values():
        yield from family.comments
        yield from (f"{key} {value}" for key, value in family.samples.items())


def _subject(key: str) -> str:
    """The model that a sample is about, or else all its labels."""
    found = _MODEL.search(key)
    return found.group(1) if found else key[key.find("{") :]


Ours = tuple[str, str, str, "Iterator[Sample]"]


def _ours(
    models: Sequence[ObservedModel],
    versions: Sequence[ObservedVersion],
    devices: Mapping[str, int],
) -> Iterator[Ours]:
    yield from _of_models(models)
    yield from _of_versions(versions)
    if devices:
        yield "gpu_memory_usage_bytes", "gauge", "Memory in use.", _devices(devices)


def _of_models(models: Sequence[ObservedModel]) -> Iterator[Ours]:
    yield "inference_requests_total", "counter", "Requests by how they ended.", _requests(models)
    yield (
        "inference_duration_seconds",
        "histogram",
        "Time from acceptance to answer.",
        (
            sample
            for model in models
            for sample in _times(_labels(model=model.name), model.statistics.durations())
        ),
    )
    yield "salver_failures_total", "counter", "Failed requests by cause.", _failures(models)
    yield (
        "salver_versions_ready",
        "gauge",
        "Versions in service.",
        ((f"{{{_labels(model=model.name)}}}", model.num_ready) for model in models),
    )


def _requests(models: Sequence[ObservedModel]) -> Iterator[Sample]:
    for model in models:
        labels = _labels(model=model.name)
        yield f'{{{labels},status="success"}}', model.statistics.success.times
        yield f'{{{labels},status="error"}}', model.statistics.failure.times


def _failures(models: Sequence[ObservedModel]) -> Iterator[Sample]:
    for model in models:
        labels = _labels(model=model.name)
        for cause, count in model.statistics.outcomes().items():
            yield f'{{{labels},cause="{cause}"}}', count


def _devices(devices: Mapping[str, int]) -> Iterator[Sample]:
    for device, used in devices.items():
        yield f"{{{_labels(device=device)}}}", used


def _of_versions(versions: Sequence[ObservedVersion]) -> Iterator[Ours]:
    named = [(_labels(model=each.model, version=each.version), each) for each in versions]
    yield (
        "salver_queue_duration_seconds",
        "histogram",
        "Time a call waited for an instance.",
        (s for labels, each in named for s in _times(labels, each.statistics.queue_times())),
    )
    yield (
        "salver_compute_duration_seconds",
        "histogram",
        "Time one run of the model took.",
        (s for labels, each in named for s in _times(labels, each.statistics.compute_times())),
    )
    yield (
        "salver_batch_size",
        "histogram",
        "Rows per run.",
        (sample for labels, each in named for sample in _sizes(labels, each.statistics)),
    )
    yield (
        "salver_batches_total",
        "counter",
        "Runs by why their batch was released.",
        (
            (f'{{{labels},reason="{reason}"}}', count)
            for labels, each in named
            for reason, count in each.statistics.reasons().items()
        ),
    )
    for name, meaning, value in _GAUGES:
        yield name, "gauge", meaning, _gauge(named, value)


def _gauge(
    named: Sequence[tuple[str, ObservedVersion]], value: Callable[[Gauges], int]
) -> Iterator[Sample]:
    for labels, each in named:
        yield f"{{{labels}}}", value(each.statistics.gauges)


_GAUGES: Final[tuple[tuple[str, str, Callable[[Gauges], int]], ...]] = (
    ("salver_queue_depth", "Calls that wait.", lambda each: each.queue_depth),
    ("salver_instances", "Instances.", lambda each: each.num_instances),
    ("salver_model_memory_bytes", "Memory that it holds.", lambda each: each.memory_bytes),
)


def _times(labels: str, histogram: Histogram) -> Iterator[Sample]:
    """Cumulative counts at powers of two, in seconds."""
    total, steps = 0, histogram.steps
    for first, stop, bound in _TIME_BOUNDS:
        total += sum(steps[first:stop])
        yield f'_bucket{{{labels},le="{bound}"}}', total
    total += sum(steps[_TIME_BOUNDS[-1][1] :])
    yield f'_bucket{{{labels},le="+Inf"}}', total
    yield f"_count{{{labels}}}", total
    yield f"_sum{{{labels}}}", histogram.total_ns / NS_PER_S


_TIME_BOUNDS: Final = tuple(
    (first, first + STEPS_PER_POWER, step_end_ns(first + STEPS_PER_POWER - 1) / NS_PER_S)
    for first in range(0, NUM_STEPS - STEPS_PER_POWER, STEPS_PER_POWER)
)
"""First step, last step and upper end of each bucket; the longest times have no end."""


def _sizes(labels: str, statistics: ModelStatistics) -> Iterator[Sample]:
    runs = statistics.batches()
    for bound in _BATCH_BOUNDS:
        count = sum(duration.times for size, duration in runs.items() if size <= bound)
        yield f'_bucket{{{labels},le="{bound}.0"}}', count
    yield f'_bucket{{{labels},le="+Inf"}}', statistics.num_runs
    yield f"_count{{{labels}}}", statistics.num_runs
    yield f"_sum{{{labels}}}", statistics.num_rows


def _labels(**labels: str) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
