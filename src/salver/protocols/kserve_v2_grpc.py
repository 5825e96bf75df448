"""The Open Inference Protocol over gRPC as Triton's clients speak it, with health and reflection.

Every method maps the bytes of one message to an operation and the result back to bytes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import orjson
from google.protobuf.json_format import Parse
from google.protobuf.message import DecodeError

from salver.codecs import reflection
from salver.codecs.grpc_request import decode_infer_request
from salver.codecs.grpc_response import encode_infer_response
from salver.codecs.protobuf import message, services, varint
from salver.errors import InvalidInput, NotFound, SalverError, Unsupported
from salver.interfaces import Command, Infer, Operation, Query
from salver.types import ModelRef

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from salver.codecs.grpc_response import Message
    from salver.types import Buffer, Response

Kind = Literal["unary", "stream", "watch"]

_SERVICE: Final = "inference.GRPCInferenceService"
_HEALTH: Final = "grpc.health.v1"
_REFLECTION: Final = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
_STREAM_RESPONSE: Final = "inference.ModelStreamInferResponse"
_FINAL: Final = "triton_final_response"


class Answered(Operation):
    """Needs nobody to answer it: `item` goes straight to `encode`."""

    item: Any = None


class GrpcMethod(NamedTuple):
    """One method of a gRPC service.

    `decode(data)` turns a message into an operation and `encode(operation, item, final)` a result
    into the parts of a message, or None where there is nothing to send. `unary` and `stream`
    (messages both ways) are as in gRPC; `watch` takes one message and is answered at once and again
    whenever the answer changes. An error ends a unary call with its status; `encode` of a stream
    takes errors as items. `encode` runs once per item, the last of an operation with `final`.
    `sender(data)` tells which model a message that cannot be decoded was for, and its id.
    """

    path: str
    kind: Kind
    decode: Callable[[Buffer], Operation]
    encode: Callable[[Any, Any, bool], Message | None]
    sender: Callable[[Buffer], tuple[ModelRef, str]] | None = None


def methods() -> Sequence[GrpcMethod]:
    """Every method, those that are refused included."""
    table = [
        GrpcMethod(
            f"/{_SERVICE}/ModelInfer", "unary", decode_infer_request, _encode_infer, _sender
        ),
        GrpcMethod(f"/{_SERVICE}/ModelStreamInfer", "stream", _decode_stream, _encode_stream),
        GrpcMethod(f"/{_HEALTH}.Health/Check", "unary", _decode_check, _encode_health),
        GrpcMethod(f"/{_HEALTH}.Health/Watch", "watch", _decode_watch, _encode_health),
    ]
    table += [
        GrpcMethod(
            f"/{_SERVICE}/{rpc}",
            "unary",
            partial(_decode_admin, f"inference.{rpc}Request", kind, name, arguments),
            partial(_encode_json, f"inference.{rpc}Response", field),
        )
        for rpc, kind, name, arguments, field in _ADMIN
    ]
    table += [
        GrpcMethod(f"/{_SERVICE}/{rpc}", "unary", partial(_refuse, remedy), _encode_nothing)
        for rpc, remedy in _REFUSED.items()
    ]
    table += [
        GrpcMethod(
            f"/{package}.ServerReflection/ServerReflectionInfo",
            "stream",
            partial(_decode_reflection, package),
            _encode_ready_made,
        )
        for package in _REFLECTION
    ]
    return table


def _parse(name: str, data: Buffer) -> Any:
    try:
        return message(name).FromString(data)
    except DecodeError:
        raise InvalidInput(f"the message is not a {name}; is it cut off?") from None


# Inference


def _encode_infer(operation: Infer, item: Response, final: bool = True) -> Message:
    return encode_infer_response(item, operation.request.id, operation.encoding.counts)


def _decode_stream(data: Buffer) -> Operation:
    """One request of a stream; a wrong one is answered and leaves the stream open."""
    try:
        return decode_infer_request(data)
    except SalverError as error:
        return Answered(encoding=_sender(data), item=error)


def _sender(data: Buffer) -> tuple[ModelRef, str]:
    """Model and id of a request that was refused, if that much is readable."""
    try:
        request = message("inference.ModelInferRequest").FromString(data)
    except DecodeError:
        return ModelRef(""), ""
    return ModelRef(request.model_name, request.model_version), request.id


def _encode_stream(
    operation: Infer | Answered, item: Response | SalverError, final: bool = True
) -> Message | None:
    if isinstance(operation, Answered):
        ref, request_id = operation.encoding
        return [_stream_error(ref, request_id, operation.item)]
    request_id, wanted = operation.request.id, operation.encoding
    if isinstance(item, SalverError):
        return [_stream_error(operation.ref, request_id, item)]
    if final and not item.names and item.method.streams and not wanted.empty_final:
        return None
    counts = wanted.counts if item.names else None
    parts = [_FLAG[final], *encode_infer_response(item, request_id, counts)]
    return [b"\x12" + varint(sum(map(len, parts))), *parts]


def _flag(final: bool) -> bytes:
    """The parameter that says whether a request's last answer came, as a field of an answer."""
    response = message("inference.ModelInferResponse")()
    response.parameters[_FINAL].bool_param = final
    encoded: bytes = response.SerializeToString()
    return encoded


_FLAG: Final = {final: _flag(final) for final in (False, True)}


def _stream_error(ref: ModelRef, request_id: str, error: SalverError) -> bytes:
    response = message(_STREAM_RESPONSE)(error_message=error.message or type(error).__name__)
    response.infer_response.MergeFromString(_FLAG[True])
    response.infer_response.model_name = ref.name
    response.infer_response.model_version = ref.version
    response.infer_response.id = request_id
    encoded: bytes = response.SerializeToString()
    return encoded


# State and changes of it


def _nothing(request: Any) -> dict[str, Any]:
    return {}


def _name_and_version(request: Any) -> dict[str, Any]:
    return {"model": request.name, "version": request.version}


def _index(request: Any) -> dict[str, Any]:
    if request.repository_name:
        raise Unsupported("there is one repository; leave repository_name empty")
    return {"ready": request.ready}


def _model_and_parameters(request: Any) -> dict[str, Any]:
    name = request.model_name
    if not name:
        # KServe's clients: their field 1 is the model's name.
        name = request.repository_name
    elif request.repository_name:
        raise Unsupported("there is one repository; leave repository_name empty")
    if not name:
        raise InvalidInput("model_name: expected the name of a model, got nothing")
    parameters = {}
    for key, choice in request.parameters.items():
        kind = choice.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidInput(f"parameter {key!r}: has no value")
        parameters[key] = getattr(choice, kind)
    return {"model": name, "parameters": parameters}


# (method, kind of operation, its name, its arguments, the field that takes a bare answer)
_ADMIN: Final[Sequence[tuple[str, Any, str, Callable[[Any], dict[str, Any]], str]]] = (
    ("ServerLive", Query, "live", _nothing, ""),
    ("ServerReady", Query, "ready", _nothing, ""),
    ("ModelReady", Query, "is_model_ready", _name_and_version, ""),
    ("ServerMetadata", Query, "server_metadata", _nothing, ""),
    ("ModelMetadata", Query, "model_metadata", _name_and_version, ""),
    ("ModelConfig", Query, "model_config", _name_and_version, "config"),
    ("ModelStatistics", Query, "statistics", _name_and_version, ""),
    ("RepositoryIndex", Query, "repository_index", _index, "models"),
    ("RepositoryModelLoad", Command, "load", _model_and_parameters, ""),
    ("RepositoryModelUnload", Command, "unload", _model_and_parameters, ""),
)


def _decode_admin(
    request: str,
    kind: Callable[..., Operation],
    name: str,
    arguments: Callable[[Any], dict[str, Any]],
    data: Buffer,
) -> Operation:
    return kind(name=name, arguments=arguments(_parse(request, data)))


def _encode_json(
    response: str, field: str, operation: Operation, item: Any, final: bool = True
) -> Message:
    """The protocol's JSON answer as a message; what only the JSON has is left out."""
    if isinstance(operation, Command):
        name = operation.arguments["model"]
        item = {"model_name": name, "is_loaded": True, "is_unloaded": True}
    text = orjson.dumps({field: item} if field else item)
    return [Parse(text, message(response)(), ignore_unknown_fields=True).SerializeToString()]


# What is not offered

_NO_SHARED_MEMORY: Final = "shared memory is not offered; send tensors in raw_input_contents"
_REFUSED: Final = {
    "SystemSharedMemoryStatus": _NO_SHARED_MEMORY,
    "SystemSharedMemoryRegister": _NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryStatus": _NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "TraceSetting": "trace settings are not offered; ModelStatistics and the metrics tell times",
    "LogSettings": "log settings are the operator's; set them when the server is started",
}


def _refuse(remedy: str, data: Buffer) -> Operation:
    raise Unsupported(remedy)


def _encode_nothing(operation: Operation, item: Any, final: bool = True) -> Message:
    return []


# Health and reflection


def _decode_check(data: Buffer) -> Operation:
    service = _parse(f"{_HEALTH}.HealthCheckRequest", data).service
    if service and service not in services():
        raise NotFound(f"no service {service!r}. There are: {', '.join(services())}")
    return Query(name="ready")


def _decode_watch(data: Buffer) -> Operation:
    try:
        return _decode_check(data)
    except NotFound:
        return Answered(item={"status": "SERVICE_UNKNOWN"})


def _encode_health(operation: Operation, item: Any, final: bool = True) -> Message:
    status = item.get("status") or ("SERVING" if item["ready"] else "NOT_SERVING")
    return [message(f"{_HEALTH}.HealthCheckResponse")(status=status).SerializeToString()]


def _decode_reflection(package: str, data: Buffer) -> Operation:
    return Answered(item=reflection.answer(data, package))


def _encode_ready_made(operation: Operation, item: bytes, final: bool = True) -> Message:
    return [item]
