"""Compressed bodies and messages, and how much memory those that are inflated may hold at once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from salver.errors import Cancelled, Overloaded
from salver.server.bodies import INFLATED_AT_ONCE, MAX_INFLATION, decompress

if TYPE_CHECKING:
    from salver.config import Limits
    from salver.types import Buffer


class Compressed:
    """A body or message as it travelled, and its place in a gate from its inflation to `free`.

    In a `with` block somebody works on it: so long the place is kept, even if it is not wanted.
    """

    __slots__ = ("_is_worked_on", "data", "encoding", "gate", "held", "is_wanted")

    def __init__(self, data: Buffer, encoding: str) -> None:
        self.data = data
        self.encoding = encoding
        self.gate: InflationGate | None = None
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
        if self.gate is not None and not self._is_worked_on:
            self.gate.give_back(self.held)
            self.held = 0


class InflationGate:
    """Lets bodies be inflated while all that are in use hold at most as much as `num_bodies` of the
    largest size, else they wait, first come, first served, for at most `body_timeout_s`.

    Before its inflation a body counts as the most that it can become. `outer` has to let it in too.
    """

    __slots__ = ("_held", "_limits", "_num_bodies", "_outer", "_waiting")

    def __init__(
        self, limits: Limits, num_bodies: int = 1, outer: InflationGate | None = None
    ) -> None:
        self._limits = limits
        self._num_bodies = num_bodies
        self._outer = outer
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def _max_bytes(self) -> int:
        return self._num_bodies * self._limits.body_bytes

    def inflate_at_once(self, body: Compressed, max_bytes: int) -> bytes | None:
        """The plain body if that takes a moment and nothing has to wait; None: `inflate` it.

        Raises: InvalidInput, TooLarge.
        """
        if len(body.data) > INFLATED_AT_ONCE or not self._has_room(self._weight(body)):
            return None
        plain = decompress(body.data, body.encoding, max_bytes)
        self._take_at_once(len(plain))
        body.gate, body.data, body.held = self, b"", len(plain)
        return plain

    async def inflate(self, body: Compressed, max_bytes: int) -> bytes:
        """The plain body, of at most `max_bytes`, when there is room for it. The loop goes on.

        Whoever calls it works on the body.
        Raises: InvalidInput, TooLarge, Overloaded; Cancelled if nobody wants it by then.
        """
        weight = self._weight(body)
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                await self._take(weight)
        except TimeoutError:
            raise Overloaded(
                "the server is busy with too many compressed bodies; try again, or send the "
                "request uncompressed"
            ) from None
        body.gate, body.held = self, weight
        if not body.is_wanted:
            raise Cancelled("the client went away")
        plain = await asyncio.to_thread(decompress, body.data, body.encoding, max_bytes)
        body.data, body.held = b"", len(plain)
        self.give_back(weight - len(plain))
        return plain

    def give_back(self, num_bytes: int) -> None:
        """So many bytes are not held any more."""
        self._let_in(num_bytes)
        if self._outer is not None:
            self._outer.give_back(num_bytes)

    def _weight(self, body: Compressed) -> int:
        return min(len(body.data) * MAX_INFLATION, self._max_bytes)

    def _fits(self, num_bytes: int) -> bool:
        return not self._waiting and self._held + num_bytes <= self._max_bytes

    def _has_room(self, num_bytes: int) -> bool:
        return self._fits(num_bytes) and (self._outer is None or self._outer._has_room(num_bytes))

    def _take_at_once(self, num_bytes: int) -> None:
        self._held += num_bytes
        if self._outer is not None:
            self._outer._take_at_once(num_bytes)

    async def _take(self, num_bytes: int) -> None:
        if self._fits(num_bytes):
            self._held += num_bytes
        else:
            await self._wait(num_bytes)
        if self._outer is not None:
            try:
                await self._outer._take(num_bytes)
            except asyncio.CancelledError:
                self._let_in(num_bytes)
                raise

    async def _wait(self, num_bytes: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            # Those behind it may fit; it may have been let in just before.
            self._let_in(0 if turn.cancelled() else num_bytes)
            raise

    def _let_in(self, num_bytes: int) -> None:
        """Gives bytes back, and room to those that have waited longest."""
        self._held -= num_bytes
        waiting = self._waiting
        while waiting:
            size, turn = waiting[0]
            if not turn.cancelled():
                if self._held + size > self._max_bytes:
                    break
                self._held += size
                turn.set_result(None)
            waiting.popleft()
