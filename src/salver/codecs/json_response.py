"""Answers of the Open Inference Protocol as JSON, with the binary tensor data extension."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, Final

import orjson

from salver.codecs.json_numbers import (
    PART_VALUES,
    array_text,
    plain_array,
    tensor_text,
    text_parts,
)
from salver.errors import InvalidInput, Unsupported
from salver.types import BYTES, Tensor

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from salver.codecs.json_request import InferBody
    from salver.types import Buffer, Response

_BATCH_VALUES: Final = 8 * PART_VALUES
"""Most values that are written in one step for the calls of a batch, which are of some each."""


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
    if width * tensor.shape[0] > _BATCH_VALUES:
        return None
    return array_text(plain_array(tensor, name).reshape(-1, width))[2:-2].split(b"],[")


def _own_output(name: str, tensor: Tensor) -> bytes:
    """An output that belongs to one call alone."""
    before = _before_shape(name, tensor.dtype.name)
    text = tensor_text(tensor, name, flat=True)
    return b'%b%b,"data":%b}' % (before, orjson.dumps(tensor.shape), text)


def encode_response(response: Response, id: str = "") -> bytes:
    """The JSON answer of an infer request. The first one of a batch writes the numbers of all.

    Raises: Internal for bytes that JSON cannot carry; LongText.
    """
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
    if id or response.parameters:
        opening += _own_fields(response, id)
    return b'%b"outputs":[%b]}' % (opening, b",".join(outputs))


def _own_fields(response: Response, id: str) -> bytes:
    """What an answer says of its request."""
    fields = b'"id":%b,' % orjson.dumps(id) if id else b""
    if response.parameters:
        fields += b'"parameters":%b,' % orjson.dumps(dict(response.parameters))
    return fields


def response_parts(response: Response, id: str = "") -> Generator[bytes]:
    """What `encode_response` gives, but in short steps.

    Raises: Internal for bytes that JSON cannot carry.
    """
    opening = _opening(response.ref.name, response.ref.version) + _own_fields(response, id)
    before = b'%b"outputs":[' % opening
    for name in response.names:
        tensor = response.tensor(name)
        shape = orjson.dumps(tensor.shape)
        yield b'%b%b%b,"data":' % (before, _before_shape(name, tensor.dtype.name), shape)
        yield from _flat_parts(name, tensor)
        before = b"},"
    yield b"}]}"


def _flat_parts(name: str, tensor: Tensor) -> Iterator[bytes]:
    array = tensor.array().reshape(-1)
    flat = Tensor(tensor.dtype, array.shape, array)
    return text_parts(flat, lambda part: tensor_text(part, name, flat=True))


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
            entry["data"] = orjson.Fragment(b"".join(_flat_parts(name, tensor)))
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

    Raises: Unsupported for output parameters that Salver does not offer, InvalidInput.
    """
    everything = _flag(body.parameters or {}, "binary_data_output", False)
    chosen = {}
    for output in body.outputs or ():
        parameters = output.parameters or {}
        if "shared_memory_region" in parameters:
            raise Unsupported(f"output {output.name!r}: shared memory is not offered; leave it out")
        chosen[output.name] = _flag(parameters, "binary_data", everything)
    if not chosen:
        return list(names) if everything else []
    return [name for name, is_binary in chosen.items() if is_binary]


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter {name!r}: expected true or false, got {value!r}")
    return value
