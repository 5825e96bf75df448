"""Requests and replies of the client over HTTP: arrays to bytes and back, without any I/O."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

import numpy as np
import orjson

from salver.codecs.json_numbers import dumps
from salver.codecs.json_tensors import narrowed, tensor_of_bytes
from salver.codecs.status import from_http
from salver.errors import InvalidInput, ModelFailed, Undeliverable, Unsupported, did_you_mean
from salver.types import (
    BF16,
    BOOL,
    BYTES,
    Tensor,
    bf16_bits,
    bf16_floats,
    dtype_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from salver.errors import SalverError
    from salver.types import Array, Parameter

JSON_LENGTH: Final = "inference-header-content-length"
NDJSON: Final = "application/x-ndjson"
_FIRST_NO_SUCCESS: Final = 300


class HttpRequest(NamedTuple):
    """What to send. `timeout_s` bounds the whole exchange; None for no bound.

    A safe request may be sent again even if it may have arrived.
    """

    method: str
    path: str
    headers: Mapping[str, str] = {}
    body: bytes = b""
    is_safe: bool = False
    streams: bool = False
    timeout_s: float | None = None


class HttpReply(NamedTuple):
    """What came back. Header names are lower-case; `body` is empty while a stream is open."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    source: Any = None


class Result(dict[str, Any]):
    """Outputs by name, as arrays, and what the server says of the answer."""

    def __init__(
        self, outputs: Mapping[str, Array], version: str, parameters: Mapping[str, Any]
    ) -> None:
        super().__init__(outputs)
        self.model_version = version
        self.parameters = dict(parameters)


class ModelState(NamedTuple):
    """One version of a model on the server. `reason` says why it is not READY."""

    name: str
    version: str = ""
    state: str = "UNAVAILABLE"
    reason: str = ""


def get(path: str) -> HttpRequest:
    """Reads state."""
    return HttpRequest("GET", path, is_safe=True)


def command(path: str) -> HttpRequest:
    """Changes state; loading a model twice leaves what loading it once does."""
    return HttpRequest("POST", path, is_safe=True)


def model_path(name: str, version: str = "") -> str:
    """Where a model, or one version of it, is found in the Open Inference Protocol."""
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def infer_request(
    path: str,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    metadata: Mapping[str, Any],
    parameters: Mapping[str, Parameter],
) -> HttpRequest:
    """Inference with inputs and outputs as bytes (binary tensor data extension).

    Raises: InvalidInput for an input that the model does not know or that does not fit its type.
    """
    described, tail = [], []
    for name, value in inputs.items():
        tensor = to_tensor(value, _datatype(name, metadata), name)
        data = tensor.to_bytes()
        described.append(
            {
                "name": name,
                "shape": tensor.shape,
                "datatype": tensor.dtype.name,
                "parameters": {"binary_data_size": len(data)},
            }
        )
        tail.append(data)
    head: dict[str, Any] = {
        "inputs": described,
        "parameters": {**parameters, "binary_data_output": True},
    }
    if outputs:
        head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    text = orjson.dumps(head)
    headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(text))}
    return HttpRequest("POST", f"{path}/infer", headers, b"".join([text, *tail]))


def _datatype(name: str, metadata: Mapping[str, Any]) -> str:
    known = {spec["name"]: spec["datatype"] for spec in metadata["inputs"]}
    if name not in known:
        raise InvalidInput(
            f"unexpected input {name!r}.{did_you_mean(name, known)} Expected: {', '.join(known)}"
        )
    return str(known[name])


def to_tensor(value: Any, datatype: str, name: str) -> Tensor:
    """What a caller gave as the tensor that the model takes.

    Numbers are converted when nothing is lost but precision: any number to a float, integers to
    integers that hold them.

    Raises: InvalidInput.
    """
    dtype = dtype_of(datatype)
    if dtype is BYTES:
        texts = np.array(value, np.object_)
        if not all(isinstance(item, str | bytes) for item in texts.ravel().tolist()):
            raise InvalidInput(f"input {name!r}: expected text or bytes, got {_kind(value)}")
        return Tensor(BYTES, texts.shape, texts)
    try:
        array = np.asarray(value)
    except ValueError:
        raise InvalidInput(f"input {name!r}: the rows differ in length") from None
    kind = array.dtype.kind
    if dtype.is_float and kind in "fiu":
        if dtype is BF16:
            return Tensor(BF16, array.shape, bf16_bits(array.astype(np.float32)))
        return Tensor(dtype, array.shape, array.astype(dtype.numpy, copy=False))
    if (dtype.is_integer and kind in "iu") or (dtype is BOOL and kind == "b"):
        return Tensor(dtype, array.shape, narrowed(array, dtype, name))
    raise InvalidInput(f"input {name!r}: expected {datatype}, got {_kind(value)}")


def _kind(value: Any) -> str:
    array = np.asarray(value)
    what = "text" if array.dtype.kind in "US" else str(array.dtype)
    return f"{what} of shape {list(array.shape)}"


def infer_result(reply: HttpReply) -> Result:
    """The outputs in an inference reply, as arrays of their own.

    Raises: InvalidInput when the reply contradicts itself.
    """
    length = reply.headers.get(JSON_LENGTH)
    text = reply.body[: int(length)] if length else reply.body
    head = orjson.loads(text)
    tail, offset = memoryview(reply.body)[len(text) :], 0
    outputs = {}
    for entry in head["outputs"]:
        name, dtype = entry["name"], dtype_of(entry["datatype"])
        shape = tuple(entry["shape"])
        size = (entry.get("parameters") or {}).get("binary_data_size")
        if size is None:
            tensor = Tensor(dtype, shape, entry["data"])
        else:
            tensor = tensor_of_bytes(dtype, shape, tail[offset : offset + size], name)
            offset += size
        array = tensor.array(name)
        outputs[name] = bf16_floats(array) if dtype is BF16 else array.copy()
    return Result(outputs, head.get("model_version") or "", head.get("parameters") or {})


def plain_request(name: str, method: str, value: Any, content_type: str) -> HttpRequest:
    """One input for the plain door: a file as it is if it has a content type, else JSON."""
    path = "/predict" + "".join(f"/{quote(part, safe='')}" for part in (name, method) if part)
    body = value if content_type else dumps({"input": _jsonable(value)})
    headers = {"Content-Type": content_type or "application/json"}
    return HttpRequest("POST", path, headers, body)


def _jsonable(value: Any) -> Any:
    """`value` with what only Python knows in a form that JSON has."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray) and not value.flags.c_contiguous:
        return np.ascontiguousarray(value)
    return value


def plain_answer(line: bytes | str) -> dict[str, Any]:
    """One answer of the plain door.

    Raises: ModelFailed when a stream ended with an error; Undeliverable when it broke off.
    """
    try:
        answer: dict[str, Any] = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise Undeliverable("the connection broke in the middle of an item") from None
    if "error" in answer:
        raise ModelFailed(answer["error"])
    return answer


def plain_result(reply: HttpReply) -> Result:
    """The plain door's one answer as arrays: by output name if it has several outputs.

    Raises: Unsupported when the method streams.
    """
    if reply.headers.get("content-type", "").startswith(NDJSON):
        raise Unsupported("this method streams; iterate over client.stream(...)")
    answer = plain_answer(reply.body)
    value = answer["prediction"] if "prediction" in answer else answer["predictions"]
    if isinstance(value, dict):
        outputs = {key: np.asarray(item) for key, item in value.items()}
    elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        outputs = {key: np.asarray([row[key] for row in value]) for key in value[0]}
    else:
        outputs = {"prediction": np.asarray(value)}
    return Result(outputs, answer["model_version"], {})


def error_of(reply: HttpReply) -> SalverError | None:
    """The error that a reply stands for, with the server's own message; None if it is none."""
    if reply.status < _FIRST_NO_SUCCESS:
        return None
    try:
        message = orjson.loads(reply.body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        # Something between us and the server answered, or the body is for machines only.
        message = reply.body[:200].decode(errors="replace").strip() or "no message"
        message = f"the server answered {reply.status}: {message}"
    error = from_http(reply.status, str(message))
    error.retry_after_ms = _retry_after_ms(reply.headers.get("retry-after", ""))
    return error


def _retry_after_ms(value: str) -> int | None:
    """Whole seconds, as RFC 9110 section 10.2.3 has them; its dates are not understood."""
    return int(value) * 1000 if value.isdecimal() else None
