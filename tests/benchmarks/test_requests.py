"""What the benchmarks send, read back with other people's parsers."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from benchmarks.errors import BenchmarkError
from benchmarks.requests import grpc_message, v2_binary, v2_json, write_cases

if TYPE_CHECKING:
    from pathlib import Path

ROW = np.array([0.5, -1.25, 3.0], dtype=np.float32)


def _body(request: bytes) -> tuple[str, bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}" in head.decode()
    return head.decode(), body


def test_json_request_holds_the_row() -> None:
    head, body = _body(v2_json("m", ROW))
    assert head.startswith("POST /v2/models/m/infer HTTP/1.1\r\n")
    assert json.loads(body)["inputs"] == [
        {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": ROW.tolist()}
    ]


def test_binary_request_ends_with_the_raw_row() -> None:
    head, body = _body(v2_binary("m", ROW))
    length = int(head.partition("Inference-Header-Content-Length: ")[2].split("\r\n")[0])
    assert json.loads(body[:length])["inputs"][0]["parameters"] == {"binary_data_size": 12}
    assert body[length:] == ROW.tobytes()


def test_grpc_request_is_what_the_protobuf_library_reads() -> None:
    service = pytest.importorskip("tritonclient.grpc.service_pb2")
    message = grpc_message("m", ROW)
    assert struct.unpack(">BI", message[:5]) == (0, len(message) - 5)
    request = service.ModelInferRequest.FromString(message[5:])
    assert request.model_name == "m"
    assert (request.inputs[0].name, request.inputs[0].datatype) == ("x", "FP32")
    assert list(request.inputs[0].shape) == [1, 3]
    assert list(request.raw_input_contents) == [ROW.tobytes()]


def test_equal_neighbours_are_refused(tmp_path: Path) -> None:
    inputs = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(BenchmarkError, match="same answer"):
        write_cases(tmp_path / "cases", "json", "m", inputs, inputs)
