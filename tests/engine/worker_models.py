"""A model for worker processes, with one method for each thing that a model may do."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from salver.errors import InvalidInput, LoadFailed
from salver.interfaces import Traits
from salver.signature import Method, Signature, TensorSpec
from salver.types import BYTES, FP32, INT64, Loose, ModelRef, Request, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from pathlib import Path

    from salver.config import ModelConfig
    from salver.interfaces import Emit, LoadSpec, Probe, Results
    from salver.types import Work

X = TensorSpec(name="x", dtype=FP32, shape=(-1, -1))
N = TensorSpec(name="n", dtype=INT64, shape=(1,))
TEXT = TensorSpec(name="text", dtype=BYTES, shape=(-1,))

SIGNATURE = Signature(
    {
        "double": Method(inputs=(X,), outputs=(X,), batching="rows"),
        "upper": Method(inputs=(TEXT,), outputs=(TEXT,), batching="rows"),
        "items": Method(inputs=(X,), outputs=(X,), batching="items"),
        "count": Method(inputs=(N,), outputs=(N,), streams=True),
        "wait": Method(inputs=(N,), outputs=(N,)),
        "wait_then_call": Method(inputs=(N,), outputs=(N,)),
        "hold": Method(inputs=(N,), outputs=(N,)),
        "kill": Method(inputs=(X,), outputs=(X,), batching="rows"),
        "once": Method(inputs=(X,), outputs=(X,), batching="rows"),
        "stream_then_die": Method(inputs=(N,), outputs=(N,), streams=True),
        "fail": Method(inputs=(N,), outputs=(N,)),
        "nothing": Method(inputs=(N,), outputs=(N,)),
        "call": Method(inputs=(N,), outputs=(N,)),
        "print": Method(inputs=(N,), outputs=(N,)),
        "metrics": Method(inputs=(N,), outputs=(N,)),
        "child": Method(inputs=(N,), outputs=(N,)),
    }
)


def die() -> None:
    os.kill(os.getpid(), 9)


class SampleModel:
    signature = SIGNATURE
    traits = Traits(idempotent=False, max_batch=8)

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._cancelled = threading.Event()

    def run(self, work: Work, emit: Emit) -> Results:
        results: Results = getattr(self, work.method)(work, emit)
        return results

    def cancel(self, work: Work, index: int) -> None:
        self._cancelled.set()

    def close(self) -> None:
        print("closed", flush=True)

    def double(self, work: Work, emit: Emit) -> Results:
        return Rows(Tensors(x=Tensor.of(work.inputs["x"] * 2)))

    def upper(self, work: Work, emit: Emit) -> Results:
        return Rows(Tensors(text=Tensor.of([item.upper() for item in work.inputs["text"]])))

    def items(self, work: Work, emit: Emit) -> Results:
        return [
            Tensors(x=Tensor.of(x + 1)) if x.size else InvalidInput("x is empty")
            for x in work.inputs["x"]
        ]

    def count(self, work: Work, emit: Emit) -> Results:
        for number in range(work.inputs["n"][0]):
            emit(0, Tensors(n=Tensor.of([number])))
        return [None]

    def wait(self, work: Work, emit: Emit) -> Results:
        emit(0, Tensors())
        self._cancelled.wait()
        return [Tensors(n=Tensor.of([-1]))]

    def hold(self, work: Work, emit: Emit) -> Results:
        sys.setswitchinterval(1000)
        while True:
            pass

    def kill(self, work: Work, emit: Emit) -> Results:
        if (work.inputs["x"] < 0).any():
            die()
        return self.double(work, emit)

    def once(self, work: Work, emit: Emit) -> Results:
        """Dies unless it has died before."""
        died = self._spec.path / "died"
        if not died.exists():
            died.touch()
            die()
        return self.double(work, emit)

    def stream_then_die(self, work: Work, emit: Emit) -> Results:
        emit(0, Tensors(n=Tensor.of([0])))
        die()
        return [None]

    def fail(self, work: Work, emit: Emit) -> Results:
        raise ValueError("no such luck")

    def nothing(self, work: Work, emit: Emit) -> Results:
        return None  # type: ignore[return-value]

    def call(self, work: Work, emit: Emit) -> Results:
        assert self._spec.caller is not None
        request = Request(Loose(n=Tensor.of(work.inputs["n"])), method="m", with_roles=True)
        return [self._spec.caller(ModelRef("other"), request)]

    def wait_then_call(self, work: Work, emit: Emit) -> Results:
        self.wait(work, emit)
        return self.call(work, emit)

    def print(self, work: Work, emit: Emit) -> Results:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        return [Tensors(n=Tensor.of([0]))]

    def metrics(self, work: Work, emit: Emit) -> Results:
        from prometheus_client import Counter

        Counter("things", "Things that were counted.").inc()
        return [Tensors(n=Tensor.of([0]))]

    def child(self, work: Work, emit: Emit) -> Results:
        """Starts a process that would outlive this one."""
        child = os.fork()
        if not child:
            while True:
                time.sleep(60)
        return [Tensors(n=Tensor.of([child]))]


class SampleRuntime:
    name = "sample"

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        return None

    def load(self, spec: LoadSpec) -> Any:
        options = spec.config.options
        if options.get("fails_to_load"):
            raise LoadFailed("there is nothing to load")
        if options.get("hangs_at_load"):
            threading.Event().wait()
        if options.get("dies_at_load") or (spec.path / "dies_at_load").exists():
            die()
        return SampleModel(spec)


class TallyModel:
    """Notes in a file which process runs it."""

    signature = Signature({"double": SIGNATURE.methods["double"]})
    traits = Traits()

    def __init__(self, tally: Path) -> None:
        self._tally = tally

    def run(self, work: Work, emit: Emit) -> Results:
        with self._tally.open("a") as tally:
            tally.write(f"{os.getpid()}\n")
        return Rows(Tensors(x=Tensor.of(work.inputs["x"] * 2)))

    def cancel(self, work: Work, index: int) -> None: ...

    def close(self) -> None: ...


class TallyRuntime:
    name = "worker_models:TallyRuntime"

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        return None

    def load(self, spec: LoadSpec) -> Any:
        return TallyModel(spec.path)
