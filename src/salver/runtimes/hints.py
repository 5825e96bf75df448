"""Type hints as inputs and outputs: how each hint looks to clients, and its way in and out."""

from __future__ import annotations

import importlib.util
import io
import types
import typing
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from salver.authoring import ROWS, ArrayHint, Image
from salver.errors import InvalidInput, MissingExtra, ModelFailed
from salver.places import text_of
from salver.runtimes.texts import texts
from salver.signature import ANY
from salver.types import BF16, BOOL, BYTES, FP64, INT64, Tensor, bf16_bits, bf16_floats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.signature import Content
    from salver.types import Array, DType

SCALAR: Final = ()
REMEDY: Final = f'write salver.Array["float32", "{ROWS}", 4] for an array'


class HintError(Exception):
    """A hint that cannot be served; the message says why, and what to write."""


class Converter(ABC):
    """Carries values of one hint between the protocol's arrays and what the author's code sees."""

    dtype: DType = BYTES
    shape: tuple[int, ...] = SCALAR
    content: Content = "tensor"
    is_rows: bool = False
    example: Any = None

    @abstractmethod
    def decode(self, array: Array, name: str) -> Any:
        """What the method gets for input `name`. Raises: InvalidInput."""

    @abstractmethod
    def encode(self, value: Any, where: str) -> Tensor:
        """What clients get for what the method gave. Raises: ModelFailed naming `where`."""


class ArrayConverter(Converter):
    def __init__(self, hint: ArrayHint) -> None:
        self.dtype = hint.dtype
        self.shape = hint.dims
        self.content = hint.content
        self.is_rows = hint.is_rows

    def decode(self, array: Array, name: str) -> Any:
        if self.dtype is BF16:
            return bf16_floats(array)
        if self.dtype is not BYTES:
            return array
        out = np.empty(array.size, np.object_)
        is_text = self.content == "text"
        out[:] = texts(array, name) if is_text else [raw(item) for item in array.ravel()]
        return out.reshape(array.shape)

    def encode(self, value: Any, where: str) -> Tensor:
        array = self._cast(value, where)
        shape = array.shape
        if len(shape) != len(self.shape) or any(
            want not in (ANY, have) for want, have in zip(self.shape, shape, strict=True)
        ):
            raise ModelFailed(f"{where}: expected shape {list(self.shape)}, got {list(shape)}")
        return Tensor(self.dtype, shape, array)

    def _cast(self, value: Any, where: str) -> Array:
        """Casts within a kind, such as float64 to float32, but never drops a fraction."""
        wanted = self.dtype.numpy
        if type(value) is np.ndarray and value.dtype == wanted and self.dtype is not BYTES:
            return value
        try:
            array = np.asarray(value, wanted if self.dtype is BYTES else None)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelFailed(f"{where}: {_kind(value)} is no array: {text_of(error)}") from None
        if self.dtype is BYTES and not all(isinstance(x, str | bytes) for x in array.flat):
            raise ModelFailed(f"{where}: every element must be {self.content} (str or bytes)")
        if self.dtype is BF16 and array.dtype.kind == "f":
            return bf16_bits(array)
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise ModelFailed(f"{where}: expected {self.dtype.name}, got {array.dtype}")
        return array.astype(wanted, copy=False)


class ScalarConverter(Converter):
    """int, float or bool."""

    def __init__(self, kind: type) -> None:
        self.dtype = _SCALARS[kind]

    def decode(self, array: Array, name: str) -> Any:
        return array.item()

    def encode(self, value: Any, where: str) -> Tensor:
        try:
            array = np.asarray(value).reshape(SCALAR)
            if np.can_cast(array.dtype, self.dtype.numpy, "same_kind"):
                return Tensor(self.dtype, SCALAR, array.astype(self.dtype.numpy))
        except ValueError:
            pass
        raise ModelFailed(f"{where}: expected one {self.dtype.name}, got {_kind(value)}")


class TextConverter(Converter):
    content = "text"

    def decode(self, array: Array, name: str) -> Any:
        return texts(array, name)[0]

    def encode(self, value: Any, where: str) -> Tensor:
        if not isinstance(value, str):
            raise ModelFailed(f"{where}: expected str, got {_kind(value)}")
        return Tensor(BYTES, SCALAR, [value])


class BytesConverter(Converter):
    content = "bytes"

    def decode(self, array: Array, name: str) -> Any:
        return raw(array.item())

    def encode(self, value: Any, where: str) -> Tensor:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise ModelFailed(f"{where}: expected bytes, got {_kind(value)}")
        return Tensor(BYTES, SCALAR, [bytes(value)])


class ImageConverter(Converter):
    """Files in any format that Pillow reads; PNG on the way out."""

    content = "image"

    def __init__(self) -> None:
        if importlib.util.find_spec("PIL") is None:
            raise MissingExtra("salver.Image needs `pip install 'salver[image]'`")

    def decode(self, array: Array, name: str) -> Any:
        from PIL import Image, ImageOps

        try:
            with Image.open(io.BytesIO(raw(array.item()))) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise InvalidInput(f"input {name!r}: not an image in a known format") from None

    def encode(self, value: Any, where: str) -> Tensor:
        from PIL import Image

        if not isinstance(value, Image.Image):
            array = np.asarray(value)
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                raise ModelFailed(
                    f"{where}: expected a PIL image or [height, width, 3] uint8, "
                    f"got {_kind(value)} of shape {list(array.shape)}"
                )
            value = Image.fromarray(array)
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return Tensor(BYTES, SCALAR, [buffer.getvalue()])


class JsonConverter(Converter):
    """Whatever msgspec reads and checks: dict, list, dataclass, TypedDict, Literal, unions, Any."""

    content = "json"

    def __init__(self, hint: Any) -> None:
        self._decoder = msgspec.json.Decoder(hint)
        self._encoder = msgspec.json.Encoder(enc_hook=_plain)
        try:
            schema = msgspec.json.schema(hint)
        except TypeError:
            return
        self.example = example_of(schema, schema.get("$defs", {}))

    def decode(self, array: Array, name: str) -> Any:
        try:
            return self._decoder.decode(array.item())
        except msgspec.DecodeError as error:
            raise InvalidInput(f"input {name!r}: {text_of(error)}") from None

    def encode(self, value: Any, where: str) -> Tensor:
        try:
            return Tensor(BYTES, SCALAR, [self._encoder.encode(value)])
        except (TypeError, ValueError) as error:
            raise ModelFailed(f"{where}: {_kind(value)} cannot be JSON: {text_of(error)}") from None


def example_of(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Any:
    """A value of the form that a JSON Schema (draft 2020-12, as msgspec writes it) asks for: its
    defaults, zeros and the first of alternatives.
    """
    if "default" in schema:
        return schema["default"]
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        # A type that holds itself ends here.
        inner = {key: each for key, each in defs.items() if key != name}
        return example_of(defs[name], inner) if name in defs else None
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return example_of(schema["anyOf"][0], defs)
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {key: example_of(each, defs) for key, each in properties.items()}
        case "array":
            return [example_of(each, defs) for each in schema.get("prefixItems", ())]
    return _SIMPLE.get(schema.get("type", "object"))


_SIMPLE: Final = {"boolean": False, "integer": 0, "number": 0.0, "string": "text", "object": {}}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{_kind(value)} has no JSON form")


def _kind(value: Any) -> str:
    return type(value).__name__


def raw(item: Any) -> bytes:
    """An element of BYTES as bytes; JSON protocols bring it as text."""
    return item.encode() if isinstance(item, str) else bytes(item)


_SCALARS: Final = {int: INT64, float: FP64, bool: BOOL}


def converter(hint: Any) -> Converter:
    """The converter for a hint.

    Raises: HintError, MissingExtra.
    """
    if typing.get_origin(hint) is typing.Annotated:
        hint = next((m for m in hint.__metadata__ if isinstance(m, ArrayHint)), hint.__origin__)
    if isinstance(hint, ArrayHint):
        return ArrayConverter(hint)
    if hint in _SCALARS:
        return ScalarConverter(hint)
    if hint is str:
        return TextConverter()
    if hint in (bytes, bytearray, memoryview):
        return BytesConverter()
    if hint is Image or _is_pil(hint):
        return ImageConverter()
    return _json(hint)


def _is_pil(hint: Any) -> bool:
    return isinstance(hint, type) and (hint.__module__, hint.__name__) == ("PIL.Image", "Image")


def _json(hint: Any) -> Converter:
    try:
        if not isinstance(msgspec.inspect.type_info(hint), msgspec.inspect.CustomType):
            return JsonConverter(hint)
    except TypeError:
        pass
    shown = hint.__name__ if isinstance(hint, type) else str(hint)
    raise HintError(f"{shown} cannot be served; {REMEDY}")


def without_none(hint: Any) -> Any:
    """`T | None` as T."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if len(kinds) == 1:
            return kinds[0]
    return hint
