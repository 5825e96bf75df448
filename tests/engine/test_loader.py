from __future__ import annotations

import asyncio
import os
import queue
import signal
import threading
import weakref
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from salver.config import Instances, ModelConfig, ServerConfig, Warmup
from salver.engine import loader as module
from salver.engine import placement
from salver.engine.engine import Engine
from salver.engine.inline import LoopBudget
from salver.engine.instances import ThreadInstance
from salver.engine.loader import Loader
from salver.errors import LoadFailed
from salver.interfaces import LoadSpec, Traits, VersionOnDisk
from salver.observe.memory import resident_bytes
from salver.observe.statistics import ModelStatistics
from salver.signature import Method, Signature, TensorSpec
from salver.types import FP32, ModelRef, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from salver.engine.generation import Generation

HERE = Path()
NO_CALLER = SimpleNamespace(ask=None)
SAFE = Traits(holds_gil=False, thread_safe=True)
UNSAFE = Traits(holds_gil=False)
X = TensorSpec(name="x", dtype=FP32, shape=(-1, 2))


def test_a_thread_holds_nothing_when_its_end_is_known() -> None:
    """It may stay for a while, and unloading gives back only what nobody holds."""

    class Model:
        def close(self) -> None:
            may_end.wait()

    may_end, held = threading.Event(), queue.SimpleQueue[Any]()
    model = Model()
    alive = weakref.ref(model)
    ending = module.in_thread(module.release, [model])
    del model
    ending.add_done_callback(lambda _: held.put(alive()))
    may_end.set()
    assert held.get() is None


class Model:
    """Says in which threads it ran."""

    signature = Signature({"m": Method(inputs=(X,), outputs=(X,), batching="rows")})

    def __init__(self, traits: Traits) -> None:
        self.traits = traits
        self.num_runs = 0
        self.is_closed = False

    def run(self, work: Any, emit: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        self.num_runs += 1
        return Rows(Tensors(x=Tensor.of(work.inputs["x"])))

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


class Runtime:
    """Makes models; while `gate` is closed it waits."""

    name = "fake"

    def __init__(self, traits: Traits, error: Exception | None = None) -> None:
        self.traits = traits
        self.error = error
        self.models: list[Model] = []
        self.specs: list[LoadSpec] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def load(self, spec: LoadSpec) -> Model:
        self.specs.append(spec)
        self.begun.set()
        self.gate.wait()
        if self.error is not None:
            raise self.error
        self.models.append(Model(self.traits))
        return self.models[-1]


class Bench:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    async def load(self, runtime: Any, path: Path = HERE, **config: Any) -> Generation:
        self._monkeypatch.setattr(module, "detect", lambda path, config: (runtime, None))
        made = Loader(ServerConfig(), lambda: 1, LoopBudget(), cast("Any", NO_CALLER))
        version = VersionOnDisk(ModelRef("m", "1"), path, "s", ModelConfig(**config))
        return await made.load(version, 1, ModelStatistics())

    def run(self, test: Callable[[], Any]) -> None:
        async def guarded() -> None:
            async with asyncio.timeout(20):
                await test()

        asyncio.run(guarded())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


@pytest.mark.parametrize(("traits", "copies"), [(SAFE, 1), (UNSAFE, 3)])
def test_threads_share_only_models_that_allow_it(bench: Bench, traits: Traits, copies: int) -> None:
    async def test() -> None:
        runtime = Runtime(traits)
        instances = Instances(count=3, isolation="thread")
        generation = await bench.load(runtime, instances=instances, warmup=Warmup(runs=2))
        assert [model.num_runs for model in runtime.models] == [2] * copies
        assert generation.target.num_instances == 3
        await generation.retire(0)
        assert all(model.is_closed for model in runtime.models)

    bench.run(test)


def test_short_runs_happen_inline_and_long_ones_in_a_thread(bench: Bench) -> None:
    async def test() -> None:
        generation = await bench.load(Runtime(SAFE))
        assert generation.target.num_instances in (1, 2)
        assert any(isinstance(i, ThreadInstance) for i in generation.target._instances)

    bench.run(test)


def test_workers_beside_an_inline_copy_are_warm_too(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    runtime = import_module("worker_models").TallyRuntime()
    monkeypatch.setattr(placement, "INLINE_BUDGET_NS", 10**12)
    tally = tmp_path / "tally"

    async def test() -> None:
        config = {"instances": Instances(count=2), "warmup": Warmup(runs=2)}
        generation = await bench.load(runtime, tally, **config)
        pids = [os.getpid(), *(worker.pid for worker in generation._workers)]
        assert Counter(tally.read_text().split()) == {str(pid): 2 for pid in pids}
        assert len(pids) == 3
        worker, _ = generation._workers
        up = asyncio.Event()
        told = SimpleNamespace(instance_up=lambda _: up.set(), instance_down=lambda _: None)
        worker.watcher = cast("Any", told)
        os.kill(worker.pid, signal.SIGKILL)
        await up.wait()
        assert tally.read_text().split()[-2:] == [str(worker.pid)] * 2
        await generation.retire(0)

    bench.run(test)


def test_what_fails_after_the_load_closes_the_model(bench: Bench) -> None:
    async def test() -> None:
        runtime = Runtime(SAFE)
        with pytest.raises(LoadFailed, match="default_method"):
            await bench.load(runtime, default_method="nope")
        assert runtime.models[0].is_closed

    bench.run(test)


def test_any_failure_is_a_load_failure(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        with pytest.raises(LoadFailed, match="m version 1: ValueError: odd"):
            await bench.load(Runtime(SAFE, ValueError("odd")))

    bench.run(test)
    assert "loading m version 1 failed" in caplog.text


def test_a_cancelled_load_knows_it_and_its_model_is_closed(bench: Bench) -> None:
    async def test() -> None:
        runtime = Runtime(SAFE)
        runtime.gate.clear()
        loading = asyncio.ensure_future(bench.load(runtime))
        await asyncio.to_thread(runtime.begun.wait)
        assert not runtime.specs[0].cancelled()
        loading.cancel()
        await asyncio.wait([loading])
        assert runtime.specs[0].cancelled()
        runtime.gate.set()
        for thread in threading.enumerate():
            if thread.name == "load":
                await asyncio.to_thread(thread.join)
        assert runtime.models[0].is_closed

    bench.run(test)


def big_onnx(path: Path, megabytes: int) -> None:
    """A product with a matrix of that size, whose numbers are not all equal."""
    from onnx import TensorProto, helper, numpy_helper, save

    width = 1024
    matrix = np.random.default_rng(0).random((width, megabytes * 256), np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", megabytes * 256])
    node = helper.make_node("MatMul", ["x", "k"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(matrix, "k")])
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))


def test_unloading_gives_the_memory_back(tmp_path: Path) -> None:
    """At least four fifths of it, from the second load on, for the first one also imports."""
    big_onnx(tmp_path / "model.onnx", 100)

    async def test() -> None:
        engine = Engine(ServerConfig(), lambda: 1)
        ref = ModelRef("m", "1")
        version = VersionOnDisk(ref, tmp_path / "model.onnx", "s", ModelConfig())

        async def unload() -> None:
            await engine.unload(ref)
            await asyncio.gather(*engine._ends)

        await engine.load(version)
        await unload()
        before = resident_bytes()
        await engine.load(version)
        generation = engine.find(ref)
        loaded = resident_bytes()
        assert loaded - before > 90e6
        assert generation.memory_bytes > 90e6
        del generation
        await unload()
        assert loaded - resident_bytes() >= 0.8 * (loaded - before)

    asyncio.run(test())
