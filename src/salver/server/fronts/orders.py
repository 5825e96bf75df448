"""What the parent and its fronts say to each other, as length-prefixed MessagePack on a socket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from salver.config import ModelConfig, ServerConfig
from salver.engine.frames import Fault  # noqa: TC001 - msgspec reads the annotations
from salver.types import ModelRef  # noqa: TC001

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

_LENGTH_BYTES: Final = 4


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """One version in the document of what is to be served. `generation` is 0 while it is not."""

    ref: ModelRef
    state: str
    reason: str = ""
    generation: int = 0
    path: Path = Path()
    config: ModelConfig = ModelConfig()
    trusted: bool = False
    runtime: str = ""


class Order(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


class Setup(Order, frozen=True, tag=1):
    """To a front, first of all: how to serve, and which one of them it is."""

    config: ServerConfig
    index: int
    log_level: int


class Prepare(Order, frozen=True, tag=2):
    """To a front: load a version, but let no call reach it yet."""

    wanted: Wanted


class Discard(Order, frozen=True, tag=3):
    """To a front: what was prepared is not wanted; another front could not load it."""

    generation: int


class Change(Order, frozen=True, tag=4):
    """To a front: the document's next version, as what changed. The first one holds everything.

    `names` is what the source offers; `past`, of the first one, the generations of each name that
    counted before the present ones.
    """

    number: int
    names: tuple[str, ...]
    wanted: tuple[Wanted, ...]
    gone: tuple[ModelRef, ...] = ()
    past: dict[str, list[int]] = {}


class Health(Order, frozen=True, tag=5):
    """To a front: whether all of them serve everything that is wanted."""

    is_ready: bool


class Accept(Order, frozen=True, tag=6):
    """To a front: the listening sockets, by index, from which it takes connections."""

    listeners: tuple[int, ...]


class Answer(Order, frozen=True, tag=7):
    """To a front: what became of its command."""

    number: int
    fault: Fault | None = None


class Stop(Order, frozen=True, tag=8):
    """To a front: finish what was accepted, and end."""


class Prepared(Order, frozen=True, tag=9):
    """From a front: the version is loaded, or why not."""

    generation: int
    runtime: str = ""
    fault: Fault | None = None


class Applied(Order, frozen=True, tag=10):
    """From a front: it serves the document of this number, but for versions that it cannot load."""

    number: int
    missing: tuple[ModelRef, ...] = ()


class Ask(Order, frozen=True, tag=11):
    """From a front: a client's command, `load` or `unload`."""

    number: int
    command: str
    model: str


class Ping(Order, frozen=True, tag=12):
    """To a front: say that the loop runs."""


class Pong(Order, frozen=True, tag=13):
    """From a front: it does."""


AnyOrder: TypeAlias = (
    Setup
    | Prepare
    | Discard
    | Change
    | Health
    | Accept
    | Answer
    | Stop
    | Prepared
    | Applied
    | Ask
    | Ping
    | Pong
)


def _encode_hook(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be sent to a front")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_encode_hook)
_decoder: Final = msgspec.msgpack.Decoder[AnyOrder](
    AnyOrder, dec_hook=lambda kind, value: kind(value)
)


def packed(order: AnyOrder) -> bytes:
    """An order as it goes over the socket."""
    body = _encoder.encode(order)
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


async def read(stream: asyncio.StreamReader) -> AnyOrder:
    """The next order. Raises: EOFError, OSError when the other side is gone."""
    length = int.from_bytes(await stream.readexactly(_LENGTH_BYTES), "little")
    order: AnyOrder = _decoder.decode(await stream.readexactly(length))
    return order


async def orders(stream: asyncio.StreamReader) -> AsyncIterator[AnyOrder]:
    """Every order, until the other side is gone."""
    while True:
        try:
            yield await read(stream)
        except (EOFError, OSError):
            return
