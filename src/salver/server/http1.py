"""HTTP/1.1 connections (RFC 9112): keep-alive, pipelining, chunked bodies, 100-continue.

One receive buffer serves all connections, because what arrives is taken out of it at once; bodies
that do not fit are received straight into pooled memory. Answers leave in the order of requests,
all of one turn of the loop in a single write.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

from salver.clock import NS_PER_S
from salver.codecs.json_numbers import dumps
from salver.codecs.status import REASONS
from salver.errors import SalverError
from salver.interfaces import JSON_HEADERS, HttpAnswer
from salver.server.bodies import ChunkedBody
from salver.server.compression import compressed
from salver.server.exchange import Exchange
from salver.server.head import HttpHead
from salver.server.http2.socket import Http2Socket
from salver.server.unread import Unread

if TYPE_CHECKING:
    import ssl

    from salver.server.app import App

log = logging.getLogger("salver.server")
_STAGING: Final = memoryview(bytearray(64 << 10))
_STATUS: Final = {
    status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in REASONS.items()
}
_JOINED_BYTES: Final = 1 << 16
PREFACE_HEAD: Final = b"PRI * HTTP/2.0\r\n\r\n"
_MAX_REST: Final = 1 << 18
_MAX_PIPELINED_BYTES: Final = 1 << 20
"""Of bodies, inflated, whose answers are due on one connection, before another is started."""
_LINGER_S: Final = 10
_LINGER_SILENT_S: Final = 1


class Http1Connection(asyncio.BufferedProtocol):
    """One connection, which ends by `_is_closing` after its last answer.

    While `_is_discarding`, what arrives is thrown away; `_lingers` says that more of it may come.
    `_rest` is received but not yet parsed, and has not moved on since `_rest_since`.
    """

    __slots__ = (
        "_body", "_chunked", "_closed_at", "_exchanges", "_head", "_is_closing", "_is_discarding",
        "_is_writable", "_known_head", "_lingers", "_max_pipelined", "_out", "_owes_continue",
        "_received", "_rest", "_rest_since", "_unread", "app", "idle_since", "inflation",
        "transport",
    )  # fmt: skip

    def __init__(self, app: App) -> None:
        self.app = app
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.idle_since = app.clock()
        """When something was received or written last, for the sweep."""
        self.inflation = app.inflation
        self._known_head = app.heads.known
        self._max_pipelined = app.config.limits.pipelined
        self._rest = b""
        self._rest_since = 0
        self._head: HttpHead | None = None
        self._body: memoryview | None = None
        self._received = 0
        self._chunked: ChunkedBody | None = None
        self._exchanges: deque[Exchange] = deque()
        self._out: list[Any] = []
        self._unread = Unread()
        self._owes_continue = False
        self._is_writable = True
        self._is_closing = False
        self._is_discarding = False
        self._lingers = False
        self._closed_at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.app.opened(self)
        secure: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if secure is not None and secure.selected_alpn_protocol() == "h2":
            self._switch_to_http2(b"")

    def _switch_to_http2(self, data: bytes) -> None:
        """The client speaks HTTP/2: by TLS, or by prior knowledge (RFC 9113 section 3.3)."""
        self.app.closed(self)
        self._is_discarding = True
        connection = Http2Socket(self.app)
        self.transport.set_protocol(connection)
        connection.take_over(self.transport, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.app.closed(self)
        self._out.clear()
        self._abandon()

    def eof_received(self) -> None:
        """A client that closes only its own side looks like one that is gone, and is taken for it.

        What is ready still leaves, except under TLS; then the transport closes itself.
        """
        self._abandon()
        self.flush()

    def _abandon(self) -> None:
        """Ends the exchanges, whose answers nobody waits for, and forgets half of a request."""
        self._is_discarding = True
        exchanges = tuple(self._exchanges)
        self._exchanges.clear()
        self._rest, self._head, self._body, self._chunked = b"", None, None, None
        for exchange in exchanges:
            exchange.abandon()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None:
            return self._body[self._received :]
        return _STAGING

    def buffer_updated(self, nbytes: int) -> None:
        self.idle_since = self.app.now
        if self._body is None:
            if not self._is_discarding:
                data = _STAGING[:nbytes].tobytes()
                self._parse(self._rest + data if self._rest else data)
            return
        self._received += nbytes
        if self._received == len(self._body):
            body, head = self._body, self._head
            self._body, self._head = None, None
            assert head is not None
            self._start(head, body)

    def _parse(self, data: bytes) -> None:
        """Takes as many requests out of `data` as are complete and wanted; keeps the rest."""
        try:
            position = self._take_requests(data)
            self.app.flush_soon()
        except Exception:
            # Nothing that a client sends may end the loop's turn for other connections.
            log.exception("a bug in a connection")
            self._is_discarding = True
            self.transport.abort()
            return
        if position == len(data) or self._is_discarding:
            self._rest, self._rest_since = b"", 0
            return
        self._rest = data[position:]
        if position or not self._rest_since:
            self._rest_since = self.app.now
        if len(self._rest) > _MAX_REST:
            # Pausing hides a client's departure, so only a flooded pipeline comes to that.
            self.transport.pause_reading()

    def _take_requests(self, data: bytes) -> int:
        """Starts the requests in `data`; returns where what is left of it begins."""
        position, size = 0, len(data)
        while position < size and not self._is_discarding:
            if self._chunked is not None:
                position = self._feed_chunked(self._chunked, data, position)
                continue
            if (self._exchanges or self._out or not self._is_writable) and self._is_full():
                break
            end = data.find(b"\r\n\r\n", position) + 4
            if end < 4:
                if size - position > self.app.config.limits.header_bytes:
                    self._refuse_head()
                break
            if end - position == 4:
                # Empty lines in front of a request are skipped (RFC 9112 section 2.2).
                position = end
                continue
            raw = data[position:end]
            head = self._known_head(raw)
            if head is None:
                if raw == PREFACE_HEAD and not (self._exchanges or self._out):
                    self._switch_to_http2(data[position:])
                    break
                head = self._read_head(raw)
                if head is None:
                    break
            stop = end + head.length
            if head.must_close:
                self._stop_reading()
                self._start(head, b"")
            elif end <= stop <= size:
                self._start(head, data[end:stop])
                position = stop
            else:
                position = self._await_body(head, data, end)
        return position

    def _is_full(self) -> bool:
        """Whether the client must take answers before more of its requests are started."""
        return (
            len(self._exchanges) >= self._max_pipelined
            or len(self._out) >= 2 * self._max_pipelined
            or not self._is_writable
            or sum([exchange.head.weight for exchange in self._exchanges]) > _MAX_PIPELINED_BYTES
        )

    def _read_head(self, raw: bytes) -> HttpHead | None:
        """The head in bytes that were not seen before; None if there are too many of them."""
        heads, limits = self.app.heads, self.app.config.limits
        if len(raw) > limits.header_bytes or raw.count(b"\n") > limits.headers + 2:
            self._refuse_head()
            return None
        head = heads.read(raw)
        head.common_headers = self.app.common_headers(head)
        head.is_plain = (
            head.version == "1.1"
            and head.method != "HEAD"
            and not (head.accepts or head.common_headers)
        )
        heads.remember(raw, head)
        return head

    def _await_body(self, head: HttpHead, data: bytes, position: int) -> int:
        """Prepares for the rest of a body; returns where what is not yet part of it begins."""
        self._head = head
        limits = self.app.config.limits
        available = len(data) - position
        self._owes_continue = head.expects_continue and not available
        if self._owes_continue and not self._exchanges:
            self._send_continue()
        if head.length < 0:
            self._chunked = ChunkedBody(limits.body_bytes)
            return position
        self._body = self.app.pool.take(head.length)
        self._body[:available] = data[position:]
        self._received = available
        return len(data)

    def _send_continue(self) -> None:
        self._owes_continue = False
        self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.app.dirty(self)

    def _feed_chunked(self, chunked: ChunkedBody, data: bytes, position: int) -> int:
        head = self._head
        assert head is not None
        try:
            rest = chunked.feed(data[position:])
        except SalverError as error:
            self._stop_reading()
            self._exchanges.append(exchange := Exchange(self.app, self, head))
            exchange.fail(error)
            return len(data)
        if rest is None:
            return len(data)
        self._chunked = self._head = None
        # Its length is known now, and counts for what is due; the head may stand for others too.
        head = copy(head)
        head.weigh(len(chunked.body))
        self._start(head, chunked.body)
        return len(data) - len(rest)

    def _start(self, head: HttpHead, body: Any) -> None:
        exchange = Exchange(self.app, self, head)
        self._exchanges.append(exchange)
        if not head.keep_alive or self.app.is_draining:
            self._is_closing = self._is_discarding = True
        exchange.run(body)

    def _stop_reading(self) -> None:
        """What the client still sends belongs to a request that is refused."""
        self._is_closing = self._is_discarding = self._lingers = True

    def _refuse_head(self) -> None:
        """Answers 431, in its turn."""
        self._stop_reading()
        limits = self.app.config.limits
        message = (
            f"the request head is too large: at most {limits.header_bytes} bytes and "
            f"{limits.headers} fields are taken"
        )
        answer = HttpAnswer(431, JSON_HEADERS, [dumps({"error": message})])
        self._exchanges.append(exchange := Exchange(self.app, self, HttpHead()))
        exchange.send(answer)

    def ready(self, exchange: Exchange) -> None:
        """An exchange has something to send: everything that is in order goes out."""
        exchanges = self._exchanges
        if not exchanges or exchange is not exchanges[0]:
            return
        try:
            while exchanges:
                first = exchanges[0]
                if first.pieces is not None:
                    if not self._is_writable:
                        break
                    self._stream(first)
                elif first.answer is not None:
                    self._answer(first, first.answer)
                if first.is_open:
                    break
                exchanges.popleft()
            if self._owes_continue and not exchanges:
                self._send_continue()
        except Exception:
            log.exception("a bug while writing an answer")
            self.transport.abort()
        self.app.dirty(self)

    def _answer(self, exchange: Exchange, answer: HttpAnswer) -> None:
        head = exchange.head
        status, parts = answer.status, answer.body
        length = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        if (
            head.is_plain
            and answer.headers is JSON_HEADERS
            and status == 200
            and length < _JOINED_BYTES
            and not self._is_closing
        ):
            self._out.append(_ok_json(length) + b"".join(parts))
            self.app.answered(exchange, status, length)
            return
        if head.accepts:
            answer = compressed(answer, head.accepts)
            parts = answer.body
            length = sum(map(len, parts))
        start = _start(status, answer.headers)
        more = self._connection_headers(head)
        if status == 204:
            self._out.append(b"%b%b\r\n" % (start, more))
        elif head.method == "HEAD":
            self._out.append(b"%bContent-Length: %d\r\n%b\r\n" % (start, length, more))
        else:
            self._out.append(b"%bContent-Length: %d\r\n%b\r\n" % (start, length, more))
            self._out += parts
        self.app.answered(exchange, status, length)

    def _connection_headers(self, head: HttpHead) -> bytes:
        """What stands in every answer to this head, and what becomes of the connection."""
        if self._is_closing and len(self._exchanges) == 1 and not self._rest:
            return head.common_headers + b"Connection: close\r\n"
        if head.version == "1.0":
            return head.common_headers + b"Connection: keep-alive\r\n"
        return head.common_headers

    def _stream(self, exchange: Exchange) -> None:
        """Sends the pieces there are as chunks; the head with the first, the end with the last.

        HTTP/1.0 knows no chunks: there the end of the connection ends the body.
        """
        out, answer = self._out, exchange.answer
        is_chunked = exchange.head.version != "1.0"
        if answer is not None:
            exchange.answer = None
            if not is_chunked:
                self._is_closing = self._is_discarding = True
            coding = b"Transfer-Encoding: chunked\r\n" if is_chunked else b""
            more = self._connection_headers(exchange.head)
            out.append(b"%b%b%b\r\n" % (_start(answer.status, answer.headers), coding, more))
        pieces = exchange.take_pieces()
        # An empty chunk would end the body.
        out += [b"%x\r\n%b\r\n" % (len(p), p) for p in pieces if p] if is_chunked else pieces
        if not exchange.is_open:
            if is_chunked:
                out.append(b"0\r\n\r\n")
            self.app.answered(exchange, 200, 0)

    def flush(self) -> None:
        """Writes what is ready, in one system call where possible, and goes on with the rest."""
        out = self._out
        self.idle_since = self.app.now
        if out and not self.transport.is_closing():
            self._out = []
            if len(out) == 1:
                self.transport.write(out[0])
            elif sum(map(len, out)) > _JOINED_BYTES:
                self.transport.writelines(out)
            else:
                self.transport.write(b"".join(out))
        # Half of the places must be free, or every answer would have all of the rest parsed again.
        if self._rest and 2 * len(self._exchanges) <= self._max_pipelined and self._is_writable:
            self._resume()
        if self._is_closing and not self._exchanges and not self._out:
            self._close()

    def _resume(self) -> None:
        """Goes on with requests that had to wait."""
        if self._body is None and b"\r\n\r\n" in self._rest:
            self._parse(self._rest)
        if len(self._rest) <= _MAX_REST and not self.transport.is_reading():
            self.transport.resume_reading()

    def _close(self) -> None:
        """Closes; if input is left, only for sending, or the client's kernel drops the answer.

        See RFC 9112 section 9.6.
        """
        if self._closed_at or self.transport.is_closing():
            return
        if self._lingers and self.transport.can_write_eof():
            self._closed_at = self.app.now
            self.transport.write_eof()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        if self._exchanges:
            self.ready(self._exchanges[0])
        elif self._rest:
            self.app.dirty(self)

    def sweep(self, now: int) -> None:
        """Ends what has been silent for too long."""
        limits, unread = self.app.config.limits, self._unread
        unread.look(self.transport, now)
        silent_s = (now - max(self.idle_since, unread.since)) / NS_PER_S
        if self._closed_at and not unread.num_bytes:
            if silent_s > _LINGER_SILENT_S or now - self._closed_at > _LINGER_S * NS_PER_S:
                self.transport.abort()
        elif unread.has_stalled(now, limits.body_timeout_s):
            self.transport.abort()
        elif self._body is not None or self._chunked is not None:
            if silent_s > limits.body_timeout_s:
                self.transport.abort()
        elif unread.num_bytes or self._exchanges:
            # Calls have deadlines of their own.
            return
        elif self._rest:
            if now - self._rest_since > limits.header_timeout_s * NS_PER_S:
                self.transport.abort()
        elif silent_s > limits.idle_timeout_s:
            self.transport.close()

    def drain(self) -> None:
        """The server stops: no further requests; closes as soon as the last answer is out."""
        self._is_closing = True
        if not (self._exchanges or self._out or self._body is not None or self._chunked):
            self.transport.close()


@lru_cache(maxsize=1024)
def _ok_json(length: int) -> bytes:
    """The head of most answers."""
    return b"%bContent-Length: %d\r\n\r\n" % (_start(200, JSON_HEADERS), length)


def _start(status: int, headers: bytes) -> bytes:
    return (_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status) + headers
