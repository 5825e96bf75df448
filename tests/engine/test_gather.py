from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from salver.engine.gather import check_outputs, check_results, gather
from salver.errors import InvalidInput, ModelFailed
from salver.signature import Method, TensorSpec
from salver.types import BYTES, FP32, Call, CallContext, Packed, Request, Rows, Tensor, Tensors

X = TensorSpec(name="x", dtype=FP32, shape=(-1, 2))
OPTIONAL = TensorSpec(name="y", dtype=FP32, shape=(-1,), optional=True)
METHOD = Method(inputs=(X, OPTIONAL), outputs=(X,), batching="rows")


def call(inputs: Tensors, deadline: int = 0, outputs: tuple[str, ...] = ("x",)) -> Call:
    nobody = cast("Any", None)
    made = Call(Request(Tensors()), nobody, CallContext(deadline), nobody, 0)
    made.inputs, made.method, made.outputs = inputs, "m", outputs
    made.rows = next(iter(inputs.values())).shape[0]
    return made


def listed(*values: float) -> Tensors:
    return Tensors(x=Tensor(FP32, (len(values) // 2, 2), list(values)))


def test_lists_and_arrays_become_one_array() -> None:
    arrays = Tensors(x=Tensor.of(np.array([[5, 6]], np.float32)))
    for calls in ([listed(1, 2), listed(3, 4, 5, 6)], [listed(1, 2, 3, 4), arrays]):
        work = gather(METHOD, [call(inputs) for inputs in calls])
        assert work.inputs["x"].dtype == np.float32
        assert work.inputs["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
        assert work.rows == 3
        assert "y" not in work.inputs


def test_one_call_is_not_copied() -> None:
    inputs = Tensors(x=Tensor.of(np.zeros((1, 2), np.float32)))
    assert gather(METHOD, [call(inputs)]).inputs["x"] is inputs["x"].data


def test_items_stay_apart() -> None:
    method = Method(inputs=(X,), outputs=(X,), batching="items")
    work = gather(method, [call(listed(1, 2)), call(listed(3, 4, 5, 6))])
    assert [array.shape for array in work.inputs["x"]] == [(1, 2), (2, 2)]


def test_bytes_are_joined_whatever_their_form() -> None:
    text = TensorSpec(name="x", dtype=BYTES, shape=(-1,))
    method = Method(inputs=(text,), outputs=(text,), batching="rows")
    packed = Tensors(x=Tensor(BYTES, (1,), Packed(b"\x01\x00\x00\x00a")))
    plain = Tensors(x=Tensor(BYTES, (2,), [b"b", b"c"]))
    work = gather(method, [call(packed), call(plain)])
    assert work.inputs["x"].tolist() == [b"a", b"b", b"c"]


def test_a_run_lasts_as_long_as_its_latest_deadline() -> None:
    assert gather(METHOD, [call(listed(1, 2), 5), call(listed(1, 2), 7)]).deadline == 7
    assert gather(METHOD, [call(listed(1, 2), 5), call(listed(1, 2))]).deadline == 0


def test_all_wanted_outputs_are_computed_once() -> None:
    calls = [call(listed(1, 2), outputs=("a", "b")), call(listed(1, 2), outputs=("b", "c"))]
    assert gather(METHOD, calls).outputs == ("a", "b", "c")


def test_a_value_that_does_not_fit_is_named() -> None:
    with pytest.raises(InvalidInput, match="input 'x'"):
        gather(METHOD, [call(Tensors(x=Tensor(FP32, (1, 2), ["a", "b"])))])


def test_results_must_be_divisible_among_calls() -> None:
    work = gather(METHOD, [call(listed(1, 2)), call(listed(3, 4))])
    check_results(Rows(Tensors(x=Tensor.of([1.0, 2.0]))), work)
    check_results([None, None], work)
    for wrong in ([None], Rows(Tensors(x=Tensor.of([1.0]))), Rows(Tensors(x=Tensor.of(1.0)))):
        with pytest.raises(ModelFailed):
            check_results(wrong, work)


def test_a_missing_output_is_named() -> None:
    with pytest.raises(ModelFailed, match="no output 'b', only a"):
        check_outputs(Tensors(a=Tensor.of([1])), ("a", "b"))
