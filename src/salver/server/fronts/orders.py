"""What the parent, its fronts and their host say to each other, as length-prefixed MessagePack on a
socket.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from salver.config import ModelConfig, ServerConfig
from salver.engine.frames import Fault, decode_hook, encode_hook
from salver.signature import Signature  # noqa: TC001
from salver.types import ModelRef  # noqa: TC001

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

_LENGTH_BYTES: Final = 4


class About(msgspec.Struct, frozen=True, array_like=True):
    """What a process that does not load a version must know of it, to send its calls elsewhere."""

    runtime: str
    signature: Signature
    is_idempotent: bool
    batches: bool


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """One version in the document of what is to be served. `generation` is 0 while it is not.

    It has one home, the host, if it `is_hosted`, and otherwise one in each front.
    """

    ref: ModelRef
    state: str
    reason: str = ""
    generation: int = 0
    path: Path = Path()
    config: ModelConfig = ModelConfig()
    trusted: bool = False
    is_hosted: bool = False
    about: About | None = None

    @property
    def runtime(self) -> str:
        return self.about.runtime if self.about is not None else ""


class Order(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


class Setup(Order, frozen=True, tag=1):
    """First of all: how to serve, and which front it is; the host comes after the last of them."""

    config: ServerConfig
    index: int
    log_level: int


class Prepare(Order, frozen=True, tag=2):
    """Load a version, but let no call reach it yet."""

    wanted: Wanted


class Discard(Order, frozen=True, tag=3):
    """What was prepared is not wanted; another process could not load it, or is to have it."""

    generation: int


class Change(Order, frozen=True, tag=4):
    """The document's next version, as what changed. The first one holds everything.

    `names` is what the source offers; `past`, of the first one, the generations of each name that
    counted before the present ones.
    """

    number: int
    names: tuple[str, ...]
    wanted: tuple[Wanted, ...]
    gone: tuple[ModelRef, ...] = ()
    past: dict[str, list[int]] = {}


class Health(Order, frozen=True, tag=5):
    """Whether all of them serve everything that is wanted."""

    is_ready: bool


class Accept(Order, frozen=True, tag=6):
    """To a front: the listening sockets, by index, from which it takes connections."""

    listeners: tuple[int, ...]


class Answer(Order, frozen=True, tag=7):
    """To a front: what became of its command."""

    number: int
    fault: Fault | None = None


class Stop(Order, frozen=True, tag=8):
    """Finish what was accepted, or end it `now`, and end."""

    now: bool = False


class Prepared(Order, frozen=True, tag=9):
    """To the parent: the version is loaded, or why not; with neither, the host is to load it."""

    generation: int
    about: About | None = None
    fault: Fault | None = None


class Applied(Order, frozen=True, tag=10):
    """To the parent: the document of this number is served, but for versions that did not load."""

    number: int
    missing: tuple[ModelRef, ...] = ()


class Ask(Order, frozen=True, tag=11):
    """From a front: a client's command, `load` or `unload`."""

    number: int
    command: str
    model: str


class Ping(Order, frozen=True, tag=12):
    """Say that the loop runs."""


class Pong(Order, frozen=True, tag=13):
    """To the parent: it does."""


class Heed(Order, frozen=True, tag=14):
    """Options have changed: from now on serve by those that may change while serving."""

    config: ServerConfig


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
    | Heed
)


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=encode_hook)
_decoder: Final = msgspec.msgpack.Decoder[AnyOrder](AnyOrder, dec_hook=decode_hook)


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
