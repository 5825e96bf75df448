"""Numbers as JSON text: shortest digits for every float, and a defined form for NaN and infinities.

JSON has no NaN. Salver writes the strings "NaN", "Infinity" and "-Infinity", and reads those as
well as the bare tokens that many clients send.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from salver.errors import Internal, InvalidInput, TooLarge
from salver.types import BF16, BYTES, Tensor, bf16_floats, len_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from salver.types import Array, Buffer

NON_FINITE: Final = {
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
}
_BRACKET_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[{]}"))
_DEPTH_BLOCK: Final = 1 << 18
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY
PART_VALUES: Final = 1 << 14
"""Values that are written in one step; it takes about a millisecond."""


MAX_VALUES: Final = 1 << 20
"""Values of a JSON text that are built in one step; it takes tens of milliseconds."""


class LongText(Exception):
    """Raised in place of a text that takes long to write: `text_parts` writes it in short steps."""


def dumps(value: Any) -> bytes:
    """JSON text of plain values and arrays; non-finite floats in plain values become null."""
    return orjson.dumps(value, option=_NUMPY | orjson.OPT_NON_STR_KEYS)


def array_text(array: Array) -> bytes:
    """JSON text of a numeric or boolean array, nested by its shape."""
    try:
        text = orjson.dumps(array, option=_NUMPY)
    except orjson.JSONEncodeError:
        # Nearly all are as they must be; looking first costs more than writing some numbers.
        if not array.ndim:
            return array_text(array.reshape(1))[1:-1]
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        text = orjson.dumps(array, option=_NUMPY)
    if b"null" in text:
        return orjson.dumps(_with_words(array))
    return text


def _with_words(array: Array) -> Any:
    """Nested lists with words for what JSON cannot write; floats keep their shortest digits."""
    finite = np.where(np.isfinite(array), array, array.dtype.type(0))
    values: Array = np.empty(array.shape, np.object_)
    values[...] = np.asarray(
        orjson.loads(orjson.dumps(finite.reshape(-1), option=_NUMPY)), np.object_
    ).reshape(array.shape)
    values[np.isnan(array)] = "NaN"
    values[np.isposinf(array)] = "Infinity"
    values[np.isneginf(array)] = "-Infinity"
    return values.tolist()


def plain_array(tensor: Tensor, name: str) -> Array:
    """The array whose JSON text is the tensor's: bfloat16 as float32, all else as it is."""
    array = tensor.array(name)
    return bf16_floats(array) if tensor.dtype is BF16 else array


def tensor_text(tensor: Tensor, name: str, *, flat: bool) -> bytes:
    """JSON text of a tensor, flat or nested by its shape. BYTES must be UTF-8.

    Raises: Internal for bytes that JSON cannot carry; LongText.
    """
    if tensor.dtype is BYTES:
        if len_of(tensor.shape) > PART_VALUES:
            raise LongText
        texts = bytes_as_text(tensor, name)
        return orjson.dumps(texts.reshape(-1).tolist() if flat else texts.tolist())
    array = plain_array(tensor, name)
    if array.size > PART_VALUES:
        raise LongText
    return array_text(array.reshape(-1) if flat else array)


def text_parts(tensor: Tensor, write: Callable[[Tensor], bytes]) -> Iterator[bytes]:
    """JSON text of a tensor, nested by its shape, as `write` writes it, but some values at a time.

    Raises: what `write` raises.
    """
    array = tensor.array()
    if array.size <= PART_VALUES:
        yield write(tensor)
        return
    width = array.size // len(array)
    step = max(1, PART_VALUES // width)
    opening = b"["
    for start in range(0, len(array), step):
        part = array[start : start + step]
        yield opening
        if width > PART_VALUES:
            yield from text_parts(Tensor(tensor.dtype, part.shape[1:], part[0]), write)
        else:
            yield write(Tensor(tensor.dtype, part.shape, part))[1:-1]
        opening = b","
    yield b"]"


def bytes_as_text(tensor: Tensor, name: str) -> Array:
    """A BYTES tensor as an object array of str.

    Raises: Internal for bytes that are not UTF-8.
    """
    array = tensor.array(name)
    try:
        texts = [x if isinstance(x, str) else bytes(x).decode() for x in array.reshape(-1).tolist()]
    except UnicodeDecodeError:
        raise Internal(
            f"output {name!r} holds bytes that are not UTF-8 text: ask for it as binary data"
        ) from None
    out: Array = np.empty(len(texts), np.object_)
    out[:] = texts
    return out.reshape(array.shape)


def json_contents_text(tensor: Tensor, name: str) -> bytes:
    """BYTES that hold JSON, as the JSON they hold, nested by the tensor's shape.

    Raises: Internal, LongText.
    """
    if len_of(tensor.shape) > PART_VALUES:
        raise LongText
    texts = bytes_as_text(tensor, name)
    values: Array = np.empty(texts.size, np.object_)
    values[:] = [orjson.Fragment(text) for text in texts.reshape(-1).tolist()]
    return orjson.dumps(values.reshape(texts.shape).tolist())


def loads(body: Buffer, max_depth: int) -> Any:
    """Parses JSON of any form; bare NaN and Infinity tokens are taken.

    Raises: InvalidInput for a syntax error, TooLarge beyond `max_depth` levels or `MAX_VALUES`.
    """
    raw = _raw(body)
    check_depth(raw, max_depth)
    check_values(raw)
    try:
        return parsed(raw)
    except orjson.JSONDecodeError as error:
        raise syntax_error(error.msg, error.lineno, error.colno) from None


def _raw(body: Buffer) -> bytes | bytearray:
    """The body as what its marks can be counted in."""
    return body if isinstance(body, bytes | bytearray) else bytes(body)


def parsed(body: Buffer) -> Any:
    """JSON of any form and depth. Raises: orjson.JSONDecodeError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        first = error
    if first.pos >= len(first.doc) - 1:
        # It is cut off, which makes it no JSON to anybody.
        raise first
    try:
        value = json.loads(bytes(body))
        # The json module also takes numbers and text that nothing else can hold.
        orjson.dumps(value)
    except (ValueError, TypeError, RecursionError):
        raise first from None
    return value


def syntax_error(problem: str, line: int, column: int) -> InvalidInput:
    """The refusal of a text that is not JSON; lines and columns count from 1."""
    return InvalidInput(f"the body is not valid JSON (line {line}, column {column}): {problem}")


def check_depth(body: Buffer, max_depth: int) -> None:
    """Bounds the nesting before anything is built from it.

    Strings, which may hold brackets, are only taken out when it seems too deep with them.

    Raises: TooLarge.
    """
    raw = _raw(body)
    if raw.count(b"[") + raw.count(b"{") <= max_depth:
        return
    if _depth(raw) > max_depth and _depth(_STRING.sub(b"", raw)) > max_depth:
        raise TooLarge(f"JSON nested deeper than {max_depth} levels")


def check_values(body: Buffer) -> None:
    """Bounds what is built from the body in one step: an empty list takes three bytes of text, and
    twenty times as much memory.

    Raises: TooLarge.
    """
    if len(body) <= 2 * MAX_VALUES:
        return
    raw = _raw(body)
    if raw.count(b",") >= MAX_VALUES and _STRING.sub(b"", raw).count(b",") >= MAX_VALUES:
        raise TooLarge(
            f"more than {MAX_VALUES} values that cannot be read a few at a time; send them as one "
            "array of numbers or texts, or as binary tensors"
        )


def _depth(raw: bytes | bytearray) -> int:
    """The deepest nesting of brackets, wherever they stand."""
    return max((int(depths.max()) for depths in _depths(raw)), default=0)


def is_one_array(raw: Buffer) -> bool:
    """Whether a text without strings and objects, from one bracket to another, is one array as far
    as its brackets tell.
    """
    outside, last = 0, 1
    for depths in _depths(raw):
        outside += int(np.count_nonzero(depths <= 0))
        last = int(depths[-1])
    return outside == 1 and last == 0


def _depths(raw: Buffer) -> Iterator[Array]:
    """How deep each bracket leads, or leads back to."""
    depth = 0
    for start in range(0, len(raw), _DEPTH_BLOCK):
        block = bytes(raw[start : start + _DEPTH_BLOCK])
        steps = np.frombuffer(block.translate(_BRACKET_STEPS, _NO_BRACKETS), np.int8)
        depths = depth + np.cumsum(steps, dtype=np.int32)
        if depths.size:
            depth = int(depths[-1])
            yield depths
