"""The OpenAPI 3.1 description of this server: its endpoints, and its models' inputs and outputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from salver.codecs.json_numbers import dumps
from salver.types import len_of
from salver.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from salver.engine.generation import Generation
    from salver.interfaces import Endpoint
    from salver.server.router import Router
    from salver.signature import Method, TensorSpec

_MODELS: Final = ("Models", "What is served here, each with its own form of input.")
_TAGS: Final = {
    "plain": ("Predictions", "JSON, CSV or a file in, predictions out."),
    "kserve_v2": ("Open Inference Protocol", "What Triton's and KServe's clients speak."),
    "pages": ("Operations", "What people and monitors look at."),
}
"""Title and meaning by protocol."""
_JSON_TYPES: Final = {"BOOL": "boolean", "BYTES": "string"}
_MAX_EXAMPLE: Final = 1024
_CELL: Final = {"type": ["number", "null"]}
"""A number of a table, which may be missing."""
_MEDIA: Final = {"image": "image/*", "bytes": "application/octet-stream", "text": "text/plain"}
_PATH_MEANING: Final = {
    "model": "Name of a model.",
    "version": "Version or label of the model.",
    "method": "Method of the model; `predict` in most.",
    "file": "Name of the file.",
}
_OBJECT: Final = {"application/json": {"schema": {"type": "object"}}}
_COMPONENTS: Final = {
    "schemas": {
        "Error": {
            "type": "object",
            "properties": {"error": {"type": "string"}},
            "required": ["error"],
        },
        "Answer": {
            "type": "object",
            "description": "One `input` has a `prediction`, several `inputs` have `predictions`.",
            "properties": {
                "prediction": {},
                "predictions": {"type": "array"},
                "model_version": {"type": "string"},
                "label": {"type": "string"},
                "labels": {"type": "array", "items": {"type": "string"}},
                "probabilities": {},
            },
            "required": ["model_version"],
        },
    },
    "responses": {
        "Error": {
            "description": "What went wrong, where, and the remedy.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    },
}
_SECURITY: Final = {"key": {"type": "http", "scheme": "bearer"}}


def describe(router: Router, generations: Iterable[Generation], *, keyed: bool) -> dict[str, Any]:
    """The document: an entry per endpoint, and one per model for its short door.

    `generations` are the newest ready ones; the first stands for all in the general examples.
    """
    models = {generation.ref.name: generation for generation in generations}
    first = next(iter(models.values()), None)
    paths: dict[str, dict[str, Any]] = {
        f"/predict/{name}": {"post": _of_model(generation)} for name, generation in models.items()
    }
    tags = dict([_MODELS]) if models else {}
    for endpoint in router.endpoints:
        if not endpoint.is_offered:
            continue
        protocol = router.protocol_of(endpoint).name
        tag, meaning = _TAGS.get(protocol, (protocol, ""))
        tags[tag] = meaning
        for method in endpoint.methods:
            operation = _operation(endpoint, method, tag, first)
            paths.setdefault(endpoint.path, {})[method.lower()] = operation
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Salver", "version": __version__},
        "tags": [{"name": tag, "description": meaning} for tag, meaning in tags.items()],
        "paths": paths,
        "components": _COMPONENTS,
    }
    if keyed:
        document["components"] = _COMPONENTS | {"securitySchemes": _SECURITY}
        document["security"] = [{"key": []}]
    return document


def _operation(
    endpoint: Endpoint, method: str, tag: str, first: Generation | None
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": _identifier(f"{method.lower()}{endpoint.path}"),
        "tags": [tag],
        "responses": _responses({"description": "The answer."}),
    }
    arguments = re.findall(r"\{(\w+)\}", endpoint.path)
    if arguments:
        operation["parameters"] = [_path_parameter(argument, first) for argument in arguments]
    if method in ("POST", "PUT"):
        content: dict[str, Any] = _OBJECT
        if first is not None:
            content = _general_body(endpoint.path, first)
        operation["requestBody"] = {"content": content}
    return operation


def _identifier(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_")


def _responses(answer: dict[str, Any]) -> dict[str, Any]:
    return {"200": answer, "default": {"$ref": "#/components/responses/Error"}}


def _path_parameter(argument: str, first: Generation | None) -> dict[str, Any]:
    parameter: dict[str, Any] = {
        "name": argument,
        "in": "path",
        "required": True,
        "description": _PATH_MEANING.get(argument, ""),
        "schema": {"type": "string"},
    }
    if first is not None:
        examples = {"model": first.ref.name, "version": first.ref.version,
                    "method": first.signature.default}  # fmt: skip
        if argument in examples:
            parameter["example"] = examples[argument]
    return parameter


def _general_body(path: str, first: Generation) -> dict[str, Any]:
    """What a path takes, shown for one model."""
    method = first.signature.methods[first.signature.default]
    example = _example(first, method)
    if path.endswith(":predict"):
        return _body({"type": "object", "required": ["instances"]}, example, "instances")
    if path.endswith("/infer"):
        tensors = [_tensor(spec) for spec in method.inputs]
        schema = {"type": "object", "required": ["inputs"]}
        value = None if None in tensors else {"inputs": tensors}
        return {"application/json": {"schema": schema} | ({"example": value} if value else {})}
    if path.startswith("/predict"):
        return _body({"type": "object"}, example, "inputs")
    return _OBJECT


def _body(schema: Mapping[str, Any], example: Any, key: str) -> dict[str, Any]:
    content = {"schema": schema}
    if example is not None:
        content["example"] = {key: [example]}
    return {"application/json": content}


def _of_model(generation: Generation) -> dict[str, Any]:
    method = generation.signature.methods[generation.signature.default]
    outputs = (f"{spec.name} {spec.dtype.name} {list(spec.shape)}" for spec in method.outputs)
    return {
        "summary": generation.config.description or f"Predict with {generation.ref.name}.",
        "operationId": _identifier(f"predict_{generation.ref.name}"),
        "tags": [_MODELS[0]],
        "requestBody": {"required": True, "content": _content(generation, method)},
        "responses": _responses(
            {
                "description": f"Version {generation.ref.version}: {', '.join(outputs)}",
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}
                },
            }
        ),
    }


def _content(generation: Generation, method: Method) -> dict[str, Any]:
    """Body types that the short door takes for this model, the most natural first."""
    only = method.inputs[0] if len(method.inputs) == 1 else None
    if only is not None and only.content in ("image", "bytes"):
        return {_MEDIA[only.content]: {"schema": {"type": "string", "format": "binary"}}}
    one = _one_input(method)
    schema = {
        "type": "object",
        "properties": {"input": one, "inputs": {"type": "array", "items": one}},
        "oneOf": [{"required": ["input"]}, {"required": ["inputs"]}],
    }
    content: dict[str, Any] = {"schema": schema}
    example = _example(generation, method)
    if example is not None:
        examples = {"one": {"summary": "one input", "value": {"input": example}}}
        if method.max_rows != 1:
            value = {"inputs": [example, example]}
            examples["several"] = {"summary": "several inputs", "value": value}
        content["examples"] = examples
    return {"application/json": content}


def _skipped(method: Method) -> int:
    """Dimensions in front that the JSON form of one input does not have."""
    return 1 if method.batching == "rows" else 0


def _one_input(method: Method) -> dict[str, Any]:
    skip = _skipped(method)
    if len(method.inputs) == 1:
        only = method.inputs[0]
        if only.columns:
            return {"type": "object", "properties": dict.fromkeys(only.columns, _CELL)}
        return _schema(only, skip)
    return {
        "type": "object",
        "properties": {
            spec.name: _CELL if spec.columns else _schema(spec, skip) for spec in method.inputs
        },
        "required": [spec.name for spec in method.inputs if not (spec.optional or spec.columns)],
    }


def _schema(spec: TensorSpec, skip: int) -> dict[str, Any]:
    """The JSON form of one input, without the batch dimension."""
    if spec.content == "json":
        return {}
    schema: dict[str, Any] = {
        "type": _JSON_TYPES.get(spec.dtype.name, "integer" if spec.dtype.is_integer else "number")
    }
    for dim in reversed(spec.shape[skip:]):
        schema = {"type": "array", "items": schema}
        if dim >= 0:
            schema |= {"minItems": dim, "maxItems": dim}
    return schema


def _example(generation: Generation, method: Method) -> Any:
    """One input: the configured one, or zeros; None where zeros would be no example."""
    if generation.config.example is not None:
        return generation.config.example
    skip = _skipped(method)
    values = {spec.name: _zeros(spec, skip) for spec in method.inputs if not spec.optional}
    if not values or None in values.values():
        return None
    if len(method.inputs) > 1:
        return values
    only = method.inputs[0]
    return dict.fromkeys(only.columns, 0) if only.columns else values[only.name]


def _zeros(spec: TensorSpec, skip: int) -> Any:
    if spec.content == "json":
        return spec.example
    dims = [max(dim, 1) for dim in spec.shape[skip:]]
    if spec.content in ("image", "bytes") or len_of(dims) > _MAX_EXAMPLE:
        return None
    value: Any = _zero(spec)
    for dim in reversed(dims):
        value = [value] * dim
    return value


def _zero(spec: TensorSpec) -> Any:
    if spec.dtype.name == "BOOL":
        return False
    if spec.dtype.name == "BYTES":
        return "text"
    return 0 if spec.dtype.is_integer else 0.0


def _tensor(spec: TensorSpec) -> dict[str, Any] | None:
    """An input of zeros in the Open Inference Protocol's JSON."""
    shape = [max(dim, 1) for dim in spec.shape]
    zero = dumps(spec.example).decode() if spec.content == "json" else _zero(spec)
    if spec.content in ("image", "bytes") or len_of(shape) > _MAX_EXAMPLE:
        return None
    return {
        "name": spec.name,
        "shape": shape,
        "datatype": spec.dtype.name,
        "data": [zero] * len_of(shape),
    }
