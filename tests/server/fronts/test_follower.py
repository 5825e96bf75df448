from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

from salver.config import ServerConfig
from salver.observe.slab import Slab
from salver.server.fronts.follower import Follower
from salver.server.fronts.orders import Ping, Pong, Setup, Stop, packed, read

if TYPE_CHECKING:
    import pytest


class Writer:
    """Takes what a front says to its parent."""

    def __init__(self) -> None:
        self.said = asyncio.StreamReader()

    def write(self, data: bytes) -> None:
        self.said.feed_data(data)


def test_a_front_that_drains_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        fd, writer, orders = os.memfd_create("test"), Writer(), asyncio.StreamReader()
        setup = Setup(ServerConfig(access_log="off"), 0, 0)
        passage, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        follower = Follower(setup, [], Slab(fd, 1), writer, passage)  # type: ignore[arg-type]
        os.close(fd)
        drain, may_end = follower._front.drain, asyncio.Event()

        async def slow_drain() -> None:
            await may_end.wait()
            await drain()

        monkeypatch.setattr(follower._front, "drain", slow_drain)
        running: asyncio.Future[Any] = asyncio.ensure_future(follower.run(orders))
        async with asyncio.timeout(10):
            for _ in range(2):
                orders.feed_data(packed(Ping()))
                assert await read(writer.said) == Pong()
                orders.feed_data(packed(Stop()))
            assert not running.done()
            may_end.set()
            await running
        passage.close()
        other.close()

    asyncio.run(test())
