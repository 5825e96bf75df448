"""A generation: one load of one version. It is the lease that calls hold while they use it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from salver.observe.statistics import Gauges

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from salver.config import ModelConfig
    from salver.engine.home import HomeTarget
    from salver.engine.target import BatchedTarget
    from salver.observe.statistics import ModelStatistics
    from salver.signature import Method, Signature
    from salver.types import ModelRef, Tensors

log = logging.getLogger("salver.engine")


class Worker(Protocol):
    """A process that runs the model."""

    @property
    def memory_bytes(self) -> int: ...

    async def metrics(self) -> bytes:
        """User code's own metrics as Prometheus text."""
        ...


class Plan:
    """What is decided once per method, so that it need not be decided per call."""

    __slots__ = ("batches", "has_fixed_rows", "method", "name", "outputs", "outputs_with_roles")

    def __init__(self, name: str, method: Method, batches: bool) -> None:
        self.name = name
        self.method = method
        self.outputs = method.default_outputs()
        self.outputs_with_roles = tuple(
            spec.name for spec in method.outputs if spec.role or not spec.on_request
        )
        self.batches = batches and method.batching != "single"
        self.has_fixed_rows = method.has_fixed_rows

    def place(self, inputs: Tensors, rows: int) -> tuple[int, Any]:
        """What a call costs, and its group: with which calls it may share a run."""
        if self.has_fixed_rows:
            return rows, self.name if self.batches else None
        size = self.method.size(inputs)
        if not self.batches:
            return size, None
        if self.method.batching == "rows":
            shapes = tuple((name, tensor.shape[1:]) for name, tensor in inputs.items())
            return size, (self.name, shapes)
        return size, (self.name, tuple(inputs))


class Generation:
    """One load of one version, with everything that belongs to it."""

    def __init__(
        self,
        ref: ModelRef,
        number: int,
        *,
        config: ModelConfig,
        runtime: str,
        signature: Signature,
        target: BatchedTarget | HomeTarget,
        statistics: ModelStatistics,
        batches: bool,
        close: Callable[[], Awaitable[None]],
        workers: Sequence[Worker] = (),
        loaded_bytes: int = 0,
    ) -> None:
        self.ref = ref
        self.number = number
        self.config = config
        self.runtime = runtime
        self.signature = signature
        self.target = target
        self.statistics = statistics
        self.batches = batches
        self.load_s = 0.0
        self.leases = 0
        self.holds = 0
        self.plans = {
            name: Plan(name, method, batches) for name, method in signature.methods.items()
        }
        self._default_plan = self.plans[signature.default]
        self._close = close
        self._workers = tuple(workers)
        self.loaded_bytes = loaded_bytes
        self._told: dict[Worker, bytes] = {}
        self._unused: asyncio.Event | None = None

    def plan(self, method: str) -> Plan:
        """Raises: NotFound for a method that the model does not have."""
        if not method:
            return self._default_plan
        found = self.plans.get(method)
        return found if found is not None else self.plans[self.signature.method(method)[0]]

    def end(self) -> None:
        self.leases -= 1
        if self._unused is not None and not (self.leases or self.holds):
            self._unused.set()

    def let_go(self) -> None:
        """Ends a hold of another process, which has no more calls for it."""
        # It ends as a lease does. `end` is on the way of every call, so it has no helper for both.
        self.holds -= 1
        self.leases += 1
        self.end()

    async def drain(self, timeout_s: float) -> None:
        """Waits until no call uses it and nobody holds it for calls to come, at most so long."""
        if not (self.leases or self.holds):
            return
        if self._unused is None:
            self._unused = asyncio.Event()
        self._unused.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._unused.wait(), timeout_s)

    def give_up(self) -> None:
        """Ends a `drain` before its time."""
        if self._unused is not None:
            self._unused.set()

    async def retire(self, drain_s: float, grace_s: float = 1.0) -> None:
        """Waits for the calls that use it, at most `drain_s`; then ends the rest and unloads."""
        await self.drain(drain_s)
        try:
            await self.target.stop(grace_s)
            await self._close()
        except Exception:
            # Closing runs foreign code; whoever retires several must get to the others.
            log.exception("unloading %s failed", self.ref)

    @property
    def memory_bytes(self) -> int:
        """What its workers hold now, and what loading it into this process took."""
        return self.loaded_bytes + sum(worker.memory_bytes for worker in self._workers)

    def observe(self) -> None:
        """Notes how it stands in its statistics, for all that share them."""
        target = self.target
        self.statistics.gauges = Gauges(target.queue_depth, target.num_instances, self.memory_bytes)

    async def user_metrics(self, timeout_s: float) -> list[bytes]:
        """What its code counts in workers; of one that is too busy to answer, what it last told."""
        return await asyncio.gather(*(self._ask(worker, timeout_s) for worker in self._workers))

    async def _ask(self, worker: Worker, timeout_s: float) -> bytes:
        try:
            self._told[worker] = await asyncio.wait_for(worker.metrics(), timeout_s)
        except TimeoutError:
            pass
        return self._told.get(worker, b"")


def elsewhere(target: HomeTarget, runtime: str, *, batches: bool) -> Generation:
    """A generation that other processes of this server run."""
    return Generation(
        target.ref,
        target.generation,
        config=target.config,
        runtime=runtime,
        signature=target.signature,
        target=target,
        statistics=target.statistics,
        batches=batches,
        close=_nothing,
        workers=(target,),
    )


async def _nothing() -> None:
    """There is nothing to close here."""
