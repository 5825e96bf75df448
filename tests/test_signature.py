from __future__ import annotations

import numpy as np
import pytest

from salver.errors import InvalidInput
from salver.signature import Method, TensorSpec, unexpected_input
from salver.types import FP64, Tensor, Tensors

ONE_VALUE = Method(inputs=(TensorSpec(name="x", dtype=FP64, shape=()),), outputs=())


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_value_may_stand_as_one_element(shape: tuple[int, ...]) -> None:
    assert ONE_VALUE.check(Tensors(x=Tensor.of(np.zeros(shape)))) == 1


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 1)])
def test_several_values_for_one_are_to_be_sent_singly(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput) as found:
        ONE_VALUE.check(Tensors(x=Tensor.of(np.zeros(shape))))
    assert found.value.message == (
        f"input 'x': expected one value, got shape {list(shape)}; send one request for each value"
    )


@pytest.mark.parametrize(("name", "hint"), [("agee", " Did you mean 'age'?"), (7, "")])
def test_an_unexpected_input_is_told_with_those_there_are(name: object, hint: str) -> None:
    error = unexpected_input(name, {"age": 1, "city": 2})
    assert error.message == f"unexpected input {name!r}.{hint} Expected: age, city"
