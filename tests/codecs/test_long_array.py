from __future__ import annotations

import json
from unittest import mock

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.codecs import long_array
from salver.codecs.bind import bind
from salver.codecs.json_numbers import loads, parsed
from salver.codecs.long_array import LongArray, loads_long, plain
from salver.errors import InvalidInput, SalverError, TooLarge
from salver.signature import Method, TensorSpec
from salver.types import BYTES, FP32, INT64, Object

MAX_DEPTH = 8
SCALARS = (
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(width=16) | st.text(',[]{}"\\aä')
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("ab["), inner)
)
ROWS = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(st.integers(-9, 9), min_size=width, max_size=width))
)
MATRIX = TensorSpec(name="x", dtype=FP32, shape=(-1, 2))
TABLE = TensorSpec(name="x", dtype=FP32, shape=(-1, 2), columns=("a", "b"))
COUNTS = TensorSpec(name="x", dtype=INT64, shape=(-1, 2))
CUBE = TensorSpec(name="x", dtype=FP32, shape=(-1, -1, 2))
WORDS = TensorSpec(name="w", dtype=BYTES, shape=(-1,), content="text")
JSON = TensorSpec(name="x", dtype=BYTES, shape=(-1,), content="json")
AGE = TensorSpec(name="a", dtype=FP32, shape=(-1, 1))
METHODS = [
    Method(inputs=inputs, outputs=(), batching=batching)
    for inputs in [(MATRIX,), (TABLE,), (COUNTS,), (CUBE,), (WORDS,), (JSON,), (AGE, WORDS)]
    for batching in ("rows", "single")
]


@pytest.fixture
def short_parts():
    """Texts of some bytes are long already."""
    with mock.patch.multiple(long_array, PART_BYTES=4, LONG_BYTES=40, _AROUND_BYTES=40):
        yield


def array_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def body_of(array: np.ndarray) -> bytes:
    return orjson.dumps({"instances": array}, option=orjson.OPT_SERIALIZE_NUMPY)


def rows_of(method: Method, body: bytes) -> np.ndarray:
    value = loads_long(body, MAX_DEPTH)["instances"]
    assert isinstance(value, LongArray)
    return bind(method, Object("rows", value))["x"].array()


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except SalverError as error:
        return type(error), error.message


def whole(body: bytes):
    found = loads_long(body, MAX_DEPTH)
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    return plain(found)


@pytest.mark.usefixtures("short_parts")
class TestShortParts:
    @given(
        st.lists(VALUES, max_size=9) | ROWS,
        st.sampled_from(["%s", '{"inputs": %s}', '{"name": "a[", "instances": %s, "x": 1}']),
        st.sampled_from([None, 1]),
    )
    def test_any_array_is_what_it_is_in_one_step(self, value, around, indent):
        body = (around % json.dumps(value, indent=indent)).encode()
        assert repr(outcome(whole, body)) == repr(outcome(loads, body, MAX_DEPTH))

    @given(st.text('[]{},:"\\12a \n', max_size=60))
    def test_any_text_is_refused_as_in_one_step(self, text):
        body = b'{"inputs": [[1, 2],\n%b]}' % text.encode()
        assert repr(outcome(whole, body)) == repr(outcome(loads, body, MAX_DEPTH))

    @given(
        st.sampled_from(METHODS),
        st.sampled_from(["rows", "row", "auto"]),
        ROWS
        | st.lists(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2)))
        | st.lists(st.fixed_dictionaries({"a": st.integers(0, 9), "w": st.text("ab")}))
        | st.lists(st.dictionaries(st.sampled_from("ab"), st.integers(0, 9) | st.none()))
        | st.lists(st.integers(0, 9) | st.text("a,"))
        | st.lists(st.lists(st.integers(0, 9) | st.none() | st.text("a"), max_size=2)),
    )
    def test_what_is_bound_is_the_same(self, method, schema, value):
        body = json.dumps(value).encode()

        def bound(rows):
            payload = Object(schema, rows)
            tensors = bind(method, payload)
            shown = {name: (t.shape, t.array().tolist()) for name, t in tensors.items()}
            return shown, payload.is_single

        expected = outcome(bound, loads(body, MAX_DEPTH))
        found = outcome(bound, loads_long(body, MAX_DEPTH))
        # Of several mistakes another one may be told first.
        if expected[0] is InvalidInput:
            found, expected = found[0], expected[0]
        assert repr(found) == repr(expected)


@pytest.fixture
def decoded():
    """The length of every text that was decoded."""
    lengths: list[int] = []

    def noted(text):
        lengths.append(len(text))
        return parsed(text)

    with mock.patch.object(long_array, "parsed", noted):
        yield lengths


@pytest.mark.parametrize("shape", [(4000, 16), (40_000, 1), (9, 50, 100), (1, 1, 40_000)])
def test_no_step_decodes_more_than_a_part(decoded, shape):
    array = array_of(*shape)
    spec = TensorSpec(name="x", dtype=FP32, shape=(-1,) * len(shape))
    found = rows_of(Method(inputs=(spec,), outputs=(), batching="rows"), body_of(array))
    np.testing.assert_array_equal(found, array)
    assert len(decoded) > 4
    assert max(decoded) <= long_array.LONG_BYTES


def test_no_step_decodes_more_than_some_objects(decoded):
    array = array_of(9000, 2)
    rows = [{"a": a, "b": b, "c": [{"a": 1}, {"a": 2}]} for a, b in array.tolist()]
    value = loads_long(orjson.dumps(rows), MAX_DEPTH)
    assert value.whole() == rows
    assert max(decoded) < 4 * long_array.PART_BYTES


@pytest.mark.parametrize(
    ("spec", "place", "cell", "match"),
    [
        (TABLE, 30_000, '"x"', "'x', row 30000, column 'b': expected FP32, got \"x\""),
        (MATRIX, 30_000, "null", r"'x' at \[30000, 1\]: expected FP32, got null"),
        (COUNTS, 30_000, "0.5", "'x': expected INT64, got 0.5"),
        (TABLE, 30_000, "1, 2", "the rows differ in length"),
        (TABLE, 30_000, "1]]", "line 1, column"),
    ],
)
def test_what_is_wrong_is_told_by_its_row(spec, place, cell, match):
    cells = ["1"] * 40_000
    cells[place] = cell
    body = b'{"instances": [%b]}' % ",".join(f"[0, {cell}]" for cell in cells).encode()
    method = Method(inputs=(spec,), outputs=(), batching="rows")
    with pytest.raises(InvalidInput, match=match):
        rows_of(method, body)


def test_a_row_without_one_of_its_inputs_is_told():
    rows = [{"a": 1, "w": "x"}] * 20_000 + [{"a": 1}] * 20_000
    method = Method(inputs=(AGE, WORDS), outputs=(), batching="rows")
    with pytest.raises(InvalidInput, match="row 20000: missing input 'w'"):
        bind(method, Object("rows", loads_long(orjson.dumps(rows), MAX_DEPTH)))


def test_rows_are_counted_over_all_parts():
    method = Method(inputs=(MATRIX,), outputs=(), batching="rows", max_rows=30_000)
    with pytest.raises(InvalidInput, match="30001 rows in one request; this model takes at most"):
        rows_of(method, body_of(array_of(30_001, 2)))


@pytest.mark.parametrize("around", [b"[%b]", b'{"inputs": [%b]}'])
def test_depth_is_bounded_as_in_one_step(around):
    depth = around.count(b"[") + around.count(b"{")
    for inner in (MAX_DEPTH - depth, MAX_DEPTH - depth + 1):
        deep = b"[" * inner + b"]" * inner
        body = around % b",".join([b"1"] * 150_000 + [deep])
        assert repr(outcome(whole, body)) == repr(outcome(loads, body, MAX_DEPTH))
    with pytest.raises(TooLarge):
        whole(body)


@pytest.mark.parametrize("depth", [500, 1_000_000])
@pytest.mark.parametrize("around", [b"%b", b'{"inputs": [%b]}', b'{"inputs": [1], "z": %b}'])
def test_no_nesting_is_too_deep_to_be_judged(around, depth):
    body = around % (b"[" * depth + b" " * 300_000 + b"]" * depth)
    with pytest.raises(TooLarge):
        loads_long(body, MAX_DEPTH)


def test_bare_words_for_missing_numbers_are_taken():
    rows = [[float("nan"), 1.0]] * 40_000
    body = json.dumps({"instances": rows}).encode()
    np.testing.assert_array_equal(rows_of(METHODS[0], body), rows)
