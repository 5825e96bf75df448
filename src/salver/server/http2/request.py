"""Requests by HTTP/2 that are no gRPC calls: the same endpoints that HTTP/1.1 has."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from salver.errors import DeadlineExceeded, TooLarge
from salver.server.exchange import Exchange
from salver.server.head import check_length
from salver.server.http2.hpack import encode

if TYPE_CHECKING:
    from salver.server.head import HttpHead
    from salver.server.http2.socket import Http2Socket
    from salver.server.http2.stream import Stream
    from salver.types import Buffer

CONTINUE_BLOCK: Final = encode([(":status", "100")])
_FIRST_BYTES: Final = 64 << 10


class HttpRequest:
    """Gathers a request's body and answers through an exchange."""

    __slots__ = ("_body", "_received", "_socket", "_stream", "exchange", "touched")

    def __init__(self, socket: Http2Socket, stream: Stream, head: HttpHead) -> None:
        self.exchange = Exchange(socket.app, socket, head)
        self.exchange.stream = stream
        self.touched = socket.now
        self._socket = socket
        self._stream = stream
        self._body: memoryview | None = None
        self._received = 0

    def wait(self) -> None:
        """The body is to come; what its head rules out is answered without it."""
        exchange, head = self.exchange, self.exchange.head
        try:
            check_length(head, exchange.app.config.limits)
        except TooLarge as error:
            exchange.fail(error)
            return
        if head.error is not None or head.endpoint is None:
            exchange.run(b"")
        elif head.expects_continue:
            self._socket.send_head(self._stream, CONTINUE_BLOCK)

    def feed(self, data: Buffer, end_stream: bool) -> None:
        """Takes a piece of the body."""
        if not self.exchange.is_open:
            return
        limit = self.exchange.app.config.limits.body_bytes
        if self._received + len(data) > limit:
            self.exchange.fail(TooLarge(f"the body has more than {limit} bytes"))
        elif end_stream and not self._received:
            self.exchange.run(bytes(data))
        else:
            body = self._collect(data)
            if end_stream:
                self.exchange.run(body[: self._received])

    def _collect(self, data: Buffer) -> memoryview:
        self.touched = self._socket.now
        body, stop = self._body, self._received + len(data)
        if body is None or stop > len(body):
            # Twice as much each time, so that a body of unknown length is copied about once.
            size = self.exchange.head.length or max(2 * stop, _FIRST_BYTES)
            body = self.exchange.app.pool.take(size)
            if self._body is not None:
                body[: self._received] = self._body[: self._received]
            self._body = body
        body[self._received : stop] = data
        self._received = stop
        return body

    def resume(self) -> None:
        """Everything that was to be sent is on its way; the pieces of a stream that wait follow."""
        if self.exchange.pieces:
            self._socket.ready(self.exchange)

    def abandon(self) -> None:
        """The client is gone or does not want the answer any more."""
        self._body = None
        self.exchange.abandon()

    def expire(self) -> None:
        """The body has stopped coming."""
        self.exchange.fail(DeadlineExceeded("the rest of the request did not come"))

    def sweep(self, now: int) -> None:
        """The engine watches the deadline."""

    def drain(self) -> None:
        """It ends by itself."""


@lru_cache(maxsize=256)
def head_block(status: int, headers: bytes, length: int = -1) -> bytes:
    """The header block of an answer; `headers` are HTTP/1.1 lines, a length of -1 is not told."""
    fields = [(":status", str(status))]
    for line in headers.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(": ")
        fields.append((name.lower(), value))
    if length >= 0:
        fields.append(("content-length", str(length)))
    return encode(fields)
