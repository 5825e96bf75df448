"""The client's questions over gRPC: the Open Inference Protocol."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import orjson

from salver.client.wire import Inference, Items, ModelState, Question, Result, array_of
from salver.codecs.protobuf import message
from salver.errors import InvalidInput, Unsupported


class GrpcRequest(NamedTuple):
    """What to send: a method of the inference service, and its message's bytes."""

    method: str
    body: bytes
    is_safe: bool = False
    streams: bool = False
    timeout_s: float | None = None

    def within(self, timeout_s: float | None) -> GrpcRequest:
        """The same with a deadline, which gRPC tells the server."""
        return self._replace(timeout_s=timeout_s)


class GrpcWire:
    """Questions as gRPC messages. Replies are bytes."""

    has_plain_door = False

    def ready(self, name: str) -> Question[bool]:
        method = "ModelReady" if name else "ServerReady"
        fields = {"name": name} if name else {}
        return _question(method, lambda reply: bool(reply.ready), **fields)

    def models(self) -> Question[list[ModelState]]:
        return _question(
            "RepositoryIndex",
            lambda reply: [
                ModelState(m.name, m.version, m.state or "UNAVAILABLE", m.reason)
                for m in reply.models
            ],
        )

    def metadata(self, name: str, version: str) -> Question[dict[str, Any]]:
        return _question("ModelMetadata", plain, name=name, version=version)

    def methods(self, name: str, version: str) -> Question[dict[str, dict[str, Any]]]:
        return _question("ModelConfig", _methods, name=name, version=version)

    def statistics(self, name: str) -> Question[list[dict[str, Any]]]:
        return _question(
            "ModelStatistics",
            lambda reply: [plain(entry) for entry in reply.model_stats],
            name=name,
        )

    def state(self) -> NoReturn:
        _refuse("the state of the page")

    def change(self, name: str, what: str) -> Question[None]:
        method = f"RepositoryModel{what.capitalize()}"
        return _question(method, lambda reply: None, model_name=name)

    def infer(self, inference: Inference) -> Question[Result]:
        return Question(GrpcRequest("ModelInfer", _infer_request(inference)), _infer_result)

    def open(self, name: str, method: str, value: Any, content_type: str) -> NoReturn:
        _refuse("what /predict answers")

    def stream(self, inference: Inference) -> Question[Items]:
        request = GrpcRequest("ModelStreamInfer", _infer_request(inference), streams=True)
        return Question(request, lambda reply: Items(reply, _stream_result))


def _refuse(what: str) -> NoReturn:
    raise Unsupported(f"{what} is not offered over gRPC; connect with http:// to the same port")


def _question(method: str, read: Any, **fields: Any) -> Question[Any]:
    """Every question but inference may be asked twice."""
    body = message(f"inference.{method}Request")(**fields).SerializeToString()
    reply = message(f"inference.{method}Response")
    return Question(
        GrpcRequest(method, body, is_safe=True), lambda data: read(reply.FromString(data))
    )


def _methods(reply: Any) -> dict[str, dict[str, Any]]:
    """The methods that a model's configuration tells; none for servers that have no methods."""
    text = reply.config.parameters["methods"].string_value
    found: dict[str, dict[str, Any]] = orjson.loads(text) if text else {}
    return found


def _infer_request(inference: Inference) -> bytes:
    request = message("inference.ModelInferRequest")(
        model_name=inference.name, model_version=inference.version
    )
    for key, tensor in inference.tensors.items():
        request.inputs.add(name=key, datatype=tensor.dtype.name, shape=tensor.shape)
        request.raw_input_contents.append(bytes(tensor.to_bytes()))
    for key in inference.outputs:
        request.outputs.add(name=key)
    for key, value in inference.all_parameters().items():
        setattr(request.parameters[key], _parameter_field(key, value), value)
    body: bytes = request.SerializeToString()
    return body


def _parameter_field(name: str, value: Any) -> str:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    field = kinds.get(type(value))
    if field is None:
        raise InvalidInput(f"parameter {name!r}: expected a string, number or boolean")
    return field


def _infer_result(data: bytes) -> Result:
    """Raises: InvalidInput when the reply contradicts itself."""
    return _result(message("inference.ModelInferResponse").FromString(data))


def _stream_result(data: bytes) -> Result:
    """Raises: InvalidInput when the reply contradicts itself."""
    return _result(message("inference.ModelStreamInferResponse").FromString(data).infer_response)


def _result(reply: Any) -> Result:
    outputs = {
        output.name: array_of(output.name, output.datatype, output.shape, raw)
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in reply.parameters.items()
    }
    return Result(outputs, reply.model_version, parameters)


def plain(value: Any) -> Any:
    """A message as the JSON form of the protocol has it: dicts, lists and plain values."""
    if not hasattr(value, "DESCRIPTOR"):
        return value
    found: dict[str, Any] = {}
    for field in value.DESCRIPTOR.fields:
        item = getattr(value, field.name)
        if hasattr(item, "items"):
            found[field.name] = {key: plain(item[key]) for key in item}
        elif hasattr(item, "append"):
            found[field.name] = [plain(entry) for entry in item]
        else:
            found[field.name] = plain(item)
    return found
