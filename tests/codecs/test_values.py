from __future__ import annotations

import pytest

from salver.codecs.values import column_names
from salver.errors import InvalidInput


@pytest.mark.parametrize(
    ("first", "names"),
    [
        (["a", " b "], ["a", "b"]),
        (["", "a", "1"], ["", "a", "1"]),
        (["1", "2e3"], None),
        (["", "2"], None),
        (["nan"], None),
    ],
)
def test_column_names(first, names):
    assert column_names(first) == names


def test_two_columns_of_one_name():
    with pytest.raises(InvalidInput, match="two columns are called 'a'"):
        column_names(["a", "b", " a"])
