"""Requests of the Open Inference Protocol as JSON, with the binary tensor data extension.

Decoding picks the cheapest parser by size: msgspec for a few numbers, simdjson above a kilobyte.
"""

from __future__ import annotations

import threading
from functools import reduce
from itertools import chain
from math import prod
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar

import msgspec
import numpy as np
import orjson
import simdjson
from msgspec import Meta, Struct
from msgspec.json import Decoder

from salver.codecs.json_numbers import NON_FINITE, check_values, loads
from salver.codecs.long_array import LIFTED, LONG_BYTES, lift_data
from salver.codecs.v2 import (
    MAX_RANK,
    given_twice,
    input_dtype,
    negative_dimension,
    too_large_a_shape,
    wrong_count,
    wrong_length,
)
from salver.codecs.values import narrowed
from salver.errors import InvalidInput, Unsupported
from salver.types import (
    BOOL,
    BYTES,
    DTYPES,
    UINT64,
    DType,
    Packed,
    Tensor,
    Tensors,
    numbers,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.codecs.long_array import LongArray
    from salver.types import Array, Buffer

_LARGE: Final = 1024
_ELSEWHERE: Final = frozenset(("binary_data_size", "shared_memory_region"))
"""Parameters of inputs that say that their data are not in the JSON."""
_KEPT_BYTES: Final = 1 << 22
"""A parser keeps ten times its longest body; for longer ones a new one is worth its making."""
_MAX_ELEMENTS: Final = 1 << 40
_LEVELS: Final = 4
"""Of lists in lists, that the fast way takes."""

Input = TypeVar("Input")
Rank = Meta(max_length=MAX_RANK)
Shape = Annotated[tuple[Annotated[int, Meta(ge=0, le=_MAX_ELEMENTS)], ...], Rank]


class JsonInput(Struct, gc=False):
    """An input whose data may be of any form, and whose dimensions of any sign."""

    name: str
    datatype: str
    shape: Annotated[tuple[Annotated[int, Meta(le=_MAX_ELEMENTS)], ...], Rank]
    data: Any = None
    parameters: dict[str, Any] | None = None


class JsonOutput(Struct, gc=False):
    name: str
    parameters: dict[str, Any] | None = None


class JsonRequest(Struct, Generic[Input], gc=False):
    inputs: list[Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[JsonOutput] | None = None


class InferBody(Struct, gc=False):
    """What the body of an infer request says."""

    tensors: Tensors
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[JsonOutput] | None = None


_NOT_PLAIN: Final = (
    ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError,
)  # fmt: skip
"""What is raised where the quick ways meet anything but plain numbers."""


def _item_type(dtype: DType) -> type:
    """The type that JSON's values are read as."""
    return float if dtype.is_float else bool if dtype is BOOL else str if dtype is BYTES else int


def _typed_input(dtype: DType) -> Any:
    """The type of inputs of `dtype`, whose data are a list of its values or, but for text, of lists
    of them.
    """
    value: Any = _item_type(dtype)
    item = value
    for _ in range(0 if dtype is BYTES else _LEVELS):
        item = value | list[item]  # type: ignore[valid-type]
    return msgspec.defstruct(
        f"{dtype.name}Input",
        [
            ("name", str),
            ("shape", Shape),
            ("data", list[item] | None, None),  # type: ignore[valid-type]
            ("parameters", dict[str, Any] | None, None),
        ],
        tag_field="datatype",
        tag=dtype.name,
        namespace={"dtype": dtype},
        gc=False,
    )


_TYPED: Final[dict[str, Any]] = {name: _typed_input(dtype) for name, dtype in DTYPES.items()}
_TYPED_REQUEST: Final = Decoder(JsonRequest[reduce(or_, _TYPED.values())])  # type: ignore[misc]
_ANY_REQUEST: Final = JsonRequest[JsonInput]
_LOOSE_REQUEST: Final = Decoder(_ANY_REQUEST)
_parsers: Final = threading.local()
_SIMD_ARRAY: Final[Any] = simdjson.Array


def decode_request(body: Buffer, max_depth: int, json_bytes: int = -1) -> InferBody:
    """Decodes an infer request; `json_bytes` of it are JSON, the rest binary tensors.

    Raises: InvalidInput naming the field, what was expected and what came; TooLarge.
    """
    binary = None
    if json_bytes >= 0:
        if json_bytes > len(body):
            raise InvalidInput(
                f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes"
            )
        view = memoryview(body)
        body, binary = view[:json_bytes], view[json_bytes:]
    if len(body) > _LARGE and not binary:
        found = _decode_long(body, max_depth) if len(body) > LONG_BYTES else None
        if found is None:
            check_values(body)
            found = _decode_large(body)
        if found is not None:
            return found
    try:
        request = _TYPED_REQUEST.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        request = _decode_other(body, max_depth)
    tensors = Tensors()
    offset = 0
    for given in request.inputs:
        parameters = given.parameters
        if parameters is None or not _ELSEWHERE & parameters.keys():
            tensor = _tensor_of_json(given)
        elif "shared_memory_region" in parameters:
            raise Unsupported(f"input {given.name!r}: shared memory is not offered; send the data")
        else:
            size = parameters["binary_data_size"]
            data = _binary(binary, offset, size, given.name)
            offset += size
            tensor = tensor_of_bytes(given.dtype, given.shape, data, given.name)
        tensors[given.name] = tensor
    if len(tensors) != len(request.inputs):
        raise given_twice(given.name for given in request.inputs)
    if binary is not None and offset != len(binary):
        raise InvalidInput(
            f"{len(binary)} bytes of binary data, but the inputs' binary_data_size add up to "
            f"{offset}"
        )
    return InferBody(tensors, request.id or "", request.parameters, request.outputs)


def _decode_other(body: Buffer, max_depth: int) -> JsonRequest[Any]:
    """Reads what `_TYPED_REQUEST` does not: words for non-finite numbers, bare NaN and Infinity,
    which are not JSON but often sent, and nested text. It also tells of mistakes.
    """
    value = loads(body, max_depth)
    try:
        loose = msgspec.convert(value, _ANY_REQUEST)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request does not fit the protocol: {error}") from None
    flat = [_flattened(given) for given in loose.inputs]
    return JsonRequest(flat, loose.id, loose.parameters, loose.outputs)


def _flattened(given: JsonInput) -> Any:
    """The input with its data as one flat list, and with numbers for words such as NaN."""
    name, data = given.name, given.data
    dtype = input_dtype(name, given.datatype)
    if min(given.shape, default=0) < 0:
        raise negative_dimension(name, given.shape)
    if data is not None:
        data = _flat_values(data, dtype, name)
    return _TYPED[dtype.name](name, given.shape, data, given.parameters)


def _check_count(name: str, shape: Sequence[int], got: int) -> None:
    """Raises: InvalidInput unless `got` elements make an array of that shape."""
    expected = prod(shape)
    if expected != got:
        raise wrong_count(name, shape, got)
    # numpy refuses the shape of an empty array if its other dimensions are too large together.
    if not expected and prod(filter(None, shape)) > _MAX_ELEMENTS:
        raise too_large_a_shape(name, shape)


def _tensor_of_json(given: Any) -> Tensor:
    dtype, shape, values = given.dtype, given.shape, given.data
    if values is None:
        raise InvalidInput(f"input {given.name!r}: has neither data nor binary_data_size")
    while values and type(values[0]) is list:
        values = _joined(values, given.name)
    if not values or prod(shape) != len(values):
        _check_count(given.name, shape, len(values))
    if dtype is BYTES:
        return Tensor(dtype, shape, _objects([value.encode() for value in values], shape))
    return Tensor(dtype, shape, values)


def _joined(lists: list[Any], name: str) -> list[Any]:
    try:
        return list(chain.from_iterable(lists))
    except TypeError:
        raise InvalidInput(f"input {name!r}: its data are nested unevenly") from None


def _objects(items: Sequence[Any], shape: tuple[int, ...]) -> Array:
    array: Array = np.empty(len(items), np.object_)
    array[:] = items
    return array.reshape(shape)


def _flat_values(data: Any, dtype: DType, name: str) -> list[Any]:
    """Nested lists, and words for non-finite floats, as one flat list.

    Raises: InvalidInput for a value of another type.
    """
    flat: list[Any] = []
    _flatten(data, flat)
    wanted: Any = _item_type(dtype)
    if wanted is float:
        flat = [NON_FINITE.get(x, x) if isinstance(x, str) else x for x in flat]
        wanted = (int, float)
    for index, value in enumerate(flat):
        if not isinstance(value, wanted) or (dtype is not BOOL and isinstance(value, bool)):
            shown = orjson.dumps(value)[:40].decode(errors="replace")
            raise InvalidInput(
                f"input {name!r}: element {index} is {shown}, which is not of type {dtype.name}"
            )
    return flat


def _flatten(value: Any, into: list[Any]) -> None:
    if isinstance(value, list):
        for item in value:
            _flatten(item, into)
    else:
        into.append(value)


def _binary(binary: memoryview | None, offset: int, size: Any, name: str) -> memoryview:
    if binary is None:
        raise InvalidInput(
            f"input {name!r}: binary data needs the header Inference-Header-Content-Length"
        )
    if type(size) is not int or size < 0 or size > len(binary) - offset:
        raise InvalidInput(
            f"input {name!r}: binary_data_size is {size}, {len(binary) - offset} bytes are left"
        )
    return binary[offset : offset + size]


def tensor_of_bytes(dtype: DType, shape: tuple[int, ...], data: memoryview, name: str) -> Tensor:
    """A tensor on little-endian row-major bytes, without a copy; BYTES stay packed.

    Raises: InvalidInput when length and shape do not fit.
    """
    if dtype is BYTES:
        # Unpacked now, so that a broken request fails before it is queued.
        items = Packed(data).items(prod(shape), name)
        _check_count(name, shape, len(items))
        return Tensor(dtype, shape, _objects(items, shape))
    expected = prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise wrong_length(name, dtype, shape, len(data))
    _check_count(name, shape, len(data) // dtype.itemsize)
    return Tensor(dtype, shape, np.frombuffer(data, dtype.numpy).reshape(shape))


def _decode_long(body: Buffer, max_depth: int) -> InferBody | None:
    """With long arrays decoded in short steps; None for bodies without, or with mistakes."""
    short, arrays = lift_data(body)
    if not arrays:
        return None
    tensors = Tensors()
    num_used = 0
    try:
        request = _LOOSE_REQUEST.decode(short)
        for given in request.inputs:
            if given.parameters or given.name in tensors:
                return None
            if given.data == {LIFTED: num_used}:
                tensors[given.name] = _tensor_of_long(given, arrays[num_used], max_depth)
                num_used += 1
            else:
                tensors[given.name] = _tensor_of_json(_flattened(given))
    except _NOT_PLAIN:
        return None
    if num_used < len(arrays):
        return None
    return InferBody(tensors, request.id or "", request.parameters, request.outputs)


def _tensor_of_long(given: JsonInput, array: LongArray, max_depth: int) -> Tensor:
    """Raises: one of `_NOT_PLAIN` for anything but values of its type."""
    name, dtype, parser = given.name, DTYPES[given.datatype], simdjson.Parser()
    is_number = dtype not in (BYTES, BOOL)

    def parse(text: bytes) -> Array:
        """Raises: ValueError for what is no JSON, TypeError for what is no value of the type."""
        try:
            document = parser.parse(text) if is_number and b'"' not in text else None
        except ValueError:
            document = None
        values: Any = loads(text, max_depth) if document is None else None
        try:
            if document is None:
                return _plain_values(values, dtype, name)
            return narrowed(_numbers(document, dtype), dtype, name)
        except ValueError as error:
            raise TypeError from error

    data = np.concatenate(list(array.texts(parse)))
    _check_count(name, given.shape, data.size)
    return Tensor(dtype, given.shape, data.reshape(given.shape))


def _plain_values(values: list[Any], dtype: DType, name: str) -> Array:
    """Raises: InvalidInput."""
    flat = _flat_values(values, dtype, name)
    if dtype is BYTES:
        return _objects([value.encode() for value in flat], (len(flat),))
    return numbers(dtype, flat, name)


def _numbers(array: Any, dtype: DType) -> Array:
    """The numbers of an array of simdjson's as float64, int64 or uint64.

    Raises: ValueError or TypeError if there is anything else in it.
    """
    if dtype.is_float:
        return np.frombuffer(array.as_buffer(of_type="d"), np.float64)
    if dtype.is_integer:
        kind = "u" if dtype is UINT64 else "i"
        return np.frombuffer(array.as_buffer(of_type=kind), f"{kind}8")
    raise TypeError


def _decode_large(body: Buffer) -> InferBody | None:
    """By simdjson; None when the body is anything but plain numbers, for the other way to judge."""
    parser = getattr(_parsers, "parser", None)
    if parser is None or len(body) > _KEPT_BYTES:
        parser = simdjson.Parser()
    if len(body) <= _KEPT_BYTES:
        _parsers.parser = parser
    try:
        request = parser.parse(body)
        found = _read_large(request)
    except _NOT_PLAIN:
        return None
    finally:
        # The parser refuses to work again while an element of the last document lives.
        request = None
    return found


def _read_large(request: Any) -> InferBody:
    tensors = Tensors()
    inputs = request["inputs"]
    if type(inputs) is not _SIMD_ARRAY:
        raise TypeError
    for given in inputs:
        name = given["name"]
        dtype = DTYPES[given["datatype"]]
        shape = msgspec.convert(given["shape"].as_list(), Shape)
        if type(name) is not str or name in tensors:
            raise ValueError
        data = _numbers(given["data"], dtype)
        _check_count(name, shape, data.size)
        tensors[name] = Tensor(dtype, shape, narrowed(data, dtype, name).reshape(shape))
    id, parameters, outputs = (request.get(key) for key in ("id", "parameters", "outputs"))
    return InferBody(
        tensors,
        "" if id is None else msgspec.convert(id, str),
        None if parameters is None else parameters.as_dict(),
        None if outputs is None else msgspec.convert(outputs.as_list(), list[JsonOutput]),
    )
