"""Requests as they go over the wire, with the numbers each must be answered with.

Formats: Open Inference Protocol V2 as JSON, with the binary tensor extension, and as gRPC; and the
JSON of the Flask example.
"""

from __future__ import annotations

import json
import struct
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.models import INPUT, OUTPUT

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.models import Floats

Wire = Literal["json", "binary", "grpc", "flask"]
TOLERANCE = 1e-4
"""How far a number may be from the expected one: absolute, and relative to it."""
GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"
MARKERS: dict[Wire, str] = {"json": '"data":', "flask": '"prediction":'}
"""Text before the numbers of an answer; other formats end with them as float32."""


class Tensor(NamedTuple):
    """A model's input."""

    name: str
    datatype: Literal["FP32", "FP64"]

    def describe(self, row: Floats) -> dict[str, Any]:
        """Name, shape and type of a batch of one row, as V2 writes them."""
        return {"name": self.name, "shape": [1, *row.shape], "datatype": self.datatype}

    def raw(self, row: Floats) -> bytes:
        """Its bytes on the wire."""
        return row.astype("<f4" if self.datatype == "FP32" else "<f8").tobytes()


TENSOR = Tensor(INPUT, "FP32")


def _numbers(row: Floats) -> str:
    return ",".join(str(value) for value in row.ravel())


def _http(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def v2_json(model: str, row: Floats, tensor: Tensor = TENSOR) -> bytes:
    """One row as an HTTP request with JSON numbers."""
    head = json.dumps(tensor.describe(row))
    body = f'{{"inputs":[{head[:-1]},"data":[{_numbers(row)}]}}]}}'.encode()
    return _http(f"/v2/models/{model}/infer", body, "Content-Type: application/json")


def v2_binary(model: str, row: Floats, tensor: Tensor = TENSOR) -> bytes:
    """One row as an HTTP request of the binary tensor extension, both ways."""
    raw = tensor.raw(row)
    head = {
        "inputs": [{**tensor.describe(row), "parameters": {"binary_data_size": len(raw)}}],
        "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return _http(
        f"/v2/models/{model}/infer",
        text + raw,
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(text)}",
    )


def flask_json(_model: str, row: Floats, _tensor: Tensor = TENSOR) -> bytes:
    """One row for the Flask example."""
    body = f'{{"input":[[{_numbers(row)}]]}}'.encode()
    return _http("/predict", body, "Content-Type: application/json")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def grpc_message(model: str, row: Floats, tensor: Tensor = TENSOR) -> bytes:
    """One row as a length-prefixed ModelInferRequest with raw contents."""
    shape = b"".join(_varint(size) for size in (1, *row.shape))
    described = _field(1, tensor.name.encode()) + _field(2, tensor.datatype.encode())
    described += _field(3, shape)
    raw = _field(7, tensor.raw(row))
    message = _field(1, model.encode()) + _field(5, described) + raw
    return struct.pack(">BI", 0, len(message)) + message


_ENCODERS = {"json": v2_json, "binary": v2_binary, "grpc": grpc_message, "flask": flask_json}


def write_cases(
    path: Path, wire: Wire, model: str, inputs: Floats, expected: Floats, tensor: Tensor = TENSOR
) -> None:
    """Writes the load generator's file: one case per row (layout: see load.c).

    `tensor` is the model's input.

    Raises: BenchmarkError where two neighbours have the same answer: swapped answers would pass.
    """
    same = partial(np.allclose, rtol=TOLERANCE, atol=TOLERANCE)
    if any(same(a, b) for a, b in zip(expected[1:], expected, strict=False)):
        raise BenchmarkError(f"{model}: two neighbouring cases have the same answer")
    with path.open("wb") as file:
        file.write(struct.pack("<II", len(inputs), expected[0].size))
        for row, answer in zip(inputs, expected, strict=True):
            request = _ENCODERS[wire](model, row, tensor)
            file.write(struct.pack("<I", len(request)) + request)
            file.write(answer.astype("<f4").tobytes())
