"""The vocabulary of a call: data types, tensors, requests, calls, batches and responses.

Knows nothing of sockets, loops, protocols or frameworks.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np

from salver.errors import InvalidInput, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from salver.interfaces import Lease, Sink
    from salver.signature import Method

    Array = npt.NDArray[Any]
    Buffer = bytes | bytearray | memoryview

Parameter = str | int | float | bool


class DType:
    """One data type of the Open Inference Protocol.

    `numpy` is what an array of it holds: BF16 travels as uint16 bits, BYTES as objects of bytes.
    `itemsize` is in bytes, 0 for BYTES, whose items vary.
    """

    __slots__ = ("is_float", "is_integer", "itemsize", "name", "numpy")

    def __init__(self, name: str, numpy: Any, itemsize: int) -> None:
        self.name = name
        self.numpy = np.dtype(numpy)
        self.itemsize = itemsize
        self.is_float = name in {"FP16", "FP32", "FP64", "BF16"}
        self.is_integer = name.startswith(("INT", "UINT"))

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return dtype_of, (self.name,)


BOOL: Final = DType("BOOL", np.bool_, 1)
UINT8: Final = DType("UINT8", np.uint8, 1)
UINT16: Final = DType("UINT16", np.uint16, 2)
UINT32: Final = DType("UINT32", np.uint32, 4)
UINT64: Final = DType("UINT64", np.uint64, 8)
INT8: Final = DType("INT8", np.int8, 1)
INT16: Final = DType("INT16", np.int16, 2)
INT32: Final = DType("INT32", np.int32, 4)
INT64: Final = DType("INT64", np.int64, 8)
FP16: Final = DType("FP16", np.float16, 2)
BF16: Final = DType("BF16", np.uint16, 2)
FP32: Final = DType("FP32", np.float32, 4)
FP64: Final = DType("FP64", np.float64, 8)
BYTES: Final = DType("BYTES", np.object_, 0)

DTYPES: Final[dict[str, DType]] = {
    d.name: d
    for d in (
        BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64,
        FP16, BF16, FP32, FP64, BYTES,
    )
}  # fmt: skip
_FROM_NUMPY: Final = {d.numpy: d for d in DTYPES.values() if d is not BF16}


def dtype_of(name: str) -> DType:
    """The data type of that name.

    Raises: InvalidInput naming the nearest one that exists.
    """
    found = DTYPES.get(name)
    if found is None:
        raise InvalidInput(f"unknown datatype {name!r}.{did_you_mean(name.upper(), DTYPES)}")
    return found


def dtype_of_array(array: Array) -> DType:
    """The data type that carries `array`; strings and objects are BYTES.

    Raises: InvalidInput for types that no client can read, such as complex numbers.
    """
    found = _FROM_NUMPY.get(array.dtype)
    if found is not None:
        return found
    if array.dtype.kind in "USOT":
        return BYTES
    native = _FROM_NUMPY.get(array.dtype.newbyteorder("="))
    if native is None:
        raise InvalidInput(f"numpy type {array.dtype} has no datatype in the protocol")
    return native


class Packed:
    """BYTES as they travel: each element is a 4-byte little-endian length and its bytes."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer

    def items(self, num_items: int, name: str) -> list[bytes]:
        """Unpacks exactly `num_items` elements.

        Raises: InvalidInput when lengths and count do not add up to the buffer.
        """
        view, offset, end = memoryview(self.buffer), 0, len(self.buffer)
        if 4 * num_items > end:
            raise too_few_bytes(name, num_items, end)
        found: list[bytes] = []
        for _ in range(num_items):
            if offset + 4 > end:
                raise InvalidInput(f"input {name!r}: the length of a BYTES element is cut off")
            (size,) = struct.unpack_from("<I", view, offset)
            offset += 4
            if size > end - offset:
                raise InvalidInput(
                    f"input {name!r}: a BYTES element of {size} bytes exceeds the data"
                )
            found.append(bytes(view[offset : offset + size]))
            offset += size
        if offset != end:
            raise InvalidInput(
                f"input {name!r}: {end - offset} bytes are left after {num_items} BYTES elements"
            )
        return found


def too_few_bytes(name: str, num_items: int, got: int) -> InvalidInput:
    """The refusal of data that cannot even hold the lengths of so many elements."""
    return InvalidInput(
        f"input {name!r}: {num_items} BYTES elements need at least {4 * num_items} bytes, got {got}"
    )


def pack_bytes(items: Iterable[Any]) -> bytes:
    """Packs items as the protocol's BYTES: bytes as they are, text and all else as UTF-8 text."""
    raws = [
        item if isinstance(item, bytes) else item.encode() if isinstance(item, str) else _raw(item)
        for item in items
    ]
    parts = [b""] * (2 * len(raws))
    parts[::2] = [len(raw).to_bytes(4, "little") for raw in raws]
    parts[1::2] = raws
    return b"".join(parts)


def _raw(item: Any) -> bytes:
    return bytes(item) if isinstance(item, (bytearray, memoryview)) else str(item).encode()


class Tensor(msgspec.Struct, eq=False):
    """A named value's type, shape and data.

    `data` stays in the form in which it came until somebody needs another: an ndarray of `shape`,
    a flat list of Python numbers (small JSON, turned into one array per batch), or `Packed` BYTES.
    Arrays may be read-only views on a receive buffer, which lives as long as they do.
    """

    dtype: DType
    shape: tuple[int, ...]
    data: Any

    def __repr__(self) -> str:
        return f"Tensor({self.dtype.name}, {list(self.shape)})"

    @classmethod
    def of(cls, value: Any) -> Tensor:
        """Wraps an array or anything that numpy makes one of; strings become BYTES."""
        array = np.asarray(value)
        dtype = dtype_of_array(array)
        if dtype is BYTES and array.dtype != np.object_:
            array = array.astype(np.object_)
        elif array.dtype != dtype.numpy:
            array = array.astype(dtype.numpy)
        return cls(dtype, array.shape, array)

    def array(self, name: str = "") -> Array:
        """The data as an ndarray of `shape`.

        Raises: InvalidInput when a value does not fit the type.
        """
        data = self.data
        if type(data) is np.ndarray:
            return data
        if type(data) is Packed:
            out = np.empty(len_of(self.shape), np.object_)
            out[:] = data.items(out.size, name)
            return out.reshape(self.shape)
        if self.dtype is BYTES:
            out = np.empty(len(data), np.object_)
            out[:] = data
            return out.reshape(self.shape)
        return numbers(self.dtype, data, name).reshape(self.shape)

    def to_bytes(self) -> Buffer:
        """The data as it travels in binary: little-endian, row-major, BYTES packed."""
        if type(self.data) is Packed:
            return self.data.buffer
        if self.dtype is BYTES:
            return pack_bytes(self.array().ravel().tolist())
        return np.ascontiguousarray(self.array()).reshape(-1).view(np.uint8).data


def len_of(shape: Iterable[int]) -> int:
    """Number of elements of `shape`, exact however large."""
    count = 1
    for dim in shape:
        count *= dim
    return count


@np.errstate(over="raise")
def numbers(dtype: DType, values: Sequence[Any], name: str) -> Array:
    """Flat Python numbers as an array of `dtype`; BF16 takes floats and rounds to its bits.

    Raises: InvalidInput for a number outside the type's range.
    """
    try:
        if dtype is BF16:
            return bf16_bits(np.asarray(values, np.float32))
        return np.asarray(values, dtype.numpy)
    except (OverflowError, FloatingPointError, ValueError, TypeError):
        raise unfit(dtype, name) from None


def unfit(dtype: DType, name: str) -> InvalidInput:
    """The refusal of a number outside the range of its input's type."""
    bounds = np.iinfo(dtype.numpy) if dtype.is_integer else None
    allowed = f" ({bounds.min} to {bounds.max})" if bounds else ""
    return InvalidInput(f"input {name!r}: a value does not fit {dtype.name}{allowed}")


def bf16_bits(values: Array) -> Array:
    """float32 to bfloat16 bits (uint16), rounding to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF).astype(np.uint32)) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def bf16_floats(bits: Array) -> Array:
    """bfloat16 bits (uint16) to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class ModelRef(msgspec.Struct, frozen=True, gc=False):
    """Which model is meant. An empty version is for the route to choose."""

    name: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.version else self.name


class Tensors(dict[str, Tensor]):
    """Named tensors: a payload that needs no further decoding, or the outputs of a call."""

    __slots__ = ()


class Loose(Tensors):
    """Tensors as another model's code sends them: an only input may have no name (`""`), and
    numbers may be of another width than the method's.
    """

    __slots__ = ()


class Raw(msgspec.Struct, frozen=True):
    """A body as it came: an image, audio, text."""

    body: Any
    content_type: str


Schema = Literal["rows", "row", "auto", "columns", "calls"]


class Object(msgspec.Struct):
    """A decoded value that only the model's signature can turn into tensors.

    `rows` is a list of inputs, `row` one input (or a whole batch, by its rank), `auto` either one,
    `columns` a list of values for each name, `calls` the payload of each of several calls. Binding
    notes in `is_single` that the value was one input without a batch dimension, so that the answer
    has none either.
    """

    schema: Schema
    value: Any
    is_single: bool = False


class Request(msgspec.Struct, frozen=True, gc=False):
    """What a client asks of a model; never changed after decoding.

    Without `outputs` it gets the default ones; `with_roles` adds a classifier's probabilities.
    """

    payload: Tensors | Raw | Object
    method: str = ""
    outputs: tuple[str, ...] = ()
    with_roles: bool = False
    parameters: Mapping[str, Parameter] = {}
    id: str = ""


class CallContext(msgspec.Struct, frozen=True, gc=False):
    """What travels with a request: until when, and how urgent.

    `deadline` is monotonic nanoseconds, 0 for none. 1 is the most urgent `priority`; 0 is the
    model's default.
    """

    deadline: int = 0
    priority: int = 0


NO_CONTEXT: Final = CallContext()


class Call(msgspec.Struct, eq=False):
    """One request on its way through the engine; owned by whoever holds it last.

    `rows` counts what it adds to a batch and `size` what a run of it costs (rows, or elements where
    shapes vary); calls of one `group` may share a batch, without one it runs alone. `losses`
    counts the workers that died with this call alone, or the homes that ended with it. Times are
    monotonic nanoseconds.
    """

    request: Request
    sink: Sink
    context: CallContext
    lease: Lease
    queued: int
    method: str = ""
    inputs: Tensors = msgspec.field(default_factory=Tensors)
    outputs: tuple[str, ...] = ()
    rows: int = 1
    size: int = 1
    group: Any = None
    depth: int = 0
    started: int = 0
    losses: int = 0
    ended: bool = False


class Batch(msgspec.Struct):
    """Calls that an instance will run as one; `reason` says why it was released, in a word of
    `observe.statistics.REASONS`.
    """

    calls: list[Call]
    rows: int
    reason: str


class Work(msgspec.Struct):
    """What an instance is given: inputs gathered over all calls.

    Call `i` owns rows `offsets[i]` to `offsets[i + 1]` of every input. `deadline` is the latest of
    the calls' in monotonic nanoseconds, 0 for none. `outputs` are the ones to compute. A trial runs
    on input that nobody sent, so that its failure means nothing.
    """

    method: str
    inputs: dict[str, Any]
    offsets: list[int]
    outputs: tuple[str, ...]
    parameters: Sequence[Mapping[str, Parameter]]
    deadline: int = 0
    context: CallContext = NO_CONTEXT
    depth: int = 0
    is_trial: bool = False

    @property
    def num_calls(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> int:
        return self.offsets[-1]


class Rows:
    """The outputs of a whole batch, row-aligned with its inputs.

    `cache` is for encoders, which prepare all rows at once; it lives as long as the batch.
    """

    __slots__ = ("cache", "tensors")

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.cache: dict[Any, Any] = {}


class Response(msgspec.Struct, eq=False):
    """The answer to one call: rows `start` to `stop` of a batch, or all of its own outputs.

    `stop` is -1 when the tensors belong to this call alone; `names` are the outputs it asked for.
    """

    rows: Rows
    ref: ModelRef
    method: Method
    names: tuple[str, ...]
    start: int = 0
    stop: int = -1
    parameters: Mapping[str, Parameter] | None = None

    def tensors(self) -> Tensors:
        """This call's outputs; arrays are views on the batch's."""
        return Tensors({name: self.tensor(name) for name in self.names})

    def tensor(self, name: str) -> Tensor:
        """This call's part of one output."""
        tensor = self.rows.tensors[name]
        if self.stop < 0:
            return tensor
        part = tensor.array()[self.start : self.stop]
        return Tensor(tensor.dtype, part.shape, part)
