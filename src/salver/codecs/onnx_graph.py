"""Reads what an ONNX file says of its inputs and outputs, without a framework and its weights.

Field numbers are those of the ONNX standard's `onnx.proto`; only a few of them are looked at, and
the mapped pages of tensors are never touched.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ELEMENT_TYPES = (
    "undefined", "float", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool",
    "float16", "double", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn",
    "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "uint4", "int4", "float4e2m1",
)  # fmt: skip


class Value(NamedTuple):
    """An input or output as ONNX Runtime would describe it, such as `tensor(float)`.

    A dimension is a number, the name of a symbol or None; `shape` is None where the file gives no
    number of dimensions.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


class Node(NamedTuple):
    """One operation; attributes hold what `classlabels_*` of classifiers need: ints or strings."""

    op: str
    outputs: tuple[str, ...]
    attributes: dict[str, tuple[int, ...] | tuple[str, ...]]


class Graph(NamedTuple):
    """The outside of a graph. Initializers are no inputs; `external` names files with weights."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    last: Node | None
    external: tuple[str, ...]


def read_graph(path: Path) -> Graph:
    """Reads the outside of the main graph.

    Raises: ValueError when the file is not an ONNX model.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _graph(memoryview(mapped))
    except (LookupError, UnicodeDecodeError, AttributeError, TypeError, RecursionError):
        raise ValueError("not an ONNX model") from None


def _graph(view: memoryview) -> Graph:
    graph = _first(view, 7)
    if graph is None:
        raise ValueError("not an ONNX model")
    inputs, outputs, initializers, last = [], [], set(), None
    external: dict[str, None] = {}
    for number, part in _fields(graph):
        if number == 1:
            last = part
        elif number == 5:
            name, location = _initializer(part)
            initializers.add(name)
            if location:
                external[location] = None
        elif number == 11:
            inputs.append(_value(part))
        elif number == 12:
            outputs.append(_value(part))
    return Graph(
        tuple(value for value in inputs if value.name not in initializers),
        tuple(outputs),
        None if last is None else _node(last),
        tuple(external),
    )


def _varint(view: memoryview, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[offset]
        value |= (byte & 0x7F) << shift
        offset += 1
        if byte < 0x80:
            return value, offset
        shift += 7


def _fields(view: memoryview) -> Iterator[tuple[int, Any]]:
    """Field numbers with their values: an integer, or a view for what has a length."""
    offset, end = 0, len(view)
    while offset < end:
        key, offset = _varint(view, offset)
        kind = key & 7
        if kind == 0:
            value, offset = _varint(view, offset)
            yield key >> 3, value
            continue
        if kind == 2:
            size, offset = _varint(view, offset)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("not an ONNX model")
        if size > end - offset:
            raise ValueError("the file is cut off")
        yield key >> 3, view[offset : offset + size]
        offset += size


def _first(view: memoryview, number: int) -> Any:
    return next((value for found, value in _fields(view) if found == number), None)


def _text(view: memoryview) -> str:
    return str(view, "utf-8")


def _initializer(view: memoryview) -> tuple[str, str]:
    """Name, and the file of its data if that lies outside."""
    name = location = ""
    for number, part in _fields(view):
        if number == 8:
            name = _text(part)
        elif number == 13:
            entry = dict(_fields(part))
            if entry[1] == b"location":
                location = _text(entry[2])
    return name, location


def _node(view: memoryview) -> Node:
    op, outputs, attributes = "", [], {}
    for number, part in _fields(view):
        if number == 2:
            outputs.append(_text(part))
        elif number == 4:
            op = _text(part)
        elif number == 5:
            name = _text(_first(part, 1))
            if name.startswith("classlabels_"):
                attributes[name] = _labels(part)
    return Node(op, tuple(outputs), attributes)


def _labels(view: memoryview) -> tuple[int, ...] | tuple[str, ...]:
    """An attribute's strings or integers; the latter come one by one or packed."""
    texts, ints = [], []
    for number, part in _fields(view):
        if number == 9:
            texts.append(_text(part))
        elif number == 8 and isinstance(part, int):
            ints.append(_signed(part))
        elif number == 8:
            offset = 0
            while offset < len(part):
                value, offset = _varint(part, offset)
                ints.append(_signed(value))
    return tuple(texts) or tuple(ints)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _value(view: memoryview) -> Value:
    parts = dict(_fields(view))
    type_, shape = _type(parts[2]) if 2 in parts else ("tensor(undefined)", None)
    return Value(_text(parts[1]), type_, shape)


def _type(view: memoryview) -> tuple[str, tuple[int | str | None, ...] | None]:
    for number, part in _fields(view):
        inner = dict(_fields(part)) if number in (1, 4, 5, 8, 9) else {}
        if number in (1, 8):
            kind = "tensor" if number == 1 else "sparse_tensor"
            shape = tuple(map(_dim, _all(inner[2], 1))) if 2 in inner else None
            return f"{kind}({_element(inner.get(1, 0))})", shape
        if number == 4:
            return f"seq({_type(inner[1])[0]})", ()
        if number == 5:
            return f"map({_element(inner[1])},{_type(inner[2])[0]})", ()
        if number == 9:
            element, shape = _type(inner[1])
            return f"optional({element})", shape
    return "tensor(undefined)", None


def _all(view: memoryview, number: int) -> Iterator[Any]:
    return (value for found, value in _fields(view) if found == number)


def _element(number: int) -> str:
    return _ELEMENT_TYPES[number] if number < len(_ELEMENT_TYPES) else str(number)


def _dim(view: memoryview) -> int | str | None:
    for number, part in _fields(view):
        if number == 1:
            return _signed(part)
        if number == 2:
            return _text(part) or None
    return None
