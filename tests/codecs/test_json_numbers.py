from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salver.codecs.json_numbers import (
    MAX_VALUES,
    NON_FINITE,
    array_text,
    bytes_as_text,
    json_contents_text,
    loads,
    tensor_text,
)
from salver.errors import Internal, InvalidInput, TooLarge
from salver.types import BF16, BYTES, Tensor, bf16_bits

DTYPES = [np.bool_, *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"]


def words_as_numbers(value):
    if isinstance(value, list):
        return [words_as_numbers(item) for item in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


@given(
    array=st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
    )
)
def test_every_number_comes_back_as_it_was(array):
    back = np.array(words_as_numbers(orjson.loads(array_text(array))), array.dtype)
    np.testing.assert_array_equal(back, array)


def test_floats_keep_their_shortest_digits_beside_words():
    array = np.array([[0.1, np.nan], [np.inf, -np.inf]], np.float32)
    assert array_text(array) == b'[[0.1,"NaN"],["Infinity","-Infinity"]]'


def test_views_and_foreign_byte_orders():
    array = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
    assert orjson.loads(array_text(array)) == array.tolist()


@pytest.mark.parametrize("shape", [(0,), (0, 4), (2, 0)])
def test_empty_arrays(shape):
    assert orjson.loads(array_text(np.empty(shape, np.float32))) == np.empty(shape).tolist()


def test_bfloat16_is_written_as_the_number_it_is():
    bits = bf16_bits(np.array([1.5, np.nan], np.float32))
    assert tensor_text(Tensor(BF16, (2,), bits), "y", flat=True) == b'[1.5,"NaN"]'


def test_bytes_must_be_text():
    tensor = Tensor(BYTES, (2, 1), np.array([[b"\xc3\xa9"], ["b"]], np.object_))
    assert bytes_as_text(tensor, "y").tolist() == [["é"], ["b"]]
    assert tensor_text(tensor, "y", flat=True) == '["é","b"]'.encode()
    tensor.data[0, 0] = b"\xff"
    with pytest.raises(Internal, match=r"'y'.*binary"):
        tensor_text(tensor, "y", flat=True)


def test_json_contents_stay_json():
    tensor = Tensor(BYTES, (2,), np.array([b'{"a": 1}', b"[2]"], np.object_))
    assert orjson.loads(json_contents_text(tensor, "y")) == [{"a": 1}, [2]]


def test_bare_tokens_are_taken():
    nan, inf, minus = loads(b"[NaN, Infinity, -Infinity]", 8)
    assert np.isnan(nan)
    assert (inf, minus) == (np.inf, -np.inf)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[1,]", b"nan", b'"\xff"', b"\xff\xfe", b'["\\ud800"]', b'[NaN, "\\ud800"]',
        b"[NaN, 1" + b"0" * 30 + b"]", b"1" * 5000 + b" NaN",
    ],
)  # fmt: skip
def test_broken_json(body):
    with pytest.raises(InvalidInput, match="line 1"):
        loads(body, 8)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer(wrap):
    assert loads(wrap(b'{"a": [1]}'), 8) == {"a": [1]}


def test_depth_is_bounded_before_anything_is_built():
    for depth, opening, closing in ((9, b"[", b"]"), (9, b'{"a":', b"}"), (100_000, b"[", b"]")):
        with pytest.raises(TooLarge, match="8 levels"):
            loads(opening * depth + b"1" + closing * depth, 8)
    assert loads(b"[" * 8 + b"]" * 8, 8)


def test_commas_in_strings_are_no_values():
    text = "," * (2 * MAX_VALUES)
    assert loads(orjson.dumps([text]), 8) == [text]
    with pytest.raises(TooLarge, match=f"more than {MAX_VALUES} values"):
        loads(b"[%b1]" % (b"1," * MAX_VALUES), 8)


def test_brackets_in_strings_do_not_count():
    text = '[[[{\\"' * 1000
    assert loads(json.dumps([text, text]).encode(), 8) == [text, text]
    with pytest.raises(TooLarge):
        loads(json.dumps([text]).encode()[:-1] + b"," + b"[" * 8 + b"]" * 9, 8)


def test_wide_is_not_deep():
    assert len(loads(b"[" + b"[1]," * 1_000_000 + b"[1]]", 8)) == 1_000_001


@given(body=st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_error(body):
    with suppress(InvalidInput):
        loads(body, 4)
