"""HTTP/2 connections on a socket: gRPC calls, and the same endpoints that HTTP/1.1 has."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, cast

from salver.clock import NS_PER_S
from salver.codecs.status import grpc_status
from salver.errors import SalverError, Unsupported
from salver.protocols.kserve_v2_grpc import methods
from salver.server.compression import compressed
from salver.server.grpc.stream import StreamCall, WatchCall
from salver.server.grpc.unary import UnaryCall
from salver.server.grpc.wire import OK_BLOCK, CallHead, error_block, is_grpc, request_id_of
from salver.server.head import check_key
from salver.server.http2.connection import Http2Connection
from salver.server.http2.frames import MAX_WINDOW_BYTES
from salver.server.http2.limits import Http2Limits
from salver.server.http2.request import HttpRequest, head_block
from salver.server.inflation import InflationGate
from salver.server.unread import Unread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.interfaces import HttpAnswer
    from salver.server.app import App
    from salver.server.exchange import Exchange
    from salver.server.http2.head import RequestHead
    from salver.server.http2.hpack import HeaderListTooLarge
    from salver.server.http2.stream import Stream
    from salver.types import Buffer

log = logging.getLogger("salver.server")
_STAGING: Final = memoryview(bytearray(256 << 10))
_COPIED_BYTES: Final = 16 << 10
_JOINED_BYTES: Final = 1 << 16
_KEPT_BACK_BYTES: Final = 1 << 20
"""Unsent bytes of a stream at which its further pieces wait in the exchange."""
_CLOSE_S: Final = 5
"""Longest wait for a client to read on when all is said."""
_HEALTH: Final = "/grpc.health.v1.Health/"
_CALLS: Final = {"unary": UnaryCall, "stream": StreamCall, "watch": WatchCall}
METHODS: Final = {method.path: method for method in methods()}


class Http2Socket(asyncio.BufferedProtocol):
    """One connection: the transport's side of `Http2Connection`, and the handler of its streams.

    `now` is when something was received last.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.now = app.clock()
        limits = app.config.limits
        self.inflation = InflationGate(limits, outer=app.inflation)
        own = Http2Limits(
            streams=limits.streams,
            header_bytes=limits.header_bytes,
            headers=limits.headers,
            held_bytes=self._held_bytes,
        )
        self._http2 = Http2Connection(self, own, self.now)
        self._sender = self._http2.sender
        self._unread = Unread()

    @property
    def _held_bytes(self) -> int:
        """What its bodies may hold that are still received, or not answered yet."""
        return min(2 * self.app.config.limits.body_bytes, MAX_WINDOW_BYTES)

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.app.opened(self)
        self.app.dirty(self)

    def take_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Goes on with a connection that began as another protocol's, which had read `data`."""
        self.connection_made(transport)
        self.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.app.closed(self)
        self._http2.connection_lost()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _STAGING

    def buffer_updated(self, nbytes: int) -> None:
        # Bytes are faster to take apart than a view; many of them are not worth the copy.
        data = _STAGING[:nbytes]
        self.receive(data.tobytes() if nbytes <= _COPIED_BYTES else data)

    def receive(self, data: Buffer) -> None:
        """Reads what came."""
        self.now = self.app.clock()
        try:
            self._http2.receive(data, self.now)
        except Exception:
            log.exception("a bug in a connection")
            self.transport.abort()
            return
        if self._sender.has_output or self._http2.finished:
            self.app.dirty(self)
        else:
            self.app.flush_soon()

    def pause_writing(self) -> None:
        self._sender.pause_output()

    def resume_writing(self) -> None:
        self._sender.resume_output()
        self.app.dirty(self)

    def flush(self) -> None:
        """Writes what is ready, in one system call where possible."""
        transport = self.transport
        while out := self._sender.take_output():
            if len(out) == 1:
                transport.write(out[0])
            elif sum(map(len, out)) > _JOINED_BYTES:
                transport.writelines(out)
            else:
                transport.write(b"".join(out))
        if self._http2.finished:
            transport.close()

    def sweep(self, now: int) -> None:
        """Ends streams and connections that have been silent for too long."""
        limits, http2 = self.app.config.limits, self._http2
        silent_s = (now - self.now) / NS_PER_S
        if self._is_stuck(now) or (http2.mid_head and silent_s > limits.header_timeout_s):
            self.transport.abort()
            return
        http2.sweep(now, int(limits.body_timeout_s * NS_PER_S))
        http2.widen(self._held_bytes)
        if not http2.streams and silent_s > limits.idle_timeout_s:
            http2.shutdown(now)
        for stream in tuple(http2.streams.values()):
            call = stream.call
            if call is None:
                continue
            call.sweep(now)
            if stream.receiving and (now - call.touched) / NS_PER_S > limits.body_timeout_s:
                call.expire()
        self.app.dirty(self)

    def _is_stuck(self, now: int) -> bool:
        """Whether the client has stopped reading."""
        self._unread.look(self.transport, now)
        timeout_s = _CLOSE_S if self._http2.finished else self.app.config.limits.body_timeout_s
        return self._unread.has_stalled(now, timeout_s)

    def drain(self) -> None:
        """The server stops: GOAWAY, then the end once the last stream is answered."""
        self._http2.shutdown(self.app.clock())
        for stream in tuple(self._http2.streams.values()):
            if stream.call is not None:
                stream.call.drain()
        self.app.dirty(self)

    # The handler's side.

    def on_request(self, stream: Stream, head: RequestHead, body: Buffer | None) -> None:
        """A new request."""
        try:
            make, meaning = head.note or self._understand(head)
        except SalverError as error:
            self.fail(stream, error, request_id_of(head))
            return
        call = stream.call = make(self, stream, meaning)
        if body is None:
            call.wait()
        else:
            call.feed(body, True)

    def _understand(self, head: RequestHead) -> tuple[Any, Any]:
        """What answers a request, and what its head means to it; kept for the same head's return.

        Raises: SalverError for a gRPC call that its head rules out.
        """
        app = self.app
        if not is_grpc(head.headers):
            http_head = app.heads.of_http2(head)
            http_head.common_headers = app.common_headers(http_head)
            note: tuple[Any, Any] = (HttpRequest, http_head)
            head.note = note
            return note
        if app.config.api_key and not head.path.startswith(_HEALTH):
            check_key(head.headers, app.config.api_key)
        call_head = CallHead(head)
        method = call_head.method = METHODS.get(head.path)
        if method is None:
            raise Unsupported(f"there is no gRPC method {head.path[:200]!r}")
        head.note = note = (_CALLS[method.kind], call_head)
        return note

    def refusal(self, error: HeaderListTooLarge) -> bytes:
        """The header block that answers a request whose head says more than is allowed."""
        if is_grpc(dict(error.fields)):
            return error_block(grpc_status(error), error.message)
        return head_block(431, b"")

    def on_data(self, stream: Stream, data: Buffer, end_stream: bool) -> None:
        """A piece of a request's body."""
        if stream.call is not None:
            stream.call.feed(data, end_stream)

    def on_reset(self, stream: Stream, code: int) -> None:
        """The client does not want the answer any more."""
        call, stream.call = stream.call, None
        if call is not None:
            call.abandon()

    def on_writable(self, stream: Stream) -> None:
        """What was sent of a stream has been taken for writing."""
        if stream.call is not None:
            stream.call.resume()

    # What calls ask for.

    def send_unary(self, stream: Stream, block: bytes, parts: Sequence[Buffer]) -> None:
        """One message, with the head before it and the status OK behind it."""
        self._sender.send_unary(stream, block, parts, OK_BLOCK)
        self.app.dirty(self)

    def fail(self, stream: Stream, error: SalverError, request_id: str) -> None:
        """The only thing that a failed call sends."""
        block = error_block(grpc_status(error), error.message, request_id)
        self._sender.send_headers(stream, block, end_stream=True)
        self.app.dirty(self)

    def send_head(self, stream: Stream, block: bytes) -> None:
        """A head that does not end the answer."""
        self._sender.send_headers(stream, block)
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

    def pause(self, stream: Stream) -> None:
        """The stream has more than enough to do."""
        self._http2.pause(stream)

    def resume(self, stream: Stream) -> None:
        """The stream takes more."""
        self._http2.resume(stream)
        self.app.dirty(self)

    def ready(self, exchange: Exchange) -> None:
        """An exchange has something to send."""
        stream, answer = exchange.stream, exchange.answer
        if stream is None:
            return
        if exchange.pieces is not None:
            self._stream(stream, exchange)
        elif answer is not None:
            self._answer(stream, exchange, answer)
        self.app.dirty(self)

    def _answer(self, stream: Stream, exchange: Exchange, answer: HttpAnswer) -> None:
        """A whole answer."""
        head = exchange.head
        answer = compressed(answer, head.accepts)
        status, parts = answer.status, answer.body
        length = sum(map(len, parts))
        headers = answer.headers + head.common_headers
        block = head_block(status, headers, length if status != 204 else -1)
        has_body = length > 0 and head.method != "HEAD"
        self._sender.send_headers(stream, block, end_stream=not has_body)
        if has_body:
            self._sender.send_data(stream, parts, end_stream=True)
        self.app.answered(exchange, status, length)

    def _stream(self, stream: Stream, exchange: Exchange) -> None:
        """What there is of a streaming answer."""
        answer, exchange.answer = exchange.answer, None
        if answer is not None:
            headers = answer.headers + exchange.head.common_headers
            self._sender.send_headers(stream, head_block(answer.status, headers))
        if exchange.is_open and stream.queued > _KEPT_BACK_BYTES:
            return
        self._sender.send_data(stream, exchange.take_pieces(), end_stream=not exchange.is_open)
        if not exchange.is_open:
            self.app.answered(exchange, 200, 0)
