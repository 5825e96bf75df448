"""Values as people write them, as tensors: nested lists, text cells, base64.

What is wrong is said with the input's name, the place in it, what was expected and what came.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from salver.codecs.json_numbers import NON_FINITE, dumps
from salver.codecs.long_array import LongArray, plain
from salver.errors import InvalidInput
from salver.types import BF16, BOOL, BYTES, DType, Tensor, bf16_bits, unfit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from salver.signature import TensorSpec
    from salver.types import Array

BYTES_KEY = "b64"
_TRUTH: Final = {"true": 1.0, "True": 1.0, "TRUE": 1.0, "false": 0.0, "False": 0.0, "FALSE": 0.0}
"""How programs write truth values into tables of numbers."""


def tensor_of_value(spec: TensorSpec, value: Any, first: int = 0) -> Tensor:
    """A tensor of the spec's type from nested lists or an array, of which the rows are counted
    from `first`.

    Raises: InvalidInput for ragged lists and values of another type.
    """
    if spec.dtype is BYTES:
        array = _bytes_array(spec, _listed(value))
    else:
        array = _number_array(spec, value, first)
    return Tensor(spec.dtype, array.shape, array)


def _listed(value: Any) -> Any:
    """Arrays and long lists as nested lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [value[0].whole()] if _is_one_long(value) else plain(value)


def _is_one_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], LongArray)


def _number_array(spec: TensorSpec, value: Any, first: int) -> Array:
    name, dtype = spec.name, spec.dtype
    long = value[0] if _is_one_long(value) else value
    if isinstance(long, LongArray):
        with contextlib.suppress(InvalidInput):
            array = joined([_number_array(spec, part, 0) for part in long.parts()], name)
            return array if long is value else array[None]
        # What is wrong, and where, is told of the whole.
        value = _listed(value)
    try:
        array = np.asarray(value, np.object_ if _has_text(value) else None)
    except (ValueError, OverflowError):
        raise _ragged(name) from None
    if not array.size:
        return array.astype(dtype.numpy)
    if array.dtype.kind == "O" and dtype.is_float:
        array = _with_missing(spec, array, first)
    if array.dtype.kind == "b" and spec.columns and dtype.is_float:
        array = array.astype(np.float64)
    kind = array.dtype.kind
    fits = (
        (dtype is BOOL and kind == "b")
        or (dtype.is_float and kind in "fiu")
        or (dtype.is_integer and (kind in "iu" or (kind == "f" and bool(_is_whole(array).all()))))
    )
    if not fits:
        raise InvalidInput(f"input {name!r}: expected {dtype.name}, got {_first_odd(array, dtype)}")
    return narrowed(array, dtype, name)


def joined(arrays: Sequence[Array], name: str) -> Array:
    """Rows that came in parts. Raises: InvalidInput if they differ in length."""
    try:
        return np.concatenate(arrays)
    except ValueError:
        raise _ragged(name) from None


def _ragged(name: str) -> InvalidInput:
    return InvalidInput(f"input {name!r}: the rows differ in length")


def _has_text(value: Any) -> bool:
    """Whether nested lists hold text, for which numpy would give each element the room of the
    longest one.
    """
    if isinstance(value, np.ndarray):
        return False
    flat: Iterable[Any] = (value,)
    for _ in range(rank_of(value)):
        flat = chain.from_iterable(flat)
    try:
        # The fastest way to learn that all are numbers.
        sum(flat)
    except (TypeError, OverflowError):
        return str in _types(value)
    return False


def _types(value: Any) -> set[type]:
    """The types of all that nested lists hold."""
    types: set[type] = set()
    lists = [[value]]
    while lists:
        types.update(map(type, chain.from_iterable(lists)))
        lists = [item for item in chain.from_iterable(lists) if type(item) is list]
    return types


def rank_of(value: Any) -> int:
    """How deep lists are nested, as far as the first of each tells."""
    if isinstance(value, np.ndarray):
        return value.ndim
    rank = 0
    while isinstance(value, list | LongArray) and (value := start_of(value)):
        value, rank = value[0], rank + 1
    return rank


def start_of(values: list[Any] | LongArray) -> list[Any]:
    """The first elements of a list, at least one if it has any."""
    return next(values.parts()) if isinstance(values, LongArray) else values


def _is_whole(array: Array) -> Array:
    whole: Array = np.isfinite(array) & (array == np.trunc(array))
    return whole


def _with_missing(spec: TensorSpec, array: Array, first: int) -> Array:
    """Objects as numbers: words for non-finite floats, and for tables null as NaN and truth values
    as 1 and 0.

    Raises: InvalidInput.
    """
    flat = array.reshape(-1).tolist()
    for index, value in enumerate(flat):
        if value is None and (spec.columns or spec.optional):
            flat[index] = np.nan
        elif isinstance(value, str) and value in NON_FINITE:
            flat[index] = NON_FINITE[value]
        elif not isinstance(value, int | float) or (isinstance(value, bool) and not spec.columns):
            where = _where(spec, array.shape, index, first)
            raise InvalidInput(
                f"input {spec.name!r}{where}: expected {spec.dtype.name}, got {shown(value)}"
            )
    return np.array(flat, np.float64).reshape(array.shape)


def _where(spec: TensorSpec, shape: tuple[int, ...], index: int, first: int) -> str:
    place = [int(i) for i in np.unravel_index(index, shape)]
    if place:
        place[0] += first
    if spec.columns and len(place) == 2 and place[1] < len(spec.columns):
        return f", row {place[0]}, column {spec.columns[place[1]]!r}"
    return f" at {place}"


def _first_odd(array: Array, dtype: Any) -> str:
    if array.dtype.kind == "f" and dtype.is_integer:
        array = array[~_is_whole(array)]
    values = array.reshape(-1).tolist()
    return shown(next((value for value in values if type(value) not in (int, float)), values[0]))


def shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)}"
    return dumps(value)[:60].decode(errors="replace")


def _bytes_array(spec: TensorSpec, value: Any) -> Array:
    """Nested lists of text, `{"b64": …}` or, for JSON contents, any value, as an object array."""
    if spec.content == "json":
        rank = len(spec.shape)
        if rank == 0:
            array: Array = np.empty((), np.object_)
            array[()] = dumps(value)
            return array
        if not isinstance(value, list):
            raise InvalidInput(f"input {spec.name!r}: expected a list, got {shown(value)}")
        array = np.empty(len(value), np.object_)
        array[:] = [dumps(item) for item in value]
        return array.reshape((len(value),) + (1,) * (rank - 1))
    shape: list[int] = []
    level = value
    while isinstance(level, list) and len(shape) < max(len(spec.shape), 1):
        shape.append(len(level))
        level = level[0] if level else None
    flat: list[bytes] = []
    _flatten_bytes(value, len(shape), shape, spec, flat)
    array = np.empty(len(flat), np.object_)
    array[:] = flat
    return array.reshape(shape)


def _flatten_bytes(
    value: Any, rank: int, shape: list[int], spec: TensorSpec, into: list[bytes]
) -> None:
    if rank == 0:
        into.append(_as_bytes(value, spec))
        return
    if not isinstance(value, list) or len(value) != shape[len(shape) - rank]:
        raise InvalidInput(f"input {spec.name!r}: the rows differ in length")
    for item in value:
        _flatten_bytes(item, rank - 1, shape, spec, into)


def _as_bytes(value: Any, spec: TensorSpec) -> bytes:
    if isinstance(value, str):
        if spec.content == "image":
            value = {BYTES_KEY: value.rpartition(",")[2]}
        else:
            return value.encode()
    if isinstance(value, dict) and set(value) == {BYTES_KEY}:
        try:
            return base64.b64decode(value[BYTES_KEY], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise InvalidInput(f"input {spec.name!r}: {BYTES_KEY!r} is not valid base64") from None
    raise InvalidInput(f"input {spec.name!r}: expected {spec.content}, got {shown(value)}")


def narrowed(data: Array, dtype: DType, name: str) -> Array:
    """Numbers as `dtype`; floats that become integers must be whole.

    Raises: InvalidInput for a number outside the type's range.
    """
    if data.dtype == dtype.numpy and dtype is not BF16:
        return data
    if dtype.is_integer and data.size:
        bounds = np.iinfo(dtype.numpy)
        if int(data.min()) < bounds.min or int(data.max()) > bounds.max:
            raise unfit(dtype, name)
    try:
        with np.errstate(over="raise"):
            if dtype is BF16:
                return bf16_bits(data.astype(np.float32))
            return data.astype(dtype.numpy)
    except FloatingPointError:
        raise unfit(dtype, name) from None


def is_number(cell: str) -> bool:
    """Whether a text cell of a table is one."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def column_names(first: Sequence[str]) -> list[str] | None:
    """The names in the first line of a table; None where it is one of numbers, some missing.

    Raises: InvalidInput for two columns of one name, or one of none, or another separator.
    """
    if len(first) == 1:
        for mark, name in ((";", "';'"), ("\t", "a tab")):
            if mark in first[0]:
                raise InvalidInput(f"the separator seems to be {name}; CSV has commas here")
    if any(first) and all(cell == "" or is_number(cell) for cell in first):
        return None
    names = [name.strip() for name in first]
    if "" in names:
        raise InvalidInput(
            f"column {names.index('') + 1} has no name; pandas writes one for the index: "
            "leave it out by index=False"
        )
    for name, times in Counter(names).items():
        if times > 1:
            raise InvalidInput(f"two columns are called {name!r}")
    return names


def spelled(names: Iterable[Any], known: Collection[str]) -> list[Any]:
    """Names of columns as the model knows them: LightGBM writes their blanks as `_`. They stay as
    they are where two would become one.
    """
    given = list(names)
    found = [_spelled(name, known) for name in given]
    return found if len(set(found)) == len(given) else given


def _spelled(name: Any, known: Collection[str]) -> Any:
    other = name.replace(" ", "_") if isinstance(name, str) and name not in known else name
    return other if other in known else name


def _number(cell: Any) -> float:
    return _TRUTH[cell] if cell in _TRUTH else float(cell)


def cells(column: Sequence[Any], name: str, first: int = 0) -> Array:
    """Text cells of a table's column as float64; empty ones are missing (NaN), true is 1.

    Raises: InvalidInput naming the row of the first cell that is none, counted on from `first`.
    """
    with contextlib.suppress(ValueError, TypeError):
        # Most often nothing is missing.
        return np.fromiter(map(float, column), np.float64, len(column))
    try:
        return np.array(
            [np.nan if cell is None or cell == "" else _number(cell) for cell in column], np.float64
        )
    except (ValueError, TypeError):
        for index, cell in enumerate(column):
            if cell is None or cell == "":
                continue
            try:
                _number(cell)
            except (ValueError, TypeError):
                raise InvalidInput(
                    f"column {name!r}, row {first + index + 1}: {str(cell)[:40]!r} is not a number"
                ) from None
        raise
