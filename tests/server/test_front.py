"""What a front does beyond its connections."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, cast

import uvloop
from tests.server.test_unread import context

from salver.clock import system_clock
from salver.config import Limits, ServerConfig
from salver.engine.engine import Engine
from salver.server import front as module
from salver.server.front import Front
from salver.server.listen import listening_sockets

if TYPE_CHECKING:
    import pytest


def test_a_handshake_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tls_context", lambda _: context(ssl.PROTOCOL_TLS_SERVER))
    limits = Limits(header_timeout_s=0.01)
    config = ServerConfig(port=0, limits=limits, access_log="off", drain_timeout_s=0)

    async def main() -> None:
        front = Front(config, Engine(config, system_clock), cast("Any", None))
        (listener,) = listening_sockets(config, 1)
        port = listener.getsockname()[1]
        await front.accept(listener)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01")
        assert await reader.read() == b""
        writer.close()
        await front.drain()

    uvloop.run(main())
