"""What the processes of a server say to each other about calls: one struct per kind of message, and
tensors as parts.

Written as MessagePack, never as pickle: a worker runs user code and cannot be trusted with objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import numpy as np

from salver import errors
from salver.config import ModelConfig  # noqa: TC001 - msgspec reads the annotations
from salver.interfaces import Traits  # noqa: TC001
from salver.places import told
from salver.signature import Signature  # noqa: TC001
from salver.types import (
    BYTES,
    CallContext,
    DType,
    ModelRef,
    Packed,
    Parameter,
    Tensor,
    Tensors,
    dtype_of,
    pack_bytes,
)

if TYPE_CHECKING:
    from salver.types import Array, Buffer

ALIGNMENT: Final = 64
_TEXTS_AT_ONCE: Final = 4096
STREAM_WINDOW: Final = 16
"""Stream items that may be on their way to a reader."""
CREDIT_STEP: Final = STREAM_WINDOW // 2
"""Stream items after which their sender hears that they were taken."""


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A tensor whose `size` bytes lie at `offset` of the payload that goes with the frame."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Fault(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An error by the name of its class in the error tree."""

    kind: str
    message: str
    retry_after_ms: int | None = None


Parts: TypeAlias = dict[str, Part]


class Frame(msgspec.Struct, array_like=True):
    """Base of all messages. `run` numbers the runs of a worker and the calls between peers, so that
    a late message is known as one; a call between peers has the `index` 0.
    """


class Load(Frame, tag=1):
    """To the worker, first of all: which model to load."""

    runtime: str
    path: Path
    ref: ModelRef
    config: ModelConfig
    device: str
    threads: int
    trusted: bool


class Loaded(Frame, tag=2):
    """The model is there."""

    signature: Signature
    traits: Traits


class Failed(Frame, tag=3):
    """The model could not be loaded; the worker ends."""

    fault: Fault


class Warned(Frame, tag=4):
    """What the runtime has to say about a load that works."""

    message: str


class Run(Frame, tag=5):
    """To the worker: one piece of work. Without `is_items` every input is a single part."""

    run: int
    method: str
    inputs: dict[str, list[Part]]
    is_items: bool
    offsets: list[int]
    outputs: tuple[str, ...]
    parameters: list[dict[str, Parameter]]
    deadline: int
    context: CallContext
    depth: int


class Item(Frame, tag=6):
    """One stream item of call `index`."""

    run: int
    index: int
    tensors: Parts


class Done(Frame, tag=7):
    """The end of a run: rows for the whole batch, or one entry per call, or what failed it."""

    run: int
    cost_ns: int
    rows: Parts | None = None
    items: list[Parts | Fault] | None = None
    fault: Fault | None = None


class Cancel(Frame, tag=8):
    """Nobody waits for call `index` any more."""

    run: int
    index: int


class Credit(Frame, tag=9):
    """`count` stream items were consumed and may be followed by as many."""

    run: int
    count: int


class HomeCall(Frame, tag=10):
    """A call for another process: of a model in a worker, by name, or for a `generation` whose home
    is there. `is_loose` says which kind of tensors it sends.
    """

    id: int
    ref: ModelRef
    tensors: Parts
    is_loose: bool
    method: str
    outputs: tuple[str, ...]
    with_roles: bool
    parameters: dict[str, Parameter]
    request_id: str
    context: CallContext
    depth: int
    generation: int = 0


class Answer(Frame, tag=11):
    """What became of a home call."""

    id: int
    tensors: Parts | None = None
    fault: Fault | None = None


class Ping(Frame, tag=12):
    """To the worker: is anybody there?"""


class Pong(Frame, tag=13):
    """Its answer. A worker that holds the GIL cannot give it."""


class MetricsQuery(Frame, tag=14):
    """What do user code's own metrics say? A peer is asked for those of one generation."""

    id: int = 0
    generation: int = 0


class Metrics(Frame, tag=15):
    """Prometheus text expositions, one after the other; empty if user code counts nothing."""

    text: bytes
    id: int = 0


class Stop(Frame, tag=16):
    """To the worker: finish what runs, close the model and end."""


class Offer(Frame, tag=17):
    """To a peer: a generation has its home here, or why it should have but has not."""

    generation: int
    fault: Fault | None = None


class Hold(Frame, tag=18):
    """To the home of a generation: there may be calls for it."""

    generation: int


class LetGo(Frame, tag=19):
    """To the home of a generation: there will be no more."""

    generation: int


AnyFrame: TypeAlias = (
    Load
    | Loaded
    | Failed
    | Warned
    | Run
    | Item
    | Done
    | Cancel
    | Credit
    | HomeCall
    | Answer
    | Ping
    | Pong
    | MetricsQuery
    | Metrics
    | Stop
    | Offer
    | Hold
    | LetGo
)


def encode_hook(value: Any) -> Any:
    if isinstance(value, DType):
        return value.name
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be sent to another process")


def decode_hook(kind: type[Any], value: Any) -> Any:
    return dtype_of(value) if kind is DType else kind(value)


encoder: Final = msgspec.msgpack.Encoder(enc_hook=encode_hook)
decoder: Final = msgspec.msgpack.Decoder[AnyFrame](AnyFrame, dec_hook=decode_hook)


class Payload:
    """The bytes of a frame's tensors, laid out one after the other, not yet copied."""

    __slots__ = ("buffers", "size")

    def __init__(self) -> None:
        self.buffers: list[tuple[int, Buffer]] = []
        self.size = 0

    def array(self, array: Array) -> Part:
        """Takes an array as it is in a piece of work; objects are BYTES."""
        return self.tensor(Tensor.of(array))

    def tensor(self, tensor: Tensor) -> Part:
        if type(tensor.data) is Packed:
            shape, data = tensor.shape, tensor.data.buffer
        else:
            array = tensor.array()
            if array.dtype != tensor.dtype.numpy:
                array = array.astype(tensor.dtype.numpy)
            shape, data = array.shape, _bytes_of(tensor.dtype, array)
        size, offset = len(data), -(-self.size // ALIGNMENT) * ALIGNMENT
        self.buffers.append((offset, data))
        self.size = offset + size
        return Part(tensor.dtype.name, shape, offset, size)

    def tensors(self, tensors: Tensors) -> Parts:
        return {name: self.tensor(tensor) for name, tensor in tensors.items()}


def _bytes_of(dtype: DType, array: Array) -> Buffer:
    """Texts some at a time, because putting all of them together cannot be interrupted."""
    if dtype is not BYTES or array.size <= _TEXTS_AT_ONCE:
        return Tensor(dtype, array.shape, array).to_bytes()
    flat, step = array.ravel(), _TEXTS_AT_ONCE
    starts = range(0, flat.size, step)
    return b"".join([pack_bytes(flat[start : start + step].tolist()) for start in starts])


def array_of(part: Part, payload: Array) -> Array:
    """A view of `part` in `payload` (uint8), which it keeps alive; BYTES become objects."""
    dtype = dtype_of(part.dtype)
    if dtype is BYTES:
        return tensor_of(part, payload).array()
    return np.ndarray(part.shape, dtype.numpy, payload, part.offset)


def tensor_of(part: Part, payload: Array) -> Tensor:
    """As `array_of`, but BYTES stay packed."""
    dtype = dtype_of(part.dtype)
    if dtype is BYTES:
        packed = Packed(payload[part.offset : part.offset + part.size].data)
        return Tensor(dtype, part.shape, packed)
    return Tensor(dtype, part.shape, array_of(part, payload))


def tensors_of(parts: Parts, payload: Array) -> Tensors:
    return Tensors({name: tensor_of(part, payload) for name, part in parts.items()})


def _classes(base: type[errors.SalverError]) -> dict[str, type[errors.SalverError]]:
    found = {base.__name__: base}
    for child in base.__subclasses__():
        found |= _classes(child)
    return found


def fault_of(error: Exception) -> Fault:
    """Any exception as one that can travel; what is not ours counts as the model's failure."""
    if isinstance(error, errors.SalverError):
        return Fault(type(error).__name__, error.message, error.retry_after_ms)
    return Fault("ModelFailed", told(error))


def error_of(fault: Fault) -> errors.SalverError:
    kind = _classes(errors.SalverError).get(fault.kind, errors.Internal)
    return kind(fault.message, retry_after_ms=fault.retry_after_ms)
