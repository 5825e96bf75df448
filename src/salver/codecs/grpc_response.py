"""Responses to ModelInferResponse bytes.

The head (model, names, datatypes, shapes) is cached, data follow it as they lie in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from salver.codecs.protobuf import field, message, varint
from salver.codecs.recent import Recent
from salver.codecs.v2 import classified
from salver.types import BYTES, len_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.types import DType, ModelRef, Parameter, Response, Tensor

    Message = list[bytes | memoryview]
    Names = tuple[str, ...]
    Kinds = tuple[tuple[DType, tuple[int, ...]], ...]
    Output = tuple[str, bytes, bytes | memoryview, int]

MAX_HEADS: Final = 256
SMALL_BYTES: Final = 4096

_ID: Final = 0x1A
_RAW: Final = b"\x32"

_heads: Final[Recent[Any, bytes]] = Recent(MAX_HEADS)


def _head(ref: ModelRef, names: Names, kinds: Kinds) -> bytes:
    """All of a response but its id, its parameters and its data."""
    key = (ref.name, ref.version, names, kinds)
    head = _heads.get(key)
    if head is None:
        response = message("inference.ModelInferResponse")(
            model_name=ref.name, model_version=ref.version
        )
        for name, (dtype, shape) in zip(names, kinds, strict=True):
            response.outputs.add(name=name, datatype=dtype.name, shape=shape)
        head = response.SerializeToString()
        _heads.put(key, head)
    return head


def encode_infer_response(
    response: Response, request_id: str = "", counts: Mapping[str, int] | None = None
) -> Message:
    """The parts of a ModelInferResponse; large outputs are views on the response's arrays.

    `counts` names outputs to send as their best classes, and how many.

    Raises: InvalidInput for outputs that hold no scores.
    """
    if counts:
        response = classified(response, counts)
    head, raws = _all_rows(response) if response.stop < 0 else _some_rows(response)
    parts: Message = [head]
    if request_id:
        parts.append(field(_ID, request_id.encode()))
    if response.parameters:
        parts.append(_encode_parameters(response.parameters))
    parts += raws
    return parts


def _all_rows(response: Response) -> tuple[bytes, Message]:
    names = response.names
    found = response.rows.tensors
    tensors = [found[name] for name in names]
    raws: Message = []
    for tensor in tensors:
        data = _data(tensor)
        raws += (_RAW + varint(len(data)), data)
    kinds = tuple([(tensor.dtype, tensor.shape) for tensor in tensors])
    return _head(response.ref, names, kinds), raws


def _some_rows(response: Response) -> tuple[bytes, Message]:
    """Rows of a batch; what calls of the same number of rows share is prepared once."""
    start, stop, cache = response.start, response.stop, response.rows.cache
    key = (_some_rows, response.names, stop - start)
    plan = cache.get(key)
    if plan is None:
        plan = cache[key] = _plan(response)
    head, outputs = plan
    raws: Message = []
    for name, prefix, data, row_bytes in outputs:
        if prefix:
            raws += (prefix, data[start * row_bytes : stop * row_bytes])
        else:
            packed = _data(response.tensor(name))
            raws += (_RAW + varint(len(packed)), packed)
    return head, raws


def _plan(response: Response) -> tuple[bytes, list[Output]]:
    """The head, and of each output: name, bytes before its data, data of the batch, row bytes.

    BYTES have no rows of equal length, so nothing but their name.
    """
    rows, names, num_rows = response.rows, response.names, response.stop - response.start
    kinds = []
    outputs: list[Output] = []
    for name in names:
        tensor = rows.tensors[name]
        kinds.append((tensor.dtype, (num_rows, *tensor.shape[1:])))
        if tensor.dtype is BYTES:
            outputs.append((name, b"", b"", 0))
            continue
        key = (_plan, name)
        data = rows.cache.get(key) or rows.cache.setdefault(key, _data(tensor))
        row_bytes = len_of(tensor.shape[1:]) * tensor.dtype.itemsize
        outputs.append((name, _RAW + varint(num_rows * row_bytes), data, row_bytes))
    return _head(response.ref, names, tuple(kinds)), outputs


def _data(tensor: Tensor) -> bytes | memoryview:
    """A tensor as it travels; small ones are copied, which is faster than a view."""
    array = tensor.data
    if type(array) is np.ndarray and array.nbytes <= SMALL_BYTES and tensor.dtype is not BYTES:
        return array.tobytes()
    return memoryview(tensor.to_bytes())


def _encode_parameters(parameters: Mapping[str, Parameter]) -> bytes:
    response = message("inference.ModelInferResponse")()
    for name, value in parameters.items():
        choice = response.parameters[name]
        if isinstance(value, bool):
            choice.bool_param = value
        elif isinstance(value, int):
            choice.int64_param = value
        elif isinstance(value, float):
            choice.double_param = value
        else:
            choice.string_param = value
    encoded: bytes = response.SerializeToString()
    return encoded
