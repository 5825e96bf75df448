"""The contract of loaded models: what a run gives, alone and in a batch, and what it survives."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import numpy as np

from salver.codecs.bind import bind
from salver.engine.gather import check_results, gather
from salver.errors import SalverError
from salver.signature import ANY
from salver.testing.clauses import expect, only
from salver.types import (
    BF16,
    BYTES,
    NO_CONTEXT,
    Call,
    Object,
    Raw,
    Request,
    Rows,
    Tensor,
    Tensors,
    bf16_floats,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from salver.interfaces import Model, Results
    from salver.signature import Method, TensorSpec
    from salver.types import Array, Work

_NUM_THREADS: Final = 4
_RUNS_PER_THREAD: Final = 8

Item = dict[str, Tensor]


def check_method(
    model: Model,
    name: str,
    rows: Sequence[Any],
    failing: Sequence[Any],
    tolerance: float | None,
) -> None:
    """Runs one method on `rows` in every way in which the engine may run them.

    Raises: AssertionError.
    """
    trial = Trial(model, name, tolerance if model.traits.idempotent else None)
    inputs = [trial.bound(row) for row in rows]
    expect(bool(inputs), "check_runtime needs rows", "there are none")
    alone = [trial.run([one])[0] for one in inputs]
    trial.check_batches(inputs, alone)
    for spec in trial.method.outputs:
        trial.run(inputs[:1], (spec.name,))
    trial.check_cancel(inputs[0], alone[0])
    trial.check_failures(inputs[0], [trial.bound(row) for row in failing], alone[0])
    if model.traits.thread_safe:
        trial.check_threads(inputs, alone)


class Trial:
    """Runs of one method, each checked against its signature.

    Results that should be equal are compared within `tolerance`, unless it is None.
    """

    def __init__(self, model: Model, name: str, tolerance: float | None) -> None:
        self.model = model
        self.method: Method = model.signature.methods[name]
        self._name = name
        self._tolerance = tolerance
        self._outputs = {spec.name: spec for spec in self.method.outputs}

    def bound(self, row: Any) -> Tensors:
        """One row as the inputs of a call."""
        payload = row
        if not isinstance(row, Tensors | Raw):
            by_rows = self.method.batching == "rows"
            payload = Object("rows", [row]) if by_rows else Object("row", row)
        with only(f"The rows of this check fit the inputs of {self._name!r}"):
            inputs = bind(self.method, payload)
            self.method.check(inputs)
        return inputs

    def run(self, calls: Sequence[Tensors], outputs: tuple[str, ...] = ()) -> list[list[Item]]:
        """Runs calls together; what each of them got: one item, or those of its stream."""
        work = self._work(calls, outputs)
        kept = {name: _copied(value) for name, value in work.inputs.items()}
        streamed: list[list[Item]] = [[] for _ in calls]

        def emit(index: int, item: Tensors) -> None:
            clause = "Only methods that stream emit, and only for their calls"
            is_known = self.method.streams and 0 <= index < work.num_calls
            expect(is_known, clause, f"{self._name!r} emitted for call {index}")
            self._check_item(item, work)
            streamed[index].append(dict(item))

        with only(f"Model.run of {self._name!r} takes what fits the signature, also if read-only"):
            results = self.model.run(work, emit)
        clause = "Model.run leaves its inputs as they are"
        expect(all(_is_same(work.inputs[n], kept[n]) for n in kept), clause, "they changed")
        return self._items(results, work, streamed)

    def _work(self, calls: Sequence[Tensors], outputs: tuple[str, ...] = ()) -> Work:
        made = []
        for inputs in calls:
            # No sink and no lease: a model never sees the calls, only what is gathered from them.
            call = Call(Request(inputs), cast("Any", None), NO_CONTEXT, cast("Any", None), 0)
            call.inputs, call.method = inputs, self._name
            call.rows = self.method.check(inputs)
            call.outputs = outputs or self.method.default_outputs()
            made.append(call)
        work = gather(self.method, made)
        for value in work.inputs.values():
            for array in value if isinstance(value, list) else [value]:
                array.flags.writeable = False
        return work

    def _items(self, results: Results, work: Work, streamed: list[list[Item]]) -> list[list[Item]]:
        with only("Model.run gives Rows aligned with the inputs, or one item per call"):
            check_results(results, work)
        if isinstance(results, Rows):
            self._check_item(results.tensors, work)
            return [[item] for item in _divided(results.tensors, work)]
        found = []
        for result, items in zip(results, streamed, strict=True):
            expect(
                not isinstance(result, Exception),
                "Model.run takes inputs that fit the signature",
                f"a call failed: {result}",
            )
            clause = "Model.run gives None for a call that streamed, and only for that"
            expect((result is None) == self.method.streams, clause, f"got {result!r}")
            if result is not None:
                assert not isinstance(result, Exception)
                self._check_item(result, work)
                items = [dict(result)]
            found.append(items)
        return found

    def _check_item(self, item: Tensors, work: Work) -> None:
        missing = [name for name in work.outputs if name not in item]
        expect(not missing, "Model.run gives every output of Work.outputs", f"no {missing}")
        for name, tensor in item.items():
            expect(
                name in self._outputs,
                "Outputs have the names of the signature",
                f"{name!r} is not in {list(self._outputs)}",
            )
            _check_output(self._outputs[name], tensor)
            is_aligned = (
                self.method.batching != "rows"
                or self.method.streams
                or tensor.shape[0] == work.rows
            )
            clause = "Dimension 0 of every output counts the rows of the inputs"
            expect(is_aligned, clause, f"{name!r} is {list(tensor.shape)} for {work.rows} rows")

    def check_batches(self, inputs: Sequence[Tensors], alone: list[list[Item]]) -> None:
        """Calls together, and where rows count all as one call, give what each gives alone."""
        limits = [n for n in (self.method.max_rows, self.model.traits.max_batch) if n]
        chosen = _alike(inputs)[: min(limits, default=len(inputs))]
        if self.method.batching == "single" or len(chosen) < 2:
            return
        inputs, alone = [inputs[i] for i in chosen], [alone[i] for i in chosen]
        for got, want in zip(self.run(inputs), alone, strict=True):
            self.compare(got, want, "A call gets in a batch what it gets alone")
        if self.method.batching == "rows" and not self.method.streams:
            (together,) = self.run([_joined(inputs)])
            want = [dict(_joined([item for (item,) in alone]))]
            self.compare(together, want, "Several rows of a call give what each row gives alone")

    def compare(self, got: list[Item], want: list[Item], clause: str) -> None:
        """Raises: AssertionError where results differ by more than the tolerance."""
        if self._tolerance is None:
            return
        expect(len(got) == len(want), clause, f"{len(got)} items instead of {len(want)}")
        for one, other in zip(got, want, strict=True):
            for name in other:
                difference = _difference(one[name], other[name], self._tolerance)
                expect(not difference, clause, f"output {name!r}: {difference}")

    def check_cancel(self, inputs: Tensors, want: list[Item]) -> None:
        """Cancelling too early, too late and meanwhile."""
        work = self._work([inputs])
        with only("Model.cancel raises nothing, also for work that does not run"):
            self.model.cancel(work, 0)
        clause = "Model.cancel concerns the present run only"
        self.compare(self.run([inputs])[0], want, clause)
        ended, errors = threading.Event(), list[Exception]()

        def cancel() -> None:
            try:
                while not ended.is_set():
                    self.model.cancel(work, 0)
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            with only("A cancelled run ends as usual or raises a SalverError", SalverError):
                self.model.run(work, lambda index, item: None)
        except SalverError:
            pass
        finally:
            ended.set()
            thread.join()
        expect(not errors, "Model.cancel may be called from any thread", f"it raised {errors}")
        self.compare(self.run([inputs])[0], want, clause)

    def check_failures(self, inputs: Tensors, failing: Sequence[Tensors], want: list[Item]) -> None:
        """Work without inputs, and inputs that the model refuses, alone and among good ones."""
        clause = "A run that fails leaves the model usable"
        empty = msgspec.structs.replace(self._work([inputs]), inputs={})
        self._fails(empty)
        self.compare(self.run([inputs])[0], want, clause)
        for bad in failing:
            expect(
                self._fails(self._work([bad])),
                "Model.run raises, or gives the error of the call, when it cannot compute",
                "it gave a result for a row of `failing`",
            )
            self.compare(self.run([inputs])[0], want, clause)
            if self.method.batching != "single" and len(_alike([inputs, bad])) == 2:
                self._fails(self._work([inputs, bad]))
                self.compare(self.run([inputs])[0], want, clause)

    def _fails(self, work: Work) -> bool:
        try:
            results = self.model.run(work, lambda index, item: None)
        except Exception:
            return True
        return not isinstance(results, Rows) and any(isinstance(r, Exception) for r in results)

    def check_threads(self, inputs: Sequence[Tensors], alone: list[list[Item]]) -> None:
        """What says that it is thread-safe gives the same in several threads at once."""

        def run_all(thread: int) -> None:
            for number in range(_RUNS_PER_THREAD):
                index = (thread + number) % len(inputs)
                self.compare(
                    self.run([inputs[index]])[0],
                    alone[index],
                    "Traits.thread_safe means that runs in several threads do not disturb another",
                )

        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            list(threads.map(run_all, range(_NUM_THREADS)))


def _check_output(spec: TensorSpec, tensor: Tensor) -> None:
    where = repr(spec.name)
    expect(
        isinstance(tensor, Tensor) and tensor.dtype is spec.dtype,
        "Outputs have the data type of the signature",
        f"{where} is {tensor!r}, not {spec.dtype.name}",
    )
    shape, array = tuple(tensor.shape), tensor.array(spec.name)
    expect(
        len(shape) == len(spec.shape)
        and all(want in (ANY, have) for want, have in zip(spec.shape, shape, strict=True)),
        "Outputs have the shape of the signature",
        f"{where} is {list(shape)}, not {list(spec.shape)}",
    )
    expect(
        array.shape == shape and array.dtype == spec.dtype.numpy,
        "A tensor's array is of its shape and data type",
        f"{where}: the array is {array.dtype} {list(array.shape)}, the tensor {tensor!r}",
    )
    if spec.dtype is BYTES:
        clause = "BYTES hold bytes or text"
        odd = [type(v).__name__ for v in array.ravel().tolist() if not isinstance(v, bytes | str)]
        expect(not odd, clause, f"{where} holds {', '.join(odd[:3])}")


def _divided(tensors: Tensors, work: Work) -> list[Item]:
    """Each call's part of the outputs of a batch; a single call has all of them."""
    if work.num_calls == 1:
        return [dict(tensors)]
    parts = list[Item]()
    for start, stop in zip(work.offsets, work.offsets[1:], strict=False):
        arrays = {name: tensor.array(name)[start:stop] for name, tensor in tensors.items()}
        parts.append({n: Tensor(tensors[n].dtype, a.shape, a) for n, a in arrays.items()})
    return parts


def _alike(inputs: Sequence[Tensors]) -> list[int]:
    """The first call, and those that the engine may run together with it."""

    def form(one: Tensors) -> list[Any]:
        return [(name, tensor.shape[1:]) for name, tensor in one.items()]

    return [index for index, one in enumerate(inputs) if form(one) == form(inputs[0])]


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> Tensors:
    arrays = {n: np.concatenate([part[n].array() for part in parts]) for n in parts[0]}
    return Tensors({n: Tensor(parts[0][n].dtype, a.shape, a) for n, a in arrays.items()})


def _copied(value: Any) -> Any:
    return [array.copy() for array in value] if isinstance(value, list) else value.copy()


def _is_same(value: Any, kept: Any) -> bool:
    if isinstance(value, list):
        return all(_is_same(one, other) for one, other in zip(value, kept, strict=True))
    return bool(np.array_equal(value, kept, equal_nan=value.dtype.kind == "f"))


def _difference(got: Tensor, want: Tensor, tolerance: float) -> str:
    """How two tensors differ; empty if they do not."""
    one, other = _comparable(got), _comparable(want)
    if one.shape != other.shape:
        return f"{list(one.shape)} instead of {list(other.shape)}"
    if want.dtype.is_float:
        differs = ~np.isclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        differs = np.asarray(one != other)
    places = np.argwhere(differs)
    if not len(places):
        return ""
    first = tuple(places[0])
    return f"{one[first]!r} instead of {other[first]!r} at {list(map(int, first))}"


def _comparable(tensor: Tensor) -> Array:
    array = tensor.array()
    return bf16_floats(array) if tensor.dtype is BF16 else array
