"""Loads a version: files to a model, warm-up, and the choice of where its runs happen."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from salver.engine.cost import INLINE_BUDGET_NS
from salver.engine.generation import Generation
from salver.engine.instances import InlineInstance, ThreadInstance
from salver.engine.target import BatchedTarget
from salver.engine.warmup import warm_up
from salver.errors import LoadFailed, SalverError
from salver.interfaces import LoadSpec
from salver.observe.statistics import ModelStatistics
from salver.runtimes.table import detect
from salver.schedulers.direct import DirectScheduler
from salver.schedulers.dynamic import DynamicScheduler
from salver.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.clock import Clock
    from salver.config import ModelConfig, ServerConfig
    from salver.engine.cost import LoopBudget
    from salver.engine.warmup import Cost
    from salver.interfaces import Caller, Instance, Model, Runtime, Traits, VersionOnDisk

log = logging.getLogger("salver.engine")


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
    if isolation == "inline":
        return Placement(True, False, False)
    if isolation == "thread":
        return Placement(False, True, False)
    if isolation == "process":
        return Placement(False, False, True)
    is_short = cost_ns is not None and cost_ns <= INLINE_BUDGET_NS
    if traits.holds_gil:
        return Placement(is_short, False, True)
    return Placement(is_short and traits.thread_safe, True, False)


class Loader:
    """Turns versions on disk into generations. Blocking work happens in its own threads."""

    def __init__(
        self, config: ServerConfig, clock: Clock, budget: LoopBudget, caller: Caller | None
    ) -> None:
        self._config = config
        self._clock = clock
        self._budget = budget
        self._caller = caller
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="salver-load")

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def load(self, version: VersionOnDisk, number: int) -> Generation:
        """Loads, warms up and places a version.

        Raises: LoadFailed and its kinds; then nothing is left of the attempt.
        """
        if version.problem is not None:
            raise version.problem
        loop = asyncio.get_running_loop()
        try:
            runtime, model, costs = await loop.run_in_executor(
                self._executor, self._load_here, version
            )
        except SalverError:
            raise
        except Exception as error:
            log.exception("loading %s failed", version.ref)
            raise LoadFailed(f"{version.ref}: {type(error).__name__}: {error}") from error
        return self._generation(version, number, runtime, model, costs)

    def _load_here(self, version: VersionOnDisk) -> tuple[Runtime, Model, list[Cost]]:
        runtime, _ = detect(version.path, version.config)
        model = runtime.load(self._spec(version))
        try:
            model.signature = with_default(model.signature, version.config.default_method)
            return runtime, model, warm_up(model, version.config)
        except BaseException:
            model.close()
            raise

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

    def _generation(
        self,
        version: VersionOnDisk,
        number: int,
        runtime: Runtime,
        model: Model,
        costs: list[Cost],
    ) -> Generation:
        config, ref = version.config, version.ref
        loop = asyncio.get_running_loop()
        first = next((cost.ns for cost in costs if cost.method == model.signature.default), None)
        placement = place(config.instances.isolation, model.traits, first)
        instances: Sequence[Instance] = ()
        if placement.threads:
            count = (config.instances.count or 1) if model.traits.thread_safe else 1
            instances = [ThreadInstance(model, f"{ref.name}-{i}", loop) for i in range(count)]
        statistics = ModelStatistics()
        max_rows = max_batch(config, model.traits)
        batches = max_rows != 1
        target = BatchedTarget(
            ref,
            model.signature,
            DynamicScheduler(config, max_rows) if batches else DirectScheduler(config),
            inline=InlineInstance(model) if placement.inline or not instances else None,
            instances=instances,
            statistics=statistics,
            budget=self._budget,
            clock=self._clock,
            loop=loop,
        )
        for cost in costs:
            target.learn(cost.method, cost.size, cost.ns)
        return Generation(
            ref,
            number,
            config=config,
            runtime=runtime.name,
            signature=model.signature,
            target=target,
            statistics=statistics,
            batches=batches,
            close=model.close,
        )


def with_default(signature: Signature, method: str) -> Signature:
    """The signature with `method` first, which makes it the default.

    Raises: LoadFailed if there is no such method.
    """
    if not method:
        return signature
    try:
        name, found = signature.method(method)
    except SalverError as error:
        raise LoadFailed(f"default_method: {error.message}") from None
    return Signature({name: found} | signature.methods)


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
