"""Compressed bodies and messages, and how much memory those that are inflated may hold at once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from salver.errors import Cancelled, InvalidInput, Overloaded, TooLarge
from salver.server.compression import INFLATED_AT_ONCE, MAX_INFLATION, decompress

if TYPE_CHECKING:
    from salver.config import Limits
    from salver.types import Buffer


class Compressed:
    """A body or message as it travelled, and its place in a room from its inflation to `free`.

    In a `with` block somebody works on it: so long the place is kept, even if it is not wanted.
    """

    __slots__ = ("_is_worked_on", "data", "encoding", "held", "is_wanted", "room")

    def __init__(self, data: Buffer, encoding: str) -> None:
        self.data = data
        self.encoding = encoding
        self.room: Room | None = None
        self.held = 0
        self.is_wanted = True
        self._is_worked_on = False

    def __enter__(self) -> None:
        self._is_worked_on = True

    def __exit__(self, *_: object) -> None:
        self._is_worked_on = False
        if not self.is_wanted:
            self.free()

    def free(self) -> None:
        """Nobody wants it, or what became of it, any more."""
        self.is_wanted = False
        self.data = b""
        if self.room is not None and not self._is_worked_on:
            self.room.give_back(self.held)
            self.held = 0


class Room:
    """Memory for bodies: one gets some alone, or while all hold at most so many `sixteenths` of the
    largest body; else they wait, first come, first served. `outer` has to have room too.
    """

    __slots__ = ("_limits", "_outer", "_sixteenths", "held", "waiting")

    def __init__(self, limits: Limits, sixteenths: int, outer: Room | None) -> None:
        self._limits = limits
        self._sixteenths = sixteenths
        self._outer = outer
        self.held = 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def has(self, num_bytes: int) -> bool:
        """Whether so many bytes need not wait."""
        return self._is_free(num_bytes) and (self._outer is None or self._outer.has(num_bytes))

    def take_at_once(self, num_bytes: int) -> None:
        """Takes bytes that it has."""
        self.held += num_bytes
        if self._outer is not None:
            self._outer.take_at_once(num_bytes)

    async def take(self, num_bytes: int) -> None:
        """Waits for so many bytes; cancelled, it has none of them."""
        if self._is_free(num_bytes):
            self.held += num_bytes
        else:
            await self._wait(num_bytes)
        if self._outer is not None:
            try:
                await self._outer.take(num_bytes)
            except asyncio.CancelledError:
                self._let_in(num_bytes)
                raise

    def give_back(self, num_bytes: int) -> None:
        """So many bytes are not held any more."""
        self._let_in(num_bytes)
        if self._outer is not None:
            self._outer.give_back(num_bytes)

    def _is_free(self, num_bytes: int) -> bool:
        return not self.waiting and self._fits(num_bytes)

    def _fits(self, num_bytes: int) -> bool:
        max_bytes = self._sixteenths * self._limits.body_bytes // 16
        return not self.held or self.held + num_bytes <= max_bytes

    async def _wait(self, num_bytes: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append((num_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            # Those behind it may fit; it may have been let in just before.
            self._let_in(0 if turn.cancelled() else num_bytes)
            raise

    def _let_in(self, num_bytes: int) -> None:
        """Gives bytes back, and room to those that have waited longest."""
        self.held -= num_bytes
        while self.waiting:
            size, turn = self.waiting[0]
            if not turn.cancelled():
                if not self._fits(size):
                    break
                self.held += size
                turn.set_result(None)
            self.waiting.popleft()


class InflationGate:
    """Lets bodies be inflated while all that are in use hold at most as much as `num_bodies` of the
    largest size, else they wait for at most `body_timeout_s`. `outer` has to let them in too.

    Small ones have a sixteenth of it to themselves for when they would wait for others. Before its
    inflation a body counts as the most that it can become: with gzip what its end says, and it is
    refused if that is not true.
    """

    __slots__ = ("_limits", "_num_bodies", "large", "small")

    def __init__(
        self, limits: Limits, num_bodies: int = 1, outer: InflationGate | None = None
    ) -> None:
        self._limits = limits
        self._num_bodies = num_bodies
        self.small: Room = Room(limits, num_bodies, outer.small if outer else None)
        self.large: Room = Room(limits, 15 * num_bodies, outer.large if outer else None)

    def inflate_at_once(self, body: Compressed, max_bytes: int) -> bytes | None:
        """The plain body if that takes a moment and nothing has to wait; None: `inflate` it.

        Raises: InvalidInput, TooLarge.
        """
        if len(body.data) > INFLATED_AT_ONCE:
            return None
        weight, room = self._need(body, max_bytes)
        if not room.has(weight):
            return None
        plain = _inflated(body, weight, max_bytes)
        room.take_at_once(len(plain))
        body.room, body.data, body.held = room, b"", len(plain)
        return plain

    async def inflate(self, body: Compressed, max_bytes: int) -> bytes:
        """The plain body, of at most `max_bytes`, when there is room for it. The loop goes on.

        Whoever calls it works on the body.
        Raises: InvalidInput, TooLarge, Overloaded; Cancelled if nobody wants it by then.
        """
        weight, room = self._need(body, max_bytes)
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                await room.take(weight)
        except TimeoutError:
            raise Overloaded(
                "the server is busy with too many compressed bodies; try again, or send the "
                "request uncompressed"
            ) from None
        body.room, body.held = room, weight
        if not body.is_wanted:
            raise Cancelled("the client went away")
        plain = await asyncio.to_thread(_inflated, body, weight, max_bytes)
        body.data, body.held = b"", len(plain)
        room.give_back(weight - len(plain))
        return plain

    def _need(self, body: Compressed, max_bytes: int) -> tuple[int, Room]:
        """The bytes that a body counts as at first, and where."""
        room_bytes = self._num_bodies * self._limits.body_bytes
        weight = min(_most_bytes(body, max_bytes), room_bytes)
        is_small = weight <= room_bytes // 256
        return weight, self.small if is_small and not self.large.has(weight) else self.large


def _most_bytes(body: Compressed, max_bytes: int) -> int:
    """What a body of at most `max_bytes` can become; with gzip its end tells, modulo 2^32 (RFC 1952
    section 2.3.1).
    """
    most = min(len(body.data) * MAX_INFLATION, max_bytes)
    if body.encoding == "gzip" and max_bytes < 1 << 32:
        return min(most, int.from_bytes(body.data[-4:], "little"))
    return most


def _inflated(body: Compressed, weight: int, max_bytes: int) -> bytes:
    """The plain body, of at most `weight` bytes. Raises: InvalidInput, TooLarge."""
    try:
        return decompress(body.data, body.encoding, weight)
    except TooLarge:
        if body.encoding != "gzip" or weight == max_bytes:
            raise
        raise InvalidInput(f"the {body.encoding} data is longer than its end says") from None
