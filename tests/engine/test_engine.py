from __future__ import annotations

import asyncio
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest

from salver.config import ModelConfig, ServerConfig
from salver.engine.engine import MAX_DEPTH, Engine
from salver.engine.generation import Generation
from salver.errors import (
    Cancelled,
    InvalidInput,
    LoadFailed,
    NotFound,
    Overloaded,
    SalverError,
    Unavailable,
)
from salver.interfaces import VersionOnDisk
from salver.signature import Method, Signature, TensorSpec
from salver.types import FP32, Call, ModelRef, Object, Request, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from salver.observe.statistics import ModelStatistics

X = TensorSpec(name="x", dtype=FP32, shape=(-1, 1))
SIGNATURE = Signature({"predict": Method(inputs=(X,), outputs=(X,), batching="rows")})
REQUEST = Request(Tensors(x=Tensor(FP32, (1, 1), [1.0])))


class Target:
    """Keeps calls until it is stopped; `full` refuses them."""

    queue_depth = 0
    num_instances = 1

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.is_ready = True
        self.is_full = False

    def submit(self, call: Call, now: int) -> None:
        if self.is_full:
            raise Overloaded("full")
        self.calls.append(call)

    def cancel(self, call: Call, why: Exception) -> None:
        self.calls.remove(call)
        call.lease.end()

    async def stop(self, grace_s: float) -> None:
        for call in list(self.calls):
            self.cancel(call, Cancelled("stopped"))


class Loader:
    """Gives generations at once, or when `gate` opens; fails with `error`, if that is not for the
    version `broken` alone.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.broken = ""
        self.gate: asyncio.Event | None = None
        self.closed: list[int] = []

    async def load(
        self,
        version: VersionOnDisk,
        number: int,
        statistics: ModelStatistics,
        *,
        has_host: bool = False,
    ) -> Generation:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None and self.broken in ("", version.ref.version):
            raise self.error

        async def close() -> None:
            self.closed.append(number)

        return Generation(
            version.ref,
            number,
            config=version.config,
            runtime="fake",
            signature=SIGNATURE,
            target=cast("Any", Target()),
            statistics=statistics,
            batches=True,
            close=close,
        )


class Bench:
    def __init__(self, mode: Literal["poll", "explicit"] = "poll") -> None:
        self.engine = Engine(ServerConfig(drain_timeout_s=5, mode=mode), lambda: 1)
        self.loader = self.engine._loader = cast("Any", Loader())
        self.engine.is_started = True

    async def load(self, version: str, name: str = "m", **config: Any) -> Generation:
        await self.load_all(version, name=name, **config)
        return self.engine.models[name].versions[version]

    async def load_all(self, *versions: str, name: str = "m", **config: Any) -> None:
        refs = [ModelRef(name, version) for version in versions]
        made = ModelConfig(**config)
        await self.engine.load(*(VersionOnDisk(ref, Path(), "s", made) for ref in refs))

    def submit(self, version: str = "", name: str = "m", depth: int = 0) -> Call:
        sink = cast("Any", None)
        return self.engine.submit(ModelRef(name, version), REQUEST, sink, depth=depth)

    def target(self, version: str, name: str = "m") -> Target:
        return cast("Target", self.engine.find(ModelRef(name, version)).target)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def on_loop(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        async def guarded() -> None:
            async with asyncio.timeout(20):
                await test(Bench())

        asyncio.run(guarded())

    del run.__wrapped__  # type: ignore[attr-defined]
    return run


@on_loop
async def test_what_is_not_loaded_yet_is_told_how_it_would_be(at: Bench) -> None:
    with pytest.raises(NotFound, match=r"'h2' is not served here\. Served: nothing yet"):
        at.submit(name="h2")
    with pytest.raises(NotFound, match=r"'h2' is not served here; .* `salver load NAME` loads it"):
        Bench("explicit").submit(name="h2")


@on_loop
async def test_a_call_goes_to_the_latest_version_or_the_named_one(at: Bench) -> None:
    for version in ("9", "10", "1"):
        await at.load(version)
    assert at.submit().lease is at.engine.models["m"].versions["10"]
    assert at.submit("9").lease is at.engine.models["m"].versions["9"]
    assert at.submit(name="").lease is at.engine.models["m"].versions["10"]


@on_loop
async def test_labels_name_versions(at: Bench) -> None:
    labels = {"stable": "1", "2": "1", "gone": "7"}
    await at.load("1", version_labels=labels)
    await at.load("2", version_labels=labels)
    assert at.engine.find(ModelRef("m", "stable")).ref.version == "1"
    assert at.engine.find(ModelRef("m", "2")).ref.version == "2"
    with pytest.raises(NotFound, match="no version '7'; served: 1, 2; labels: 2, gone, stable"):
        at.engine.find(ModelRef("m", "gone"))


@on_loop
async def test_what_is_not_there_is_named(at: Bench) -> None:
    with pytest.raises(NotFound, match="nothing yet"):
        at.engine.find(ModelRef("m"))
    await at.load("1")
    with pytest.raises(NotFound, match=r"Did you mean 'm'|Served: m"):
        at.engine.find(ModelRef("mm"))
    with pytest.raises(NotFound, match="has no version '2'; served: 1"):
        at.engine.find(ModelRef("m", "2"))
    await at.load("1", name="n")
    with pytest.raises(NotFound, match="name the model"):
        at.engine.find(ModelRef(""))


@on_loop
async def test_a_load_becomes_visible_when_it_is_over(at: Bench) -> None:
    at.loader.gate = asyncio.Event()
    loading = asyncio.ensure_future(at.load("1"))
    await turns()
    with pytest.raises(Unavailable, match=r"not ready \(loading\)"):
        at.submit()
    assert not at.engine.is_ready
    at.loader.gate.set()
    await loading
    at.submit()
    assert at.engine.is_ready


@on_loop
async def test_a_failed_load_changes_nothing_but_a_new_versions_state(at: Bench) -> None:
    first = await at.load("1")
    at.loader.error = LoadFailed("no good")
    for version in ("1", "2"):
        with pytest.raises(LoadFailed):
            await at.load(version)
    assert at.engine.find(ModelRef("m")) is first
    assert at.engine.models["m"].states["1"].name == "READY"
    with pytest.raises(Unavailable, match="no good"):
        at.engine.find(ModelRef("m", "2"))
    assert at.engine.is_ready
    at.engine.forget(ModelRef("m", "2"))
    with pytest.raises(NotFound):
        at.engine.find(ModelRef("m", "2"))


@on_loop
async def test_versions_of_one_load_become_visible_together(at: Bench) -> None:
    at.loader.gate = asyncio.Event()
    loading = asyncio.ensure_future(at.load_all("1", "2"))
    await turns()
    assert not at.engine.models["m"].versions
    at.loader.gate.set()
    await loading
    assert set(at.engine.models["m"].versions) == {"1", "2"}


@on_loop
async def test_of_versions_that_are_loaded_together_all_or_none_are_served(at: Bench) -> None:
    old = await at.load("1")
    at.loader.error, at.loader.broken = LoadFailed("no good"), "3"
    with pytest.raises(LoadFailed, match="no good"):
        await at.load_all("1", "2", "3")
    await turns()
    model = at.engine.models["m"]
    assert model.versions == {"1": old}
    assert model.states == {
        "1": ("READY", "not loaded, as m version 3 could not be"),
        "2": ("UNAVAILABLE", "not loaded, as m version 3 could not be"),
        "3": ("UNAVAILABLE", "loading failed: no good"),
    }
    assert at.loader.closed == [2, 3]
    assert list(model.counters) == ["1"]
    assert at.submit().lease is old


@on_loop
async def test_a_cancelled_load_leaves_a_reason(at: Bench) -> None:
    at.loader.gate = asyncio.Event()
    loading = asyncio.ensure_future(at.load("1"))
    await turns()
    loading.cancel()
    await asyncio.wait([loading])
    assert at.engine.models["m"].states["1"] == (
        "UNAVAILABLE",
        "loading failed: it was interrupted",
    )
    assert not at.engine.is_ready


@on_loop
async def test_a_swap_lets_the_old_generations_calls_finish(at: Bench) -> None:
    old = await at.load("1")
    call = at.submit()
    new = await at.load("1")
    assert at.submit().lease is new
    await turns()
    assert at.loader.closed == []
    cast("Target", old.target).cancel(call, Cancelled("done"))
    await turns()
    assert at.loader.closed == [old.number]


@on_loop
async def test_counters_go_on_over_swaps_and_never_shrink(at: Bench) -> None:
    first = await at.load("1")
    first.statistics.call(5, 1, None)
    second = await at.load("1")
    assert second.statistics.success.times == 1
    third = await at.load("2")
    third.statistics.call(5, 1, None)
    await at.engine.unload(ModelRef("m", "1"))
    at.engine.forget(ModelRef("m", "1"))
    model = at.engine.models["m"]
    assert model.statistics.success.times == 2
    await turns()
    assert list(model.counters) == ["2"]
    assert model.statistics.success.times == 2


@on_loop
async def test_an_unloaded_name_is_known_and_a_forgotten_one_is_not(at: Bench) -> None:
    await at.load("1")
    await at.load("2")
    await at.engine.unload(ModelRef("m"))
    assert at.engine.is_ready
    with pytest.raises(Unavailable, match="unloaded"):
        at.submit()
    at.engine.forget(ModelRef("m", "1"))
    assert "m" in at.engine.models
    at.engine.forget(ModelRef("m", "2"))
    assert at.engine.models == {}
    with pytest.raises(NotFound):
        await at.engine.unload(ModelRef("m"))


@on_loop
async def test_an_unload_waits_for_the_load_before_it(at: Bench) -> None:
    at.loader.gate = asyncio.Event()
    loading = asyncio.ensure_future(at.load("1"))
    await turns()
    unloading = asyncio.ensure_future(at.engine.unload(ModelRef("m")))
    await turns()
    at.loader.gate.set()
    await asyncio.gather(loading, unloading)
    assert at.engine.models["m"].versions == {}
    await turns()
    assert at.loader.closed == [1]


@on_loop
async def test_readiness_needs_a_version_that_takes_calls(at: Bench) -> None:
    await at.load("1")
    await at.load("2")
    at.target("1").is_ready = False
    assert at.engine.is_ready
    at.target("2").is_ready = False
    assert not at.engine.is_ready
    at.target("2").is_ready = True
    at.engine.is_started = False
    assert not at.engine.is_ready


@on_loop
async def test_refused_calls_hold_no_lease(at: Bench) -> None:
    generation = await at.load("1")
    at.target("1").is_full = True
    with pytest.raises(Overloaded):
        at.submit()
    assert generation.leases == 0
    assert generation.statistics.outcomes()["rejected"] == 1
    with pytest.raises(InvalidInput, match="deep"):
        at.submit(depth=MAX_DEPTH + 1)


@on_loop
async def test_wrong_requests_count_once_for_their_model(at: Bench) -> None:
    generation = await at.load("1")

    def refused(payload: Any, method: str = "", outputs: tuple[str, ...] = ()) -> dict[str, int]:
        before = generation.statistics.outcomes()
        request = Request(payload, method, outputs=outputs)
        with pytest.raises(SalverError):
            at.engine.submit(ModelRef("m"), request, cast("Any", None))
        assert generation.leases == 0
        after = generation.statistics.outcomes()
        return {name: after[name] - before[name] for name in after if after[name] != before[name]}

    assert refused(Tensors(other=Tensor.of([1.0]))) == {"invalid": 1}
    assert refused(Object("row", {"other": 1})) == {"invalid": 1}
    assert refused(REQUEST.payload, outputs=("other",)) == {"invalid": 1}
    assert refused(REQUEST.payload, method="other") == {"other": 1}
    at.engine.count_refused(ModelRef("m"), InvalidInput("no JSON"))
    at.engine.count_refused(ModelRef("missing"), InvalidInput("no JSON"))
    assert generation.statistics.outcomes()["invalid"] == 4


@on_loop
async def test_stopping_waits_for_calls_and_what_they_ask_of_others(at: Bench) -> None:
    await at.load("1")
    await at.load("1", name="inner")
    outer = at.submit()
    stopping = asyncio.ensure_future(at.engine.stop(5))
    await turns()
    with pytest.raises(Unavailable, match="shutting down"):
        at.submit()
    inner = at.submit(name="inner", depth=1)
    assert at.loader.closed == []
    at.target("1", "inner").cancel(inner, Cancelled("done"))
    at.target("1").cancel(outer, Cancelled("done"))
    await stopping
    assert sorted(at.loader.closed) == [1, 2]


@on_loop
async def test_stopping_ends_what_outlasts_the_drain(at: Bench) -> None:
    await at.load("1")
    at.submit()
    await at.engine.stop(0)
    assert at.target("1").calls == []
    assert at.loader.closed == [1]


@on_loop
async def test_a_load_that_comes_too_late_is_closed(at: Bench) -> None:
    at.loader.gate = asyncio.Event()
    loading = asyncio.ensure_future(at.load("1"))
    await turns()
    await at.engine.stop(0)
    at.loader.gate.set()
    with pytest.raises(Unavailable):
        await loading
    assert at.loader.closed == [1]
