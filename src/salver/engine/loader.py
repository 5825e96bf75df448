"""Loads a version: files to a model, warm-up, and the choice of where its runs happen."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from salver.engine.generation import Generation
from salver.engine.inline import INLINE_BUDGET_NS
from salver.engine.instances import InlineInstance, ThreadInstance, run
from salver.engine.process import ProcessInstance
from salver.engine.target import BatchedTarget
from salver.engine.warmup import warm_up
from salver.errors import LoadFailed, SalverError
from salver.interfaces import LoadSpec
from salver.observe.memory import resident_bytes
from salver.observe.statistics import ModelStatistics
from salver.runtimes.table import detect
from salver.schedulers.direct import DirectScheduler
from salver.schedulers.dynamic import DynamicScheduler
from salver.schedulers.slo import SloScheduler
from salver.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    from salver.signature import TensorSpec
    from salver.types import Work

log = logging.getLogger("salver.engine")

CODE_RUNTIMES: Final = frozenset({"python"})
"""What these run is somebody's program: it may crash, hang or hold the interpreter for long."""


class Placement(NamedTuple):
    """Where a model's runs happen: short ones on the loop, others in threads or processes."""

    inline: bool
    threads: bool
    processes: bool


def place(isolation: str, traits: Traits, cost_ns: int | None) -> Placement:
    """Decides by what the model says of itself and what its warm-up cost (None: unknown).

    Code that holds the interpreter lock keeps the loop waiting from a thread as much as from the
    loop itself, so it gets a process for everything that is not certainly short.
    """
    if isolation != "auto":
        return Placement(isolation == "inline", isolation == "thread", isolation == "process")
    is_short = cost_ns is not None and cost_ns <= INLINE_BUDGET_NS
    if traits.holds_gil:
        return Placement(is_short, False, True)
    return Placement(is_short and traits.thread_safe, True, False)


class Loaded(NamedTuple):
    """A model and what runs it. `model` is None when it lives in workers only."""

    signature: Signature
    traits: Traits
    costs: Sequence[Cost]
    model: Model | None
    inline: InlineInstance | None
    instances: Sequence[Instance]
    loaded_bytes: int = 0
    """What this process grew by; other models that load at the same time count too."""


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
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="salver-load")

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def load(
        self, version: VersionOnDisk, number: int, statistics: ModelStatistics | None = None
    ) -> Generation:
        """Loads, warms up and places a version, which counts in `statistics` if there are some.

        Raises: LoadFailed and its kinds; then nothing is left of the attempt.
        """
        if version.problem is not None:
            raise version.problem
        try:
            runtime, _ = await self._blocking(detect, version.path, version.config)
            spec = self._spec(version)
            isolation = version.config.instances.isolation
            if isolation == "process" or (isolation == "auto" and runtime.name in CODE_RUNTIMES):
                loaded = await self._in_workers(runtime, spec)
            else:
                loaded = await self._here(runtime, spec)
        except SalverError:
            raise
        except Exception as error:
            log.exception("loading %s failed", version.ref)
            raise LoadFailed(f"{version.ref}: {type(error).__name__}: {error}") from error
        return self._generation(spec, number, runtime, loaded, statistics or ModelStatistics())

    async def _blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._executor, function, *arguments)

    def _spec(self, version: VersionOnDisk) -> LoadSpec:
        config = version.config
        return LoadSpec(
            path=version.path,
            ref=version.ref,
            config=config,
            device=device(config.device or self._config.device),
            threads=thread_budget(config, os.cpu_count() or 1),
            trusted=self._config.trust or version.trusted,
            caller=self._caller,
            warn=lambda message: log.warning("%s: %s", version.ref, message),
        )

    async def _here(self, runtime: Runtime, spec: LoadSpec) -> Loaded:
        """Loads into this process; goes on in workers if that turns out to be the better place."""
        size_before = resident_bytes()
        model: Model = await self._blocking(runtime.load, spec)
        try:
            signature = chosen(model.signature, spec.config)
            costs = await warm_up(
                lambda work: self._blocking(run, model, work, drop_item), signature, spec.config
            )
            default = next((cost.ns for cost in costs if cost.method == signature.default), None)
            placement = place(spec.config.instances.isolation, model.traits, default)
            workers = await self._launch(runtime, spec) if placement.processes else []
        except BaseException:
            model.close()
            raise
        if not (placement.inline or placement.threads):
            model.close()
            return Loaded(signature, model.traits, costs, None, None, workers)
        count = (spec.config.instances.count or 1) if model.traits.thread_safe else 1
        threads = [ThreadInstance(model, f"{spec.ref}-{i}", self._loop) for i in range(count)]
        return Loaded(
            signature,
            model.traits,
            costs,
            model,
            InlineInstance(model) if placement.inline else None,
            threads if placement.threads else workers,
            max(resident_bytes() - size_before, 0),
        )

    async def _in_workers(self, runtime: Runtime, spec: LoadSpec) -> Loaded:
        workers = await self._launch(runtime, spec)
        try:
            signature = chosen(workers[0].signature, spec.config)
            costs = await warm_up(lambda work: one_run(workers[0], work), signature, spec.config)
        except BaseException:
            await asyncio.gather(*(worker.stop(0) for worker in workers))
            raise
        return Loaded(signature, workers[0].traits, costs, None, None, workers)

    async def _launch(self, runtime: Runtime, spec: LoadSpec) -> list[ProcessInstance]:
        """Starts all workers of a version; if one fails, none is left."""
        found = await asyncio.gather(
            *(
                ProcessInstance.launch(
                    runtime.name,
                    spec,
                    loop=self._loop,
                    clock=self._clock,
                    caller=self._caller.ask,
                )
                for _ in range(spec.config.instances.count or 1)
            ),
            return_exceptions=True,
        )
        workers = [worker for worker in found if isinstance(worker, ProcessInstance)]
        failures = [failure for failure in found if isinstance(failure, BaseException)]
        if failures:
            await asyncio.gather(*(worker.stop(0) for worker in workers))
            raise failures[0]
        return workers

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
        batches = max_rows != 1
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
            batches=batches,
            close=loaded.model.close if loaded.model is not None else nothing,
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


def drop_item(index: int, item: Any) -> None:
    """Takes stream items that nobody reads."""


async def one_run(instance: Instance, work: Work) -> tuple[Results | Exception, int]:
    """Runs one work in an instance that nothing else uses."""
    ended: asyncio.Future[tuple[Results | Exception, int]] = (
        asyncio.get_running_loop().create_future()
    )
    instance.start(work, drop_item, lambda results, ns: ended.set_result((results, ns)))
    return await ended


def nothing() -> None:
    """Closes a model that lives in workers only."""


def chosen(signature: Signature, config: ModelConfig) -> Signature:
    """A model's signature as `model.yaml` wants it: its default method first, and names for
    columns and classes where they fit and the file itself has none.

    Raises: LoadFailed if there is no such method.
    """
    try:
        default, _ = signature.method(config.default_method)
    except SalverError as error:
        raise LoadFailed(f"default_method: {error.message}") from None
    methods = {
        name: msgspec.structs.replace(
            method,
            inputs=tuple(_with_columns(spec, config.columns) for spec in method.inputs),
            outputs=tuple(_with_labels(spec, config.labels) for spec in method.outputs),
        )
        for name, method in signature.methods.items()
    }
    return Signature({default: methods[default]} | methods)


def _with_columns(spec: TensorSpec, columns: tuple[str, ...]) -> TensorSpec:
    fits = len(spec.shape) == 2 and spec.shape[1] == len(columns)
    return msgspec.structs.replace(spec, columns=columns) if fits and not spec.columns else spec


def _with_labels(spec: TensorSpec, labels: tuple[str, ...]) -> TensorSpec:
    fits = spec.role == "label" or (bool(spec.shape) and spec.shape[-1] == len(labels))
    if not (labels and fits and not spec.labels):
        return spec
    return msgspec.structs.replace(spec, labels=labels)


def device(configured: str) -> str:
    """Where to run: what is configured; `auto` is the processor, until a runtime offers more."""
    return "cpu" if configured == "auto" else configured


def max_batch(config: ModelConfig, traits: Traits) -> int:
    """Most rows in a batch: what is configured, at most what the model takes; 0 for no limit."""
    limits = [size for size in (config.batching.max_size, traits.max_batch) if size]
    return min(limits, default=0)


def thread_budget(config: ModelConfig, num_cores: int) -> int:
    """CPU threads of one instance, so that a model's instances together use each core once."""
    return config.instances.threads or max(1, num_cores // max(config.instances.count, 1))
