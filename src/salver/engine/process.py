"""Process instances: a worker that is watched, killed when it hangs and replaced when it dies."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from salver.clock import NS_PER_MS, NS_PER_S
from salver.engine.channel import BrokenFrame
from salver.engine.frames import (
    CREDIT_STEP,
    Answer,
    Cancel,
    Credit,
    Done,
    Failed,
    Fault,
    HomeCall,
    Item,
    Load,
    Loaded,
    Metrics,
    MetricsQuery,
    Payload,
    Ping,
    Pong,
    Stop,
    Warned,
    error_of,
    fault_of,
    tensors_of,
)
from salver.engine.packing import (
    pack_work,
    packs_long,
    unpack_request,
    unpack_results,
    unpacks_long,
)
from salver.engine.rerun import WorkerDied
from salver.engine.spawn import WorkerProcess
from salver.engine.stillness import STILL_BEATS, Stillness
from salver.errors import Cancelled, LoadFailed, LoadInterrupted, SalverError
from salver.observe.cores import cpu_ns
from salver.observe.memory import resident_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from salver import interfaces
    from salver.clock import Clock
    from salver.engine.frames import AnyFrame
    from salver.interfaces import Emit, LoadSpec, Results, Traits
    from salver.signature import Signature
    from salver.types import Array, CallContext, ModelRef, Request, Tensors, Work

    HomeCaller = Callable[[ModelRef, Request, CallContext, int], Awaitable[Tensors]]

log = logging.getLogger("salver.engine")
HEARTBEAT_S: Final = 1.0
SILENT_S: Final = 3.0
"""A worker that has not answered for so long holds the GIL or does not run at all."""
CRASH_WINDOW_NS: Final = 60 * NS_PER_S
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 10.0
_UNWANTED: Final = fault_of(Cancelled("nobody waits any more for the call that asked this"))


class Watcher(Protocol):
    """Who gives an instance its work, and so must know when it can take some."""

    def instance_up(self, instance: ProcessInstance) -> None: ...

    def instance_down(self, instance: ProcessInstance) -> None: ...

    def instance_failed(self, instance: ProcessInstance) -> None:
        """It crashed too often and is not started again."""
        ...


class Ongoing:
    """The run that a worker is at."""

    __slots__ = (
        "cancelled", "done", "emit", "is_trial", "num_calls", "number", "paused", "started",
        "taken",
    )  # fmt: skip

    def __init__(
        self, number: int, work: Work, emit: Emit, done: interfaces.Done, started: int
    ) -> None:
        self.number = number
        self.num_calls = work.num_calls
        self.is_trial = work.is_trial
        self.emit = emit
        self.done = done
        self.started = started
        self.taken = 0
        self.paused: set[int] = set()
        self.cancelled: set[int] = set()

    @property
    def is_cancelled(self) -> bool:
        """Nobody waits for it any more."""
        return len(self.cancelled) == self.num_calls


class ProcessInstance:
    """Runs one batch at a time in a worker. `launch` makes one; all methods are for the loop."""

    def __init__(
        self,
        runtime: str,
        spec: LoadSpec,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        caller: HomeCaller,
    ) -> None:
        self._runtime = runtime
        self._spec = spec
        self._loop = loop
        self._clock = clock
        self._caller = caller
        self.watcher: Watcher | None = None
        self.warm: Callable[[ProcessInstance], Awaitable[Any]] | None = None
        """Runs a worker that replaces another before it takes work. Raises: LoadFailed."""
        self._worker: WorkerProcess
        self._loaded: asyncio.Future[None]
        self._model: Loaded
        self._is_loaded = False
        self._is_stopping = False
        self._run: Ongoing | None = None
        self._num_starts = 0
        self._num_runs = 0
        self._timer: asyncio.TimerHandle | None = None
        self._asked = 0
        self._stillness: Stillness
        self._hung = ""
        self._crashes: deque[int] = deque()
        self._revival: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._home_calls: dict[asyncio.Task[None], tuple[Ongoing | None, int]] = {}
        self._metrics: deque[asyncio.Future[bytes]] = deque()
        self._handlers: dict[type[AnyFrame], Callable[[Any, Array], None]] = {
            Done: self._on_done,
            Item: self._on_item,
            HomeCall: self._on_home_call,
            Loaded: self._on_loaded,
            Failed: self._on_failed,
            Warned: self._on_warned,
            Metrics: self._on_metrics,
            Pong: lambda frame, _: None,
        }

    @classmethod
    async def launch(
        cls,
        runtime: str,
        spec: LoadSpec,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        caller: HomeCaller,
    ) -> ProcessInstance:
        """Starts a worker that loads the model; then `signature` and `traits` are known.

        `runtime` is a registered name or `module:attribute`. `caller` runs what the model asks of
        other models. Cancelling ends the worker.

        Raises: LoadFailed and its kinds.
        """
        instance = cls(runtime, spec, loop=loop, clock=clock, caller=caller)
        await instance._start_worker()
        return instance

    @property
    def signature(self) -> Signature:
        return self._model.signature

    @property
    def traits(self) -> Traits:
        return self._model.traits

    @property
    def is_up(self) -> bool:
        """Its worker is there and takes work."""
        return self._is_loaded and self._revival is None

    @property
    def pid(self) -> int:
        return self._worker.pid

    @property
    def memory_bytes(self) -> int:
        """What its worker holds now."""
        return resident_bytes(self.pid)

    async def _start_worker(self) -> None:
        spec = self._spec
        self._loaded = self._loop.create_future()
        self._worker = WorkerProcess(
            str(spec.ref),
            spec.threads,
            loop=self._loop,
            on_frame=self._on_frame,
            on_exit=self._on_exit,
        )
        self._worker.send(
            Load(
                self._runtime,
                spec.path,
                spec.ref,
                spec.config,
                spec.device,
                spec.threads,
                spec.trusted,
            )
        )
        try:
            await self._loaded
            if self.warm is not None:
                await self._warm_up(self.warm)
        except BaseException:
            self._worker.kill()
            await self._worker.exited
            raise

    async def _warm_up(self, warm: Callable[[ProcessInstance], Awaitable[Any]]) -> None:
        await warm(self)
        if not self._is_loaded:
            # Inputs that nobody sent may not keep a model down for good.
            self.warm = None
            raise LoadInterrupted("its worker died in the warm-up; the next one is not warmed up")

    def start(self, work: Work, emit: Emit, done: interfaces.Done) -> None:
        if not self._is_loaded:
            self._loop.call_soon(done, WorkerDied("is not there"), 0)
            return
        self._num_runs += 1
        self._run = Ongoing(self._num_runs, work, emit, done, self._clock())
        if packs_long(work):
            self._spawn(self._send_aside(self._run, work))
        else:
            try:
                self._worker.send(*pack_work(self._num_runs, work))
            except Exception as error:
                # Whatever cannot be sent, too large or not, concerns these calls alone.
                self._finish(error, 0)
                return
        if self._timer is None:
            self._watch_again(self._run.started)

    async def _send_aside(self, run: Ongoing, work: Work) -> None:
        """Off the loop, which many texts would keep busy."""
        try:
            packed = await asyncio.to_thread(pack_work, run.number, work)
            self._worker.send(*packed)
        except Exception as error:
            self._finish(error, 0)

    def cancel(self, index: int) -> None:
        run = self._run
        if run is not None:
            run.paused.discard(index)
            run.cancelled.add(index)
            self._worker.tell(Cancel(run.number, index))
            if run.is_cancelled:
                self._cancel_home_calls(run)

    def pause(self, index: int) -> None:
        """Lets the model wait, after a few more items, until the reader of this call resumes."""
        if self._run is not None:
            self._run.paused.add(index)

    def resume(self, index: int) -> None:
        if self._run is not None:
            self._run.paused.discard(index)
            self._give_credit(self._run)

    async def metrics(self) -> bytes:
        """User code's own metrics as Prometheus text; empty while no worker is up."""
        if not self.is_up:
            return b""
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._metrics.append(answer)
        self._worker.tell(MetricsQuery())
        return await answer

    async def stop(self, grace_s: float) -> None:
        """Lets the present run finish for at most `grace_s`, then ends the worker."""
        self._is_stopping = True
        if self._revival is not None:
            self._revival.cancel()
            await asyncio.gather(self._revival, return_exceptions=True)
        self._worker.send(Stop())
        await asyncio.wait([self._worker.exited], timeout=grace_s)
        self._worker.kill()
        await self._worker.exited

    def _on_frame(self, frame: AnyFrame, payload: Array) -> None:
        self._asked = 0
        handler = self._handlers.get(type(frame))
        if handler is None:
            raise BrokenFrame(f"{type(frame).__name__} is for workers")
        handler(frame, payload)

    def _on_loaded(self, frame: Loaded, _: Array) -> None:
        if self._loaded.done():
            return
        if self._num_starts and frame.signature != self.signature:
            changed = LoadFailed(f"{self._spec.ref}: its files changed while it was served")
            self._loaded.set_exception(changed)
            return
        self._model = frame
        self._num_starts += 1
        self._is_loaded = True
        self._loaded.set_result(None)

    def _on_failed(self, frame: Failed, _: Array) -> None:
        if not self._loaded.done():
            self._loaded.set_exception(error_of(frame.fault))

    def _on_warned(self, frame: Warned, _: Array) -> None:
        if self._run is None or not self._run.is_trial:
            self._spec.warn(frame.message)

    def _on_item(self, frame: Item, payload: Array) -> None:
        run = self._run
        if run is None or run.number != frame.run:
            return
        if not 0 <= frame.index < run.num_calls:
            raise BrokenFrame(f"an item for call {frame.index} of {run.num_calls}")
        run.taken += 1
        run.emit(frame.index, tensors_of(frame.tensors, payload))
        if run is self._run:
            self._give_credit(run)

    def _give_credit(self, run: Ongoing) -> None:
        if run.taken >= CREDIT_STEP and not run.paused:
            self._worker.tell(Credit(run.number, run.taken))
            run.taken = 0

    def _on_done(self, frame: Done, payload: Array) -> None:
        if self._run is None or self._run.number != frame.run:
            return
        if unpacks_long(frame):
            self._spawn(self._finish_aside(frame, payload))
        else:
            self._finish(unpack_results(frame, payload), frame.cost_ns)

    async def _finish_aside(self, frame: Done, payload: Array) -> None:
        try:
            results = await asyncio.to_thread(unpack_results, frame, payload)
        except Exception:
            log.exception("%s: what the worker sent cannot be handled; it is ended", self._spec.ref)
            self._worker.kill()
        else:
            self._finish(results, frame.cost_ns)

    def _finish(self, results: Results | Exception, cost_ns: int) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.done(results, cost_ns)

    def _on_metrics(self, frame: Metrics, _: Array) -> None:
        answer = self._metrics.popleft()
        if not answer.done():
            answer.set_result(frame.text)

    def _on_home_call(self, frame: HomeCall, payload: Array) -> None:
        run = self._run
        if run is not None and run.is_cancelled:
            self._worker.tell(Answer(frame.id, fault=_UNWANTED))
            return
        request = unpack_request(frame, payload)
        task = self._spawn(self._call(self._worker, frame, request))
        self._home_calls[task] = run, frame.id
        task.add_done_callback(self._home_calls.pop)

    def _cancel_home_calls(self, run: Ongoing) -> None:
        """Ends what a run asked of other models; the model hears of it where it waits."""
        for task, (asker, number) in self._home_calls.items():
            # A task that has not begun yet could not answer by itself.
            if asker is run and task.cancel():
                self._worker.tell(Answer(number, fault=_UNWANTED))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts what ends with the worker."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _call(self, worker: WorkerProcess, frame: HomeCall, request: Request) -> None:
        try:
            outputs = await self._caller(frame.ref, request, frame.context, frame.depth)
            payload = Payload()
            worker.tell(Answer(frame.id, payload.tensors(outputs)), payload)
        except SalverError as error:
            worker.tell(Answer(frame.id, fault=fault_of(error)))
        except Exception:
            log.exception("%s could not call %s", self._spec.ref, frame.ref)
            fault = Fault("Internal", f"calling {frame.ref} failed; the server's log says why")
            worker.tell(Answer(frame.id, fault=fault))

    def _watch_again(self, now: int) -> None:
        """Looks after a run that lasts: each second, and when its time is over."""
        assert self._run is not None
        delay_s = HEARTBEAT_S
        if limit := self._spec.config.instances.run_timeout_ms * NS_PER_MS:
            left_s = (self._run.started + limit - now) / NS_PER_S
            delay_s = min(delay_s, max(left_s, 0.001))
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        run = self._run
        if run is None:
            return
        now = self._clock()
        limit_ms = self._spec.config.instances.run_timeout_ms
        if limit_ms and now - run.started >= limit_ms * NS_PER_MS:
            silent_s = (now - self._asked) / NS_PER_S if self._asked else 0
            self._hung = f"was ended after running longer than run_timeout_ms={limit_ms:g}" + (
                f" and not answering for {silent_s:.0f} s" if silent_s > SILENT_S else ""
            )
            self._worker.kill()
            return
        if not self._asked:
            self._asked = now
            self._stillness = Stillness(cpu_ns(self.pid))
            self._worker.tell(Ping())
        elif self._stillness.beat(cpu_ns(self.pid)):
            still_s = STILL_BEATS * HEARTBEAT_S
            self._hung = f"was ended after neither answering nor computing for {still_s:g} s"
            self._worker.kill()
            return
        self._watch_again(now)

    def _on_exit(self, how: str) -> None:
        was_up, self._is_loaded = self.is_up, False
        hung, self._hung = self._hung, ""
        self._asked = 0
        for task in self._tasks:
            task.cancel()
        while self._metrics:
            answer = self._metrics.popleft()
            if not answer.done():
                answer.set_result(b"")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._loaded.done():
            died = LoadInterrupted(f"the worker {how} while it loaded the model")
            self._loaded.set_exception(died)
        if was_up and not self._is_stopping:
            log.error("%s: worker %d %s", self._spec.ref, self._worker.pid, hung or how)
            if self.watcher is not None:
                self.watcher.instance_down(self)
            self._revival = self._loop.create_task(self._revive())
        self._finish(WorkerDied(hung or how, bool(hung)), 0)

    async def _revive(self) -> None:
        """Starts workers until one is up, ever more slowly, and not more often than allowed."""
        while self._may_start_again():
            await asyncio.sleep(min(FIRST_BACKOFF_S * 2 ** (len(self._crashes) - 1), MAX_BACKOFF_S))
            try:
                await self._start_worker()
            except (SalverError, OSError) as error:
                log.error("%s: %s", self._spec.ref, error)
                continue
            self._revival = None
            if self.watcher is not None:
                self.watcher.instance_up(self)
            return
        log.error("%s: crashed %d times in a minute", self._spec.ref, len(self._crashes))
        if self.watcher is not None:
            self.watcher.instance_failed(self)

    def _may_start_again(self) -> bool:
        now = self._clock()
        self._crashes.append(now)
        while self._crashes[0] < now - CRASH_WINDOW_NS:
            self._crashes.popleft()
        return len(self._crashes) < self._spec.config.instances.crash_limit
