from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from salver.errors import InvalidInput
from salver.types import BF16, FP16, FP32, Packed, numbers, pack_bytes


@given(st.lists(st.binary() | st.text(st.characters(codec="utf-8"))))
def test_packed_items_come_back(items):
    packed = Packed(pack_bytes(items))
    expected = [item.encode() if isinstance(item, str) else item for item in items]
    assert packed.items(len(items), "x") == expected


def test_items_of_any_kind_travel_as_the_client_library_sends_them():
    items = [b"a", "\N{SNOWMAN}", np.str_("c"), 5, 0.5, None, True]
    array = np.array(items, np.object_)
    assert pack_bytes(items) == serialize_byte_tensor(array).item()
    assert pack_bytes([bytearray(b"a"), memoryview(b"b")]) == pack_bytes([b"a", b"b"])
    assert pack_bytes(np.array([b"a", b"bc"])) == pack_bytes([b"a", b"bc"])
    assert pack_bytes([]) == b""


def test_many_items_from_a_generator():
    packed = Packed(pack_bytes(str(number) for number in range(100_000)))
    assert packed.items(100_000, "x")[99_999] == b"99999"


@pytest.mark.parametrize("dtype", [FP16, FP32, BF16])
def test_a_number_beyond_a_floats_range_is_refused(dtype):
    with pytest.raises(InvalidInput, match=f"a value does not fit {dtype.name}"):
        numbers(dtype, [1e39], "x")
    assert len(numbers(dtype, [float("inf"), 1.0], "x")) == 2
