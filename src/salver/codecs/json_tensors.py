"""Tensors of the Open Inference Protocol as JSON, with the binary tensor data extension.

Decoding picks the cheapest parser by size: msgspec for a few numbers, simdjson above a kilobyte.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import numpy as np
import orjson
import simdjson
from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder

from salver.codecs.json_numbers import NON_FINITE, loads, tensor_text
from salver.errors import InvalidInput, Unsupported
from salver.types import (
    BF16,
    BOOL,
    BYTES,
    DTYPES,
    UINT64,
    DType,
    Packed,
    Tensor,
    Tensors,
    bf16_bits,
    dtype_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from salver.types import Array, Buffer, Response

_LARGE: Final = 1024
_MAX_ELEMENTS: Final = 1 << 40

Shape = Annotated[tuple[Annotated[int, Meta(ge=0, le=_MAX_ELEMENTS)], ...], Meta(max_length=32)]


class JsonInput(Struct, gc=False):
    name: str
    datatype: str
    shape: Shape
    data: Raw = Raw()
    parameters: dict[str, Any] | None = None


class JsonOutput(Struct, gc=False):
    name: str
    parameters: dict[str, Any] | None = None


class JsonRequest(Struct, gc=False):
    inputs: list[JsonInput]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[JsonOutput] | None = None


class InferBody(Struct, gc=False):
    """What the body of an infer request says."""

    tensors: Tensors
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[JsonOutput] | None = None


_REQUEST: Final = Decoder(JsonRequest)
_parsers: Final = threading.local()
_SIMD_ARRAY: Final[Any] = simdjson.Array


def _item_type(dtype: DType) -> type:
    """The type that JSON's values are read as."""
    return float if dtype.is_float else bool if dtype is BOOL else str if dtype is BYTES else int


_DECODE_LIST: Final[dict[str, Callable[[Raw], list[Any]]]] = {
    name: Decoder(list[_item_type(dtype)]).decode  # type: ignore[misc]
    for name, dtype in DTYPES.items()
}


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
        found = _decode_large(body)
        if found is not None:
            return found
    request = _decode_small(body, max_depth)
    tensors = Tensors()
    offset = 0
    for given in request.inputs:
        parameters = given.parameters
        if parameters is None:
            tensor = _tensor_of_json(given, max_depth)
        elif "shared_memory_region" in parameters:
            raise Unsupported(f"input {given.name!r}: shared memory is not offered; send the data")
        elif "binary_data_size" in parameters:
            size = parameters["binary_data_size"]
            data = _binary(binary, offset, size, given.name)
            offset += size
            tensor = tensor_of_bytes(dtype_of(given.datatype), given.shape, data, given.name)
        else:
            tensor = _tensor_of_json(given, max_depth)
        tensors[given.name] = tensor
    if len(tensors) != len(request.inputs):
        raise InvalidInput(f"an input is given twice: {', '.join(g.name for g in request.inputs)}")
    if binary is not None and offset != len(binary):
        raise InvalidInput(
            f"{len(binary)} bytes of binary data, but the inputs' binary_data_size add up to "
            f"{offset}"
        )
    return InferBody(tensors, request.id, request.parameters, request.outputs)


def _decode_small(body: Buffer, max_depth: int) -> JsonRequest:
    try:
        return _REQUEST.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request does not fit the protocol: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # Bare NaN and Infinity are not JSON, but many clients send them.
        return _convert(loads(body, max_depth))


def _convert(value: Any) -> JsonRequest:
    """The slow way: `data` of each input is put back into text that json itself wrote."""
    if isinstance(value, dict):
        for given in value.get("inputs") or []:
            if isinstance(given, dict) and "data" in given:
                words = orjson.dumps(_spell(given["data"]))
                given["data"] = Raw(words)
    try:
        return msgspec.convert(value, JsonRequest)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request does not fit the protocol: {error}") from None


def _spell(value: Any) -> Any:
    if isinstance(value, list):
        return [_spell(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def _check_count(name: str, shape: Sequence[int], got: int) -> None:
    """Raises: InvalidInput unless `got` elements make an array of that shape."""
    expected = prod(shape)
    if expected != got:
        raise InvalidInput(
            f"input {name!r}: shape {list(shape)} expects {expected} elements, got {got}"
        )
    # numpy refuses the shape of an empty array if its other dimensions are too large together.
    if not expected and prod(filter(None, shape)) > _MAX_ELEMENTS:
        raise InvalidInput(f"input {name!r}: shape {list(shape)} is larger than any request")


def _tensor_of_json(given: JsonInput, max_depth: int) -> Tensor:
    name, shape = given.datatype, given.shape
    dtype = DTYPES.get(name) or dtype_of(name)
    try:
        values = _DECODE_LIST[name](given.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        values = _nested_values(given.data, dtype, given.name, max_depth)
    if not values or prod(shape) != len(values):
        _check_count(given.name, shape, len(values))
    if dtype is BYTES:
        return Tensor(dtype, shape, _objects([value.encode() for value in values], shape))
    return Tensor(dtype, shape, values)


def _objects(items: Sequence[Any], shape: tuple[int, ...]) -> Array:
    array: Array = np.empty(len(items), np.object_)
    array[:] = items
    return array.reshape(shape)


def _nested_values(raw: Any, dtype: DType, name: str, max_depth: int) -> list[Any]:
    """Nested lists, and words for non-finite floats, as one flat list."""
    if not bytes(raw):
        raise InvalidInput(f"input {name!r}: has neither data nor binary_data_size")
    flat: list[Any] = []
    _flatten(loads(bytes(raw), max_depth), flat)
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
        raise InvalidInput(
            f"input {name!r}: {dtype.name} of shape {list(shape)} expects {expected} bytes, "
            f"got {len(data)}"
        )
    _check_count(name, shape, len(data) // dtype.itemsize)
    return Tensor(dtype, shape, np.frombuffer(data, dtype.numpy).reshape(shape))


def _decode_large(body: Buffer) -> InferBody | None:
    """By simdjson; None when the body is anything but plain numbers, for the other way to judge."""
    parser = getattr(_parsers, "parser", None)
    if parser is None:
        parser = _parsers.parser = simdjson.Parser()
    try:
        request = parser.parse(body)
        found = _read_large(request)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError):
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
        if dtype.is_float:
            data = np.frombuffer(given["data"].as_buffer(of_type="d"), np.float64)
        elif dtype.is_integer:
            kind = "u" if dtype is UINT64 else "i"
            data = np.frombuffer(given["data"].as_buffer(of_type=kind), f"{kind}8")
        else:
            raise TypeError
        _check_count(name, shape, data.size)
        tensors[name] = Tensor(dtype, shape, narrowed(data, dtype, name).reshape(shape))
    id, parameters, outputs = (request.get(key) for key in ("id", "parameters", "outputs"))
    return InferBody(
        tensors,
        "" if id is None else msgspec.convert(id, str),
        None if parameters is None else parameters.as_dict(),
        None if outputs is None else msgspec.convert(outputs.as_list(), list[JsonOutput]),
    )


def narrowed(data: Array, dtype: DType, name: str) -> Array:
    """Numbers as `dtype`; floats that become integers must be whole.

    Raises: InvalidInput for an integer outside its range.
    """
    if dtype is BF16:
        with np.errstate(over="ignore"):
            return bf16_bits(data.astype(np.float32))
    if data.dtype == dtype.numpy:
        return data
    if dtype.is_integer and data.size:
        bounds = np.iinfo(dtype.numpy)
        if int(data.min()) < bounds.min or int(data.max()) > bounds.max:
            raise InvalidInput(
                f"input {name!r}: a value does not fit {dtype.name} ({bounds.min} to {bounds.max})"
            )
    with np.errstate(over="ignore"):
        return data.astype(dtype.numpy)


class _OutputText:
    """One output of a batch as text: what stands around the numbers, and the rows' numbers."""

    __slots__ = ("after", "before", "name", "row_texts")

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        self.before = _before_shape(name, tensor.dtype.name) + b"["
        inner = "".join([f",{dim}" for dim in tensor.shape[1:]]).encode()
        self.after = inner + b'],"data":['
        self.row_texts = _row_texts(tensor, name)

    def part(self, response: Response) -> bytes:
        start, stop = response.start, response.stop
        if self.row_texts is None:
            text = tensor_text(response.tensor(self.name), self.name, flat=True)[1:-1]
        else:
            text = b",".join(self.row_texts[start:stop])
        return b"%b%d%b%b]}" % (self.before, stop - start, self.after, text)


class _BatchText:
    """The answers of a batch as text. With one output, those of one row each differ in its numbers
    alone: `before_row` is what stands before them.
    """

    __slots__ = ("before_row", "opening", "outputs", "row_texts")

    def __init__(self, response: Response) -> None:
        tensors = response.rows.tensors
        self.opening = _opening(response.ref.name, response.ref.version)
        self.outputs = [_OutputText(name, tensors[name]) for name in response.names]
        first = self.outputs[0]
        self.row_texts = first.row_texts if len(self.outputs) == 1 else None
        self.before_row = b'%b"outputs":[%b1%b' % (self.opening, first.before, first.after)


@lru_cache(maxsize=1024)
def _before_shape(name: str, datatype: str) -> bytes:
    return b'{"name":%b,"datatype":"%b","shape":' % (orjson.dumps(name), datatype.encode())


@lru_cache(maxsize=1024)
def _opening(name: str, version: str) -> bytes:
    return b'{"model_name":%b,"model_version":%b,' % (orjson.dumps(name), orjson.dumps(version))


def _row_texts(tensor: Tensor, name: str) -> list[bytes] | None:
    """Every row's numbers, written in one go; None where one by one is better."""
    width = prod(tensor.shape[1:])
    if tensor.dtype is BYTES or not tensor.shape or not 0 < width <= 64:
        return None
    rows = Tensor(tensor.dtype, (tensor.shape[0], width), tensor.array().reshape(-1, width))
    return tensor_text(rows, name, flat=False)[2:-2].split(b"],[")


def _own_output(name: str, tensor: Tensor) -> bytes:
    """An output that belongs to one call alone."""
    before = _before_shape(name, tensor.dtype.name)
    text = tensor_text(tensor, name, flat=True)
    return b'%b%b,"data":%b}' % (before, orjson.dumps(tensor.shape), text)


def encode_response(response: Response, id: str = "") -> bytes:
    """The JSON answer of an infer request. The first one of a batch writes the numbers of all."""
    rows, names, start, stop = response.rows, response.names, response.start, response.stop
    if stop < 0:
        opening = _opening(response.ref.name, response.ref.version)
        outputs = [_own_output(name, rows.tensors[name]) for name in names]
    else:
        batch: _BatchText | None = rows.cache.get(names)
        if batch is None:
            batch = rows.cache[names] = _BatchText(response)
        if stop - start == 1 and batch.row_texts and not (id or response.parameters):
            return b"%b%b]}]}" % (batch.before_row, batch.row_texts[start])
        opening = batch.opening
        outputs = [output.part(response) for output in batch.outputs]
    if id:
        opening += b'"id":%b,' % orjson.dumps(id)
    if response.parameters:
        opening += b'"parameters":%b,' % orjson.dumps(dict(response.parameters))
    return b'%b"outputs":[%b]}' % (opening, b",".join(outputs))


def encode_with_binary(response: Response, id: str, binary: Sequence[str]) -> list[Buffer]:
    """JSON head and binary tensors, the outputs in `binary` as bytes. The first part is the JSON.

    Format: the binary tensor data extension of the Open Inference Protocol.
    """
    outputs, tail = [], []
    for name in response.names:
        tensor = response.tensor(name)
        entry: dict[str, Any] = {
            "name": name,
            "datatype": tensor.dtype.name,
            "shape": list(tensor.shape),
        }
        if name in binary:
            data = tensor.to_bytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = orjson.Fragment(tensor_text(tensor, name, flat=True))
        outputs.append(entry)
    head: dict[str, Any] = {
        "model_name": response.ref.name,
        "model_version": response.ref.version,
    }
    if id:
        head["id"] = id
    if response.parameters:
        head["parameters"] = dict(response.parameters)
    return [orjson.dumps({**head, "outputs": outputs}), *tail]


def wants_binary(body: InferBody, names: Sequence[str]) -> list[str]:
    """Which outputs a request wants as bytes.

    Raises: Unsupported for output parameters that Salver does not offer.
    """
    everything = bool((body.parameters or {}).get("binary_data_output"))
    chosen = {}
    for output in body.outputs or ():
        parameters = output.parameters or {}
        if "shared_memory_region" in parameters:
            raise Unsupported(f"output {output.name!r}: shared memory is not offered; leave it out")
        chosen[output.name] = bool(parameters.get("binary_data", everything))
    if not chosen:
        return list(names) if everything else []
    return [name for name, is_binary in chosen.items() if is_binary]
