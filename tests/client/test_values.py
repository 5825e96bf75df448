"""Tables from the client to models that know their columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pandas
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import salver
from salver.client.values import input_tensors, named_inputs, to_tensor
from salver.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def client(
    serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[salver.Client]:
    """One model takes a table of numbers, one a table with text."""
    folder = tmp_path_factory.mktemp("models")
    table = pandas.DataFrame({"a": [1.0, 2, 3, 4, 5, 6], "b": [5.0, 7, 6, 1, 3, 2]})
    linear = LinearRegression().fit(table, 10 * table.a + table.b)
    joblib.dump(linear, folder / "linear.joblib")
    table["kind"] = ["x", "y", "x", "y", "y", "x"]
    table["new"] = [True, False, False, True, False, True]
    encode = make_column_transformer((OneHotEncoder(), ["kind"]), remainder="passthrough")
    mixed = make_pipeline(encode, LinearRegression()).fit(
        table, table.a + 100 * (table.kind == "y") + 1000 * table.new
    )
    joblib.dump(mixed, folder / "mixed.joblib")
    server = serve(folder / "linear.joblib", folder / "mixed.joblib", "--trust")
    with salver.Client(server.url) as client:
        yield client


def test_blanks_in_names_mean_what_lightgbm_writes_for_them() -> None:
    frame = pandas.DataFrame({"b c": [1.0, 2.0], "a b": [3.0, 4.0]})
    spec = {"name": "x", "datatype": "FP64", "shape": [-1, 2], "columns": ["a_b", "b_c"]}
    metadata = {"name": "m", "inputs": [spec], "outputs": []}
    for table in (frame, frame.to_dict("list")):
        named, _ = named_inputs(table, metadata)
        found = input_tensors(named, metadata)["x"]
        assert found.array().tolist() == [[3.0, 1.0], [4.0, 2.0]]


def test_a_frame_goes_by_the_names_of_its_columns(client: salver.Client) -> None:
    frame = pandas.DataFrame({"b": [1, 2], "a": [3.0, 4.0]})
    for table in (frame, frame[["a", "b"]], frame.to_dict("list")):
        assert client.predict("linear", table) == pytest.approx([31, 42])
    (array,) = client.infer("linear", {"input": frame}).values()
    assert array == pytest.approx([31, 42])
    assert client.predict("linear", {"b": 1, "a": 3}) == pytest.approx(31)
    by_position = pandas.DataFrame([[3, 1], [4, 2]])
    assert client.predict("linear", by_position) == pytest.approx([31, 42])
    for wrong, message in (
        (frame[["b"]], "input 'input': missing columns: a$"),
        (frame.rename(columns={"b": "bb"}), r"unknown column 'bb'\. Did you mean 'b'\?"),
        ({"a": [1, 2], "b": [1]}, "the columns differ in length"),
    ):
        with pytest.raises(InvalidInput, match=message):
            client.predict("linear", wrong)


def test_a_frame_of_numbers_text_and_truth_values(client: salver.Client) -> None:
    frame = pandas.DataFrame(
        {"kind": ["x", "y", "y"], "b": [0, 0, 0], "new": [True, False, True], "a": [1.0, 2.0, 3.0]}
    )
    for table in (frame, frame.to_dict("list"), frame.to_dict("records")):
        assert client.predict("mixed", table) == pytest.approx([1001, 102, 1103])
    assert client.predict("mixed", frame[:1]) == pytest.approx([1001])
    row = frame.iloc[0].to_dict()
    assert client.predict("mixed", row) == pytest.approx(1001)
    (answer,) = client.answers("mixed", row)
    assert answer["prediction"] == pytest.approx(1001)
    csv = frame.to_csv(index=False).encode()
    (answer,) = client.answers("mixed", csv, content_type="text/csv")
    assert answer["predictions"] == pytest.approx([1001, 102, 1103])
    with pytest.raises(InvalidInput, match="unexpected input 'sort'"):
        client.predict("mixed", frame.rename(columns={"kind": "sort"}))


def test_nullable_columns_are_numbers_truth_values_and_texts(client: salver.Client) -> None:
    frame = pandas.DataFrame(
        {"kind": ["x", "y"], "b": [0, 0], "new": [True, False], "a": [1.5, 2.0]}
    ).convert_dtypes()
    assert [str(dtype) for dtype in frame.dtypes] == ["string", "Int64", "boolean", "Float64"]
    assert client.predict("mixed", frame) == pytest.approx([1001.5, 102])
    assert client.predict("linear", frame[["a", "b"]]) == pytest.approx([15, 20])
    by_position = frame[["a", "b"]].set_axis([0, 1], axis=1)
    assert client.predict("linear", by_position) == pytest.approx([15, 20])


@pytest.mark.parametrize("names", [["a", "b", "c"], [0, 1, 2]])
def test_what_is_missing_is_nan(names: list[Any]) -> None:
    columns = [
        pandas.Series([1, None], dtype="Int64"),
        pandas.Series([None, 2.5], dtype="Float64"),
        pandas.Series([True, None], dtype="boolean"),
    ]
    frame = pandas.DataFrame(dict(zip(names, columns, strict=True)))
    spec = {"name": "x", "datatype": "FP32", "shape": [-1, 3], "columns": ["a", "b", "c"]}
    tensor = input_tensors({"x": frame}, {"inputs": [spec]})["x"]
    assert np.array_equal(tensor.array(), [[1, np.nan, 1], [np.nan, 2.5, np.nan]], equal_nan=True)


def test_only_floats_have_a_value_for_what_is_missing() -> None:
    whole = pandas.Series([1, 2], dtype="Int64").astype(object)
    assert to_tensor(whole, "INT64", "x").array().tolist() == [1, 2]
    for datatype, value in (("INT64", 1), ("BOOL", True), ("BYTES", "a")):
        column = pandas.Series([value, pandas.NA], dtype=object)
        with pytest.raises(InvalidInput, match="input 'x': expected"):
            to_tensor(column, datatype, "x")


def test_an_index_in_a_csv_is_told_of(client: salver.Client) -> None:
    frame = pandas.DataFrame({"a": [1], "b": [2]})
    with pytest.raises(InvalidInput, match=r"column 1 has no name; .* index=False"):
        list(client.answers("linear", frame.to_csv().encode(), content_type="text/csv"))


def test_records_go_by_their_keys(client: salver.Client) -> None:
    assert client.predict("linear", [{"b": 1, "a": 3}, {"a": 4, "b": 2}]) == pytest.approx([31, 42])
