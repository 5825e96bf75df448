"""What callers give as tensors of a model, and its tensors as what they get."""

from __future__ import annotations

import sys
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from salver.codecs.values import narrowed, spelled, tensor_of_value
from salver.errors import InvalidInput, did_you_mean
from salver.signature import TensorSpec, unexpected_input
from salver.types import BF16, BOOL, BYTES, Tensor, Tensors, bf16_bits, dtype_of, len_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.client.wire import Result
    from salver.types import Array

    Metadata = Mapping[str, Any]


def named_inputs(value: Any, metadata: Metadata) -> tuple[dict[str, Any], bool]:
    """The inputs by name; a single row gets its batch dimension, which the flag tells.

    Raises: InvalidInput for a value that must be named, or that has no JSON form.
    """
    named = _named(value, metadata)
    is_single = _is_single_row(named, metadata)
    if is_single:
        named = {key: _as_row(item) for key, item in named.items()}
    of_json = {spec["name"]: spec for spec in metadata["inputs"] if _is_json(spec)}
    return {
        key: _json_texts(of_json[key], item) if key in of_json else item
        for key, item in named.items()
    }, is_single


def _named(value: Any, metadata: Metadata) -> dict[str, Any]:
    specs = {spec["name"]: spec for spec in metadata["inputs"]}
    required = [spec for spec in specs.values() if not spec.get("optional")] or list(specs.values())
    only = required[0] if len(required) == 1 else None
    if _is_records(value) and not _is_json(only or {}):
        keys = dict.fromkeys(chain.from_iterable(value))
        value = {key: [row.get(key) for row in value] for key in keys}
    is_frame = hasattr(value, "columns") and len(specs) > 1
    if is_frame:
        names = dict(zip(spelled(value.columns, specs), value.columns, strict=True))
        if only is None or names.keys() <= specs.keys():
            return {str(n): _column(specs.get(n), value[key]) for n, key in names.items()}
    if not isinstance(value, dict):
        if only is None:
            raise InvalidInput(
                f"{metadata['name']} takes several inputs; give them by name: "
                f"{{{', '.join(f'{name!r}: ...' for name in specs)}}}"
            )
        return {only["name"]: value}
    if only is not None and not (value and value.keys() <= specs.keys()):
        if _is_json(only):
            return {only["name"]: value}
        if only.get("columns"):
            return {only["name"]: _matrix(only, value, list(value))}
    by_name = zip(spelled(value, specs), value.values(), strict=True)
    return {key: _cells(specs.get(key), item) for key, item in by_name}


def _is_records(value: Any) -> bool:
    """Rows as dicts by column."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(row, dict) for row in value)


def _cells(spec: Mapping[str, Any] | None, value: Any) -> Any:
    """One value or several for a column of numbers; any other input as it is."""
    is_column = spec is not None and spec.get("columns") and _ndim(value) in (0, 1)
    return _vector(value) if is_column else value


def _column(spec: Mapping[str, Any] | None, values: Any) -> Array:
    """A frame's column, with a dimension of 1 for each further one of the input."""
    is_number = spec is None or spec["datatype"] not in ("BYTES", "BOOL")
    array = _vector(values) if is_number else np.asarray(values)
    return array.reshape(array.shape + (1,) * (len(spec["shape"]) - 1 if spec else 0))


def _matrix(spec: Mapping[str, Any], columns: Any, names: list[str]) -> Array:
    """Columns by name (vectors, or the numbers of one row) as the matrix that a model takes.

    Raises: InvalidInput naming a column that the model does not know, or those that it misses.
    """
    where, known = f"input {spec['name']!r}", spec["columns"]
    given = dict(zip(spelled(names, known), names, strict=True))
    for name in given:
        if name not in known:
            raise InvalidInput(
                f"{where}: unknown column {name!r}.{did_you_mean(str(name), known)} "
                f"There are: {', '.join(known)}"
            )
    missing = [name for name in known if name not in given]
    if missing:
        raise InvalidInput(f"{where}: missing columns: {', '.join(missing)}")
    try:
        return np.stack([_vector(columns[given[name]]) for name in known], axis=-1)
    except ValueError:
        raise InvalidInput(f"{where}: the columns differ in length") from None


def _vector(column: Any) -> Array:
    """A column as an array of numbers, in which truth values are 1 and 0."""
    array = _numbers(column)
    return array.astype(np.float64) if array.dtype == np.bool_ else array


def _numbers(value: Any) -> Array:
    """Numbers as an array, in which None and pandas' NA are NaN. What holds something else besides
    stays as it is.
    """
    array = np.asarray(value)
    if array.dtype != np.object_:
        return array
    missing = (None, getattr(sys.modules.get("pandas"), "NA", None))
    items = [np.nan if any(item is no for no in missing) else item for item in array.ravel()]
    return np.array(items).reshape(array.shape)


def _is_json(spec: Mapping[str, Any]) -> bool:
    return spec.get("content") == "json"


def _json_texts(spec: Mapping[str, Any], value: Any) -> Array:
    shape = tuple(spec["shape"])
    try:
        tensor = tensor_of_value(
            TensorSpec(name=spec["name"], dtype=BYTES, shape=shape, content="json"), value
        )
    except TypeError as error:
        raise InvalidInput(f"input {spec['name']!r}: {error}") from None
    return tensor.array()


def _is_single_row(named: Mapping[str, Any], metadata: Metadata) -> bool:
    """Every input lacks exactly the dimension that counts rows."""
    shapes = {spec["name"]: spec["shape"] for spec in metadata["inputs"]}
    return (
        bool(named)
        and all(
            name in shapes and _counts_rows(shapes[name]) and _ndim(value) + 1 == len(shapes[name])
            for name, value in named.items()
        )
        and all(_counts_rows(spec["shape"]) for spec in metadata["outputs"])
    )


def _counts_rows(shape: list[int]) -> bool:
    """Any number of rows, or one: many models are exported for one row only."""
    return shape[:1] in ([-1], [1])


def _ndim(value: Any) -> int:
    try:
        return int(np.ndim(value))
    except ValueError:
        return -1


def _as_row(value: Any) -> Any:
    return [value] if isinstance(value, str | bytes) else np.asarray(value)[None]


def input_tensors(inputs: Mapping[str, Any], metadata: Metadata) -> Tensors:
    """Inputs in the types that the model's metadata tell; a DataFrame goes by its columns' names,
    where it and the model have them.

    Raises: InvalidInput for an input that the model does not know or that does not fit its type.
    """
    known = {spec["name"]: spec for spec in metadata["inputs"]}
    tensors = Tensors()
    for name, value in inputs.items():
        if name not in known:
            raise unexpected_input(name, known)
        spec = known[name]
        if hasattr(value, "columns") and spec.get("columns"):
            names = list(value.columns)
            if all(isinstance(name, str) for name in names):
                value = _matrix(spec, value, names)
        tensors[name] = to_tensor(value, spec["datatype"], name)
    return tensors


def to_tensor(value: Any, datatype: str, name: str) -> Tensor:
    """What a caller gave as the tensor that the model takes.

    Numbers are converted when nothing is lost but precision: any number to a float, integers to
    integers that hold them. What is missing becomes NaN, which only a float takes.

    Raises: InvalidInput.
    """
    dtype = dtype_of(datatype)
    if dtype is BYTES:
        texts = np.array(value, np.object_)
        if not all(isinstance(item, str | bytes) for item in texts.ravel().tolist()):
            raise InvalidInput(f"input {name!r}: expected text or bytes, got {_kind(value)}")
        return Tensor(BYTES, texts.shape, texts)
    try:
        array = _numbers(value)
    except ValueError:
        raise InvalidInput(f"input {name!r}: the rows differ in length") from None
    kind = array.dtype.kind
    if dtype.is_float and kind in "fiu":
        if dtype is BF16:
            return Tensor(BF16, array.shape, bf16_bits(array.astype(np.float32)))
        return Tensor(dtype, array.shape, array.astype(dtype.numpy, copy=False))
    if (dtype.is_integer and kind in "iu") or (dtype is BOOL and kind == "b"):
        return Tensor(dtype, array.shape, narrowed(array, dtype, name))
    raise InvalidInput(f"input {name!r}: expected {datatype}, got {_kind(value)}")


def _kind(value: Any) -> str:
    array = np.asarray(value)
    what = "text" if array.dtype.kind in "US" else str(array.dtype)
    return f"{what} of shape {list(array.shape)}"


def answer_of(result: Result, metadata: Metadata, is_single: bool) -> Any:
    """The only output, or a dict of all: BYTES as the text or JSON values that they hold, numbers
    as arrays; without the dimension of rows for a single one.
    """
    of_json = {spec["name"] for spec in metadata["outputs"] if _is_json(spec)}
    place = 0 if is_single else ()
    answers = {}
    for key, array in result.items():
        value = readable(array)[place]
        answers[key] = _json_values(value) if key in of_json else value
    return next(iter(answers.values())) if len(answers) == 1 else answers


def _json_values(texts: Any) -> Any:
    if isinstance(texts, np.ndarray):
        return [_json_values(item) for item in texts]
    return orjson.loads(texts)


def plain(answer: Any) -> Any:
    """An answer as plain Python values, without arrays."""
    if isinstance(answer, dict):
        return {key: plain(value) for key, value in answer.items()}
    return answer.tolist() if isinstance(answer, np.ndarray | np.generic) else answer


def readable(array: Array) -> Array:
    """BYTES as text if all of them are text; everything else as it is."""
    if array.dtype != np.object_:
        return array
    try:
        texts = [item.decode() if isinstance(item, bytes) else item for item in array.ravel()]
    except UnicodeDecodeError:
        return array
    out: Array = np.empty(len_of(array.shape), np.object_)
    out[:] = texts
    return out.reshape(array.shape)
