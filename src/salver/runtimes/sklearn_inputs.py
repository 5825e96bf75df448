"""How a scikit-learn estimator is given its rows: a matrix, a table of columns, or texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from salver.errors import LoadFailed, MissingExtra, listed
from salver.runtimes.sklearn_estimators import entry, forget_names, nested
from salver.runtimes.tabular import column_input, column_names, matrix_input
from salver.runtimes.texts import texts
from salver.signature import ANY, TensorSpec
from salver.types import BYTES, FP64

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from salver.config import ModelConfig
    from salver.types import Array


class Inputs(NamedTuple):
    """The inputs, what turns arrays of them into the estimator's `X`, and one row of them."""

    specs: tuple[TensorSpec, ...]
    collect: Callable[[Mapping[str, Array]], Any]
    example: Mapping[str, Array]


def inputs_of(estimator: Any, config: ModelConfig) -> Inputs:
    """Tells from the fitted estimator what it takes.

    Raises: LoadFailed for dictionaries, and for text and numbers mixed without column names.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction import DictVectorizer, FeatureHasher

    first = entry(estimator)
    if _is_vectorizer(first):
        return _text()
    if isinstance(first, (DictVectorizer, FeatureHasher)):
        raise LoadFailed("the model takes dictionaries: serve it from a Python class")
    names = tuple(getattr(estimator, "feature_names_in_", ()))
    num_columns = getattr(estimator, "n_features_in_", None)
    if num_columns is None and config.columns:  # a pipeline that begins with user code
        names, num_columns = config.columns, len(config.columns)
        return _matrix(num_columns, names, names, [1.0] * num_columns)
    if num_columns is None:
        return _matrix(ANY, (), (), [1.0])
    values = _values(first, num_columns)
    is_text = [isinstance(value, str) for value in values]
    if not any(is_text):
        frame = names if _needs_frame(estimator) else ()
        if not frame:
            forget_names(estimator)
        return _matrix(num_columns, column_names(names, num_columns, config), frame, values)
    if names:
        used = _used(first) if isinstance(first, ColumnTransformer) else range(num_columns)
        return _columns({names[i]: values[i] for i in used})
    if not all(is_text):
        raise LoadFailed(
            "the model mixes text and numbers: fit it on a DataFrame with named columns"
        )
    return _text_matrix(values)


def missing_cells(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> str:
    """The first row with missing numbers (NaN), and their columns; empty if there is none."""
    missing: dict[str, Array] = {}
    for spec in specs:
        if spec.dtype is FP64:
            cells = inputs[spec.name]
            columns = np.isnan(cells).reshape(len(cells), -1).T
            numbered = [f"column {number}" for number in range(1, len(columns) + 1)]
            names = [repr(name) for name in spec.columns] or numbered
            missing |= zip(names, columns, strict=True)
    rows = np.any(list(missing.values()), axis=0)
    if not np.any(rows):
        return ""
    row = int(np.argmax(rows))
    return f"row {row}: {listed([name for name, column in missing.items() if column[row]])}"


def _is_vectorizer(estimator: Any) -> bool:
    from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer

    return isinstance(estimator, (CountVectorizer, HashingVectorizer))


def _values(estimator: Any, num_columns: int) -> list[Any]:
    """For each column a value that the estimator knows: a string where it takes text.

    It is the empty string where that is a value like others, and not a missing one.
    """
    from sklearn.compose import ColumnTransformer

    first = entry(estimator)
    if getattr(first, "_preprocessor", None) is not None:  # histogram gradient boosting
        first = first._preprocessor
    if isinstance(first, ColumnTransformer):
        values: list[Any] = [1.0] * num_columns
        for name, transformer, _ in first.transformers_:
            indices = first._transformer_to_input_indices[name]
            if not isinstance(transformer, str):
                for index, value in zip(indices, _values(transformer, len(indices)), strict=True):
                    values[index] = value
        return values
    if _is_vectorizer(first):
        return [""] * num_columns
    if hasattr(first, "categories_"):
        return [_representative(categories) for categories in first.categories_]
    statistics = getattr(first, "statistics_", None)
    if statistics is not None and len(statistics) == num_columns:
        return [_representative([value]) for value in statistics]
    return [1.0] * num_columns


def _representative(known: Sequence[Any]) -> str | float:
    """One of the known values, rather a string than a number; the least string of all."""
    strings = [str(value) for value in known if isinstance(value, str)]
    if strings:
        return min(strings)
    return float(known[0]) if isinstance(known[0], (int, float, np.number)) else 1.0


def _used(transformer: Any) -> list[int]:
    """Indices of the columns that a ColumnTransformer does not drop."""
    indices = transformer._transformer_to_input_indices
    return sorted(
        {i for name, step, _ in transformer.transformers_ if step != "drop" for i in indices[name]}
    )


def _needs_frame(estimator: Any) -> bool:
    """Whether some estimator in it looks columns up by name, or may do so."""
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import FunctionTransformer

    named = [item for item in nested(estimator) if hasattr(item, "feature_names_in_")]
    for item in named:
        if isinstance(item, (ColumnTransformer, FunctionTransformer)):
            return True
        if not type(item).__module__.startswith("sklearn."):
            return True
    return bool(named) and any(_gives_frames(item) for item in nested(estimator))


def _gives_frames(estimator: Any) -> bool:
    """Whether `set_output` makes it hand DataFrames to the estimators after it."""
    config = vars(estimator).get("_sklearn_output_config", {})
    return bool(config.get("transform", "default") != "default")


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError:
        raise MissingExtra("the model takes a DataFrame: needs `pip install pandas`") from None
    return pandas


def _matrix(
    num_columns: int, columns: tuple[str, ...], frame: tuple[str, ...], values: Sequence[float]
) -> Inputs:
    pandas: Any = _pandas() if frame else None

    def as_frame(inputs: Mapping[str, Array]) -> Any:
        return pandas.DataFrame(inputs["input"], columns=list(frame))

    return Inputs(
        (matrix_input(FP64, num_columns, columns),),
        as_frame if pandas else lambda inputs: inputs["input"],
        {"input": np.array([values], np.float64)},
    )


def _columns(values: Mapping[str, Any]) -> Inputs:
    """A DataFrame. Empty text is missing, as for `pandas.read_csv`, unless the model knows it."""
    pandas = _pandas()
    specs = tuple(
        column_input(name, is_text=isinstance(value, str), number=FP64)
        for name, value in values.items()
    )

    def collect(inputs: Mapping[str, Array]) -> Any:
        return pandas.DataFrame({spec.name: column(spec, inputs[spec.name]) for spec in specs})

    def column(spec: TensorSpec, cells: Array) -> Any:
        if spec.dtype is not BYTES:
            return cells
        words = texts(cells, spec.name)
        if values[spec.name] == "":
            return words
        # Of a list that has nothing but missing values, pandas would make a column of numbers.
        return np.array([word or np.nan for word in words], np.object_)

    example = {
        name: np.array([value], np.object_ if isinstance(value, str) else np.float64)
        for name, value in values.items()
    }
    return Inputs(specs, collect, example)


def _text() -> Inputs:
    return Inputs(
        (TensorSpec(name="text", dtype=BYTES, shape=(ANY,), content="text"),),
        lambda inputs: texts(inputs["text"], "text"),
        {"text": np.array(["text"], np.object_)},
    )


def _text_matrix(values: Sequence[str]) -> Inputs:
    def collect(inputs: Mapping[str, Array]) -> Any:
        cells = inputs["input"]
        out = np.empty(cells.size, np.object_)
        out[:] = texts(cells, "input")
        return out.reshape(cells.shape)

    return Inputs(
        (TensorSpec(name="input", dtype=BYTES, shape=(ANY, len(values)), content="text"),),
        collect,
        {"input": np.array([values], np.object_)},
    )
