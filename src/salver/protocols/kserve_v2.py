"""The Open Inference Protocol (KServe V2, as Triton speaks it) over HTTP."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from salver.codecs.json_numbers import LongText, dumps, loads
from salver.codecs.json_request import InferBody, decode_request
from salver.codecs.json_response import (
    encode_response,
    encode_with_binary,
    response_parts,
    wants_binary,
)
from salver.codecs.status import json_refusal
from salver.codecs.v2 import classified, method_name, own_parameters, timing
from salver.errors import InvalidInput, Unsupported
from salver.interfaces import JSON_HEADERS, Command, Endpoint, HttpAnswer, Infer, Query
from salver.protocols.common import answer, query
from salver.types import ModelRef, Raw, Request, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from salver.config import Limits
    from salver.errors import SalverError
    from salver.interfaces import Head, Operation
    from salver.types import Response

_MAX_DIGITS = 18
_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"
_NO_SHARED_MEMORY = "shared memory is not offered; send tensors in the request"
_NO_TRACES = "trace settings are not offered; /v2/models/stats and /metrics tell times"
_REFUSED = {
    **{
        f"/v2/{kind}sharedmemory/{rest}": _NO_SHARED_MEMORY
        for kind in ("system", "cuda")
        for rest in (
            "status", "unregister", "region/{region}/status", "region/{region}/register",
            "region/{region}/unregister",
        )
    },
    "/v2/trace/setting": _NO_TRACES,
    f"{_MODEL}/trace/setting": _NO_TRACES,
    "/v2/logging": "log settings are the operator's; set them when the server is started",
}  # fmt: skip
"""What Triton's clients may ask for and is not here."""


class Wanted(msgspec.Struct):
    """What the answer of a request must look like beyond the plain form."""

    id: str
    body: InferBody
    counts: dict[str, int]


class KserveV2:
    """Health, metadata, inference, statistics and the model repository."""

    name = "kserve_v2"

    def __init__(self, limits: Limits) -> None:
        self._max_depth = limits.json_depth

    def endpoints(self) -> Sequence[Endpoint]:
        get, post = ("GET",), ("POST",)
        repository = "/v2/repository"
        fixed = [
            Endpoint(get, "/v2", "What this server is.", query("server_metadata"), answer),
            Endpoint(get, "/v2/health/live", "The process runs.", query("live"), health),
            Endpoint(get, "/v2/health/ready", "Every model is ready.", query("ready"), health),
            Endpoint(get, "/v2/models/stats", "All counters.", query("statistics"), answer),
            Endpoint(
                post, f"{repository}/index", "Models and states.", self._decode_index, answer
            ),
            Endpoint(
                post, f"{repository}/models/{{model}}/load", "Load or reload a model.",
                self._command("load"), answer,
            ),
            Endpoint(
                post, f"{repository}/models/{{model}}/unload", "Take a model out of service.",
                self._command("unload"), answer,
            ),
        ]  # fmt: skip
        refused = [
            Endpoint(
                (*get, *post), path, "Not offered.", partial(_refuse, remedy), answer,
                is_offered=False,
            )
            for path, remedy in _REFUSED.items()
        ]  # fmt: skip
        return [*fixed, *self._of_model(_MODEL), *self._of_model(_VERSION), *refused]

    def _of_model(self, path: str) -> list[Endpoint]:
        get, post = ("GET",), ("POST",)
        return [
            Endpoint(get, path, "Inputs and outputs.", query("model_metadata"), answer),
            Endpoint(get, f"{path}/ready", "The model is ready.", query("model_ready"), health),
            Endpoint(get, f"{path}/config", "Configuration.", query("model_config"), answer),
            Endpoint(get, f"{path}/stats", "Counters of a model.", query("statistics"), answer),
            Endpoint(
                post, f"{path}/infer", "Inference.", self._decode_infer, self._encode_infer,
                is_inference=True,
            ),
        ]  # fmt: skip

    def refuse(self, error: SalverError) -> HttpAnswer:
        return json_refusal(error)

    def _decode_infer(self, head: Head, arguments: Mapping[str, str], body: Any) -> Infer:
        length = head.headers.get("inference-header-content-length")
        json_bytes = -1 if length is None else _json_bytes(length)
        ref = ModelRef(arguments["model"], arguments.get("version", ""))
        if not json_bytes:
            return _of_bytes(ref, body)
        found = decode_request(body, self._max_depth, json_bytes)
        if not (found.id or found.parameters or found.outputs):
            return Infer(ref=ref, request=Request(found.tensors))
        parameters = found.parameters or {}
        timeout_ns, priority = timing(parameters)
        request = Request(
            found.tensors,
            method_name(parameters),
            outputs=tuple(output.name for output in found.outputs or ()),
            parameters=own_parameters(parameters),
            id=found.id,
        )
        return Infer(
            ref=ref,
            request=request,
            timeout_ns=timeout_ns,
            priority=priority,
            encoding=Wanted(found.id, found, _class_counts(found)),
        )

    def _encode_infer(self, operation: Infer, response: Response) -> HttpAnswer:
        wanted: Wanted | None = operation.encoding
        try:
            if wanted is None:
                return HttpAnswer(200, JSON_HEADERS, [encode_response(response)])
            if wanted.counts:
                response = classified(response, wanted.counts)
            binary = wants_binary(wanted.body, response.names)
            if not binary:
                return HttpAnswer(200, JSON_HEADERS, [encode_response(response, wanted.id)])
        except LongText:
            id = wanted.id if wanted else ""
            return HttpAnswer(200, JSON_HEADERS, response_parts(response, id))
        parts = encode_with_binary(response, wanted.id, binary)
        headers = (
            b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n"
            % len(parts[0])
        )
        return HttpAnswer(200, headers, parts)

    def _decode_index(self, head: Head, arguments: Mapping[str, str], body: Any) -> Query:
        value = self._object(body)
        ready = value.get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidInput(f"'ready': expected a boolean, got {ready!r}")
        return Query(name="repository_index", arguments={"ready": ready})

    def _command(self, name: str) -> Callable[[Head, Mapping[str, str], Any], Command]:
        def decode(head: Head, arguments: Mapping[str, str], body: Any) -> Command:
            parameters = self._object(body).get("parameters") or {}
            return Command(name=name, arguments={**arguments, "parameters": parameters})

        return decode

    def _object(self, body: Any) -> dict[str, Any]:
        value = loads(body, self._max_depth) if len(body) else {}
        if not isinstance(value, dict):
            raise InvalidInput("expected a JSON object")
        return value


def _json_bytes(length: str) -> int:
    if not length.isdecimal() or len(length) > _MAX_DIGITS:
        raise InvalidInput(
            f"Inference-Header-Content-Length: expected a number, got {length[:40]!r}"
        )
    return int(length)


def _class_counts(body: InferBody) -> dict[str, int]:
    counts = {}
    for output in body.outputs or ():
        count = (output.parameters or {}).get("classification", 0)
        if type(count) is not int or count < 0:
            raise InvalidInput(f"output {output.name!r}: classification must be a whole number")
        if count:
            counts[output.name] = count
    return counts


def _of_bytes(ref: ModelRef, body: Any) -> Infer:
    """A body without JSON, which is the only input; then the outputs are bytes too."""
    request = Request(Raw(body, "application/octet-stream"))
    wanted = InferBody(Tensors(), parameters={"binary_data_output": True})
    return Infer(ref=ref, request=request, encoding=Wanted("", wanted, {}))


def _refuse(remedy: str, head: Head, arguments: Mapping[str, str], body: Any) -> Operation:
    raise Unsupported(remedy)


def health(operation: Query, value: dict[str, bool]) -> HttpAnswer:
    """200 or 503, and the state in the body."""
    return HttpAnswer(200 if all(value.values()) else 503, JSON_HEADERS, [dumps(value)])
