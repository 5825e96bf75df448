"""HTTP/2 connections on a socket: gRPC calls, and the same endpoints that HTTP/1.1 has."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

from salver.clock import NS_PER_S
from salver.codecs.status import grpc_status
from salver.errors import SalverError, TooLarge, Unsupported
from salver.protocols.kserve_v2_grpc import methods
from salver.server.exchange import Exchange
from salver.server.grpc import ANSWER_BLOCK, OK_BLOCK, CallHead, error_block, is_grpc
from salver.server.grpc_call import CALLS
from salver.server.head import check_key
from salver.server.hpack import encode
from salver.server.http2 import Http2Connection, Http2Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.server.app import App
    from salver.server.head import HttpHead
    from salver.server.http2_head import RequestHead
    from salver.server.stream import Stream
    from salver.types import Buffer

log = logging.getLogger("salver.server")
_STAGING: Final = memoryview(bytearray(256 << 10))
_JOINED_BYTES: Final = 1 << 16
_KEPT_BACK_BYTES: Final = 1 << 20
"""Unsent bytes of a stream at which its further pieces wait in the exchange."""
_HEALTH: Final = "/grpc.health.v1.Health/"
METHODS: Final = {method.path: method for method in methods()}


class HttpRequest:
    """A request that is no gRPC call: gathers its body and answers through an exchange."""

    def __init__(self, socket: Http2Socket, stream: Stream, head: HttpHead) -> None:
        app = socket.app
        self.socket = socket
        self.touched = app.now
        self._max_bytes = app.config.limits.body_bytes
        self._body = bytearray()
        self.exchange = Exchange(app, socket, head)
        self.exchange.stream = stream

    def feed(self, data: Buffer, end_stream: bool) -> None:
        exchange = self.exchange
        self.touched = exchange.app.now
        if not exchange.is_open:
            return
        if len(self._body) + len(data) > self._max_bytes:
            exchange.fail(TooLarge(f"the body has more than {self._max_bytes} bytes"))
            return
        self._body += data
        if end_stream:
            exchange.run(self._body)

    def resume(self) -> None:
        """Everything that was to be sent is on its way; the pieces of a stream that wait follow."""
        if self.exchange.pieces:
            self.socket.ready(self.exchange)

    def abandon(self) -> None:
        self.exchange.abandon()

    def sweep(self, now: int) -> None:
        """The engine watches the deadline."""


class Http2Socket(asyncio.BufferedProtocol):
    """One connection: the transport's side of `Http2Connection`, and the handler of its streams."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.idle_since = app.now
        limits = app.config.limits
        own = Http2Limits(
            streams=limits.streams,
            header_bytes=limits.header_bytes,
            headers=limits.headers,
            held_bytes=2 * limits.body_bytes,
        )
        self._http2 = Http2Connection(self, own, app.clock())
        self._sender = self._http2.sender

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.app.opened(self)
        self.app.dirty(self)

    def take_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Goes on with a connection that began as another protocol's, which had read `data`."""
        self.transport = transport
        self.app.opened(self)
        self.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.app.closed(self)
        self._http2.connection_lost()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _STAGING

    def buffer_updated(self, nbytes: int) -> None:
        self.receive(_STAGING[:nbytes])

    def receive(self, data: Buffer) -> None:
        """Reads what came."""
        self.idle_since = self.app.now
        try:
            self._http2.receive(data, self.app.clock())
        except Exception:
            log.exception("a bug in a connection")
            self.transport.abort()
            return
        if self._sender.has_output or self._http2.finished:
            self.app.dirty(self)

    def pause_writing(self) -> None:
        self._sender.pause_output()

    def resume_writing(self) -> None:
        self._sender.resume_output()
        self.app.dirty(self)

    def flush(self) -> None:
        """Writes what is ready, in one system call where possible."""
        while (out := self._sender.take_output()) and not self.transport.is_closing():
            if sum(map(len, out)) > _JOINED_BYTES:
                self.transport.writelines(out)
            else:
                self.transport.write(b"".join(out))
        if self._http2.finished:
            self.transport.close()

    def sweep(self, now: int) -> None:
        """Ends streams and connections that have been silent for too long."""
        limits = self.app.config.limits
        silent_s = (now - self.idle_since) / NS_PER_S
        http2 = self._http2
        if http2.mid_head and silent_s > limits.header_timeout_s:
            self.transport.abort()
            return
        if not http2.streams and silent_s > limits.idle_timeout_s:
            http2.shutdown()
        for stream in tuple(http2.streams.values()):
            call = stream.call
            if call is None:
                continue
            call.sweep(now)
            if stream.receiving and (now - call.touched) / NS_PER_S > limits.body_timeout_s:
                self._expire(stream, call)
        self.app.dirty(self)

    def _expire(self, stream: Stream, call: Any) -> None:
        """A body that stopped coming ends its stream; streams of messages may be quiet."""
        if isinstance(call, HttpRequest):
            call.abandon()
            self._http2.reset(stream, 8)

    def drain(self) -> None:
        """The server stops: GOAWAY, then the end once the last stream is answered."""
        self._http2.shutdown()
        self.app.dirty(self)

    # The handler's side.

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        """A new request."""
        try:
            if head.note is None:
                head.note = self._understand(head)
            make, meaning = head.note
            stream.call = make(self, stream, meaning)
        except SalverError as error:
            self.send_status(stream, grpc_status(error), error.message)
            return
        if end_stream:
            stream.call.feed(b"", True)

    def _understand(self, head: RequestHead) -> tuple[Any, Any]:
        """What answers a request, and what its head means to it; kept for the same head's return.

        Raises: SalverError for a gRPC call that its head rules out.
        """
        app = self.app
        if not is_grpc(head):
            http_head = app.heads.of_http2(head)
            http_head.common_headers = app.common_headers(http_head)
            return HttpRequest, http_head
        call_head = CallHead(head)
        method = METHODS.get(call_head.path)
        if method is None:
            raise Unsupported(f"there is no gRPC method {call_head.path[:200]!r}")
        if app.config.api_key and not call_head.path.startswith(_HEALTH):
            check_key(head.headers, app.config.api_key)
        call_head.method = method
        return CALLS[method.kind], call_head

    def on_data(self, stream: Stream, data: Buffer, end_stream: bool) -> None:
        """A piece of a request's body."""
        if stream.call is not None:
            stream.call.feed(data, end_stream)

    def on_reset(self, stream: Stream, code: int) -> None:
        """The client does not want the answer any more."""
        if stream.call is not None:
            stream.call.abandon()

    def on_writable(self, stream: Stream) -> None:
        """What was sent of a stream has been taken for writing."""
        if stream.call is not None:
            stream.call.resume()

    def on_goaway(self, code: int) -> None:
        """The client makes no further requests."""

    # Answers.

    def send_unary(self, stream: Stream, parts: Sequence[Buffer]) -> None:
        """One message and the status OK."""
        self._sender.send_unary(stream, ANSWER_BLOCK, parts, OK_BLOCK)
        self.app.dirty(self)

    def send_status(self, stream: Stream, code: int, message: str) -> None:
        """The only thing that a failed call sends."""
        self._sender.send_headers(stream, error_block(code, message), end_stream=True)
        self.app.dirty(self)

    def begin(self, stream: Stream) -> None:
        """The head of an answer that will have several messages."""
        self._sender.send_headers(stream, ANSWER_BLOCK)
        self.app.dirty(self)

    def send(self, stream: Stream, parts: Sequence[Buffer]) -> None:
        """Some of the messages."""
        self._sender.send_data(stream, parts)
        self.app.dirty(self)

    def finish(self, stream: Stream, trailers: bytes) -> None:
        """The status behind the messages."""
        self._sender.send_trailers(stream, trailers)
        self.app.dirty(self)

    def consumed(self, stream: Stream, num_bytes: int) -> None:
        """Bytes of a stream of messages were used."""
        self._http2.consumed(stream, num_bytes)

    def ready(self, exchange: Exchange) -> None:
        """An exchange has something to send."""
        stream, answer = exchange.stream, exchange.answer
        if stream is None or (answer is None and exchange.pieces is None):
            return
        if answer is not None:
            self._send_head(stream, exchange)
        is_behind = exchange.is_open and stream.queued > _KEPT_BACK_BYTES
        if exchange.pieces is not None and not is_behind:
            self._sender.send_data(stream, exchange.take_pieces(), end_stream=not exchange.is_open)
        self.app.dirty(self)

    def _send_head(self, stream: Stream, exchange: Exchange) -> None:
        answer = exchange.answer
        assert answer is not None
        exchange.answer = None
        headers = answer.headers + exchange.head.common_headers
        length = sum(map(len, answer.body))
        has_body = exchange.head.method != "HEAD" and length > 0
        if exchange.pieces is None:
            block = _head_block(answer.status, headers, length)
            self._sender.send_headers(stream, block, end_stream=not has_body)
            if has_body:
                self._sender.send_data(stream, answer.body, end_stream=True)
            self.app.answered(exchange, answer.status, length)
        else:
            self._sender.send_headers(stream, _head_block(answer.status, headers, -1))


@lru_cache(maxsize=256)
def _head_block(status: int, headers: bytes, length: int) -> bytes:
    """The header block of an answer; `headers` are HTTP/1.1 lines."""
    fields = [(":status", str(status))]
    for line in headers.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(": ")
        fields.append((name.lower(), value))
    if length >= 0:
        fields.append(("content-length", str(length)))
    return encode(fields)
