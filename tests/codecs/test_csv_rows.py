from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.codecs import csv_rows
from salver.codecs.bind import bind
from salver.codecs.csv_rows import decode_csv
from salver.errors import InvalidInput, SalverError
from salver.signature import Method, TensorSpec
from salver.types import BYTES, FP32

A = TensorSpec(name="a", dtype=FP32, shape=(-1, 1))
B = TensorSpec(name="b", dtype=BYTES, shape=(-1, 1), content="text")
TABLE = TensorSpec(name="x", dtype=FP32, shape=(-1, 2), columns=("a", "b"))
MIXED = Method(inputs=(A, B), outputs=(), batching="rows")
NUMBERS = Method(inputs=(TABLE,), outputs=(), batching="rows")


def outcome(body: bytes, method: Method):
    try:
        tensors = bind(method, decode_csv(body))
    except SalverError as error:
        return type(error), error.message
    return {name: tensor.array().tolist() for name, tensor in tensors.items()}


@given(
    st.booleans(),
    st.lists(st.sampled_from(["1,2", ",3", "", "1,x", '"a\nb",1', "1", "4,", '"1"x,2', "é,1"])),
    st.sampled_from([MIXED, NUMBERS]),
)
def test_parts_give_what_the_whole_gives(has_names, lines, method):
    body = "\n".join(["a,b"] * has_names + lines).encode()
    whole = outcome(body, method)
    with mock.patch.object(csv_rows, "PART_CELLS", 4):
        found = outcome(body, method)
    # Of several mistakes another one may be told first.
    if isinstance(whole, tuple):
        found, whole = found[0], whole[0]
    assert repr(found) == repr(whole)


@pytest.mark.parametrize("names", ["", "a,b\n"])
@pytest.mark.parametrize("num_rows", [0, 1, 4096, 4097, 10_000])
def test_no_step_converts_more_than_a_part(names, num_rows):
    sizes = []
    rows = np.arange(2 * num_rows, dtype=np.float32).reshape(-1, 2)
    body = names + "".join(f"{a},{b}\n\n" for a, b in rows)

    def noted(column, name, first=0):
        sizes.append(len(column))
        return cells(column, name, first)

    cells = csv_rows.cells
    with (
        mock.patch("salver.codecs.csv_rows.cells", noted),
        mock.patch("salver.codecs.bind.cells", noted),
    ):
        found = outcome(body.encode(), NUMBERS)
    if num_rows:
        np.testing.assert_array_equal(found["x"], rows)
        assert max(sizes) <= csv_rows.PART_CELLS
    else:
        assert found[0] is InvalidInput


@pytest.mark.parametrize(
    ("names", "last", "match"),
    [
        ("", "1,x", "column 'column 2', row 20001: 'x' is not a number"),
        ("a,b\n", "x,1", "column 'a', row 20001: 'x' is not a number"),
        ("a,b\n", "1,2,3", "line 20002 has 3 cells, the first has 2"),
        ("a,b\n", '"1', "line 20002 has 1 cells, the first has 2"),
        ("a,b\n", "\xff,1", "CSV must be UTF-8 text"),
        ("a,b\n", "x" * 200_000, "line 20002 is not valid CSV: field larger"),
    ],
)
def test_what_is_wrong_is_told_by_its_row(names, last, match):
    body = names + "1,2\n" * 20_000 + last
    with pytest.raises(InvalidInput, match=match):
        bind(NUMBERS, decode_csv(body.encode("latin-1")))


def test_rows_are_counted_over_all_parts():
    method = Method(inputs=(TABLE,), outputs=(), batching="rows", max_rows=10_000)
    body = b"a,b\n" + b"1,2\n" * 10_000
    assert bind(method, decode_csv(body))["x"].shape == (10_000, 2)
    with pytest.raises(InvalidInput, match="10001 rows in one request"):
        bind(method, decode_csv(body + b"1,2\n"))


@pytest.mark.parametrize(("mark", "name"), [(";", "';'"), ("\t", "a tab")])
def test_another_separator_is_named(mark, name):
    with pytest.raises(InvalidInput, match=f"the separator seems to be {name}"):
        decode_csv(f"a{mark}b\n1{mark}2\n".encode())
