"""What a client has not read yet, on real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import uvloop

from salver.server.unread import Unread, unread_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvloop import Loop

NUM_BYTES = 4 << 20
loops = pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


def context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    """TLS that needs no certificate."""
    made = ssl.SSLContext(protocol)
    made.check_hostname = False
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return made


async def connected(tls: ssl.SSLContext | None) -> tuple[asyncio.Transport, socket.socket]:
    """A server's transport, and the socket of its client."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    accepting = asyncio.ensure_future(loop.connect_accepted_socket(asyncio.Protocol, ours, ssl=tls))
    if tls is not None:
        shake = context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket
        theirs = await asyncio.to_thread(shake, theirs)
    transport, _ = await accepting
    return transport, theirs


@loops
def test_what_a_client_reads_of_a_long_answer_is_seen(make_loop: Callable[[], Loop]) -> None:
    async def main() -> None:
        transport, client = await connected(None)
        with client:
            transport.write(bytes(NUM_BYTES))
            waiting, unread = transport.get_write_buffer_size(), unread_bytes(transport)
            assert unread >= NUM_BYTES
            client.recv(1 << 16)
            # The kernel has room now, but not enough to ask for more.
            assert transport.get_write_buffer_size() == waiting
            assert unread_bytes(transport) < unread
            transport.abort()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


@loops
def test_an_answer_under_tls_is_seen(make_loop: Callable[[], Loop]) -> None:
    async def main() -> None:
        transport, client = await connected(context(ssl.PROTOCOL_TLS_SERVER))
        with client:
            assert unread_bytes(transport) == 0
            transport.write(bytes(NUM_BYTES))
            assert transport.get_write_buffer_size() == 0
            unread = unread_bytes(transport)
            assert unread > 0
            for _ in range(6):
                client.recv(1 << 14)
            assert unread_bytes(transport) < unread
            transport.abort()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


def test_what_waits_stalls_when_nothing_of_it_leaves() -> None:
    class Transport:
        waiting = 10

        def get_write_buffer_size(self) -> int:
            return self.waiting

        def get_extra_info(self, name: str) -> None:
            return None

    transport, unread = Transport(), Unread()
    for now, waiting in [(1, 10), (2, 9), (3, 9)]:
        transport.waiting = waiting
        unread.look(transport, now)  # type: ignore[arg-type]
    assert unread.since == 2
    assert not unread.has_stalled(2 + 10**9, 1)
    assert unread.has_stalled(3 + 10**9, 1)
    transport.waiting = 0
    unread.look(transport, 4)  # type: ignore[arg-type]
    assert not unread.has_stalled(10**12, 1)
