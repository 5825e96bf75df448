from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from salver.config import ModelConfig
from salver.engine.generation import Generation, Plan
from salver.errors import NotFound
from salver.observe.statistics import ModelStatistics
from salver.signature import Batching, Method, Signature, TensorSpec
from salver.types import FP32, NO_CONTEXT, Call, ModelRef, Request, Tensor, Tensors

FIXED = TensorSpec(name="x", dtype=FP32, shape=(-1, 2))
VARYING = TensorSpec(name="x", dtype=FP32, shape=(-1, -1))


class Target:
    is_ready = True
    queue_depth = 0
    num_instances = 1

    def __init__(self, events: list[str], fails: bool = False) -> None:
        self.events = events
        self.fails = fails

    async def stop(self, grace_s: float) -> None:
        self.events.append("stop")
        if self.fails:
            raise OSError("cannot stop")


def generation(events: list[str], fails: bool = False) -> Generation:
    async def close() -> None:
        events.append("close")

    method = Method(inputs=(FIXED,), outputs=(FIXED,), batching="rows")
    return Generation(
        ModelRef("m", "1"),
        1,
        config=ModelConfig(),
        runtime="fake",
        signature=Signature({"a": method, "b": method}),
        target=cast("Any", Target(events, fails)),
        statistics=ModelStatistics(),
        batches=True,
        close=close,
    )


def placed(spec: TensorSpec, batching: Batching, shape: tuple[int, ...]) -> Call:
    nobody = cast("Any", None)
    call = Call(Request(Tensors()), nobody, NO_CONTEXT, nobody, 0)
    call.inputs = Tensors(x=Tensor(FP32, shape, None))
    call.rows = shape[0]
    Plan("m", Method(inputs=(spec,), outputs=(spec,), batching=batching), True).place(call)
    return call


def test_calls_that_may_share_a_run_are_of_one_group() -> None:
    assert placed(FIXED, "rows", (3, 2)).group == placed(FIXED, "rows", (1, 2)).group
    assert placed(VARYING, "rows", (3, 2)).group == placed(VARYING, "rows", (1, 2)).group
    assert placed(VARYING, "rows", (1, 2)).group != placed(VARYING, "rows", (1, 3)).group
    assert placed(VARYING, "items", (1, 2)).group == placed(VARYING, "items", (1, 3)).group
    assert placed(FIXED, "single", (1, 2)).group is None


def test_the_size_is_rows_or_else_elements() -> None:
    assert placed(FIXED, "rows", (3, 2)).size == 3
    assert placed(VARYING, "rows", (3, 2)).size == 6


def test_methods_are_found_by_name_or_default() -> None:
    made = generation([])
    assert made.plan("b").name == "b"
    assert made.plan("").name == "a"
    with pytest.raises(NotFound, match="no method 'c'"):
        made.plan("c")


def test_a_generation_in_use_is_unloaded_after_its_last_call() -> None:
    async def test() -> None:
        events: list[str] = []
        made = generation(events)
        made.leases = 2
        retiring = asyncio.ensure_future(made.retire(60))
        await asyncio.sleep(0)
        made.end()
        await asyncio.sleep(0)
        assert events == []
        made.end()
        await retiring
        assert events == ["stop", "close"]

    asyncio.run(test())


def test_two_may_wait_for_the_last_call() -> None:
    async def test() -> None:
        made = generation([])
        made.leases = 1
        waiting = asyncio.gather(made.drain(60), made.drain(60))
        await asyncio.sleep(0)
        made.end()
        await waiting
        made.leases = 1
        await made.drain(0)
        assert made.leases == 1

    asyncio.run(test())


def test_the_drain_timeout_ends_the_waiting() -> None:
    events: list[str] = []
    made = generation(events)
    made.leases = 1
    asyncio.run(made.retire(0))
    assert events == ["stop", "close"]


def test_a_failure_to_stop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(generation([], fails=True).retire(0))
    assert "unloading m version 1 failed" in caplog.text
