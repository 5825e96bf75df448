from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from salver.errors import InvalidInput
from salver.runtimes.texts import texts


def test_bytes_and_strings_become_strings() -> None:
    values = np.array([[b"caf\xc3\xa9", "k\xe4se"], [b"", "tea"]], np.object_)
    found = ["café", "käse", "", "tea"]
    assert texts(values, "x") == texts(values, "x", must_encode=True) == found


@pytest.mark.parametrize("item", [b"\xff", "\ud800"])
def test_what_is_not_utf8_is_refused(item: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^input 'x': a value is not UTF-8 text$"):
        texts(np.array(["fine", item], np.object_), "x", must_encode=True)


def test_lone_surrogates_pass_where_nothing_encodes_them() -> None:
    assert texts(np.array("\ud800", np.object_), "x") == ["\ud800"]
