"""A target without loop, clock or model: tests say when anything happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from salver.config import ModelConfig
from salver.engine.inline import LoopBudget
from salver.engine.target import BatchedTarget
from salver.observe.statistics import ModelStatistics
from salver.schedulers.dynamic import DynamicScheduler
from salver.signature import Method, Signature, TensorSpec
from salver.types import (
    FP32,
    Call,
    CallContext,
    ModelRef,
    Request,
    Response,
    Rows,
    Tensor,
    Tensors,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from salver.interfaces import Done, Emit, Results
    from salver.types import Work

X = TensorSpec(name="x", dtype=FP32, shape=(-1, 1))
SIGNATURE = Signature(
    {
        "double": Method(inputs=(X,), outputs=(X,), batching="rows"),
        "count": Method(inputs=(X,), outputs=(X,), streams=True),
    }
)


class Timer:
    def __init__(self, at: int, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """The clock and the loop of a test."""

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self._soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._timers: list[Timer] = []

    def clock(self) -> int:
        return self.now

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._soon.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now + round(delay_s * 1e9), callback)
        self._timers.append(timer)
        return timer

    def run(self) -> None:
        """Turns until nothing is left to do now."""
        while self._soon:
            callback, arguments = self._soon.pop(0)
            callback(*arguments)

    def advance_ms(self, ms: float) -> None:
        self.now += round(ms * 1e6)
        due = [timer for timer in self._timers if timer.at <= self.now]
        self._timers = [timer for timer in self._timers if timer.at > self.now]
        for timer in due:
            if not timer.is_cancelled:
                timer.callback()
        self.run()


class Instance:
    """Runs when the test says so."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.cancelled: list[int] = []
        self.flow: list[tuple[str, int]] = []
        self.emit: Emit
        self._done: Done | None = None

    @property
    def is_busy(self) -> bool:
        return self._done is not None

    @property
    def sizes(self) -> list[int]:
        return [work.num_calls for work in self.works]

    def start(self, work: Work, emit: Emit, done: Done) -> None:
        assert self._done is None
        self.works.append(work)
        self.emit = emit
        self._done = done

    def finish(self, results: Results | Exception, cost_ns: int = 1000) -> None:
        done, self._done = self._done, None
        assert done is not None
        done(results, cost_ns)

    def cancel(self, index: int) -> None:
        self.cancelled.append(index)

    def pause(self, index: int) -> None:
        self.flow.append(("pause", index))

    def resume(self, index: int) -> None:
        self.flow.append(("resume", index))

    async def stop(self, grace_s: float) -> None:
        pass


class Inline(Instance):
    """Runs `model` at once."""

    def __init__(self, model: Callable[[Work], Results]) -> None:
        super().__init__()
        self.model = model

    def start(self, work: Work, emit: Emit, done: Done) -> None:
        super().start(work, emit, done)
        try:
            self.finish(self.model(work))
        except ValueError as error:
            self.finish(error)


class Sink:
    """What one call got."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.finals = 0

    def push(self, call: Call, item: Any, final: bool) -> None:
        self.finals += final
        self.items.append(item)

    @property
    def error(self) -> Exception:
        assert self.finals == 1
        assert isinstance(self.items[-1], Exception)
        return self.items[-1]

    @property
    def values(self) -> list[float]:
        assert self.finals == 1
        assert isinstance(self.items[-1], Response)
        return cast("list[float]", self.items[-1].tensor("x").array().ravel().tolist())


class Lease:
    def __init__(self) -> None:
        self.ended = 0

    def end(self) -> None:
        self.ended += 1


class Bench:
    """A target and what surrounds it."""

    def __init__(self, num_instances: int = 1, inline: Inline | None = None, **config: Any) -> None:
        self.loop = Loop()
        self.instances = [Instance() for _ in range(num_instances)]
        self.statistics = ModelStatistics()
        self.lease = Lease()
        self.num_accepted = 0
        is_idempotent = config.pop("idempotent", True)
        self.target = BatchedTarget(
            ModelRef("m", "1"),
            SIGNATURE,
            DynamicScheduler(ModelConfig(**config), 0),
            inline=cast("Any", inline),
            instances=self.instances,
            statistics=self.statistics,
            budget=LoopBudget(),
            clock=self.loop.clock,
            loop=cast("Any", self.loop),
            is_idempotent=is_idempotent,
        )

    @property
    def instance(self) -> Instance:
        return self.instances[0]

    def submit(
        self,
        *values: float,
        deadline_ms: float = 0,
        method: str = "double",
        sink: Sink | None = None,
    ) -> Call:
        """Submits a call of one row for each value; it runs only when the loop does."""
        now = self.loop.now
        deadline = now + round(deadline_ms * 1e6) if deadline_ms else 0
        sink = Sink() if sink is None else sink
        call = Call(
            Request(Tensors()),
            cast("Any", sink),
            CallContext(deadline),
            cast("Any", self.lease),
            now,
        )
        call.inputs = Tensors(x=tensor(*values))
        call.method = method
        call.outputs = ("x",)
        call.rows = call.size = len(values)
        call.group = method if method == "double" else None
        self.target.submit(call, now)
        self.num_accepted += 1
        return call

    def run(self) -> None:
        self.loop.run()


def tensor(*values: float) -> Tensor:
    return Tensor.of(np.array(values, np.float32).reshape(-1, 1))


def double(work: Work) -> Results:
    """The model: doubles; negative numbers make the whole run fail."""
    x = work.inputs["x"]
    if (x < 0).any():
        raise ValueError("negative")
    return Rows(Tensors(x=Tensor.of(x * 2)))


@pytest.fixture
def bench() -> Callable[..., Bench]:
    return Bench


@pytest.fixture
def inline_double() -> Inline:
    return Inline(double)
