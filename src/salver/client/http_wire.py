"""The client's questions over HTTP: the Open Inference Protocol, and the plain door for streams."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn
from urllib.parse import quote

import numpy as np
import orjson

from salver.client.wire import Inference, Items, ModelState, Question, Result, array_of
from salver.codecs.json_numbers import dumps
from salver.codecs.status import from_http
from salver.errors import Undeliverable, Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.errors import SalverError

JSON_LENGTH: Final = "inference-header-content-length"
_FIRST_NO_SUCCESS: Final = 300


class HttpRequest(NamedTuple):
    """What to send. `timeout_s` bounds the whole exchange; None for no bound."""

    method: str
    path: str
    headers: Mapping[str, str] = {}
    body: bytes = b""
    is_safe: bool = False
    streams: bool = False
    timeout_s: float | None = None

    def within(self, timeout_s: float | None) -> HttpRequest:
        """The same with a deadline, which the server is told."""
        if timeout_s is None:
            return self
        header = {"X-Request-Timeout-Ms": f"{max(timeout_s * 1000, 1):.0f}"}
        return self._replace(timeout_s=timeout_s, headers={**self.headers, **header})


class HttpReply(NamedTuple):
    """What came back. Header names are lower-case; `body` is empty while a stream is open."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    source: Any = None


class HttpWire:
    """Questions as HTTP requests."""

    has_plain_door = True

    def ready(self, name: str) -> Question[bool]:
        path = f"{_model_path(name)}/ready" if name else "/v2/health/ready"
        return Question(_get(path), lambda reply: reply.status == 200)

    def models(self) -> Question[list[ModelState]]:
        return Question(
            _command("/v2/repository/index"),
            lambda reply: [ModelState(**entry) for entry in orjson.loads(reply.body)],
        )

    def metadata(self, name: str, version: str) -> Question[dict[str, Any]]:
        return Question(_get(_model_path(name, version)), _json)

    def methods(self, name: str, version: str) -> Question[dict[str, dict[str, Any]]]:
        return Question(_get(_model_path(name, version)), _methods)

    def statistics(self, name: str) -> Question[list[dict[str, Any]]]:
        path = f"{_model_path(name)}/stats" if name else "/v2/models/stats"
        return Question(_get(path), lambda reply: _json(reply)["model_stats"])

    def state(self) -> Question[dict[str, Any]]:
        return Question(_get("/page/state"), _json)

    def change(self, name: str, what: str) -> Question[None]:
        path = f"/v2/repository/models/{quote(name, safe='')}/{what}"
        return Question(_command(path), lambda reply: None)

    def infer(self, inference: Inference) -> Question[Result]:
        return Question(_infer_request(inference), _infer_result)

    def open(self, name: str, method: str, value: Any, content_type: str) -> Question[Items]:
        path = "/predict" + "".join(f"/{quote(part, safe='')}" for part in (name, method) if part)
        body = value if content_type else dumps({"input": _jsonable(value)})
        headers = {"Content-Type": content_type or "application/json"}
        request = HttpRequest("POST", path, headers, body, streams=True)
        return Question(request, lambda reply: Items(reply, plain_answer))

    def stream(self, inference: Inference) -> NoReturn:
        raise Unsupported("tensors are not streamed over HTTP; the plain door streams")


def _get(path: str) -> HttpRequest:
    return HttpRequest("GET", path, is_safe=True)


def _command(path: str) -> HttpRequest:
    return HttpRequest("POST", path, is_safe=True)


def _json(reply: HttpReply) -> Any:
    return orjson.loads(reply.body)


def _methods(reply: HttpReply) -> dict[str, dict[str, Any]]:
    """The methods that the metadata tell; of servers that have none, the only one by no name."""
    told = _json(reply)
    return told.get("methods") or {"": told}


def _model_path(name: str, version: str = "") -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _infer_request(inference: Inference) -> HttpRequest:
    """Inputs and outputs as bytes (binary tensor data extension)."""
    tensors = inference.tensors
    parts = [tensor.to_bytes() for tensor in tensors.values()]
    inputs = [
        {
            "name": name,
            "shape": tensor.shape,
            "datatype": tensor.dtype.name,
            "parameters": {"binary_data_size": len(part)},
        }
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    ]
    head: dict[str, Any] = {
        "inputs": inputs,
        "parameters": {**inference.all_parameters(), "binary_data_output": True},
    }
    if inference.outputs:
        binary = {"binary_data": True}
        head["outputs"] = [{"name": name, "parameters": binary} for name in inference.outputs]
    text = orjson.dumps(head)
    headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(text))}
    path = f"{_model_path(inference.name, inference.version)}/infer"
    return HttpRequest("POST", path, headers, b"".join([text, *parts]))


def _infer_result(reply: HttpReply) -> Result:
    """The outputs of an inference reply, as JSON or as bytes behind it.

    Raises: InvalidInput when the reply contradicts itself.
    """
    length = int(reply.headers.get(JSON_LENGTH) or len(reply.body))
    head = orjson.loads(reply.body[:length])
    tail, offset = memoryview(reply.body)[length:], 0
    outputs = {}
    for entry in head["outputs"]:
        size = (entry.get("parameters") or {}).get("binary_data_size")
        data = entry["data"] if size is None else tail[offset : offset + size]
        offset += size or 0
        outputs[entry["name"]] = array_of(entry["name"], entry["datatype"], entry["shape"], data)
    return Result(outputs, head.get("model_version") or "", head.get("parameters") or {})


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

    Raises: SalverError when a stream ended with one; Undeliverable when it broke off.
    """
    try:
        answer: dict[str, Any] = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise Undeliverable("the connection broke in the middle of an item") from None
    if "error" in answer:
        raise from_http(answer["status"], answer["error"])
    return answer


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
