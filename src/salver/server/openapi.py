"""The OpenAPI 3.1 description of this server: its endpoints, and its models' inputs and outputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from salver.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.engine.engine import Engine
    from salver.engine.generation import Generation
    from salver.interfaces import Endpoint
    from salver.signature import TensorSpec

_TYPES = {"BOOL": "boolean", "BYTES": "string"}
_ERROR = {
    "description": "What went wrong, where, and the remedy.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"error": {"type": "string"}},
                "required": ["error"],
            }
        }
    },
}


def describe(endpoints: Sequence[Endpoint], engine: Engine) -> dict[str, Any]:
    """The document, with one entry per endpoint and a `/predict` entry per model."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        for method in endpoint.methods:
            paths.setdefault(endpoint.path, {})[method.lower()] = _operation(endpoint, method)
    for generation in engine.generations():
        if engine.models[generation.ref.name].latest is generation:
            paths[f"/predict/{generation.ref.name}"] = {"post": _of_model(generation)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Salver", "version": __version__},
        "paths": paths,
    }


def _operation(endpoint: Endpoint, method: str) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{method.lower()}{endpoint.path}").strip("_")
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": name,
        "responses": {"200": {"description": "The answer."}, "default": _ERROR},
    }
    arguments = re.findall(r"\{(\w+)\}", endpoint.path)
    if arguments:
        operation["parameters"] = [
            {"name": argument, "in": "path", "required": True, "schema": {"type": "string"}}
            for argument in arguments
        ]
    if method in ("POST", "PUT"):
        operation["requestBody"] = {"content": {"application/json": {"schema": {}}}}
    return operation


def _of_model(generation: Generation) -> dict[str, Any]:
    method = generation.signature.methods[generation.signature.default]
    skip = 1 if method.batching == "rows" else 0
    only = method.inputs[0] if len(method.inputs) == 1 else None
    one = (
        _schema(only, skip)
        if only is not None
        else {
            "type": "object",
            "properties": {spec.name: _schema(spec, skip) for spec in method.inputs},
        }
    )
    body: dict[str, Any] = {"schema": {"type": "object", "properties": {"input": one}}}
    if generation.config.example is not None:
        body["example"] = {"input": generation.config.example}
    return {
        "summary": generation.config.description or f"Predict with {generation.ref.name}.",
        "operationId": f"predict_{generation.ref.name}",
        "tags": ["models"],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "200": {
                "description": ", ".join(
                    f"{spec.name} {spec.dtype.name} {list(spec.shape)}" for spec in method.outputs
                )
            },
            "default": _ERROR,
        },
    }


def _schema(spec: TensorSpec, skip: int) -> dict[str, Any]:
    """The JSON form of one input, without the batch dimension."""
    if spec.content == "json":
        return {}
    if spec.columns:
        return {
            "type": "object",
            "properties": {column: {"type": ["number", "null"]} for column in spec.columns},
        }
    schema: dict[str, Any] = {
        "type": _TYPES.get(spec.dtype.name, "integer" if spec.dtype.is_integer else "number")
    }
    for dim in reversed(spec.shape[skip:]):
        schema = {"type": "array", "items": schema}
        if dim >= 0:
            schema |= {"minItems": dim, "maxItems": dim}
    return schema
