from __future__ import annotations

import time
import typing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import salver
from salver.authoring import CURRENT, ArrayHint, Declaration, Handle, Scope
from salver.codecs.bind import bind
from salver.errors import InvalidInput, Unavailable
from salver.signature import Method, TensorSpec
from salver.types import (
    BF16,
    BYTES,
    FP32,
    FP64,
    INT64,
    NO_CONTEXT,
    UINT8,
    CallContext,
    DType,
    Loose,
    ModelRef,
    Request,
    Tensor,
    Tensors,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("item", "dtype", "dims", "is_rows", "content"),
    [
        (("float32", "B", 4), FP32, (-1, 4), True, "tensor"),
        (("FP64", 3, 2), FP64, (3, 2), False, "tensor"),
        ((np.uint8, "height", None, -1, 3), UINT8, (-1, -1, -1, 3), False, "tensor"),
        ((int, "B"), INT64, (-1,), True, "tensor"),
        (("bfloat16", 2), BF16, (2,), False, "tensor"),
        (("str", "B"), BYTES, (-1,), True, "text"),
        (("bytes", 1), BYTES, (1,), False, "bytes"),
        (("BYTES", 1), BYTES, (1,), False, "bytes"),
        ("float32", FP32, (), False, "tensor"),
    ],
)
def test_array_hints(
    item: Any, dtype: DType, dims: tuple[int, ...], is_rows: bool, content: str
) -> None:
    hint = salver.Array[item]
    assert (hint.dtype, hint.dims, hint.is_rows, hint.content) == (dtype, dims, is_rows, content)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (("B", 4), "'B' is no dtype; write it first"),
        (("flaot32", 4), "'flaot32' is no dtype"),
        (("complex64", 4), "'complex64' is no dtype"),
        (("float32", 4, "B"), '"B" counts rows and must be the first'),
        (("float32", -2), "-2 is no dimension"),
        (("float32", 1.5), "1.5 is no dimension"),
    ],
)
def test_wrong_array_hints_say_what_to_write(item: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        salver.Array[item]


def test_array_hints_work_inside_other_hints() -> None:
    hint = salver.Array["float32", "B", 4]
    assert (hint | None) is hint
    assert typing.get_args(list[hint]) == (hint,)  # type: ignore[valid-type]
    assert isinstance(hint, ArrayHint)


def test_the_decorator_marks_classes_and_functions() -> None:
    @salver.model
    class Plain: ...

    @salver.model(name="n", labels=["a"], max_batch=4)
    def function() -> None: ...

    assert Plain.__salver__ == Declaration()  # type: ignore[attr-defined]
    declared = function.__salver__  # type: ignore[attr-defined]
    assert (declared.name, declared.labels, declared.max_batch) == ("n", ("a",), 4)
    with pytest.raises(TypeError):
        salver.model(lables=["a"])  # type: ignore[call-overload]


class Answers:
    """A caller with a fixed answer that remembers the last call."""

    def __init__(self, **arrays: Any) -> None:
        self.answer = Tensors({name: Tensor.of(array) for name, array in arrays.items()})

    def __call__(
        self, ref: ModelRef, request: Request, context: CallContext = NO_CONTEXT, depth: int = 0
    ) -> Tensors:
        self.ref, self.request, self.context, self.depth = ref, request, context, depth
        return self.answer

    def sent(self, name: str = "") -> list[Any]:
        payload = self.request.payload
        assert isinstance(payload, Tensors)
        array: list[Any] = payload[name].array().tolist()
        return array


def a_work(**more: Any) -> Work:
    return Work("predict", {}, [0, 1, 2], (), [{"k": 1}, {"k": 2}], **more)


@pytest.fixture
def answers() -> Iterator[Answers]:
    answers = Answers(y=np.array([1, 2]))
    token = CURRENT.set(Scope(answers))
    yield answers
    CURRENT.reset(token)


def test_use_outside_a_server_says_so() -> None:
    with pytest.raises(Unavailable, match=r"salver.use\('iris'\) works only in a model"):
        salver.use("iris")
    with pytest.raises(Unavailable, match=r"salver.context\(\) has an answer only while"):
        salver.context()


def test_one_output_is_an_array_and_several_a_dict(answers: Answers) -> None:
    iris = salver.use("iris")
    assert repr(iris) == "salver.use('iris')"
    assert iris.predict([[1.5]]).tolist() == [1, 2]
    assert answers.sent() == [[1.5]]
    answers.answer["z"] = Tensor(BF16, (1,), np.array([0x3F80], np.uint16))
    found = iris.predict(a=1.0, b="text")
    assert {name: array.tolist() for name, array in found.items()} == {"y": [1, 2], "z": [1.0]}
    assert (answers.sent("a"), answers.sent("b")) == (1.0, ["text"])


def test_bytes_and_dicts_are_sent_whole(answers: Answers) -> None:
    iris = salver.use("iris")
    iris.predict(b"ends with zero\0")
    assert answers.sent() == [b"ends with zero\0"]
    iris.predict({"a": 1})
    assert answers.sent() == [b'{"a":1}']


def test_call_names_method_outputs_and_parameters(answers: Answers) -> None:
    iris = salver.use("iris", version="3")
    iris.call(1, method="proba", outputs=["y"], parameters={"top": 1})
    assert answers.ref == ModelRef("iris", "3")
    request = answers.request
    assert (request.method, request.outputs, request.parameters) == ("proba", ("y",), {"top": 1})


def test_several_inputs_need_names(answers: Answers) -> None:
    with pytest.raises(InvalidInput, match="must be given by name"):
        salver.use("iris").predict(1, 2)


def test_calls_inherit_from_the_running_call(answers: Answers) -> None:
    handle = Handle(ModelRef("m"), answers)
    handle.predict(1)
    assert (answers.context, answers.depth) == (NO_CONTEXT, 1)
    token = CURRENT.set(Scope(answers, a_work(deadline=8, context=CallContext(4, 1), depth=3)))
    handle.predict(1)
    CURRENT.reset(token)
    assert (answers.context, answers.depth) == (CallContext(8, 1), 4)


def test_the_context_of_a_call() -> None:
    far = time.monotonic_ns() + 10**12
    token = CURRENT.set(Scope(None, a_work(deadline=far)))
    now = salver.context()
    CURRENT.reset(token)
    assert now.parameters == {"k": 1}
    assert now.all_parameters == [{"k": 1}, {"k": 2}]
    assert now.remaining_s is not None
    assert 0 < now.remaining_s <= 1000


def a_method(*inputs: TensorSpec) -> Method:
    return Method(inputs=inputs, outputs=())


def spec(name: str, dtype: DType, *shape: int, optional: bool = False) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, optional=optional)


@pytest.mark.parametrize(
    ("value", "wanted", "dtype", "array"),
    [
        ([[1.0]], spec("x", FP32, -1, 1), FP32, [[1.0]]),
        (2.0, spec("x", FP32, 1), FP32, [2.0]),
        ([1.0], spec("x", BF16, -1), BF16, [0x3F80]),
        ([1.5], spec("x", INT64, -1), FP64, [1.5]),
        (2.0, spec("x", FP64, -1), FP64, [2.0]),
        (["a"], spec("x", BYTES, -1), BYTES, ["a"]),
        (["a"], spec("x", BYTES), BYTES, "a"),
    ],
)
def test_what_a_handle_sent_is_fitted_to_the_method(
    value: Any, wanted: TensorSpec, dtype: DType, array: list[Any]
) -> None:
    method = a_method(wanted, spec("more", FP32, 1, optional=True))
    fitted = bind(method, Loose({"": Tensor.of(value)}))
    assert list(fitted) == ["x"]
    assert fitted["x"].dtype is dtype
    assert fitted["x"].array().tolist() == array


def test_an_unnamed_input_among_several_is_refused() -> None:
    method = a_method(spec("a", FP32, 1), spec("b", FP32, 1))
    with pytest.raises(InvalidInput, match="name the inputs; there are: a, b"):
        bind(method, Loose({"": Tensor.of(1.0)}))


def test_unknown_inputs_are_left_for_the_check_of_the_signature() -> None:
    fitted = bind(a_method(spec("a", FP32, 1)), Loose({"z": Tensor.of(1.0)}))
    assert list(fitted) == ["z"]


def test_every_public_name_is_there_and_no_other() -> None:
    assert sorted(salver.__all__) == salver.__all__
    for name in salver.__all__:
        assert getattr(salver, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Arrray'"):
        salver.Arrray  # noqa: B018
