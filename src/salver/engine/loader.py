"""Loads a version: from files to a generation that is warm and stands where its runs happen."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from salver.engine.configured import chosen, max_batch
from salver.engine.generation import Generation
from salver.engine.instances import InlineInstance, ThreadInstance, drop_item, run
from salver.engine.placement import CODE_RUNTIMES, device, place, thread_budget
from salver.engine.process import ProcessInstance
from salver.engine.target import BatchedTarget
from salver.engine.warmup import warm_up
from salver.errors import LoadFailed, SalverError
from salver.interfaces import LoadSpec
from salver.observe.cores import usable_cores
from salver.observe.memory import giving_back, resident_bytes
from salver.places import hidden_cause, told
from salver.runtimes.table import detect
from salver.schedulers.direct import DirectScheduler
from salver.schedulers.dynamic import DynamicScheduler
from salver.schedulers.slo import SloScheduler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from salver.clock import Clock
    from salver.config import ModelConfig, ServerConfig
    from salver.engine.caller import LoopCaller
    from salver.engine.inline import LoopBudget
    from salver.engine.warmup import Cost
    from salver.interfaces import (
        Instance,
        Model,
        Results,
        Runtime,
        Scheduler,
        Traits,
        VersionOnDisk,
    )
    from salver.observe.statistics import ModelStatistics
    from salver.signature import Signature
    from salver.types import Work

T = TypeVar("T")
log = logging.getLogger("salver.engine")

MAX_LOADS: Final = 4


class Loaded(NamedTuple):
    """What runs a model. `models` are those in this process, none if it lives in workers only."""

    signature: Signature
    traits: Traits
    costs: Sequence[Cost]
    models: Sequence[Model]
    inline: InlineInstance | None
    instances: Sequence[Instance]
    loaded_bytes: int = 0
    """What this process grew by; other models that load at the same time count too."""


class NeedsHost(Exception):
    """A version that is to have one home for all fronts, and not one in each of them."""


class Loader:
    """Turns versions on disk into generations. Blocking work happens in its own threads."""

    def __init__(
        self, config: ServerConfig, clock: Clock, budget: LoopBudget, caller: LoopCaller
    ) -> None:
        self._config = config
        self._clock = clock
        self._budget = budget
        self._caller = caller
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(MAX_LOADS)

    async def load(
        self,
        version: VersionOnDisk,
        number: int,
        statistics: ModelStatistics,
        *,
        has_host: bool = False,
    ) -> Generation:
        """Loads, warms up and places a version, which counts its calls in `statistics`.

        With `has_host` there are other fronts, and what not each of them is to have is not loaded.

        Raises: LoadFailed and its kinds, NeedsHost; then nothing is left of the attempt.
        """
        if version.problem is not None:
            raise version.problem
        is_cancelled = threading.Event()
        try:
            async with self._slots:
                runtime, _ = await blocking(detect, version.path, version.config)
                spec = self._spec(version, is_cancelled)
                loaded = await self._load(runtime, spec, has_host)
        except asyncio.CancelledError:
            is_cancelled.set()
            raise
        except NeedsHost:
            raise
        except SalverError as error:
            if cause := hidden_cause(error):
                log.error("loading %s failed: %s", version.ref, cause.rstrip())
            raise
        except Exception as error:
            log.exception("loading %s failed", version.ref)
            raise LoadFailed(f"{version.ref}: {told(error)}") from error
        return self._generation(spec, number, runtime, loaded, statistics)

    async def _load(self, runtime: Runtime, spec: LoadSpec, has_host: bool) -> Loaded:
        isolation = spec.config.instances.isolation
        if has_host and spec.device != "cpu":
            raise NeedsHost
        if isolation == "process" or (isolation == "auto" and runtime.name in CODE_RUNTIMES):
            return await self._in_workers(runtime, spec, has_host)
        return await self._here(runtime, spec, has_host)

    def _spec(self, version: VersionOnDisk, is_cancelled: threading.Event) -> LoadSpec:
        config = version.config
        return LoadSpec(
            path=version.path,
            ref=version.ref,
            config=config,
            device=device(config.device or self._config.device),
            threads=thread_budget(config, usable_cores()),
            trusted=self._config.trust or version.trusted,
            cancelled=is_cancelled.is_set,
            caller=self._caller,
            warn=lambda message: log.warning("%s: %s", version.ref, message),
        )

    async def _here(self, runtime: Runtime, spec: LoadSpec, has_host: bool) -> Loaded:
        """Loads into this process; goes on in workers if that turns out to be the better place."""
        size_before = resident_bytes()
        models = [await open_model(runtime, spec)]
        try:
            model, traits = models[0], models[0].traits
            if has_host and traits.stateful:
                raise NeedsHost
            signature = chosen(model.signature, spec.config, traits)
            costs = await warm_up_here(model, signature, spec)
            placement = place(
                spec.config.instances.isolation,
                traits,
                next((cost.ns for cost in costs if cost.method == signature.default), None),
                any(method.streams for method in signature.methods.values()),
            )
            if placement.processes and not placement.inline:
                await blocking(release, [models.pop()])
                return await self._in_workers(runtime, spec, has_host)
            count = spec.config.instances.count or 1
            if placement.threads and not traits.thread_safe:
                while len(models) < count:
                    models.append(await open_model(runtime, spec))
                    await warm_up_here(models[-1], signature, spec)
            grown = max(resident_bytes() - size_before, 0)
            instances: Sequence[Instance] = ()
            if placement.processes:
                instances, *_ = await self._warm_workers(runtime, spec)
            elif placement.threads:
                instances = [
                    ThreadInstance(models[i % len(models)], f"{spec.ref}-{i}", self._loop)
                    for i in range(count)
                ]
        except BaseException:
            for model in models:
                model.close()
            raise
        inline = InlineInstance(models[0]) if placement.inline else None
        return Loaded(signature, traits, costs, models, inline, instances, grown)

    async def _in_workers(self, runtime: Runtime, spec: LoadSpec, has_host: bool) -> Loaded:
        if has_host:
            raise NeedsHost
        workers, signature, costs = await self._warm_workers(runtime, spec)
        return Loaded(signature, workers[0].traits, costs, (), None, workers)

    async def _warm_workers(
        self, runtime: Runtime, spec: LoadSpec
    ) -> tuple[list[ProcessInstance], Signature, list[Cost]]:
        """Starts all workers of a version and warms them up; if one fails, none is left."""
        workers = await self._launch(runtime, spec)
        try:
            signature = chosen(workers[0].signature, spec.config, workers[0].traits)

            def warm(worker: ProcessInstance) -> Awaitable[list[Cost]]:
                return warm_up(partial(one_run, worker), signature, spec.config, spec.ref)

            costs, *_ = await asyncio.gather(*map(warm, workers))
            for worker in workers:
                worker.warm = warm
        except BaseException:
            await stop_all(workers)
            raise
        return workers, signature, costs

    async def _launch(self, runtime: Runtime, spec: LoadSpec) -> list[ProcessInstance]:
        """Starts all workers of a version; if one fails, none is left."""
        starts = [
            asyncio.ensure_future(
                ProcessInstance.launch(
                    runtime.name,
                    spec,
                    loop=self._loop,
                    clock=self._clock,
                    caller=self._caller.ask,
                )
            )
            for _ in range(spec.config.instances.count or 1)
        ]
        try:
            return list(await asyncio.gather(*starts))
        except BaseException:
            for start in starts:
                start.cancel()
            found = await asyncio.gather(*starts, return_exceptions=True)
            await stop_all([worker for worker in found if isinstance(worker, ProcessInstance)])
            raise

    def _generation(
        self,
        spec: LoadSpec,
        number: int,
        runtime: Runtime,
        loaded: Loaded,
        statistics: ModelStatistics,
    ) -> Generation:
        config, ref = spec.config, spec.ref
        max_rows = max_batch(config, loaded.traits)
        idempotent = config.idempotent
        target = BatchedTarget(
            ref,
            loaded.signature,
            scheduler(config, max_rows),
            inline=loaded.inline,
            instances=loaded.instances,
            statistics=statistics,
            budget=self._budget,
            clock=self._clock,
            loop=self._loop,
            is_idempotent=loaded.traits.idempotent if idempotent is None else idempotent,
        )
        workers = [each for each in loaded.instances if isinstance(each, ProcessInstance)]
        for worker in workers:
            worker.watcher = target
            if not worker.is_up:
                target.instance_down(worker)
        for cost in loaded.costs:
            target.learn(cost.method, cost.size, cost.ns)
        return Generation(
            ref,
            number,
            config=config,
            runtime=runtime.name,
            signature=loaded.signature,
            target=target,
            statistics=statistics,
            batches=max_rows != 1,
            close=lambda: blocking(release, loaded.models),
            workers=workers,
            loaded_bytes=loaded.loaded_bytes,
        )


def scheduler(config: ModelConfig, max_rows: int) -> Scheduler:
    """How calls become batches: singly, by a latency objective, or whatever waits."""
    if max_rows == 1:
        return DirectScheduler(config)
    if config.batching.slo_ms:
        return SloScheduler(config, max_rows)
    return DynamicScheduler(config, max_rows)


def in_thread(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Runs in a daemon thread: a load that hangs must not keep the process from ending."""
    future: Future[T] = Future()

    def serve() -> None:
        nonlocal arguments
        if future.set_running_or_notify_cancel():
            try:
                result = function(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                # A model among them must be free when the end is known, not when the thread ends.
                arguments = ()
                future.set_result(result)

    threading.Thread(target=serve, name="load", daemon=True).start()
    return future


async def blocking(function: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.wrap_future(in_thread(function, *arguments))


def load_tidily(runtime: Runtime, spec: LoadSpec) -> Model:
    with giving_back():
        return runtime.load(spec)


async def open_model(runtime: Runtime, spec: LoadSpec) -> Model:
    """Loads in a thread; a model that comes after the load was cancelled is closed at once."""
    opening = in_thread(load_tidily, runtime, spec)
    try:
        return await asyncio.wrap_future(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(close_late)
        raise


def close_late(opening: Future[Model]) -> None:
    """Closes a model that nobody waits for any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


async def warm_up_here(model: Model, signature: Signature, spec: LoadSpec) -> list[Cost]:
    def once(work: Work) -> Awaitable[tuple[Results | Exception, int]]:
        return blocking(run, model, work, drop_item)

    return await warm_up(once, signature, spec.config, spec.ref)


async def one_run(instance: Instance, work: Work) -> tuple[Results | Exception, int]:
    """Runs one work in an instance that nothing else uses."""
    ended: asyncio.Future[tuple[Results | Exception, int]] = (
        asyncio.get_running_loop().create_future()
    )

    def done(results: Results | Exception, cost_ns: int) -> None:
        if not ended.done():
            ended.set_result((results, cost_ns))

    instance.start(work, drop_item, done)
    return await ended


async def stop_all(workers: Sequence[ProcessInstance]) -> None:
    await asyncio.gather(*(worker.stop(0) for worker in workers))


def release(models: Sequence[Model]) -> None:
    """Closes models, which may block. Their memory is given back later, for many at once."""
    for model in models:
        model.close()
