"""HTTP/1.1 connections (RFC 9112): keep-alive, pipelining, chunked bodies, 100-continue.

One receive buffer serves all connections, because what arrives is taken out of it at once; bodies
that do not fit are received straight into pooled memory. Answers leave in the order of requests,
all of one turn of the loop in a single write.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from salver.codecs.json_numbers import dumps
from salver.codecs.status import REASONS
from salver.errors import SalverError
from salver.interfaces import JSON_HEADERS, HttpAnswer
from salver.server.bodies import ChunkedBody, compress
from salver.server.exchange import Exchange
from salver.server.http2_socket import Http2Socket

if TYPE_CHECKING:
    import ssl

    from salver.server.app import App
    from salver.server.head import HttpHead

log = logging.getLogger("salver.server")
_STAGING: Final = memoryview(bytearray(256 << 10))
_STATUS: Final = {
    status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in REASONS.items()
}
_OK_JSON: Final = _STATUS[200] + JSON_HEADERS
_DIRECT_BYTES: Final = 8192
_JOINED_BYTES: Final = 1 << 16
_COMPRESSED_BYTES: Final = 1024
_MAX_REST: Final = 1 << 20
PREFACE_HEAD: Final = b"PRI * HTTP/2.0\r\n\r\n"


class Http1Connection(asyncio.BufferedProtocol):
    """One connection. `idle_since` is when it last did something, for the sweep."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.idle_since = app.clock()
        self._rest = b""
        self._head: HttpHead | None = None
        self._body: memoryview | None = None
        self._received = 0
        self._chunked: ChunkedBody | None = None
        self._exchanges: deque[Exchange] = deque()
        self._out: list[Any] = []
        self._is_closing = False
        self._is_discarding = False
        self._is_writable = True
        self._num_requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.app.opened(self)
        secure: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if secure is not None and secure.selected_alpn_protocol() == "h2":
            self._switch_to_http2(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self.app.closed(self)
        for exchange in self._exchanges:
            exchange.abandon()
        self._exchanges.clear()
        self._out.clear()

    def eof_received(self) -> bool:
        # A client may close its side and still wait for its answers.
        if not self._exchanges:
            return False
        self._is_closing = True
        self._is_discarding = True
        return True

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None:
            return self._body[self._received :]
        return _STAGING

    def buffer_updated(self, nbytes: int) -> None:
        self.idle_since = self.app.now
        try:
            if self._body is not None:
                self._received += nbytes
                if self._received == len(self._body):
                    self._finish_body()
            elif not self._is_discarding:
                data = bytes(_STAGING[:nbytes])
                self._parse(self._rest + data if self._rest else data)
        except Exception:
            log.exception("a bug in a connection")
            self.transport.abort()

    def _finish_body(self) -> None:
        head, body = self._head, self._body
        self._head, self._body, self._received = None, None, 0
        assert head is not None
        self._start(head, body)

    def _parse(self, data: bytes) -> None:
        """Takes as many requests out of `data` as are complete; keeps the rest."""
        position, size = 0, len(data)
        self._rest = b""
        while position < size and not self._is_discarding:
            if self._chunked is not None:
                position = self._feed_chunked(data, position)
                continue
            if len(self._exchanges) >= self.app.config.limits.pipelined:
                break
            end = data.find(b"\r\n\r\n", position) + 4
            if end < 4:
                if not self._awaits_head(data, position):
                    return
                break
            raw = data[position:end] if position or end < size else data
            if not position and raw == PREFACE_HEAD and not self._num_requests:
                self._switch_to_http2(data)
                return
            if len(raw) > self.app.config.limits.header_bytes:
                self._refuse_head()
                return
            position = self._take(self.app.heads.read(raw), data, end)
        if position < size and not self._is_discarding:
            self._keep(data, position)

    def _switch_to_http2(self, data: bytes) -> None:
        """The client speaks HTTP/2 by prior knowledge (RFC 9113 section 3.3)."""
        self.app.closed(self)
        connection = Http2Socket(self.app)
        self.transport.set_protocol(connection)
        connection.take_over(self.transport, data)

    def _awaits_head(self, data: bytes, position: int) -> bool:
        """Whether more of a head may come. Empty lines in front of it are skipped by clients."""
        if len(data) - position > self.app.config.limits.header_bytes:
            self._refuse_head()
            return False
        return True

    def _keep(self, data: bytes, position: int) -> None:
        self._rest = data[position:]
        if len(self._rest) > _MAX_REST:
            # Pausing hides a client's departure, so it is the last resort of a flooded pipeline.
            self.transport.pause_reading()

    def _take(self, head: HttpHead, data: bytes, position: int) -> int:
        """Starts the request of `head`, or prepares for its body; returns where data goes on."""
        length = head.length
        if head.must_close:
            self._is_discarding = True
            self._start(head, b"")
            return len(data)
        if not length:
            self._start(head, b"")
            return position
        available = len(data) - position
        if 0 < length <= available:
            self._start(head, data[position : position + length])
            return position + length
        if head.expects_continue and not available:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if length < 0:
            self._head = head
            self._chunked = ChunkedBody(self.app.config.limits.body_bytes)
            return position
        self._head = head
        self._body = self.app.pool.take(length)
        self._body[:available] = data[position:]
        self._received = available
        return len(data)

    def _feed_chunked(self, data: bytes, position: int) -> int:
        chunked, head = self._chunked, self._head
        assert chunked is not None
        assert head is not None
        try:
            rest = chunked.feed(data[position:] if position else data)
        except SalverError as error:
            self._chunked = self._head = None
            self._is_discarding = True
            exchange = Exchange(self.app, self, head)
            self._is_closing = True
            self._exchanges.append(exchange)
            exchange.fail(error)
            return len(data)
        if rest is None:
            return len(data)
        self._chunked = self._head = None
        self._start(head, chunked.body)
        return len(data) - len(rest)

    def _start(self, head: HttpHead, body: Any) -> None:
        self._num_requests += 1
        exchange = Exchange(self.app, self, head)
        self._exchanges.append(exchange)
        if not head.keep_alive or head.must_close or self.app.is_draining:
            self._is_closing = True
            self._is_discarding = True
        exchange.run(body)

    def _refuse_head(self) -> None:
        self._is_closing = self._is_discarding = True
        message = f"the request head has more than {self.app.config.limits.header_bytes} bytes"
        text = dumps({"error": message})
        self._out += [
            _STATUS[431],
            JSON_HEADERS,
            b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(text),
            text,
        ]
        self.app.dirty(self)

    def ready(self, exchange: Exchange) -> None:
        """An exchange has something to send: everything that is in order goes out."""
        exchanges = self._exchanges
        if not exchanges or exchange is not exchanges[0]:
            return
        while exchanges:
            first = exchanges[0]
            if first.pieces is not None:
                self._stream(first)
            elif first.answer is not None:
                self._answer(first, first.answer)
            if first.is_open:
                break
            exchanges.popleft()
        self.app.dirty(self)

    def _answer(self, exchange: Exchange, answer: HttpAnswer) -> None:
        head, out = exchange.head, self._out
        parts = answer.body
        length = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        headers = answer.headers
        if head.accepts and length > _COMPRESSED_BYTES:
            parts = [compress(list(parts), head.accepts)]
            length = len(parts[0])
            headers += b"Content-Encoding: %b\r\nVary: Accept-Encoding\r\n" % head.accepts.encode()
        headers += self.app.common_headers(head)
        if self._is_closing and len(self._exchanges) == 1:
            headers += b"Connection: close\r\n"
        elif head.version == "1.0":
            headers += b"Connection: keep-alive\r\n"
        if headers is JSON_HEADERS and answer.status == 200:
            out.append(b"%bContent-Length: %d\r\n\r\n" % (_OK_JSON, length))
        elif answer.status == 204:
            out.append(b"%b%b\r\n" % (_STATUS[204], headers))
        else:
            status = _STATUS.get(answer.status) or b"HTTP/1.1 %d \r\n" % answer.status
            out.append(b"%b%bContent-Length: %d\r\n\r\n" % (status, headers, length))
        if head.method != "HEAD":
            out += parts
        self.app.answered(exchange, answer.status, length)

    def _stream(self, exchange: Exchange) -> None:
        """Sends the pieces there are as chunks; the head with the first, the end with the last."""
        out, pieces, answer = self._out, exchange.pieces, exchange.answer
        assert pieces is not None
        if answer is not None:
            headers = answer.headers + self.app.common_headers(exchange.head)
            out.append(b"%b%bTransfer-Encoding: chunked\r\n\r\n" % (_STATUS[200], headers))
            exchange.answer = None
        for piece in pieces:
            out.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        pieces.clear()
        if not exchange.is_open:
            out.append(b"0\r\n\r\n")
            self.app.answered(exchange, 200, 0)

    def flush(self) -> None:
        """Writes what is ready, in one system call where possible."""
        out = self._out
        if out and not self.transport.is_closing():
            self._out = []
            if len(out) <= 4 and sum(map(len, out)) > _JOINED_BYTES:
                self.transport.writelines(out)
            else:
                self.transport.write(b"".join(out))
        self.idle_since = self.app.now
        if not self._exchanges:
            if self._is_closing:
                self._close()
            elif self._rest:
                self._resume()
        elif self._rest and len(self._exchanges) < self.app.config.limits.pipelined:
            self._resume()

    def _resume(self) -> None:
        if not self.transport.is_reading():
            self.transport.resume_reading()
        if self._body is None and b"\r\n\r\n" in self._rest:
            self._parse(self._rest)

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        self.app.dirty(self)

    def _close(self) -> None:
        """Closes so that the client can still read the last answer."""
        if self._is_discarding and self.transport.can_write_eof() and not self._received:
            self.transport.write_eof()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True

    def sweep(self, now: int) -> None:
        """Closes what has been silent for too long."""
        silent_s = (now - self.idle_since) / 1e9
        limits = self.app.config.limits
        if self._is_discarding and not self._exchanges:
            if silent_s > 1:
                self.transport.close()
        elif self._body is not None or self._chunked is not None:
            if silent_s > limits.body_timeout_s:
                self.transport.abort()
        elif self._rest:
            if not self._exchanges and silent_s > limits.header_timeout_s:
                self.transport.abort()
        elif not self._exchanges and silent_s > limits.idle_timeout_s:
            self.transport.close()

    def drain(self) -> None:
        """The server stops: no further requests; closes as soon as the last answer is out."""
        self._is_closing = True
        if not self._exchanges and self._body is None and self._chunked is None:
            self.transport.close()
