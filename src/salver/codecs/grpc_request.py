"""ModelInferRequest bytes to requests.

Clients send the same head (model, names, datatypes, shapes) with ever new tensor data behind it, so
heads are cached by their bytes and tensors are views on the data. Whatever does not look like that
takes the way through protobuf, which decides what a message means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from salver.codecs.protobuf import decode_varint, message
from salver.codecs.recent import Recent
from salver.codecs.v2 import (
    MAX_RANK,
    given_twice,
    input_dtype,
    method_name,
    negative_dimension,
    own_parameters,
    timing,
    too_large_a_shape,
    wrong_count,
    wrong_length,
)
from salver.errors import InvalidInput, TooLarge, Unsupported
from salver.interfaces import Infer
from salver.types import (
    BYTES,
    DType,
    ModelRef,
    Packed,
    Request,
    Tensor,
    Tensors,
    len_of,
    unfit,
)

if TYPE_CHECKING:
    from salver.types import Buffer, Parameter

MAX_HEAD_BYTES: Final = 16 << 10
MAX_HEADS: Final = 256
MAX_NAMES: Final = 4096

# First bytes of fields: the number shifted by three, and 2 for "length-delimited".
_ID, _RAW = 0x1A, 0x3A
_HEAD: Final = frozenset((0x0A, 0x12, _ID, 0x22, 0x2A, 0x32))
_EMPTY_FINAL: Final = "triton_enable_empty_final_response"
_NO_SHARED_MEMORY: Final = (
    "shared memory is not offered here; send the tensor data in the request (raw_input_contents)"
)
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class Wanted(NamedTuple):
    """What the answer must look like beyond the plain form.

    `counts` tells of how many best classes an output shall consist; `empty_final` that a stream
    without a last item shall end with a message all the same.
    """

    counts: dict[str, int]
    empty_final: bool


class _Head:
    """What a request says before its tensor data.

    `inputs` holds (name, datatype, shape, bytes); a BYTES input has at least so many.
    """

    __slots__ = (
        "inputs", "method", "outputs", "parameters", "priority", "ref", "timeout_ns", "wanted",
    )  # fmt: skip

    def __init__(self, request: Any) -> None:
        for name in ("parameters", "inputs", "outputs"):
            if len(getattr(request, name)) > MAX_NAMES:
                raise TooLarge(f"a request has at most {MAX_NAMES} {name}")
        self.ref = ModelRef(request.model_name, request.model_version)
        parameters = _parameters(request.parameters)
        empty_final = bool(parameters.pop(_EMPTY_FINAL, False))
        self.wanted = Wanted(_class_counts(request.outputs), empty_final)
        self.timeout_ns, self.priority = timing(parameters)
        self.method = method_name(parameters)
        self.parameters = own_parameters(parameters)
        self.outputs = tuple(output.name for output in request.outputs)
        self.inputs = tuple(_describe(tensor) for tensor in request.inputs)
        names = [name for name, *_ in self.inputs]
        if len(set(names)) != len(names):
            raise given_twice(names)

    def infer(self, tensors: Tensors, request_id: str) -> Infer:
        request = Request(
            tensors,
            self.method,
            outputs=self.outputs,
            # A copy, because many requests share a head and some model may change its parameters.
            parameters=self.parameters.copy(),
            id=request_id,
        )
        return Infer(
            ref=self.ref,
            request=request,
            timeout_ns=self.timeout_ns,
            priority=self.priority,
            encoding=self.wanted,
        )


class _Shape:
    """A message of one numeric input and no id: all that changes is the tensor at its end.

    `prefix` is what stands before the tensor, its length included.
    """

    __slots__ = ("_dtype", "_head", "_name", "_numpy", "_shape", "prefix")

    def __init__(self, head: _Head, prefix: bytes) -> None:
        self._head = head
        self._name, self._dtype, self._shape, _ = head.inputs[0]
        self._numpy = self._dtype.numpy
        self.prefix = prefix

    def infer(self, data: bytes) -> Infer:
        array = np.ndarray(self._shape, self._numpy, data, len(self.prefix))
        tensor = Tensor(self._dtype, self._shape, array)
        return self._head.infer(Tensors({self._name: tensor}), "")


_heads: Final[Recent[bytes, _Head]] = Recent(MAX_HEADS)
# By the length of the whole message, because its prefix cannot be known without looking at it.
_shapes: Final[Recent[int, _Shape]] = Recent(MAX_HEADS)


def decode_infer_request(data: Buffer) -> Infer:
    """The call that a message means; its `encoding` is the `Wanted` of its answer.

    Numeric tensors are read-only views on `data` and need not be aligned; BYTES stay packed.

    Raises: InvalidInput, Unsupported.
    """
    if type(data) is bytes:
        shape = _shapes.get(len(data))
        if shape is not None and data.startswith(shape.prefix):
            return shape.infer(data)
    else:
        data = memoryview(data).toreadonly()
    try:
        return _decode_fast(data) or _decode_any(data)
    except (IndexError, OverflowError, UnicodeDecodeError):
        return _decode_any(data)


def _decode_fast(data: bytes | memoryview) -> Infer | None:
    """Decodes fields in their usual order, raw contents last; None for anything else.

    Raises: InvalidInput, and IndexError, OverflowError or UnicodeDecodeError where the bytes are no
        such message.
    """
    found = _scan_head(data)
    if found is None:
        return None
    key, request_id, at = found
    head = _heads.get(key)
    if head is None:
        head = _parse_head(key)
    tensors = _scan_raws(data, at, head)
    if tensors is None:
        return None
    if type(data) is bytes and not request_id and len(tensors) == 1:
        _remember_shape(head, data)
    return head.infer(tensors, request_id)


def _remember_shape(head: _Head, data: bytes) -> None:
    _, dtype, _, num_bytes = head.inputs[0]
    if dtype is not BYTES:
        _shapes.put(len(data), _Shape(head, data[: len(data) - num_bytes]))


def _scan_head(data: bytes | memoryview) -> tuple[bytes, str, int] | None:
    """The head without the id, which differs from request to request; the id; where raws begin."""
    at = id_at = id_text = id_end = 0
    while (tag := data[at]) != _RAW:
        if tag not in _HEAD:
            return None
        length, end = data[at + 1], at + 2
        if length > 127:
            length, end = decode_varint(data, at + 1)
        if tag == _ID:
            if id_end:
                return None
            id_at, id_text, id_end = at, end, end + length
        at = end + length
        if at > MAX_HEAD_BYTES:
            return None
    if not id_end:
        return bytes(data[:at]), "", at
    key = bytes(data[:id_at]) + bytes(data[id_end:at])
    return key, str(data[id_text:id_end], "utf-8"), at


def _scan_raws(data: bytes | memoryview, at: int, head: _Head) -> Tensors | None:
    """One raw field from `at` on for each input, and nothing behind them; None otherwise."""
    size = len(data)
    tensors = Tensors()
    for name, dtype, shape, num_bytes in head.inputs:
        if data[at] != _RAW:
            return None
        length, start = data[at + 1], at + 2
        if length > 127:
            length, start = decode_varint(data, at + 1)
        at = start + length
        if at > size:
            return None
        if dtype is BYTES:
            if length < num_bytes:
                raise wrong_length(name, dtype, shape, length)
            tensors[name] = Tensor(dtype, shape, Packed(data[start:at]))
        else:
            if length != num_bytes:
                raise wrong_length(name, dtype, shape, length)
            tensors[name] = Tensor(dtype, shape, np.ndarray(shape, dtype.numpy, data, start))
    return tensors if at == size else None


def _parse_head(key: bytes) -> _Head:
    request = _parse(key)
    _check_no_contents(request)
    head = _Head(request)
    _heads.put(key, head)
    return head


def _parse(data: Buffer) -> Any:
    try:
        return message("inference.ModelInferRequest").FromString(data)
    except DecodeError:
        raise InvalidInput("the message is not a ModelInferRequest; is it cut off?") from None


def _check_no_contents(request: Any) -> None:
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise InvalidInput(
                f"input {tensor.name!r}: has `contents` while raw_input_contents are used; "
                f"send one of them"
            )


def _decode_any(data: Buffer) -> Infer:
    """Decodes whatever protobuf understands: any order of fields, unknown ones, typed contents."""
    request = _parse(data)
    head = _Head(request)
    raws = request.raw_input_contents
    tensors = Tensors()
    if not raws:
        for tensor, (name, dtype, shape, _) in zip(request.inputs, head.inputs, strict=True):
            tensors[name] = Tensor(dtype, shape, _typed(tensor.contents, name, dtype, shape))
        return head.infer(tensors, request.id)
    _check_no_contents(request)
    if len(raws) != len(head.inputs):
        raise InvalidInput(
            f"raw_input_contents: expected {len(head.inputs)} entries, one per input, "
            f"got {len(raws)}"
        )
    for raw, (name, dtype, shape, num_bytes) in zip(raws, head.inputs, strict=True):
        if len(raw) != num_bytes if dtype is not BYTES else len(raw) < num_bytes:
            raise wrong_length(name, dtype, shape, len(raw))
        tensors[name] = Tensor(
            dtype, shape, Packed(raw) if dtype is BYTES else np.ndarray(shape, dtype.numpy, raw)
        )
    return head.infer(tensors, request.id)


def _describe(tensor: Any) -> tuple[str, DType, tuple[int, ...], int]:
    """Name, datatype, shape and bytes of an input, checked without spending memory on it."""
    name = tensor.name
    dtype = input_dtype(name, tensor.datatype)
    if "shared_memory_region" in tensor.parameters:
        raise Unsupported(f"input {name!r}: {_NO_SHARED_MEMORY}")
    if len(tensor.shape) > MAX_RANK:
        raise InvalidInput(
            f"input {name!r}: expected at most {MAX_RANK} dimensions, got {len(tensor.shape)}"
        )
    shape = tuple(tensor.shape)
    if any(dim < 0 for dim in shape):
        raise negative_dimension(name, shape)
    itemsize = dtype.itemsize or 4
    if len_of(max(dim, 1) for dim in shape) * itemsize >= 1 << 62:
        raise too_large_a_shape(name, shape)
    return name, dtype, shape, len_of(shape) * itemsize


def _typed(contents: Any, name: str, dtype: DType, shape: tuple[int, ...]) -> Any:
    """The elements of typed contents: an array, or a list of bytes."""
    expected = _CONTENTS.get(dtype.name)
    if expected is None:
        raise InvalidInput(f"input {name!r}: {dtype.name} travels in raw_input_contents only")
    for descriptor, _ in contents.ListFields():
        if descriptor.name != expected:
            raise InvalidInput(
                f"input {name!r}: expected {expected} for {dtype.name}, got {descriptor.name}"
            )
    values = getattr(contents, expected)
    if len(values) != len_of(shape):
        raise wrong_count(name, shape, len(values))
    if dtype is BYTES:
        return list(values)
    try:
        return np.fromiter(values, dtype.numpy, len(values)).reshape(shape)
    except OverflowError:
        raise unfit(dtype, name) from None


def _parameters(found: Any) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for name, choice in found.items():
        if name.startswith("triton_") and name != _EMPTY_FINAL:
            raise InvalidInput(f"parameter {name!r}: names that begin with 'triton_' are reserved")
        kind = choice.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidInput(f"parameter {name!r}: has no value")
        parameters[name] = getattr(choice, kind)
    return parameters


def _class_counts(outputs: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for output in outputs:
        name, parameters = output.name, output.parameters
        if "shared_memory_region" in parameters:
            raise Unsupported(f"output {name!r}: {_NO_SHARED_MEMORY}")
        if "classification" in parameters:
            counts[name] = parameters["classification"].int64_param
            if counts[name] < 1:
                raise InvalidInput(
                    f"output {name!r}: expected a number of classes above 0 "
                    f"in int64_param of parameter 'classification'"
                )
    return counts
