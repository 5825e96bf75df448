from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from salver.engine.each import Each, parts_of
from salver.errors import Cancelled, InvalidInput, ModelFailed, Overloaded, SalverError, Unsupported
from salver.signature import Method, TensorSpec
from salver.types import (
    BYTES,
    FP32,
    NO_CONTEXT,
    Call,
    ModelRef,
    Object,
    Request,
    Response,
    Rows,
    Tensor,
    Tensors,
)

ROWS = Method(
    inputs=(TensorSpec(name="x", dtype=FP32, shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", dtype=FP32, shape=(-1, 2)),),
    batching="rows",
    max_rows=2,
)
TEXT = Method(
    inputs=(TensorSpec(name="t", dtype=BYTES, shape=(), content="text"),),
    outputs=(TensorSpec(name="y", dtype=FP32, shape=()),),
)


@pytest.mark.parametrize(
    ("method", "payload", "expected"),
    [
        (TEXT, Object("rows", ["a", "b"]), [("row", "a"), ("row", "b")]),
        (TEXT, Object("rows", ["a"]), []),
        (TEXT, Object("row", ["a", "b"]), []),
        (TEXT, Object("auto", ["a", "b"]), []),
        (ROWS, Object("rows", [[1, 2]] * 3), [("rows", [[1, 2]] * 2), ("rows", [[1, 2]])]),
        (ROWS, Object("auto", [[1, 2]] * 3), [("rows", [[1, 2]] * 2), ("rows", [[1, 2]])]),
        (ROWS, Object("rows", [[1, 2]] * 2), []),
        (ROWS, Object("auto", [1, 2, 3]), []),
        (ROWS, Tensors(x=Tensor.of(np.ones((3, 2), np.float32))), []),
    ],
)
def test_what_calls_may_not_have_at_once_is_parted(
    method: Method, payload: Any, expected: list[Any]
) -> None:
    assert [(part.schema, part.value) for part in parts_of(method, payload)] == expected


class Model:
    """Keeps the calls that are submitted; refuses what comes after `room`. It is their lease."""

    def __init__(self, room: int = 10) -> None:
        self.calls: list[Call] = []
        self.cancelled: list[Call] = []
        self.target = self
        self._room = room

    def submit(self, request: Request, sink: Any) -> Call:
        if len(self.calls) == self._room:
            raise Overloaded("full")
        self.calls.append(Call(request, sink, NO_CONTEXT, self, 0))  # type: ignore[arg-type]
        return self.calls[-1]

    def cancel(self, call: Call, why: SalverError) -> None:
        if not call.ended:
            self.cancelled.append(call)
            self.answer(call, why)

    def answer(self, call: Call, value: SalverError | np.ndarray[Any, Any]) -> None:
        call.ended = True
        item: Any = value
        if isinstance(value, np.ndarray):
            item = Response(Rows(Tensors(y=Tensor.of(value))), ModelRef("m", "1"), TEXT, ("y",))
        call.sink.push(call, item, True)


class Sink:
    def __init__(self) -> None:
        self.items: list[Any] = []

    def push(self, call: Call, item: Any, final: bool) -> None:
        assert final
        self.items.append(item)


def begun(model: Model, method: Method, payload: Object, max_calls: int = 10) -> tuple[Call, Sink]:
    sink = Sink()
    each = Each(method, parts_of(method, payload), model.submit, max_calls)
    call = Call(Request(payload), sink, NO_CONTEXT, each, 0)
    each.submit(call, 0)
    return call, sink


def test_answers_come_as_one_in_the_order_of_their_inputs() -> None:
    model = Model()
    call, sink = begun(model, TEXT, Object("rows", ["a", "b", "c"]))
    assert [each.request.payload.value for each in model.calls] == ["a", "b", "c"]  # type: ignore[union-attr]
    for each in reversed(model.calls):
        assert not sink.items
        model.answer(each, np.array(model.calls.index(each), np.float32))
    (answer,) = sink.items
    assert call.ended
    assert answer.method.batching == "rows"
    assert answer.tensor("y").array().tolist() == [0.0, 1.0, 2.0]


def test_rows_of_several_runs_are_put_together() -> None:
    model = Model()
    _, sink = begun(model, ROWS, Object("rows", [[1, 2]] * 3))
    for rows, each in zip((2, 1), model.calls, strict=True):
        model.answer(each, np.full((rows, 2), rows, np.float32))
    assert sink.items[0].tensor("y").array().tolist() == [[2, 2], [2, 2], [1, 1]]


def test_the_first_error_ends_all() -> None:
    model = Model()
    _, sink = begun(model, TEXT, Object("rows", ["a", "b", "c"]))
    model.answer(model.calls[1], ModelFailed("bad text"))
    assert [item.message for item in sink.items] == ["bad text"]
    assert model.cancelled == [model.calls[0], model.calls[2]]


def test_who_cancels_one_cancels_all() -> None:
    model = Model()
    call, sink = begun(model, TEXT, Object("rows", ["a", "b"]))
    call.lease.target.cancel(call, Cancelled("gone"))
    call.lease.target.cancel(call, Cancelled("gone"))
    assert [item.message for item in sink.items] == ["gone"]
    assert model.cancelled == model.calls


def test_what_is_refused_half_way_leaves_nothing() -> None:
    model = Model(room=2)
    with pytest.raises(Overloaded):
        begun(model, TEXT, Object("rows", ["a", "b", "c"]))
    assert model.cancelled == model.calls
    model = Model()
    with pytest.raises(InvalidInput, match="asks for 3 runs, but only 2 calls may wait"):
        begun(model, TEXT, Object("rows", ["a", "b", "c"]), max_calls=2)
    assert not model.calls


def test_answers_of_different_shapes_are_not_one() -> None:
    model = Model()
    _, sink = begun(model, TEXT, Object("rows", ["a", "b"]))
    for length, each in enumerate(model.calls):
        model.answer(each, np.ones(length, np.float32))
    (error,) = sink.items
    assert isinstance(error, Unsupported)
    assert "differ in the shape of 'y'" in error.message
