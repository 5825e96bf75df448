from __future__ import annotations

import numpy as np
import pytest

from salver.codecs.classification import classify
from salver.errors import InvalidInput, TooLarge
from salver.types import BF16, Tensor


def texts(tensor):
    return [item.decode() for item in tensor.array().ravel()]


def test_best_classes_of_each_row():
    scores = Tensor.of(np.array([[0.25, 3.3, 1], [2, 0, 2]], np.float32))
    best = classify("y", scores, 2)
    assert best.shape == (2, 2)
    assert texts(best) == ["3.300000:1", "1.000000:2", "2.000000:0", "2.000000:2"]


def test_without_rows_with_labels():
    best = classify("y", Tensor.of(np.array([3, 9, 4], np.uint8)), 5, ("cat", "dog"))
    assert best.shape == (3,)
    assert texts(best) == ["9:1:dog", "4:2", "3:0:cat"]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_nothing_to_classify(shape):
    best = classify("y", Tensor.of(np.zeros(shape, np.float32)), 2)
    assert best.array().size == 0
    assert best.shape[:-1] == shape[:-1]


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor.of(np.array([True])),
        Tensor.of(["a"]),
        Tensor.of(np.zeros(1, np.float16)),
        Tensor(BF16, (1,), np.zeros(1, np.uint16)),
    ],
)
def test_types_without_classes(tensor):
    with pytest.raises(InvalidInput, match=f"'y'.*{tensor.dtype.name}"):
        classify("y", tensor, 1)


def test_too_many_elements():
    with pytest.raises(TooLarge, match="at most 1000000 elements"):
        classify("y", Tensor.of(np.zeros(1_000_001, np.float32)), 1)
