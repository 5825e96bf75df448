"""The signature of an ONNX graph, with what the configuration says on top."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from salver.errors import LoadFailed
from salver.runtimes.files import refuse_unknown
from salver.signature import ANY, Method, Signature, TensorSpec, one_row
from salver.types import BF16, BYTES, DTYPES, FP32, FP64, INT64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.codecs.onnx_graph import Graph, Value
    from salver.config import ModelConfig, TensorOptions
    from salver.signature import Batching, Role

_DTYPES: Final = {str(dtype.numpy): dtype for dtype in DTYPES.values() if dtype is not BF16} | {
    "float": FP32,
    "double": FP64,
    "bfloat16": BF16,
    "string": BYTES,
}
"""By ONNX's names, which are numpy's but for these."""
_TENSOR: Final = re.compile(r"(optional\()?tensor\((\w+)\)\)?")
_CLASS_MAP: Final = re.compile(r"seq\(map\((int64|string),tensor\(float\)\)\)")
_ROLES: Final[dict[str, Role]] = {
    "label": "label",
    "output_label": "label",
    "probabilities": "probabilities",
    "output_probability": "probabilities",
}


def class_keys(graph: Graph) -> dict[str, tuple[int, ...] | tuple[str, ...]]:
    """The outputs that a final ZipMap turns into a dictionary per row, with its keys in order."""
    last = graph.last
    if last is None or last.op != "ZipMap":
        return {}
    keys = next((found for found in last.attributes.values() if found), ())
    return dict.fromkeys(last.outputs, keys) if keys else {}


def signature_of(graph: Graph, config: ModelConfig) -> Signature:
    """One method, `predict`.

    It is batched by rows if the first dimension of every input and output varies, under one name
    where they have names, and takes one row if all of them are 1.

    Raises: LoadFailed for a type that cannot be served, or a configuration that does not fit.
    """
    classes = class_keys(graph)
    outputs = tuple(
        value._replace(type="tensor(float)", shape=(None, len(classes[value.name])))
        if value.name in classes and _CLASS_MAP.fullmatch(value.type)
        else value
        for value in graph.outputs
    )
    inputs = _overridden(graph.inputs, config.inputs, "input")
    outputs = _overridden(outputs, config.outputs, "output")
    labels = config.labels or tuple(map(str, next(iter(classes.values()), ())))
    is_softmax = graph.last is not None and graph.last.op == "Softmax"
    method = Method(
        inputs=tuple(map(_input, inputs)),
        outputs=tuple(
            _output(value, labels, is_softmax and len(outputs) == 1) for value in outputs
        ),
        batching=_batching((*inputs, *outputs)),
    )
    return Signature({"predict": one_row(method)})


def _overridden(
    values: Sequence[Value], options: Sequence[TensorOptions], what: str
) -> tuple[Value, ...]:
    given = {option.name: option for option in options}
    refuse_unknown(given, [value.name for value in values], what)
    found = []
    for value in values:
        option = given.get(value.name)
        if option is not None:
            known = _TENSOR.fullmatch(value.type)
            dtype = _DTYPES.get(known[2]) if known else None
            if dtype is not None and dtype.name != option.dtype:
                raise LoadFailed(
                    f"{what} {value.name!r} is {dtype.name} in the file, not {option.dtype}"
                )
            shape = tuple(None if dim == ANY else dim for dim in option.shape)
            if value.shape is not None and len(value.shape) != len(shape):
                raise LoadFailed(
                    f"{what} {value.name!r} has {len(value.shape)} dimensions in the file, "
                    f"not {len(shape)}"
                )
            value = value._replace(shape=shape)
        found.append(value)
    return tuple(found)


def _batching(values: Sequence[Value]) -> Batching:
    firsts = [value.shape[0] if value.shape else 0 for value in values]
    symbols = {dim for dim in firsts if dim not in (None, ANY)}
    named = all(isinstance(dim, str) for dim in symbols)
    return "rows" if values and named and len(symbols) <= 1 else "single"


def _input(value: Value) -> TensorSpec:
    spec = _spec(value, "input")
    if value.shape is None:
        raise LoadFailed(
            f"the file does not say how many dimensions input {value.name!r} has. Give its shape "
            f"under `inputs:` in model.yaml: {{name: {value.name}, dtype: {spec.dtype.name}, "
            "shape: [-1, 3]}"
        )
    return spec


def _output(value: Value, labels: tuple[str, ...], is_softmax: bool) -> TensorSpec:
    spec = _spec(value, "output")
    role = _ROLES.get(value.name, "")
    if role == "label" and spec.dtype in (INT64, BYTES):
        return replace(spec, role=role, labels=labels)
    columns = spec.shape[1] if len(spec.shape) == 2 and spec.dtype.is_float else 0
    is_probabilities = role == "probabilities" and columns != 0
    if is_probabilities and labels and columns not in (len(labels), ANY):
        raise LoadFailed(
            f"output {value.name!r} has {columns} classes, and {len(labels)} labels are configured"
        )
    if is_probabilities:
        return replace(spec, role="probabilities", labels=labels)
    if labels and columns == len(labels):
        return replace(spec, role="probabilities" if is_softmax else "", labels=labels)
    return spec


def _spec(value: Value, what: str) -> TensorSpec:
    known = _TENSOR.fullmatch(value.type)
    dtype = _DTYPES.get(known[2]) if known else None
    if known is None or dtype is None or (known[1] and what == "output"):
        raise LoadFailed(f"{what} {value.name!r} is {value.type}. {_remedy(value.type)}")
    dims = (ANY,) if value.shape is None else value.shape
    return TensorSpec(
        name=value.name,
        dtype=dtype,
        shape=tuple(dim if isinstance(dim, int) and dim >= 0 else ANY for dim in dims),
        optional=bool(known[1]),
    )


def _remedy(type_: str) -> str:
    if "map(" in type_:
        return "Export the classifier with options={'zipmap': False}"
    if _TENSOR.fullmatch(type_):
        return "Cast it to a type that clients can send, such as float"
    return "Only tensors can be served: change the model to give or take them"
