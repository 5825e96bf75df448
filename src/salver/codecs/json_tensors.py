"""Tensors of the Open Inference Protocol as JSON, with the binary tensor data extension.

Decoding picks the cheapest parser by size: msgspec for a few numbers, simdjson above a kilobyte.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import orjson
import simdjson

from salver.codecs.json_numbers import NON_FINITE, check_depth, loads, tensor_text
from salver.errors import InvalidInput, Unsupported
from salver.types import (
    BOOL,
    BYTES,
    DTYPES,
    INT64,
    UINT64,
    DType,
    Packed,
    Tensor,
    Tensors,
    bf16_bits,
    dtype_of,
    len_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.types import Buffer, ModelRef, Response, Rows

_LARGE: Final = 1024
_MAX_DIMENSIONS: Final = 32
_MAX_ELEMENTS: Final = 1 << 40


class JsonInput(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] | None = None


class JsonOutput(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class JsonRequest(msgspec.Struct):
    inputs: list[JsonInput]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[JsonOutput] | None = None


_REQUEST: Final = msgspec.json.Decoder(JsonRequest)
_FLOATS: Final = msgspec.json.Decoder(list[float])
_INTEGERS: Final = msgspec.json.Decoder(list[int])
_BOOLEANS: Final = msgspec.json.Decoder(list[bool])
_STRINGS: Final = msgspec.json.Decoder(list[str])
_LISTS: Final[dict[DType, Any]] = {
    dtype: _FLOATS
    if dtype.is_float
    else _BOOLEANS
    if dtype is BOOL
    else _STRINGS
    if dtype is BYTES
    else _INTEGERS
    for dtype in DTYPES.values()
}
_parsers: Final = threading.local()


class InferBody(msgspec.Struct):
    """What the body of an infer request says."""

    tensors: Tensors
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[JsonOutput] = []


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
    if len(body) > _LARGE:
        found = _decode_large(body)
        if found is not None:
            return found
    return _decode_small(body, max_depth, binary)


def _decode_small(body: Buffer, max_depth: int, binary: memoryview | None) -> InferBody:
    try:
        request = _REQUEST.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request does not fit the protocol: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # Bare NaN and Infinity are not JSON, but many clients send them.
        check_depth(body, max_depth)
        request = _convert(loads(body, max_depth))
    tensors = Tensors()
    offset = 0
    for given in request.inputs:
        dtype = dtype_of(given.datatype)
        shape = _checked_shape(given.shape, given.name)
        parameters = given.parameters
        if parameters is not None and "binary_data_size" in parameters:
            size = parameters["binary_data_size"]
            data = _binary(binary, offset, size, given.name)
            offset += size
            tensor = tensor_of_bytes(dtype, shape, data, given.name)
        else:
            tensor = Tensor(dtype, shape, _values(given, dtype, shape, max_depth))
        if given.name in tensors:
            raise InvalidInput(f"input {given.name!r} is given twice")
        tensors[given.name] = tensor
    if binary is not None and offset != len(binary):
        raise InvalidInput(
            f"{len(binary)} bytes of binary data, but the inputs' binary_data_size add up to "
            f"{offset}"
        )
    return InferBody(tensors, request.id, request.parameters or {}, request.outputs or [])


def _convert(value: Any) -> JsonRequest:
    """The slow way: `data` of each input is put back into text that json itself wrote."""
    if isinstance(value, dict):
        for given in value.get("inputs") or []:
            if isinstance(given, dict) and "data" in given:
                words = orjson.dumps(_spell(given["data"]))
                given["data"] = msgspec.Raw(words)
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


def _checked_shape(shape: Sequence[int], name: str) -> tuple[int, ...]:
    """Raises: InvalidInput before any memory is spent on it."""
    if any(dim < 0 for dim in shape) or len(shape) > _MAX_DIMENSIONS:
        raise InvalidInput(
            f"input {name!r}: expected a shape of at most {_MAX_DIMENSIONS} dimensions, none "
            f"negative, got {list(shape)[: _MAX_DIMENSIONS + 1]}"
        )
    if len_of(shape) > _MAX_ELEMENTS:
        raise InvalidInput(f"input {name!r}: shape {list(shape)} is larger than any request")
    return tuple(shape)


def _count(name: str, shape: tuple[int, ...], got: int) -> None:
    if len_of(shape) != got:
        raise InvalidInput(
            f"input {name!r}: shape {list(shape)} expects {len_of(shape)} elements, got {got}"
        )


def _values(given: JsonInput, dtype: DType, shape: tuple[int, ...], max_depth: int) -> Any:
    raw = given.data
    try:
        values = _LISTS[dtype].decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        values = _nested_values(raw, dtype, given.name, max_depth)
    _count(given.name, shape, len(values))
    if dtype is BYTES:
        array = np.empty(len(values), np.object_)
        array[:] = [value.encode() for value in values]
        return array.reshape(shape)
    return values


def _nested_values(raw: Any, dtype: DType, name: str, max_depth: int) -> list[Any]:
    """Nested lists, and words for non-finite floats, as one flat list."""
    if not bytes(raw):
        raise InvalidInput(f"input {name!r}: has neither data nor binary_data_size")
    flat: list[Any] = []
    _flatten(loads(bytes(raw), max_depth), flat)
    if dtype.is_float:
        flat = [NON_FINITE.get(x, x) if isinstance(x, str) else x for x in flat]
    wanted: tuple[type, ...] = (
        (int, float)
        if dtype.is_float
        else (bool,)
        if dtype is BOOL
        else (str,)
        if dtype is BYTES
        else (int,)
    )
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
        packed = Packed(data)
        # The lengths are checked now, so that a broken request fails before it is queued.
        array = np.empty(len_of(shape) if 4 * len_of(shape) <= len(data) else 0, np.object_)
        array[:] = packed.items(len_of(shape), name)
        return Tensor(dtype, shape, array.reshape(shape))
    expected = len_of(shape) * dtype.itemsize
    if len(data) != expected:
        raise InvalidInput(
            f"input {name!r}: {dtype.name} of shape {list(shape)} expects {expected} bytes, "
            f"got {len(data)}"
        )
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
    for given in request["inputs"]:
        name = given["name"]
        dtype = DTYPES[given["datatype"]]
        shape = tuple(given["shape"].as_list())
        if any(type(dim) is not int for dim in shape) or name in tensors:
            raise ValueError
        shape = _checked_shape(shape, name)
        if dtype.is_float:
            data = np.frombuffer(given["data"].as_buffer(of_type="d"), np.float64)
        elif dtype.is_integer:
            kind = "u" if dtype is UINT64 else "i"
            data = np.frombuffer(given["data"].as_buffer(of_type=kind), f"{kind}8")
        else:
            raise TypeError
        _count(name, shape, data.size)
        tensors[name] = Tensor(dtype, shape, narrowed(data, dtype, name).reshape(shape))
    outputs = request.get("outputs")
    parameters = request.get("parameters")
    return InferBody(
        tensors,
        str(request.get("id") or ""),
        parameters.as_dict() if parameters is not None else {},
        msgspec.convert(outputs.as_list(), list[JsonOutput]) if outputs is not None else [],
    )


def narrowed(data: Any, dtype: DType, name: str) -> Any:
    """64-bit numbers as `dtype`.

    Raises: InvalidInput for an integer outside its range.
    """
    if data.dtype == dtype.numpy:
        return data
    if dtype.name == "BF16":
        return bf16_bits(data.astype(np.float32))
    if dtype.is_integer and dtype not in (INT64, UINT64):
        bounds = np.iinfo(dtype.numpy)
        if data.size and (data.min() < bounds.min or data.max() > bounds.max):
            raise InvalidInput(
                f"input {name!r}: a value does not fit {dtype.name} ({bounds.min} to {bounds.max})"
            )
    with np.errstate(over="ignore"):
        return data.astype(dtype.numpy)


@lru_cache(maxsize=1024)
def _opening(ref: ModelRef) -> bytes:
    name, version = orjson.dumps(ref.name), orjson.dumps(ref.version)
    return b'{"model_name":%b,"model_version":%b,' % (name, version)


class _OutputText:
    """One output of a batch as text: what stands around the numbers, and the rows' numbers."""

    __slots__ = ("after", "before", "name", "row_texts", "rows")

    def __init__(self, name: str, rows: Rows) -> None:
        tensor = rows.tensors[name]
        self.name = name
        self.rows = rows
        self.before = b'{"name":%b,"datatype":"%b","shape":[' % (
            orjson.dumps(name),
            tensor.dtype.name.encode(),
        )
        inner = "".join(f",{dim}" for dim in tensor.shape[1:]).encode()
        self.after = inner + b'],"data":['
        self.row_texts = _row_texts(tensor, name)

    def part(self, response: Response) -> bytes:
        if response.stop < 0:
            tensor = self.rows.tensors[self.name]
            shape = ",".join(map(str, tensor.shape)).encode()
            text = tensor_text(tensor, self.name, flat=True)
            return b'%b%b],"data":%b}' % (self.before, shape, text)
        start, stop = response.start, response.stop
        if self.row_texts is None:
            text = tensor_text(response.tensor(self.name), self.name, flat=True)[1:-1]
        elif stop - start == 1:
            text = self.row_texts[start]
        else:
            text = b",".join(self.row_texts[start:stop])
        return b"%b%d%b%b]}" % (self.before, stop - start, self.after, text)


def _row_texts(tensor: Tensor, name: str) -> list[bytes] | None:
    """Every row's numbers, written in one go; None where one by one is better."""
    width = len_of(tensor.shape[1:])
    if tensor.dtype is BYTES or not tensor.shape or not 0 < width <= 64:
        return None
    rows = Tensor(tensor.dtype, (tensor.shape[0], width), tensor.array().reshape(-1, width))
    return tensor_text(rows, name, flat=False)[2:-2].split(b"],[")


def encode_response(response: Response, id: str = "") -> bytes:
    """The JSON answer of an infer request."""
    texts = _texts(response)
    opening = _opening(response.ref)
    if id:
        opening += b'"id":%b,' % orjson.dumps(id)
    if response.parameters:
        opening += b'"parameters":%b,' % orjson.dumps(dict(response.parameters))
    if len(texts) == 1:
        return b'%b"outputs":[%b]}' % (opening, texts[0].part(response))
    return b'%b"outputs":[%b]}' % (opening, b",".join([text.part(response) for text in texts]))


def _texts(response: Response) -> list[_OutputText]:
    """Prepared once per batch: the first answer of a batch writes the numbers of all."""
    cache = response.rows.cache
    texts = cache.get(response.names)
    if texts is None:
        texts = [_OutputText(name, response.rows) for name in response.names]
        cache[response.names] = texts
    return texts


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
    everything = bool(body.parameters.get("binary_data_output"))
    chosen = {}
    for output in body.outputs:
        parameters = output.parameters or {}
        if "shared_memory_region" in parameters:
            raise Unsupported(f"output {output.name!r}: shared memory is not offered; leave it out")
        chosen[output.name] = bool(parameters.get("binary_data", everything))
    if not chosen:
        return list(names) if everything else []
    return [name for name, is_binary in chosen.items() if is_binary]
