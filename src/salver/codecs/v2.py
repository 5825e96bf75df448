"""What the HTTP and gRPC forms of the Open Inference Protocol have in common."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from salver.clock import NS_PER_US
from salver.codecs.json_numbers import plain_array
from salver.errors import InvalidInput
from salver.types import BYTES, Packed, Response, Rows, Tensor, Tensors, dtype_of, too_few_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from salver.types import Array, DType

_LARGEST: Final = 1 << 53
MAX_RANK: Final = 64
"""Most dimensions of a tensor, as many as numpy can have."""
MAX_ELEMENTS: Final = 1 << 40
_RESERVED: Final = frozenset(("timeout", "priority", "method", "binary_data_output"))
EXTENSIONS: Final = (
    "classification",
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "schedule_policy",
)


def timing(parameters: Mapping[str, Any]) -> tuple[int, int]:
    """The request's `timeout` (given in microseconds) in nanoseconds, and its `priority`
    (1 is the most urgent, 0 the model's default).

    Raises: InvalidInput for values that are no whole numbers, or negative.
    """
    found = []
    for name in ("timeout", "priority"):
        value = parameters.get(name, 0)
        if type(value) is not int or not 0 <= value <= _LARGEST:
            raise InvalidInput(f"parameter {name!r}: expected a whole number up to {_LARGEST}")
        found.append(value)
    return found[0] * NS_PER_US, found[1]


def method_name(parameters: Mapping[str, Any]) -> str:
    """The model's method that the request's `method` chooses; empty for the default one.

    Raises: InvalidInput for a value that is no text.
    """
    name = parameters.get("method", "")
    if not isinstance(name, str):
        raise InvalidInput(f"parameter 'method': expected a string, got {name!r}")
    return name


def own_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are for the model.

    Raises: InvalidInput for values that are not plain, or longer than 64 bits.
    """
    for name, value in parameters.items():
        if not isinstance(value, str | int | float | bool):
            raise InvalidInput(f"parameter {name!r}: expected a string, number or boolean")
        if type(value) is int and not -(1 << 63) <= value < 1 << 64:
            raise InvalidInput(f"parameter {name!r}: the number does not fit 64 bits")
    return {name: value for name, value in parameters.items() if name not in _RESERVED}


def input_dtype(name: str, datatype: str) -> DType:
    """The data type of an input. Raises: InvalidInput."""
    try:
        return dtype_of(datatype)
    except InvalidInput as error:
        raise InvalidInput(f"input {name!r}: {error.message}") from None


def wrong_count(name: str, shape: Sequence[int], got: int) -> InvalidInput:
    """The refusal of so many elements for a shape."""
    return InvalidInput(
        f"input {name!r}: shape {list(shape)} expects {prod(shape)} elements, got {got}"
    )


def wrong_length(name: str, dtype: DType, shape: Sequence[int], got: int) -> InvalidInput:
    """The refusal of so many bytes for a type and shape."""
    if dtype is BYTES:
        return too_few_bytes(name, prod(shape), got)
    return InvalidInput(
        f"input {name!r}: {dtype.name} of shape {list(shape)} expects "
        f"{prod(shape) * dtype.itemsize} bytes, got {got}"
    )


def negative_dimension(name: str, shape: Sequence[int]) -> InvalidInput:
    return InvalidInput(f"input {name!r}: a dimension is negative: {list(shape)}")


def too_large_a_shape(name: str, shape: Sequence[int]) -> InvalidInput:
    return InvalidInput(f"input {name!r}: no request can hold shape {list(shape)}")


def check_count(name: str, shape: Sequence[int], got: int) -> None:
    """Raises: InvalidInput unless `got` elements make an array of that shape."""
    expected = prod(shape)
    if expected != got:
        raise wrong_count(name, shape, got)
    # numpy refuses the shape of an empty array if its other dimensions are too large together.
    if not expected and prod(filter(None, shape)) > MAX_ELEMENTS:
        raise too_large_a_shape(name, shape)


def objects_of(items: Sequence[Any], shape: tuple[int, ...]) -> Array:
    """Items as an array of objects."""
    array: Array = np.empty(len(items), np.object_)
    array[:] = items
    return array.reshape(shape)


def tensor_of_bytes(dtype: DType, shape: tuple[int, ...], data: memoryview, name: str) -> Tensor:
    """A tensor on little-endian row-major bytes, without a copy; BYTES stay packed.

    Raises: InvalidInput when length and shape do not fit.
    """
    if dtype is BYTES:
        # Unpacked now, so that a broken request fails before it is queued.
        items = Packed(data).items(prod(shape), name)
        check_count(name, shape, len(items))
        return Tensor(dtype, shape, objects_of(items, shape))
    expected = prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise wrong_length(name, dtype, shape, len(data))
    check_count(name, shape, len(data) // dtype.itemsize)
    return Tensor(dtype, shape, np.frombuffer(data, dtype.numpy).reshape(shape))


def given_twice(names: Iterable[str]) -> InvalidInput:
    return InvalidInput(f"an input is given twice: {', '.join(names)}")


def classified(response: Response, counts: Mapping[str, int]) -> Response:
    """The answer with the outputs in `counts` as their best so many classes.

    Each class is BYTES `value:index[:label]`, best first (classification extension).

    Raises: InvalidInput for outputs that hold no numbers.
    """
    tensors = response.tensors()
    for name, count in counts.items():
        labels = next((spec.labels for spec in response.method.outputs if spec.name == name), ())
        tensors[name] = _best(tensors[name], name, count, labels)
    return Response(
        Rows(Tensors(tensors)),
        response.ref,
        response.method,
        response.names,
        parameters=response.parameters,
    )


def _best(tensor: Tensor, name: str, count: int, labels: tuple[str, ...]) -> Tensor:
    if tensor.dtype is BYTES or not tensor.shape:
        raise InvalidInput(f"output {name!r} has no scores to classify by")
    scores = plain_array(tensor, name)
    flat = scores.reshape(-1, scores.shape[-1])
    order = np.argsort(-flat.astype(np.float64), axis=1, kind="stable")[:, :count]
    texts: Array = np.empty(order.shape, np.object_)
    for row, column in np.ndindex(*order.shape):
        index = int(order[row, column])
        value = flat[row, index]
        text = f"{value:f}" if scores.dtype.kind == "f" else f"{value}"
        label = f":{labels[index]}" if index < len(labels) else ""
        texts[row, column] = f"{text}:{index}{label}".encode()
    shape = (*tensor.shape[:-1], order.shape[1])
    return Tensor(BYTES, shape, texts.reshape(shape))
