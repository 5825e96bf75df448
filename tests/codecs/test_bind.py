from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.codecs.bind import bind
from salver.errors import InvalidInput, SalverError, UnsupportedMedia
from salver.signature import Method, TensorSpec
from salver.types import (
    BF16,
    BOOL,
    BYTES,
    FP16,
    FP32,
    FP64,
    INT8,
    INT64,
    UINT64,
    Loose,
    Object,
    Raw,
    Tensor,
    Tensors,
)


def rows(*inputs):
    return Method(inputs=inputs, outputs=(), batching="rows")


def single(*inputs):
    return Method(inputs=inputs, outputs=(), batching="single")


MATRIX = TensorSpec(name="x", dtype=FP32, shape=(-1, 2))
IRIS = TensorSpec(name="x", dtype=FP32, shape=(-1, 2), columns=("a", "b"))
AGE = TensorSpec(name="age", dtype=FP32, shape=(-1, 1))
CITY = TensorSpec(name="city", dtype=BYTES, shape=(-1, 1), content="text")
IMAGE = TensorSpec(name="image", dtype=BYTES, shape=(-1,), content="image")


def bound(method, schema, value):
    """The bound arrays as lists by name, and whether the value was one input."""
    payload = Object(schema, value)
    tensors = bind(method, payload)
    return {name: tensor.array().tolist() for name, tensor in tensors.items()}, payload.is_single


def scalar(dtype, value, **options):
    spec = TensorSpec(name="x", dtype=dtype, shape=(-1,), **options)
    return bind(rows(spec), Object("rows", [value]))["x"].array().tolist()[0]


@pytest.mark.parametrize(
    ("schema", "value", "is_single"),
    [
        ("rows", [[1, 2]], False),
        ("row", [1, 2], True),
        ("row", [[1, 2]], False),
        ("auto", [1, 2], True),
        ("auto", [[1, 2]], False),
    ],
)
def test_one_input_or_a_batch_by_its_rank(schema, value, is_single):
    assert bound(rows(MATRIX), schema, value) == ({"x": [[1.0, 2.0]]}, is_single)


def test_rows_as_objects_by_column():
    value = [{"b": 2, "a": 1}, {"a": None}, {}]
    found, _ = bound(rows(IRIS), "rows", value)
    np.testing.assert_array_equal(found["x"], [[1, 2], [np.nan, np.nan], [np.nan, np.nan]])
    assert bound(rows(IRIS), "row", {"a": 1, "b": 2}) == ({"x": [[1.0, 2.0]]}, True)
    with pytest.raises(InvalidInput, match="row 0: unknown column 'A'"):
        bound(rows(IRIS), "rows", [{"A": 1}])
    with pytest.raises(InvalidInput, match="row 1: expected an object by column"):
        bound(rows(IRIS), "rows", [{"a": 1}, [1, 2]])


def test_rows_as_objects_by_input():
    value = [{"age": 1, "city": "Ulm"}, {"age": [2], "city": ["Köln"]}]
    found, _ = bound(rows(AGE, CITY), "rows", value)
    assert found == {"age": [[1.0], [2.0]], "city": [[b"Ulm"], ["Köln".encode()]]}
    for wrong, match in (
        ([{"age": 1}], "missing input 'city'"),
        ([{"age": 1, "city": "a"}, {"age": 1}], "row 1: missing input 'city'"),
        ([{"agee": 1, "city": "a"}], "Did you mean 'age'"),
        ([[1, "a"]], "as an object with age, city"),
        ("a", "expected a list"),
    ):
        with pytest.raises(InvalidInput, match=match):
            bound(rows(AGE, CITY), "rows", wrong)


def test_one_object_may_hold_whole_tensors():
    value = {"age": [[1], [2]], "city": [["Ulm"], ["Bonn"]]}
    expected = {"age": [[1.0], [2.0]], "city": [[b"Ulm"], [b"Bonn"]]}
    assert bound(rows(AGE, CITY), "row", value) == (expected, False)
    documents = TensorSpec(name="x", dtype=BYTES, shape=(-1,), content="json")
    assert bound(rows(documents), "row", {"x": [1]}) == ({"x": [b"[1]"]}, True)


@pytest.mark.parametrize(
    ("schema", "value"), [("rows", [[1, 2]] * 2), ("columns", {"a": ["1"] * 2, "b": ["2"] * 2})]
)
def test_more_rows_than_a_model_takes_are_refused(schema, value):
    method = Method(inputs=(MATRIX,), outputs=(), batching="rows", max_rows=1)
    with pytest.raises(InvalidInput, match="2 rows in one request; this model takes at most 1: "):
        bound(method, schema, value)


def test_what_is_missing_in_a_table_of_columns():
    age = TensorSpec(name="age", dtype=FP32, shape=(-1,), columns=("age",))
    given = [{"city": None}, {"age": 2, "city": "Ulm"}, {"age": None, "city": ""}]
    found = bind(rows(age, CITY), Object("rows", given))
    np.testing.assert_array_equal(found["age"].array(), [np.nan, 2, np.nan])
    assert found["city"].array().tolist() == [[b""], [b"Ulm"], [b""]]
    found = bind(rows(age, CITY), Object("rows", [{"city": "a"}]))
    np.testing.assert_array_equal(found["age"].array(), [np.nan])
    with pytest.raises(InvalidInput, match="row 1: missing input 'city'"):
        bind(rows(age, CITY), Object("rows", [{"city": "a"}, {"age": 1}]))
    with pytest.raises(InvalidInput, match="unexpected input 'town'"):
        bind(rows(age, CITY), Object("rows", [{"city": "a"}, {"city": "b", "town": 1}]))
    with pytest.raises(InvalidInput, match="row 1: expected an object"):
        bind(rows(age, CITY), Object("rows", [{"city": "a"}, 1]))


def test_single_inputs_have_no_batch_dimension():
    spec = TensorSpec(name="x", dtype=FP32, shape=(2,))
    assert bound(single(spec), "row", [1, 2]) == ({"x": [1.0, 2.0]}, True)
    assert bound(single(spec), "rows", [[1, 2]]) == ({"x": [1.0, 2.0]}, True)
    assert bound(single(spec), "row", {"x": [1, 2]}) == ({"x": [1.0, 2.0]}, True)
    with pytest.raises(InvalidInput, match="one input per request, got 2"):
        bound(single(spec), "rows", [[1, 2], [3, 4]])


def test_json_contents_take_anything():
    spec = TensorSpec(name="x", dtype=BYTES, shape=(), content="json")
    assert bound(single(spec), "row", {"any": [1]}) == ({"x": b'{"any":[1]}'}, True)
    listed = TensorSpec(name="x", dtype=BYTES, shape=(-1,), content="json")
    assert bound(rows(listed), "rows", [{"a": 1}, 2])[0] == {"x": [b'{"a":1}', b"2"]}
    with pytest.raises(InvalidInput, match="expected a list"):
        bound(single(listed), "row", 5)


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (FP32, 0.1, np.float32(0.1)),
        (FP32, 2**60, 2.0**60),
        (FP32, "Infinity", np.inf),
        (INT8, -128, -128),
        (INT64, 3.0, 3),
        (INT64, 2**63 - 1, 2**63 - 1),
        (UINT64, 2**64 - 1, 2**64 - 1),
        (BOOL, True, True),
    ],
)
def test_numbers(dtype, value, expected):
    assert scalar(dtype, value) == expected


@pytest.mark.parametrize(
    ("dtype", "value", "match"),
    [
        (FP32, "1", 'expected FP32, got "1"'),
        (FP32, True, "got true"),
        (FP32, None, "got null"),
        (FP32, {"a": 1}, "unexpected input 'a'"),
        (FP16, 1e300, "does not fit FP16"),
        (INT8, 128, "-128 to 127"),
        (INT8, 1.5, "got 1.5"),
        (INT64, 1e30, "does not fit INT64"),
        (INT64, float("inf"), "expected INT64"),
        (INT64, float("nan"), "expected INT64"),
        (INT64, 2**63, "does not fit INT64"),
        (UINT64, -1, "does not fit UINT64"),
        (BOOL, 1, "expected BOOL"),
        (INT64, "1", "expected INT64"),
        (BYTES, 1, "expected tensor, got 1"),
    ],
)
def test_values_that_do_not_fit(dtype, value, match):
    with pytest.raises(InvalidInput, match=match):
        scalar(dtype, value)


def test_words_beside_numbers():
    assert bound(rows(MATRIX), "rows", [["-Infinity", 0.1]])[0]["x"][0][0] == -np.inf
    with pytest.raises(InvalidInput, match=r"at \[0, 1\]: expected FP32, got \"one\""):
        bound(rows(MATRIX), "rows", [[1, "one"]])
    with pytest.raises(InvalidInput, match="row 0, column 'b'"):
        bound(rows(IRIS), "rows", [[1, "one"]])


@pytest.mark.parametrize("dtype", [FP32, INT64, BOOL])
def test_a_long_text_costs_no_memory_for_the_numbers_beside_it(dtype):
    # An array of text would take 4 bytes for each character of the longest one, 800 GB here.
    value = [["x" * 1_000_000, 1]] + [[1, 2]] * 100_000
    spec = TensorSpec(name="x", dtype=dtype, shape=(-1, 2))
    with pytest.raises(InvalidInput, match=f'expected {dtype.name}, got "xxx'):
        bound(rows(spec), "rows", value)


@pytest.mark.parametrize("value", [[[1, 2], [3]], [[1, 2], 3], [[1], []]])
def test_ragged_rows(value):
    with pytest.raises(InvalidInput, match="differ in length"):
        bound(rows(MATRIX), "rows", value)
    with pytest.raises(InvalidInput):
        bound(rows(CITY), "rows", [["a"], []])


def test_no_rows_at_all():
    assert bound(rows(MATRIX), "rows", []) == ({"x": []}, False)


def test_images_and_bytes_in_json():
    coded = base64.b64encode(b"\x89PNG").decode()
    for value in ({"b64": coded}, coded, f"data:image/png;base64,{coded}"):
        assert bound(rows(IMAGE), "row", value)[0] == {"image": [b"\x89PNG"]}
    with pytest.raises(InvalidInput, match="base64"):
        bound(rows(IMAGE), "row", {"b64": "é"})
    with pytest.raises(InvalidInput, match="base64"):
        bound(rows(IMAGE), "row", {"b64": 5})


def test_files_go_to_inputs_that_hold_bytes():
    assert bind(rows(IMAGE), Raw(b"\x89PNG", "image/png"))["image"].array().tolist() == [b"\x89PNG"]
    with pytest.raises(UnsupportedMedia, match=r"takes x \(FP32\), not a file of type image/png"):
        bind(rows(MATRIX), Raw(b"", "image/png"))
    with pytest.raises(UnsupportedMedia, match="send a picture"):
        bind(rows(IMAGE), Raw(b"", "text/plain"))
    with pytest.raises(UnsupportedMedia, match="not a table; send a picture"):
        bind(single(IMAGE), Object("columns", {"a": ["1"]}))


WIDTH = TensorSpec(name="x", dtype=FP32, shape=(-1, 2), columns=("petal_width", "b"))
LENGTH = TensorSpec(name="petal_length", dtype=FP32, shape=(-1, 1), columns=("petal_length",))


@pytest.mark.parametrize(
    ("method", "payload", "expected"),
    [
        (rows(WIDTH), Object("columns", {"petal width": ["1"], "b": ["2"]}), {"x": [[1, 2]]}),
        (rows(WIDTH), Object("rows", [{"petal width": 1, "b": 2}]), {"x": [[1, 2]]}),
        (
            rows(LENGTH, CITY),
            Object("rows", [{"petal length": 1, "city": "a"}]),
            {"petal_length": [[1]], "city": [[b"a"]]},
        ),
        (
            rows(LENGTH, CITY),
            Object("columns", {"petal length": ["1"], "city": ["a"]}),
            {"petal_length": [[1]], "city": [[b"a"]]},
        ),
    ],
)
def test_names_with_blanks_mean_those_that_lightgbm_writes(method, payload, expected):
    found = bind(method, payload)
    assert {name: tensor.array().tolist() for name, tensor in found.items()} == expected


def test_a_name_that_would_mean_a_column_twice_is_unknown():
    both = {"petal width": ["1"], "petal_width": ["1"], "b": ["2"]}
    with pytest.raises(InvalidInput, match="unknown column 'petal width'"):
        bind(rows(WIDTH), Object("columns", both))


def columns(method, **values):
    return {
        name: tensor.array().tolist()
        for name, tensor in bind(method, Object("columns", values)).items()
    }


def test_tables_by_column():
    found = columns(rows(IRIS), b=["1", ""], a=["2", "3"])
    np.testing.assert_array_equal(found["x"], [[2, 1], [3, np.nan]])
    assert columns(rows(MATRIX), p=["1"], q=["2"]) == {"x": [[1.0, 2.0]]}
    assert columns(rows(AGE, CITY), age=["1"], city=[""]) == {"age": [[1.0]], "city": [[b""]]}
    with pytest.raises(InvalidInput, match="unknown column 'c'"):
        columns(rows(IRIS), c=["1"], a=["1"])
    with pytest.raises(InvalidInput, match="column 'a', row 2: 'x' is not a number"):
        columns(rows(IRIS), a=["1", "x"], b=["1", "2"])
    with pytest.raises(UnsupportedMedia, match="not a table"):
        columns(single(MATRIX), a=["1"])


def test_a_table_has_every_column_that_the_model_was_made_with():
    with pytest.raises(InvalidInput, match="lacks column 'b'; leave the cells"):
        columns(rows(IRIS), a=["1"])
    wide = TensorSpec(name="x", dtype=FP32, shape=(-1, 3), columns=("a", "b", "c"))
    with pytest.raises(InvalidInput, match="lacks columns 'a', 'c'"):
        columns(rows(wide), b=["1"])
    age = TensorSpec(name="age", dtype=FP32, shape=(-1,), columns=("age",))
    with pytest.raises(InvalidInput, match="lacks column 'age'"):
        columns(rows(age, CITY), city=["a"])
    maybe = TensorSpec(name="age", dtype=FP32, shape=(-1,), columns=("age",), optional=True)
    assert columns(rows(maybe, CITY), city=["a"]) == {"city": [[b"a"]]}
    found = columns(rows(age, CITY), city=["a"], age=[""])
    np.testing.assert_array_equal(found["age"], [np.nan])


def test_tensors_pass_as_they_are():
    tensors = Tensors({"x": Tensor.of(np.ones(2))})
    assert bind(rows(MATRIX), tensors) is tensors


def test_an_only_input_of_another_model_needs_no_name():
    found = bind(rows(MATRIX), Loose({"": Tensor.of(np.ones((1, 2)))}))
    assert found["x"].dtype is FP32
    with pytest.raises(InvalidInput, match="name the inputs; there are: age, city"):
        bind(rows(AGE, CITY), Loose({"": Tensor.of(1.0)}))


def test_bfloat16_from_other_floats():
    spec = TensorSpec(name="x", dtype=BF16, shape=(-1,))
    found = bind(rows(spec), Loose({"x": Tensor.of(np.ones(1))}))
    assert found["x"].dtype is BF16
    assert found["x"].array().tolist() == [0x3F80]
    assert scalar(BF16, 1.0) == 0x3F80


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=3)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["x", "a", "age", "city", "b64"]), inner, max_size=3),
    ),
    max_leaves=10,
)
METHODS = [
    rows(MATRIX), rows(IRIS), rows(AGE, CITY), rows(IMAGE), single(MATRIX), single(CITY),
    rows(TensorSpec(name="x", dtype=INT8, shape=(-1, -1))),
    rows(TensorSpec(name="x", dtype=BYTES, shape=(-1, 1), content="json")),
    rows(TensorSpec(name="x", dtype=FP64, shape=(-1,), optional=True)), rows(),
]  # fmt: skip


@given(
    method=st.sampled_from(METHODS), schema=st.sampled_from(["rows", "row", "auto"]), value=VALUES
)
def test_any_value_is_bound_or_refused(method, schema, value):
    if schema == "rows" and not isinstance(value, list):
        value = [value]
    try:
        tensors = bind(method, Object(schema, value))
    except SalverError:
        return
    assert all(tensor.array(name).shape == tensor.shape for name, tensor in tensors.items())


FILE = np.float32([[1, 2]]).tobytes()
GRID = TensorSpec(name="x", dtype=FP32, shape=(-1, -1, 2))
FREE = TensorSpec(name="x", dtype=FP32, shape=(-1, -1, -1))


@pytest.mark.parametrize(
    ("method", "body", "values"),
    [
        (rows(MATRIX), FILE, [[1, 2]]),
        (single(TensorSpec(name="x", dtype=FP32, shape=(-1,))), FILE, [1, 2]),
        (rows(GRID), 2 * FILE, [[[1, 2], [1, 2]]]),
        (single(TensorSpec(name="x", dtype=INT8, shape=())), b"\xff", -1),
    ],
)
def test_bytes_are_the_numbers_of_the_only_input(method, body, values):
    bound_bytes = bind(method, Raw(body, "application/octet-stream"))
    assert bound_bytes["x"].array().tolist() == values


@pytest.mark.parametrize(
    ("method", "body", "told"),
    [
        (rows(MATRIX), 2 * FILE, "expects 8 bytes, got 16"),
        (rows(GRID), FILE + b"1", "expects 8 bytes, got 9"),
        (rows(FREE), FILE, "does not follow from a number of bytes"),
    ],
)
def test_bytes_that_do_not_fit_the_input(method, body, told):
    with pytest.raises(InvalidInput, match=told):
        bind(method, Raw(body, "application/octet-stream"))
