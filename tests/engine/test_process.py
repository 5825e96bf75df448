from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uvloop

from salver.config import Instances, ModelConfig
from salver.engine import process
from salver.engine.frames import STREAM_WINDOW, Pong
from salver.engine.inline import LoopBudget
from salver.engine.process import ProcessInstance
from salver.engine.rerun import WorkerDied
from salver.engine.stillness import IDLE_NS, STILL_BEATS
from salver.engine.target import BatchedTarget
from salver.engine.worker import NICENESS
from salver.errors import (
    Cancelled,
    InvalidInput,
    LoadFailed,
    ModelFailed,
    NotFound,
    SalverError,
    Unavailable,
    Undeliverable,
)
from salver.interfaces import LoadSpec
from salver.observe.statistics import ModelStatistics
from salver.schedulers.dynamic import DynamicScheduler
from salver.types import (
    Call,
    CallContext,
    Loose,
    ModelRef,
    Request,
    Response,
    Rows,
    Tensor,
    Tensors,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from salver.types import Array

GUARD_S = 30.0
RUNTIME = "worker_models:SampleRuntime"
REF = ModelRef("sample", "1")
DEFAULTS = Instances()


@pytest.fixture(autouse=True)
def _workers_find_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setattr(process, "FIRST_BACKOFF_S", 0.001)


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**fixtures: Any) -> None:
        async def guarded() -> None:
            async with asyncio.timeout(GUARD_S):
                await test(**fixtures)

        uvloop.run(guarded())

    return run


async def no_other_model(*_: Any) -> Tensors:
    raise NotFound("there is no other model")


@asynccontextmanager
async def launched(
    path: Path,
    instances: Instances = DEFAULTS,
    *,
    options: dict[str, Any] | None = None,
    caller: Callable[..., Awaitable[Tensors]] = no_other_model,
    warn: Callable[[str], None] = lambda message: None,
) -> AsyncIterator[ProcessInstance]:
    config = ModelConfig(instances=instances, options=options or {})
    instance = await ProcessInstance.launch(
        RUNTIME,
        LoadSpec(path=path, ref=REF, config=config, warn=warn),
        loop=asyncio.get_running_loop(),
        clock=time.monotonic_ns,
        caller=caller,
    )
    try:
        yield instance
    finally:
        await instance.stop(5.0)


class Outcome:
    """One run of an instance: its items, its end, and moments to wait for."""

    def __init__(self, instance: ProcessInstance, work: Work) -> None:
        self.items: list[Tensors] = []
        self.wanted = 0
        self.reached = asyncio.Event()
        self.end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.on_item: Callable[[], None] = lambda: None
        instance.start(work, self._emit, self._done)

    def _emit(self, index: int, item: Tensors) -> None:
        self.items.append(item)
        self.on_item()
        if len(self.items) == self.wanted:
            self.reached.set()

    def _done(self, results: Any, cost_ns: int) -> None:
        self.end.set_result(results)

    async def reach(self, num_items: int) -> None:
        self.wanted = num_items
        if len(self.items) < num_items:
            await self.reached.wait()


def work(method: str, inputs: dict[str, Any], offsets: list[int] | None = None) -> Work:
    offsets = offsets or [0, 1]
    return Work(method, inputs, offsets, (), [{}] * (len(offsets) - 1))


def single(method: str, n: int = 0) -> Work:
    return work(method, {"n": np.array([n])})


def numbers(items: list[Tensors]) -> list[int]:
    return [int(item["n"].array()[0]) for item in items]


def has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


class Watch:
    """Records what an instance tells its watcher."""

    def __init__(self, instance: ProcessInstance) -> None:
        self.up = asyncio.Event()
        self.failed = asyncio.Event()
        self.downs = 0
        instance.watcher = self

    def instance_up(self, instance: ProcessInstance) -> None:
        self.up.set()

    def instance_down(self, instance: ProcessInstance) -> None:
        self.downs += 1

    def instance_failed(self, instance: ProcessInstance) -> None:
        self.failed.set()


@on_loop
async def test_a_run_gives_rows(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        assert list(instance.signature.methods)[:2] == ["double", "upper"]
        assert instance.traits.max_batch == 8
        x = np.arange(6, dtype=np.float32).reshape(3, 2)
        results = await Outcome(instance, work("double", {"x": x}, [0, 1, 3])).end
        assert isinstance(results, Rows)
        np.testing.assert_array_equal(results.tensors["x"].array(), x * 2)
        text = np.array([b"a", b"", b"\xff"], np.object_)
        results = await Outcome(instance, work("upper", {"text": text}, [0, 3])).end
        assert results.tensors["text"].array().tolist() == [b"A", b"", b"\xff"]


@on_loop
async def test_a_run_gives_each_call_its_own_result(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        xs = [np.zeros((1, 2), np.float32), np.zeros((0, 2), np.float32)]
        one, two = await Outcome(instance, work("items", {"x": xs}, [0, 1, 2])).end
        assert one["x"].array().tolist() == [[1, 1]]
        assert isinstance(two, InvalidInput)


@on_loop
async def test_what_a_model_raises_ends_its_run_only(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        pid = instance.pid
        for method, words in (("fail", "ValueError: no such luck"), ("nothing", "TypeError")):
            error = await Outcome(instance, single(method)).end
            assert isinstance(error, ModelFailed)
            assert words in error.message
        assert numbers(await Outcome(instance, single("print")).end) == [0]
        assert instance.pid == pid


@on_loop
async def test_a_worker_yields_to_the_server(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, instance.pid) == min(own + NICENESS, 19)


@on_loop
async def test_what_cannot_be_sent_to_a_worker_ends_its_run_only(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        unsendable = single("print")
        unsendable.parameters = [{"own": 1 << 100}]
        assert isinstance(await Outcome(instance, unsendable).end, OverflowError)
        assert numbers(await Outcome(instance, single("print")).end) == [0]


def texts(num_texts: int) -> Work:
    return work("upper", {"text": np.array([b"a"] * num_texts, np.object_)}, [0, num_texts])


@pytest.mark.parametrize(("num_texts", "is_beside"), [(4096, False), (4097, True)])
def test_many_texts_are_packed_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_texts: int, is_beside: bool
) -> None:
    threads = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            threads.append(threading.current_thread())
            return function(*arguments)

        return run

    @on_loop
    async def test() -> None:
        async with launched(tmp_path) as instance:
            results = await Outcome(instance, texts(num_texts)).end
            assert results.tensors["text"].array().tolist() == [b"A"] * num_texts

    for name in ("pack_work", "unpack_results"):
        monkeypatch.setattr(process, name, noted(getattr(process, name)))
    test()
    assert [thread is not threading.main_thread() for thread in threads] == [is_beside] * 2


@on_loop
async def test_many_texts_that_cannot_be_sent_end_their_run_only(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        unsendable = texts(5000)
        unsendable.parameters = [{"own": 1 << 100}]
        assert isinstance(await Outcome(instance, unsendable).end, OverflowError)
        assert numbers(await Outcome(instance, single("print")).end) == [0]


@pytest.mark.parametrize("name", ["pack_work", "unpack_results"])
def test_a_worker_may_die_while_its_texts_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    function = getattr(process, name)

    @on_loop
    async def test() -> None:
        async with launched(tmp_path) as instance:

            def deadly(*arguments: Any) -> Any:
                os.kill(instance.pid, signal.SIGKILL)
                return function(*arguments)

            watch = Watch(instance)
            monkeypatch.setattr(process, name, deadly)
            outcome = await Outcome(instance, texts(5000)).end
            # What it gave before it died may still be taken.
            assert isinstance(
                outcome, WorkerDied | Rows if name == "unpack_results" else WorkerDied
            )
            monkeypatch.setattr(process, name, function)
            await watch.up.wait()
            assert isinstance(await Outcome(instance, texts(5000)).end, Rows)

    test()


@on_loop
async def test_a_worker_that_sends_broken_texts_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise InvalidInput("cut off")

    async with launched(tmp_path) as instance:
        monkeypatch.setattr(process, "unpack_results", broken)
        assert isinstance(await Outcome(instance, texts(5000)).end, WorkerDied)
        assert "what the worker sent cannot be handled" in caplog.text


@on_loop
async def test_a_stream_keeps_its_order(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        outcome = Outcome(instance, single("count", 100))
        assert len(await outcome.end) == 1
        assert numbers(outcome.items) == list(range(100))


@on_loop
async def test_a_reader_that_lags_stops_the_model(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        outcome = Outcome(instance, single("count", 100))
        outcome.on_item = lambda: instance.pause(0)
        await outcome.reach(STREAM_WINDOW)
        # An answer to a question overtakes nothing: what the model had sent would be here.
        await instance.metrics()
        await instance.metrics()
        assert len(outcome.items) == STREAM_WINDOW
        outcome.on_item = lambda: None
        instance.resume(0)
        await outcome.end
        assert numbers(outcome.items) == list(range(100))


@on_loop
async def test_a_cancelled_stream_ends_though_its_reader_is_gone(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        outcome = Outcome(instance, single("count", 1 << 40))
        outcome.on_item = lambda: instance.pause(0)
        await outcome.reach(STREAM_WINDOW)
        instance.cancel(0)
        assert isinstance(await outcome.end, SalverError)
        assert numbers(await Outcome(instance, single("print")).end) == [0]


@on_loop
async def test_cancel_reaches_a_running_model(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        outcome = Outcome(instance, single("wait"))
        await outcome.reach(1)
        instance.cancel(0)
        assert numbers(await outcome.end) == [-1]


@on_loop
async def test_huge_tensors_go_both_ways(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        for rows in (1000, 4096):
            x = np.arange(rows * 4096, dtype=np.float32).reshape(rows, 4096)
            results = await Outcome(instance, work("double", {"x": x}, [0, rows])).end
            np.testing.assert_array_equal(results.tensors["x"].array(), x * 2)


@on_loop
async def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        watch = Watch(instance)
        outcome = Outcome(instance, single("wait"))
        await outcome.reach(1)
        killed = instance.pid
        os.kill(killed, signal.SIGKILL)
        died = await outcome.end
        assert isinstance(died, WorkerDied)
        assert (died.reason, died.hung) == ("was killed by signal 9 (Killed)", False)
        await watch.up.wait()
        assert watch.downs == 1
        assert instance.pid != killed
        assert numbers(await Outcome(instance, single("print")).end) == [0]


@on_loop
async def test_a_replacement_is_warm_before_it_takes_work(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        watch = Watch(instance)
        runs = []

        async def warm(again: ProcessInstance) -> None:
            result = await Outcome(again, single("print")).end
            runs.append((numbers(result), again.is_up, watch.up.is_set()))

        instance.warm = warm
        os.kill(instance.pid, signal.SIGKILL)
        await watch.up.wait()
        assert instance.is_up
        assert runs == [([0], False, False)]


@on_loop
async def test_a_warm_up_that_kills_the_replacement_is_left_out(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        watch = Watch(instance)
        deaths = []

        async def warm(again: ProcessInstance) -> None:
            deaths.append(await Outcome(again, work("kill", {"x": row(-1)})).end)

        instance.warm = warm
        os.kill(instance.pid, signal.SIGKILL)
        await watch.up.wait()
        assert [type(died) for died in deaths] == [WorkerDied]
        assert watch.downs == 1
        assert numbers(await Outcome(instance, single("print")).end) == [0]


@on_loop
async def test_a_replacement_that_fails_its_warm_up_is_replaced(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        watch = Watch(instance)
        pids = []

        async def warm(again: ProcessInstance) -> None:
            pids.append(again.pid)
            if len(pids) == 1:
                raise LoadFailed("the model fails on its own example")

        instance.warm = warm
        os.kill(instance.pid, signal.SIGKILL)
        await watch.up.wait()
        assert len(set(pids)) == 2
        assert instance.pid == pids[1]


@on_loop
async def test_work_for_a_worker_that_is_gone_ends_too(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        watch = Watch(instance)
        os.kill(instance.pid, signal.SIGKILL)
        assert isinstance(await Outcome(instance, single("print")).end, WorkerDied)
        assert not watch.up.is_set()
        assert isinstance(await Outcome(instance, single("print")).end, WorkerDied)
        await watch.up.wait()
        assert numbers(await Outcome(instance, single("print")).end) == [0]


@on_loop
async def test_a_run_that_holds_the_gil_too_long_is_ended(tmp_path: Path) -> None:
    async with launched(tmp_path, Instances(run_timeout_ms=50)) as instance:
        watch = Watch(instance)
        died = await Outcome(instance, single("hold")).end
        assert isinstance(died, WorkerDied)
        assert died.hung
        assert "run_timeout_ms=50" in died.reason
        await watch.up.wait()
        assert numbers(await Outcome(instance, single("print")).end) == [0]


class Turnstile:
    """Stands for a function; waits until that was called so many times."""

    def __init__(self, limit: int, function: Callable[[int], Any] = int) -> None:
        self.calls = 0
        self.reached = asyncio.Event()
        self._limit = limit
        self._function = function

    def __call__(self, *_: Any) -> Any:
        self.calls += 1
        if self.calls == self._limit:
            self.reached.set()
        return self._function(self.calls)


@on_loop
async def test_a_worker_that_answers_is_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it waits, and does not compute."""
    monkeypatch.setattr(process, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(process, "cpu_ns", lambda pid: 0)
    async with launched(tmp_path) as instance:
        answers = instance._handlers[Pong] = Turnstile(2 * STILL_BEATS)
        outcome = Outcome(instance, single("wait"))
        await answers.reached.wait()
        instance.cancel(0)
        assert numbers(await outcome.end) == [-1]


@on_loop
async def test_a_worker_that_computes_without_answering_is_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = Turnstile(3 * STILL_BEATS, lambda beat: beat * 2 * IDLE_NS)
    monkeypatch.setattr(process, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(process, "cpu_ns", beats)
    async with launched(tmp_path) as instance:
        outcome = Outcome(instance, single("hold"))
        await beats.reached.wait()
        assert instance.is_up
        os.kill(instance.pid, signal.SIGKILL)
        assert not (await outcome.end).hung


@on_loop
@pytest.mark.parametrize("is_busy", [True, False])
async def test_a_worker_that_is_frozen_is_replaced(
    is_busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once if it is at work, otherwise when it is given some."""
    async with launched(tmp_path) as instance:
        watch = Watch(instance)
        if is_busy:
            outcome = Outcome(instance, single("wait"))
            await outcome.reach(1)
        os.kill(instance.pid, signal.SIGSTOP)
        monkeypatch.setattr(process, "HEARTBEAT_S", 0.01)
        if not is_busy:
            outcome = Outcome(instance, single("print"))
        died = await outcome.end
        assert isinstance(died, WorkerDied)
        assert died.hung
        assert "neither answering nor computing" in died.reason
        monkeypatch.setattr(process, "HEARTBEAT_S", 1.0)
        await watch.up.wait()
        assert numbers(await Outcome(instance, single("print")).end) == [0]


@on_loop
async def test_a_worker_that_crashes_too_often_is_given_up(tmp_path: Path) -> None:
    async with launched(tmp_path, Instances(crash_limit=3)) as instance:
        watch = Watch(instance)
        (tmp_path / "dies_at_load").touch()
        os.kill(instance.pid, signal.SIGKILL)
        await watch.failed.wait()
        assert watch.downs == 1
        assert not watch.up.is_set()
        assert await instance.metrics() == b""


@on_loop
async def test_a_load_that_fails_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    for options, words in (
        ({"fails_to_load": True}, "there is nothing to load"),
        ({"dies_at_load": True}, "was killed by signal 9 .* while it loaded the model"),
    ):
        with pytest.raises(LoadFailed, match=words) as found:
            async with launched(tmp_path, options=options):
                pass
        assert found.value.retryable == ("dies_at_load" in options)
    assert not has_children()


@on_loop
async def test_a_cancelled_load_leaves_no_process(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    spec = LoadSpec(path=tmp_path, ref=REF, config=ModelConfig(options={"hangs_at_load": True}))
    loading = loop.create_task(
        ProcessInstance.launch(
            RUNTIME, spec, loop=loop, clock=time.monotonic_ns, caller=no_other_model
        )
    )
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert not has_children()


@on_loop
async def test_home_calls_inherit_deadline_and_depth(tmp_path: Path) -> None:
    calls: list[tuple[ModelRef, Request, CallContext, int]] = []

    async def caller(ref: ModelRef, request: Request, context: CallContext, depth: int) -> Tensors:
        calls.append((ref, request, context, depth))
        assert type(request.payload) is Loose
        return Tensors(n=Tensor.of(request.payload["n"].array() + 1))

    async with launched(tmp_path, caller=caller) as instance:
        asked = single("call", 4)
        asked.context = CallContext(deadline=5, priority=3)
        asked.deadline, asked.depth = 10, 2
        assert numbers(await Outcome(instance, asked).end) == [5]
    ((ref, request, context, depth),) = calls
    assert (ref.name, request.method, request.with_roles, depth) == ("other", "m", True, 3)
    assert context == CallContext(deadline=10, priority=3)


@on_loop
async def test_a_failed_home_call_is_raised_in_the_model(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        error = await Outcome(instance, single("call")).end
        assert isinstance(error, NotFound)
        assert error.message == "there is no other model"


class Callee:
    """Another model, which never answers; knows who has asked and who has given up."""

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()
        self.num_asked = 0
        self.num_left = 0

    async def __call__(self, *_: Any) -> Tensors:
        self.num_asked += 1
        self.is_asked.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            self.num_left += 1


@on_loop
async def test_home_calls_end_with_the_last_call_of_their_run(tmp_path: Path) -> None:
    callee = Callee()
    async with launched(tmp_path, caller=callee) as instance:
        asked = work("call", {"n": np.array([1, 2])}, [0, 1, 2])
        outcome = Outcome(instance, asked)
        await callee.is_asked.wait()
        instance.cancel(1)
        await instance.metrics()
        assert callee.num_left == 0
        instance.cancel(0)
        assert isinstance(await outcome.end, Cancelled)
        assert callee.num_left == 1
        assert numbers(await Outcome(instance, single("print")).end) == [0]


@on_loop
async def test_a_cancelled_run_asks_nobody(tmp_path: Path) -> None:
    callee = Callee()
    async with launched(tmp_path, caller=callee) as instance:
        outcome = Outcome(instance, single("wait_then_call"))
        await outcome.reach(1)
        instance.cancel(0)
        assert isinstance(await outcome.end, Cancelled)
        assert callee.num_asked == 0


@on_loop
async def test_output_of_user_code_is_logged_by_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "salver.worker")
    async with launched(tmp_path) as instance:
        await Outcome(instance, single("print")).end
    lines = [record.getMessage() for record in caplog.records if record.name == "salver.worker"]
    assert lines == [f"{REF}: {text}" for text in ("to stdout", "to stderr", "closed")]


@on_loop
async def test_a_traceback_is_a_warning_unless_nobody_sent_the_input(tmp_path: Path) -> None:
    warned: list[str] = []
    async with launched(tmp_path, warn=warned.append) as instance:
        trial = single("fail")
        trial.is_trial = True
        await Outcome(instance, trial).end
        assert warned == []
        await Outcome(instance, single("fail")).end
    (message,) = warned
    assert message.startswith("Traceback")
    assert message.endswith("ValueError: no such luck")


@on_loop
async def test_metrics_of_user_code_can_be_read(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        assert await instance.metrics() == b""
        await Outcome(instance, single("metrics")).end
        assert b"things_total 1.0" in await instance.metrics()


async def ended(process: int) -> None:
    """Waits for the end of a process that is not our child, by its descriptor; closes it."""
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(process, gone.set)
    await gone.wait()
    asyncio.get_running_loop().remove_reader(process)
    os.close(process)


@on_loop
async def test_stop_leaves_no_process(tmp_path: Path) -> None:
    async with launched(tmp_path) as instance:
        child = os.pidfd_open(numbers(await Outcome(instance, single("child")).end)[0])
        hung = Outcome(instance, single("wait"))
        await hung.reach(1)
        await instance.stop(0.01)
        assert isinstance(await hung.end, WorkerDied)
        with pytest.raises(ProcessLookupError):
            os.kill(instance.pid, 0)
        await ended(child)


SERVER = """
import asyncio, sys, time
from pathlib import Path
from test_process import no_other_model, Outcome, ProcessInstance, RUNTIME, REF, LoadSpec, single
from salver.config import ModelConfig

async def main():
    spec = LoadSpec(path=Path(sys.argv[1]), ref=REF, config=ModelConfig())
    loop = asyncio.get_running_loop()
    instance = await ProcessInstance.launch(
        RUNTIME, spec, loop=loop, clock=time.monotonic_ns, caller=no_other_model
    )
    await Outcome(instance, single("wait")).reach(1)
    print(instance.pid, flush=True)
    await loop.create_future()

asyncio.run(main())
"""


@on_loop
async def test_a_worker_dies_with_its_server(tmp_path: Path) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    worker = os.pidfd_open(int(await server.stdout.readline()))
    server.kill()
    await server.wait()
    await ended(worker)


@on_loop
async def test_restarts_leak_no_descriptor_and_no_memory(tmp_path: Path) -> None:
    def used() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("memfd:salver")

    async with launched(tmp_path, Instances(crash_limit=100)) as instance:
        watch = Watch(instance)
        x = np.ones((100, 1000), np.float32)
        await Outcome(instance, work("double", {"x": x}, [0, 100])).end
        gc.collect()
        before = used()
        # A server collects too seldom to depend on it.
        gc.disable()
        try:
            for _ in range(20):
                watch.up.clear()
                instance._crashes.clear()
                os.kill(instance.pid, signal.SIGKILL)
                await watch.up.wait()
                await Outcome(instance, work("double", {"x": x}, [0, 100])).end
            assert used() == before
        finally:
            gc.enable()


class Lease:
    ref = REF
    generation = 1

    def end(self) -> None:
        pass


class Gathered:
    """A sink that keeps every answer until all have come."""

    def __init__(self, num_calls: int) -> None:
        self.left = num_calls
        self.items: dict[int, Any] = {}
        self.all = asyncio.Event()

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        if not final:
            return
        index = int(call.request.id)
        assert index not in self.items
        self.items[index] = item
        self.left -= 1
        if not self.left:
            self.all.set()


@asynccontextmanager
async def served(
    path: Path, *, idempotent: bool, instances: Instances = DEFAULTS
) -> AsyncIterator[BatchedTarget]:
    async with launched(path, instances) as instance:
        target = BatchedTarget(
            REF,
            instance.signature,
            DynamicScheduler(ModelConfig(), 0),
            inline=None,
            instances=[instance],
            statistics=ModelStatistics(),
            budget=LoopBudget(),
            clock=time.monotonic_ns,
            loop=asyncio.get_running_loop(),
            is_idempotent=idempotent,
        )
        instance.watcher = target
        yield target
        await target.stop(5.0)


async def answers(target: BatchedTarget, method: str, inputs: list[Array]) -> list[Any]:
    """Submits one call per input in one turn of the loop, so that they share a batch."""
    sink = Gathered(len(inputs))
    for index, value in enumerate(inputs):
        request = Request(Tensors(), method, id=str(index))
        call = Call(request, sink, CallContext(), Lease(), time.monotonic_ns())  # type: ignore[arg-type]
        name = target._signature.methods[method].inputs[0].name
        call.inputs = Tensors({name: Tensor.of(value)})
        call.method, call.outputs = method, (name,)
        call.group = method
        target.submit(call, call.queued)
    await sink.all.wait()
    return [sink.items[index] for index in range(len(inputs))]


def row(value: float) -> Array:
    return np.full((1, 2), value, np.float32)


@on_loop
async def test_an_idempotent_call_is_run_again_on_the_replacement(tmp_path: Path) -> None:
    async with served(tmp_path, idempotent=True) as target:
        got = await answers(target, "once", [row(1), row(2)])
        assert [answer.tensor("x").array().tolist() for answer in got] == [[[2, 2]], [[4, 4]]]


@on_loop
async def test_a_call_that_may_not_run_twice_is_undeliverable(tmp_path: Path) -> None:
    async with served(tmp_path, idempotent=False) as target:
        (got,) = await answers(target, "once", [row(1)])
        assert isinstance(got, Undeliverable)
        (again,) = await answers(target, "once", [row(1)])
        assert isinstance(again, Response)


@on_loop
async def test_only_the_call_that_kills_workers_is_blamed(tmp_path: Path) -> None:
    async with served(tmp_path, idempotent=True, instances=Instances(crash_limit=9)) as target:
        good, bad, other = await answers(target, "kill", [row(1), row(-1), row(3)])
        assert isinstance(bad, ModelFailed)
        assert good.tensor("x").array().tolist() == [[2, 2]]
        assert other.tensor("x").array().tolist() == [[6, 6]]


@on_loop
async def test_a_stream_that_had_begun_is_not_run_again(tmp_path: Path) -> None:
    async with served(tmp_path, idempotent=True) as target:
        (got,) = await answers(target, "stream_then_die", [np.array([1])])
        assert isinstance(got, Undeliverable)


@on_loop
async def test_calls_of_a_model_that_was_given_up_are_refused(tmp_path: Path) -> None:
    async with served(tmp_path, idempotent=True, instances=Instances(crash_limit=2)) as target:
        got = await answers(target, "kill", [row(-1), row(1)])
        assert all(isinstance(answer, Unavailable) for answer in got)
        with pytest.raises(Unavailable, match="crashed too often"):
            await answers(target, "kill", [row(1)])
