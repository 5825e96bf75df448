from __future__ import annotations

import pytest

from salver.codecs.values import cells, column_names, tensor_of_value
from salver.errors import InvalidInput
from salver.signature import TensorSpec
from salver.types import FP32


@pytest.mark.parametrize(
    ("first", "names"),
    [
        (["a", " b "], ["a", "b"]),
        (["a", "1"], ["a", "1"]),
        (["1", "2e3"], None),
        (["", "2"], None),
        (["nan"], None),
    ],
)
def test_column_names(first, names):
    assert column_names(first) == names


def test_truth_values_in_a_column_of_numbers():
    assert cells(["True", "false", "2", ""], "x").tolist()[:3] == [1, 0, 2]
    table = TensorSpec(name="x", dtype=FP32, shape=(-1, 1), columns=("new",))
    for values in ([[True], [False]], [[True], [0]], [[True], [None]]):
        assert tensor_of_value(table, values).array()[0] == 1
    with pytest.raises(InvalidInput, match="expected FP32, got true"):
        tensor_of_value(TensorSpec(name="x", dtype=FP32, shape=(-1,)), [True, False])


def test_a_column_without_a_name():
    with pytest.raises(InvalidInput, match="column 1 has no name"):
        column_names(["", "a"])


def test_two_columns_of_one_name():
    with pytest.raises(InvalidInput, match="two columns are called 'a'"):
        column_names(["a", "b", " a"])
