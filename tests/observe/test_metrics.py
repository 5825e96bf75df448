from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import salver
from salver.errors import Overloaded
from salver.observe import memory, monitor, user_metrics
from salver.observe.metrics import ObservedModel, ObservedVersion, exposition
from salver.observe.statistics import Gauges, ModelStatistics
from salver.observe.user_metrics import added_up, forget, own_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

MS = 1_000_000
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(text: bytes) -> Samples:
    """Every sample by name and labels, as Prometheus' own parser reads them; none twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def pick(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def expose(
    statistics: Mapping[str, ModelStatistics],
    user: bytes = b"",
    devices: Mapping[str, int] | None = None,
) -> Samples:
    models = [ObservedModel(name, each, 1) for name, each in statistics.items()]
    versions = [ObservedVersion(name, "1", each) for name, each in statistics.items()]
    families = added_up([user]) if user else {}
    return samples_of(b"".join(exposition(models, versions, devices or {}, families)))


def busy() -> ModelStatistics:
    statistics = ModelStatistics()
    statistics.call(3 * MS, MS, None)
    statistics.call(40 * MS, 20 * MS, None)
    statistics.refused(Overloaded(""))
    statistics.batch(2, "delay", 2 * MS)
    statistics.batch(200, "full", 30 * MS)
    statistics.gauges = Gauges(queue_depth=5, num_instances=2, memory_bytes=4096)
    return statistics


def test_requests_count_by_result_and_failures_by_cause() -> None:
    samples = expose({"iris": busy()})
    assert pick(samples, "inference_requests_total", model="iris", status="success") == 2
    assert pick(samples, "inference_requests_total", model="iris", status="error") == 1
    assert pick(samples, "salver_failures_total", model="iris", cause="rejected") == 1
    assert pick(samples, "salver_failures_total", model="iris", cause="failed") == 0


@pytest.mark.parametrize(
    ("name", "labels", "times_ms"),
    [
        ("inference_duration_seconds", {"model": "iris"}, [3, 40]),
        ("salver_queue_duration_seconds", {"model": "iris", "version": "1"}, [1, 20]),
        ("salver_compute_duration_seconds", {"model": "iris", "version": "1"}, [2, 30]),
    ],
)
def test_histograms_hold_every_time_under_its_bound(
    name: str, labels: dict[str, str], times_ms: list[int]
) -> None:
    samples = expose({"iris": busy()})
    assert pick(samples, f"{name}_count", **labels) == 2
    assert pick(samples, f"{name}_sum", **labels) == pytest.approx(sum(times_ms) / 1e3)
    bounds = [float(dict(key[1])["le"]) for key in samples if key[0] == f"{name}_bucket"]
    assert bounds == sorted(bounds)
    assert bounds[-1] == float("inf")
    for bound in bounds:
        under = sum(ms / 1e3 <= bound for ms in times_ms)
        le = next(
            dict(key[1])["le"]
            for key in samples
            if key[0] == f"{name}_bucket" and float(dict(key[1])["le"]) == bound
        )
        assert pick(samples, f"{name}_bucket", **labels, le=le) == under


def test_times_beyond_the_last_bound_are_in_no_finite_bucket() -> None:
    statistics = ModelStatistics()
    statistics.call(3600 * 1000 * MS, 0, None)
    samples = expose({"iris": statistics})
    counts = {
        dict(labels)["le"]: value
        for (name, labels), value in samples.items()
        if name == "inference_duration_seconds_bucket"
    }
    assert {bound for bound, count in counts.items() if count} == {"+Inf"}


def test_batches_by_size_and_reason() -> None:
    samples, labels = expose({"iris": busy()}), {"model": "iris", "version": "1"}
    assert pick(samples, "salver_batch_size_bucket", **labels, le="1.0") == 0
    assert pick(samples, "salver_batch_size_bucket", **labels, le="2.0") == 1
    assert pick(samples, "salver_batch_size_bucket", **labels, le="64.0") == 1
    assert pick(samples, "salver_batch_size_bucket", **labels, le="+Inf") == 2
    assert pick(samples, "salver_batch_size_sum", **labels) == 202
    assert pick(samples, "salver_batches_total", **labels, reason="full") == 1
    assert pick(samples, "salver_batches_total", **labels, reason="idle") == 0


def test_the_present_state() -> None:
    samples, labels = expose({"iris": busy()}), {"model": "iris", "version": "1"}
    assert pick(samples, "salver_queue_depth", **labels) == 5
    assert pick(samples, "salver_instances", **labels) == 2
    assert pick(samples, "salver_model_memory_bytes", **labels) == 4096
    assert pick(samples, "salver_versions_ready", model="iris") == 1
    assert (pick(samples, "process_resident_memory_bytes") or 0) > 1 << 20


def test_graphics_memory_appears_only_where_there_is_some() -> None:
    assert pick(expose({}), "gpu_memory_usage_bytes", device="cuda:0") is None
    samples = expose({}, devices={"cuda:0": 7})
    assert pick(samples, "gpu_memory_usage_bytes", device="cuda:0") == 7


def test_names_of_models_are_escaped() -> None:
    name = 'a"b\\c'
    assert pick(expose({name: busy()}), "salver_versions_ready", model=name) == 1


def test_a_hundred_models_come_in_pieces_that_keep_nobody_waiting() -> None:
    statistics = [busy() for _ in range(100)]
    models = [ObservedModel(f"m{i}", each, 1) for i, each in enumerate(statistics)]
    versions = [ObservedVersion(f"m{i}", "1", s) for i, s in enumerate(statistics)]
    pieces = list(exposition(models, versions, {}, {}))
    assert max(piece.count(b"\n") for piece in pieces) <= 500
    assert len(samples_of(b"".join(pieces))) > 10_000


def tutorial(registry: CollectorRegistry, model: str, num_calls: int, used: float = 0) -> bytes:
    """What the metrics of a monitoring tutorial export after some calls."""
    requests = Counter("inference_requests_total", "r", ["model", "status"], registry=registry)
    latency = Histogram("inference_duration_seconds", "d", ["model"], registry=registry)
    gpu = Gauge("gpu_memory_usage_bytes", "g", ["device"], registry=registry)
    for _ in range(num_calls):
        requests.labels(model=model, status="success").inc()
        latency.labels(model=model).observe(0.25)
    if used:
        gpu.labels(device="cuda:0").set(used)
    return generate_latest(registry)


def test_user_samples_replace_ours_of_their_model_only() -> None:
    text = tutorial(CollectorRegistry(), "iris", 9)
    samples = expose({"iris": busy(), "fraud": busy()}, text)
    assert pick(samples, "inference_requests_total", model="iris", status="success") == 9
    assert pick(samples, "inference_requests_total", model="iris", status="error") is None
    assert pick(samples, "inference_requests_total", model="fraud", status="error") == 1
    assert pick(samples, "inference_duration_seconds_count", model="iris") == 9
    assert pick(samples, "inference_duration_seconds_bucket", model="iris", le="0.5") == 9
    assert pick(samples, "inference_duration_seconds_count", model="fraud") == 2


def test_user_families_of_their_own_are_added() -> None:
    registry = CollectorRegistry()
    Counter("tokens_total", "Words, with\nlines", ["kind"], registry=registry).labels("} x").inc(4)
    samples = expose({"iris": busy()}, generate_latest(registry))
    assert pick(samples, "tokens_total", kind="} x") == 4
    assert pick(samples, "tokens_created", kind="} x") is None


def test_a_family_of_another_type_cannot_spoil_ours() -> None:
    registry = CollectorRegistry()
    Gauge("salver_batch_size", "mine", ["model"], registry=registry).labels("iris").set(3)
    samples = expose({"iris": busy()}, generate_latest(registry))
    assert pick(samples, "salver_batch_size", model="iris") is None
    assert pick(samples, "salver_batch_size_count", model="iris", version="1") == 2


def test_instances_add_up_and_gauges_keep_the_largest() -> None:
    texts = [
        tutorial(CollectorRegistry(), "iris", 2, used=10),
        tutorial(CollectorRegistry(), "iris", 3, used=30),
        b"",
    ]
    pieces = exposition([], [], {"cuda:0": 1}, added_up(texts))
    samples = samples_of(b"".join(pieces))
    assert pick(samples, "inference_requests_total", model="iris", status="success") == 5
    assert pick(samples, "inference_duration_seconds_sum", model="iris") == 1.25
    assert pick(samples, "inference_duration_seconds_bucket", model="iris", le="+Inf") == 5
    assert pick(samples, "gpu_memory_usage_bytes", device="cuda:0") == 30


def test_each_load_in_a_process_registers_the_same_names() -> None:
    for owner in ("first", "second"):
        with own_registry(owner):
            counter = Counter("twice_total", "t", ["model"])
        counter.labels("iris").inc(2)
    assert added_up([user_metrics.exposition()])["twice_total"].samples == {
        'twice_total{model="iris"}': "4.0"
    }
    forget("first")
    assert b'twice_total{model="iris"} 2.0' in user_metrics.exposition()
    forget("second")
    assert b"twice_total" not in user_metrics.exposition()


def test_a_load_that_fails_leaves_nothing() -> None:
    with pytest.raises(ValueError, match="Duplicated"), own_registry("broken"):
        [Counter("broken_total", "b") for _ in range(2)]
    assert b"broken_total" not in user_metrics.exposition()


def test_the_process_itself_is_not_user_code() -> None:
    assert b"process_" not in user_metrics.exposition()
    assert b"python_info" not in user_metrics.exposition()


def test_a_collector_that_fails_spares_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def collect(self) -> Any:
            raise OSError("no card")

        def describe(self) -> list[Any]:
            return []

    registry = CollectorRegistry()
    registry.register(Broken())  # type: ignore[arg-type]
    user_metrics.keep("broken", registry)
    with own_registry("sound"):
        Counter("sound_total", "s").inc()
    assert b"sound_total 1.0" in user_metrics.exposition()
    assert "cannot be collected" in caplog.text
    forget("broken")
    forget("sound")


def monitored(model: str, status: str) -> float:
    return monitor._metrics()[0].labels(model, status)._value.get()


def test_the_decorator_counts_calls_and_errors_and_keeps_hints() -> None:
    @salver.monitor_inference("m1")
    def predict(x: int) -> float:
        """Halves."""
        return 1 / x

    assert predict(2) == 0.5
    with pytest.raises(ZeroDivisionError):
        predict(0)
    assert (monitored("m1", "success"), monitored("m1", "error")) == (1, 1)
    assert inspect.signature(predict).return_annotation == "float"
    assert predict.__doc__ == "Halves."
    assert b'inference_duration_seconds_count{model="m1"} 2.0' in user_metrics.exposition()


def test_the_decorator_keeps_coroutines_and_generators_what_they_are() -> None:
    @salver.monitor_inference("m2")
    async def ask() -> int:
        await asyncio.sleep(0)
        return 3

    @salver.monitor_inference("m2")
    def items() -> Iterator[int]:
        yield from (1, 2)

    @salver.monitor_inference("m2")
    async def later() -> AsyncIterator[int]:
        yield 4

    async def main() -> list[int]:
        return [await ask(), *[item async for item in later()]]

    assert inspect.iscoroutinefunction(ask)
    assert inspect.isgeneratorfunction(items)
    assert inspect.isasyncgenfunction(later)
    assert [*items(), *asyncio.run(main())] == [1, 2, 3, 4]
    assert monitored("m2", "success") == 3


def test_a_stream_that_is_left_early_is_no_error() -> None:
    @salver.monitor_inference("m3")
    def items() -> Iterator[int]:
        yield from range(10)

    stream = items()
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert (monitored("m3", "success"), monitored("m3", "error")) == (1, 0)


class Card:
    """Stands for NVIDIA's library: two cards, of which the second does not answer."""

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:
        device._obj.value = 1 + index
        return index

    def nvmlDeviceGetMemoryInfo(self, device: Any, found: Any) -> int:
        found._obj.used = 123
        return 0


def test_memory_of_cards_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "nvml", Card)
    assert memory.device_bytes() == {"cuda:0": 123}


def test_memory_of_processes() -> None:
    assert memory.resident_bytes() > 1 << 20
    assert memory.resident_bytes(1 << 30) == 0
