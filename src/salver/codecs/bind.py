"""Turns what people send into what a method takes: rows, single inputs, tables, images.

The plain doors decode without knowing the model; here its signature decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from salver.codecs.long_array import LongArray
from salver.codecs.v2 import tensor_of_bytes
from salver.codecs.values import (
    BYTES_KEY,
    cells,
    joined,
    rank_of,
    shown,
    spelled,
    start_of,
    tensor_of_value,
)
from salver.errors import InvalidInput, UnsupportedMedia, did_you_mean
from salver.signature import unexpected_input
from salver.types import BF16, BYTES, Loose, Object, Raw, Tensor, Tensors, bf16_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from salver.signature import Method, TensorSpec
    from salver.types import Buffer

_CONTENT_OF_MEDIA = {"image": "image", "text": "text", "application": "bytes", "audio": "bytes"}


def bind(method: Method, payload: Tensors | Object | Raw) -> Tensors:
    """The inputs of `method` that `payload` stands for.

    Raises: InvalidInput with field, expected and got; UnsupportedMedia for a file that the method
    does not take.
    """
    if isinstance(payload, Loose):
        return _bind_loose(method, payload)
    if isinstance(payload, Raw):
        return _bind_file(method, payload)
    if isinstance(payload, Tensors):
        return payload
    if payload.schema == "columns":
        if not isinstance(payload.value, Mapping):
            return _bind_parts(method, payload.value, _bind_columns)
        method.check_rows(_num_rows(payload.value))
        return _bind_columns(method, payload.value, 0)
    value = payload.value
    if method.batching == "rows":
        return _bind_rows(method, payload, value)
    if payload.schema != "row" and _num_items(value) == 1:
        value = start_of(value)[0]
    elif payload.schema == "rows":
        got = _num_items(value)
        raise InvalidInput(f"this model takes one input per request, got {got}; send them singly")
    payload.is_single = True
    return _bind_one(method, value)


def is_list_of_inputs(method: Method, payload: Object) -> bool:
    """Whether it says that there may be several inputs, and not one that is itself a list."""
    schema = payload.schema
    if schema == "rows":
        return True
    if method.batching != "rows":
        return (
            schema == "auto"
            and not _may_be_list(method)
            and isinstance(payload.value, list | LongArray)
        )
    return schema == "columns" or (schema == "auto" and _are_rows(method, payload.value))


def _may_be_list(method: Method) -> bool:
    """Whether one input of a method without rows may be written as a list."""
    only = method.inputs[0] if len(method.inputs) == 1 else None
    return only is not None and (bool(only.shape) or only.content == "json")


def num_inputs(payload: Object) -> int:
    """How many inputs a list of them has, or a table rows. What came in parts is kept as a list."""
    value = payload.value
    if payload.schema != "columns":
        return _num_items(value)
    if not isinstance(value, Mapping):
        payload.value = value = list(value)
        return sum(map(_num_rows, value))
    return _num_rows(value)


def _are_rows(method: Method, value: Any) -> bool:
    """Whether a value that may be one input or several is several, as its nesting tells."""
    wanted = max((len(spec.shape) for spec in method.inputs), default=0)
    is_deep = not isinstance(value, dict) and rank_of(value) >= wanted
    return is_deep or _is_rows_of_objects(value)


def _num_items(value: Any) -> int:
    if isinstance(value, LongArray):
        return sum(map(len, value.parts()))
    return len(value) if isinstance(value, list | np.ndarray) else 0


def _bind_one(method: Method, value: Any) -> Tensors:
    """One call's inputs, without a batch dimension: by name, or the value of the only input."""
    names = {spec.name for spec in method.inputs}
    required = [spec for spec in method.inputs if not spec.optional] or list(method.inputs)
    is_named = isinstance(value, dict) and bool(value) and value.keys() <= names
    if len(required) == 1 and not is_named:
        return Tensors({required[0].name: tensor_of_value(required[0], value)})
    if not isinstance(value, dict):
        raise InvalidInput(f"expected an object with {', '.join(sorted(names))}")
    return Tensors(
        {spec.name: tensor_of_value(spec, value.get(spec.name)) for spec in _chosen(method, value)}
    )


def _chosen(method: Method, given: Any) -> list[TensorSpec]:
    """The specs of the names that were given, and of columns of numbers, which may be missing.

    Raises: InvalidInput for a name that the method does not know, or one that is missing.
    """
    known = [spec.name for spec in method.inputs]
    for name in given:
        if name not in known:
            raise unexpected_input(name, known)
    for spec in method.inputs:
        if spec.name not in given and not (spec.optional or _is_number_column(spec)):
            raise InvalidInput(f"missing input {spec.name!r}; got {', '.join(given) or 'none'}")
    return [spec for spec in method.inputs if spec.name in given or _is_number_column(spec)]


def _is_number_column(spec: TensorSpec) -> bool:
    """A column of a table of which every value may be missing (NaN)."""
    return bool(spec.columns) and spec.dtype.is_float


def _bind_rows(method: Method, payload: Object, value: Any) -> Tensors:
    if payload.schema != "rows":
        if _is_whole_tensors(method, value):
            return _bind_one(method, value)
        if not _are_rows(method, value):
            payload.is_single = True
            value = [value]
    if isinstance(value, LongArray):
        return _bind_parts(method, value.parts(), _bind_list)
    if not isinstance(value, list | np.ndarray):
        raise InvalidInput(f"expected a list of inputs, got {shown(value)}")
    method.check_rows(len(value))
    return _bind_list(method, value, 0)


def _bind_parts(
    method: Method, parts: Iterable[Any], bind_part: Callable[[Method, Any, int], Tensors]
) -> Tensors:
    """Rows that come some at a time, so that nothing takes long and little is held at once."""
    bound: dict[int, Tensors] = {}
    num_rows = 0
    for part in parts:
        bound[num_rows] = bind_part(method, part, num_rows)
        num_rows += _num_rows(part)
    method.check_rows(num_rows)
    names = list(dict.fromkeys(name for tensors in bound.values() for name in tensors))
    for first, tensors in bound.items():
        for name in names:
            if name not in tensors:
                raise InvalidInput(f"row {first}: missing input {name!r}")
    return Tensors(
        {name: _joined([tensors[name] for tensors in bound.values()], name) for name in names}
    )


def _num_rows(table: Any) -> int:
    """Rows of a list, or of columns by name."""
    return len(next(iter(table.values()), ()) if isinstance(table, Mapping) else table)


def _joined(tensors: list[Tensor], name: str) -> Tensor:
    array = joined([tensor.array() for tensor in tensors], name)
    return Tensor(tensors[0].dtype, array.shape, array)


def _bind_list(method: Method, value: Any, first: int) -> Tensors:
    """Rows as they stand in a list, counted from `first`."""
    specs = method.inputs
    table = specs[0] if len(specs) == 1 else None
    row = value[0] if len(value) else None
    if isinstance(row, dict) and table is not None and table.columns:
        return Tensors({table.name: _table(table, value, first)})
    if isinstance(row, dict) and not (table is not None and _is_value(table, row)):
        return _by_name(method, value, first)
    if table is None:
        raise InvalidInput(
            f"expected each input as an object with {', '.join(spec.name for spec in specs)}"
        )
    return Tensors({table.name: tensor_of_value(table, value, first)})


def _is_whole_tensors(method: Method, value: Any) -> bool:
    """Whether an object gives every input by name with all its dimensions, also that of rows."""
    specs = [spec for spec in method.inputs if isinstance(value, dict) and spec.name in value]
    return bool(specs) and all(
        spec.content != "json" and rank_of(value[spec.name]) == len(spec.shape) for spec in specs
    )


def _is_value(spec: TensorSpec, value: dict[str, Any]) -> bool:
    """Whether an object is a value of the only input itself, rather than inputs by name."""
    return BYTES_KEY in value or (spec.content == "json" and spec.name not in value)


def _is_rows_of_objects(value: Any) -> bool:
    rows = start_of(value) if isinstance(value, list | LongArray) else []
    return bool(rows) and isinstance(rows[0], dict)


def _by_name(method: Method, rows: Any, first: int) -> Tensors:
    """Rows as objects by input name."""
    given: dict[str, None] = {}
    for index, row in enumerate(rows, first):
        if not isinstance(row, dict):
            raise InvalidInput(f"row {index}: expected an object by input, got {shown(row)}")
        given |= dict.fromkeys(row)
    known = {spec.name for spec in method.inputs}
    if not given.keys() <= known:
        rows = [_respelled(row, known) for row in rows]
        given = dict.fromkeys(chain.from_iterable(rows))
    return Tensors(
        {
            spec.name: tensor_of_value(spec, _pick(rows, spec, first), first)
            for spec in _chosen(method, given)
        }
    )


def _pick(rows: Sequence[dict[str, Any]], spec: TensorSpec, first: int) -> list[Any]:
    picked = []
    for index, row in enumerate(rows, first):
        if spec.name not in row and not _is_number_column(spec):
            raise InvalidInput(f"row {index}: missing input {spec.name!r}")
        value = row.get(spec.name)
        if value is None and spec.dtype is BYTES and spec.content in ("tensor", "text"):
            value = ""
        # A column of a table has one value per row; it may be written bare or as a list of one.
        picked.append([value] if len(spec.shape) == 2 and not isinstance(value, list) else value)
    return picked


def _table(spec: TensorSpec, rows: Any, first: int) -> Tensor:
    """Rows as objects by column name; a column that is left out or null is missing (NaN)."""
    known = set(spec.columns)
    matrix = []
    for index, row in enumerate(rows, first):
        if not isinstance(row, dict):
            raise InvalidInput(f"row {index}: expected an object by column, got {shown(row)}")
        if not row.keys() <= known:
            row = _respelled(row, known)
        if not row.keys() <= known:
            wrong = next(iter(row.keys() - known))
            raise InvalidInput(
                f"row {index}: unknown column {wrong!r}.{did_you_mean(str(wrong), known)} "
                f"There are: {', '.join(spec.columns)}"
            )
        matrix.append([row.get(column) for column in spec.columns])
    return tensor_of_value(spec, matrix, first)


def _bind_columns(method: Method, columns: Mapping[str, Sequence[Any]], first: int) -> Tensors:
    """A table by columns, as CSV gives it: values are text, empty ones are missing."""
    specs = method.inputs
    num_rows = _num_rows(columns)
    if method.batching != "rows":
        raise UnsupportedMedia(
            f"this model takes one input per request, not a table; {_remedy(method)}"
        )
    if len(specs) == 1 and specs[0].columns:
        spec = specs[0]
        columns = _respelled(columns, spec.columns)
        unknown = [name for name in columns if name not in spec.columns]
        if unknown:
            raise InvalidInput(
                f"unknown column {unknown[0]!r}.{did_you_mean(unknown[0], spec.columns)} "
                f"There are: {', '.join(spec.columns)}"
            )
        _check_columns(specs, columns)
        missing = [None] * num_rows
        matrix = [cells(columns.get(name, missing), name, first) for name in spec.columns]
        return Tensors({spec.name: tensor_of_value(spec, np.column_stack(matrix))})
    if len(specs) == 1 and len(specs[0].shape) == 2 and specs[0].dtype is not BYTES:
        spec = specs[0]
        matrix = [cells(column, name, first) for name, column in columns.items()]
        return Tensors({spec.name: tensor_of_value(spec, np.column_stack(matrix))})
    found = Tensors()
    columns = _respelled(columns, [spec.name for spec in specs])
    chosen = _chosen(method, columns)
    _check_columns(specs, columns)
    for spec in chosen:
        if spec.name not in columns:
            continue
        column = columns[spec.name]
        values: Any = (
            [cell or "" for cell in column]
            if spec.dtype is BYTES
            else cells(column, spec.name, first)
        )
        shape = (num_rows,) + (1,) * (len(spec.shape) - 1)
        found[spec.name] = _reshaped(tensor_of_value(spec, values), shape)
    return found


def _respelled(named: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    return dict(zip(spelled(named, known), named.values(), strict=True))


def _check_columns(specs: Sequence[TensorSpec], columns: Mapping[str, Any]) -> None:
    """Raises: InvalidInput for a table without a column that the model was made with: its cells may
    be empty, but a whole column is hardly left out on purpose.
    """
    names = [name for spec in specs if not spec.optional for name in spec.columns]
    lacking = [name for name in names if name not in columns]
    if lacking:
        raise InvalidInput(
            f"the table lacks {'columns' if len(lacking) > 1 else 'column'} "
            f"{', '.join(map(repr, lacking))}; leave the cells of a missing one empty"
        )


def _reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return Tensor(tensor.dtype, shape, tensor.array().reshape(shape))


def _bind_file(method: Method, raw: Raw) -> Tensors:
    media = raw.content_type or "application/octet-stream"
    content = _CONTENT_OF_MEDIA.get(media.partition("/")[0], "bytes")
    required = [spec for spec in method.inputs if not spec.optional] or list(method.inputs)
    if len(required) == 1:
        spec = required[0]
        if spec.dtype is BYTES and spec.content in (content, "bytes", "tensor"):
            shape = (1,) * len(spec.shape)
            data = np.empty(shape, np.object_)
            data[...] = bytes(raw.body)
            return Tensors({spec.name: Tensor(BYTES, shape, data)})
        if spec.dtype is not BYTES and media == "application/octet-stream":
            return Tensors({spec.name: _tensor_of_bytes(method, spec, raw.body)})
    takes = ", ".join(
        f"{spec.name} ({spec.dtype.name if spec.content == 'tensor' else spec.content})"
        for spec in method.inputs
    )
    raise UnsupportedMedia(
        f"this model takes {takes}, not a file of type {media}; {_remedy(method)}"
    )


def _tensor_of_bytes(method: Method, spec: TensorSpec, body: Buffer) -> Tensor:
    """One input as little-endian row-major numbers; one of its dimensions may be of any size.

    Raises: InvalidInput.
    """
    shape = [1, *spec.shape[1:]] if method.batching == "rows" else list(spec.shape)
    unknown = [axis for axis, size in enumerate(shape) if size < 0]
    if len(unknown) > 1:
        raise InvalidInput(
            f"input {spec.name!r}: its shape {list(spec.shape)} does not follow from a number of "
            "bytes; send the values as JSON"
        )
    row_bytes = spec.dtype.itemsize * prod(size for size in shape if size >= 0)
    if unknown and row_bytes:
        shape[unknown[0]] = len(body) // row_bytes
    return tensor_of_bytes(spec.dtype, tuple(shape), memoryview(body), spec.name)


def _remedy(method: Method) -> str:
    """What to send to a method instead of a file or table that it does not take."""
    contents = {spec.content for spec in method.inputs if not spec.optional}
    return "send a picture" if contents == {"image"} else "send the values as JSON"


def _bind_loose(method: Method, tensors: Loose) -> Tensors:
    """An unnamed input gets its name, numbers the method's width.

    Raises: InvalidInput if the input must be named.
    """
    specs = {spec.name: spec for spec in method.inputs}
    if "" in tensors:
        required = [spec.name for spec in method.inputs if not spec.optional] or list(specs)
        if len(required) != 1:
            raise InvalidInput(f"name the inputs; there are: {', '.join(specs)}")
        tensors = Loose({required[0]: tensors[""]})
    return Tensors(
        {
            name: _fit(tensor, specs[name], name) if name in specs else tensor
            for name, tensor in tensors.items()
        }
    )


def _fit(tensor: Tensor, spec: TensorSpec, name: str) -> Tensor:
    array = tensor.array(name)
    if array.size == 1 and len(array.shape) + len(spec.shape) == 1:
        array = array.reshape((1,) * len(spec.shape))
    if spec.dtype is BF16 and tensor.dtype.is_float and tensor.dtype is not BF16:
        return Tensor(BF16, array.shape, bf16_bits(array))
    is_number = BYTES not in (tensor.dtype, spec.dtype)
    if is_number and np.can_cast(tensor.dtype.numpy, spec.dtype.numpy, "same_kind"):
        return Tensor(spec.dtype, array.shape, array.astype(spec.dtype.numpy, copy=False))
    return Tensor(tensor.dtype, array.shape, array)
