"""One request and its answer: runs the operation and is the sink of its call."""

from __future__ import annotations

import asyncio
import logging
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from salver.codecs.json_numbers import dumps
from salver.codecs.status import http_status
from salver.errors import Cancelled, Internal, MethodNotAllowed, SalverError, Unsupported
from salver.interfaces import JSON_HEADERS, HttpAnswer, Infer, Query
from salver.server.bodies import decompress
from salver.types import CallContext

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from salver.interfaces import Endpoint
    from salver.server.app import App
    from salver.server.head import HttpHead
    from salver.types import Call, Response

log = logging.getLogger("salver.server")
GONE = Cancelled("the client went away")


class Exchange:
    """A request on one connection. `connection.ready(self)` is called whenever it can send.

    A unary answer stands in `answer`; a streaming one has its head in `answer`, its pieces in
    `pieces`, and `is_open` until the last.
    """

    __slots__ = (
        "answer", "app", "call", "connection", "head", "is_open", "operation", "pieces", "started",
        "stream_id",
    )  # fmt: skip

    def __init__(self, app: App, connection: Any, head: HttpHead, stream_id: int = 0) -> None:
        self.app = app
        self.connection = connection
        self.head = head
        self.stream_id = stream_id
        self.started = app.clock()
        self.call: Call | None = None
        self.operation: Any = None
        self.answer: HttpAnswer | None = None
        self.pieces: list[bytes] | None = None
        self.is_open = True

    def run(self, body: Any) -> None:
        """Starts the operation that head and body mean; errors become the answer."""
        head = self.head
        endpoint = head.endpoint
        try:
            if head.error is not None or endpoint is None:
                self._refuse_head()
                return
            if head.encoding:
                body = decompress(body, head.encoding, self.app.config.limits.body_bytes)
            operation = endpoint.decode(head, head.arguments, body)
            self.operation = operation
            if type(operation) is Infer:
                self._submit(operation, head)
            elif isinstance(operation, Query):
                found = self.app.admin.query(operation)
                if isawaitable(found):
                    self.app.spawn(self._answer(endpoint, found))
                else:
                    self._send(endpoint.encode(operation, found))
            else:
                self.app.spawn(self._answer(endpoint, self.app.admin.command(self.operation)))
        except SalverError as error:
            self.fail(error)
        except Exception:
            self._fail_internally()

    def _submit(self, operation: Infer, head: HttpHead) -> None:
        timeout = operation.timeout_ns or head.timeout_ns or self.app.default_timeout_ns
        if operation.timeout_ns and head.timeout_ns:
            timeout = min(operation.timeout_ns, head.timeout_ns)
        deadline = self.started + timeout if timeout else 0
        self.call = self.app.engine.submit(
            operation.ref,
            operation.request,
            self,
            CallContext(deadline, operation.priority),
        )

    async def _answer(self, endpoint: Endpoint, result: Awaitable[Any]) -> None:
        try:
            self._send(endpoint.encode(self.operation, await result))
        except SalverError as error:
            self.fail(error)
        except asyncio.CancelledError:
            raise
        except Exception:
            self._fail_internally()

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        """Takes an answer, or an item of a stream, from the engine."""
        if not self.is_open:
            return
        if final:
            self.call = None
        try:
            if isinstance(item, SalverError):
                self.fail(item)
            elif final and self.pieces is None:
                endpoint: Any = self.head.endpoint
                self._send(endpoint.encode(self.operation, item))
            else:
                self._stream(call, item, final)
        except SalverError as error:
            self.fail(error)
        except Exception:
            self._fail_internally()

    def _stream(self, call: Call, item: Response, final: bool) -> None:
        endpoint: Any = self.head.endpoint
        if endpoint.stream is None:
            call.lease.target.cancel(call, GONE)
            self.fail(Unsupported("this method streams; call it at /predict/MODEL/METHOD"))
            return
        if self.pieces is None:
            self.answer = HttpAnswer(200, b"Content-Type: application/x-ndjson\r\n", ())
            self.pieces = []
        if item.names:
            self.pieces.append(endpoint.stream(self.operation, item))
        self.is_open = not final
        self.connection.ready(self)

    def _refuse_head(self) -> None:
        error = self.head.error
        if self.head.method == "OPTIONS" and isinstance(error, MethodNotAllowed):
            allowed = ", ".join([*self.app.router.methods(self.head.path), "OPTIONS"]).encode()
            self._send(HttpAnswer(204, b"Allow: %b\r\n" % allowed, ()))
        else:
            self.fail(error or Internal("no endpoint"))

    def _send(self, answer: HttpAnswer) -> None:
        self.answer = answer
        self.is_open = False
        self.connection.ready(self)

    def fail(self, error: SalverError) -> None:
        """Answers with an error in the protocol's form; inside a stream as its last piece."""
        if not self.is_open:
            return
        if self.pieces is not None:
            self.pieces.append(dumps({"error": error.message}) + b"\n")
            self.is_open = False
            self.connection.ready(self)
            return
        endpoint = self.head.endpoint
        answer = (
            self.app.router.protocol_of(endpoint).refuse(error)
            if endpoint is not None
            else HttpAnswer(http_status(error), JSON_HEADERS, [dumps({"error": error.message})])
        )
        self._send(answer._replace(headers=answer.headers + extra_headers(error, self)))

    def _fail_internally(self) -> None:
        log.exception("a bug while answering %s %s", self.head.method, self.head.path)
        self.fail(Internal("an internal error; the server's log has the details"))

    def abandon(self) -> None:
        """The client is gone: ends the call, sends nothing."""
        self.is_open = False
        call = self.call
        if call is not None:
            self.call = None
            call.lease.target.cancel(call, GONE)


def extra_headers(error: SalverError, exchange: Exchange) -> bytes:
    """Headers that belong to an error: when to retry, which methods there are, which key."""
    status = http_status(error)
    if error.retry_after_ms is not None:
        return b"Retry-After: %d\r\n" % max(1, error.retry_after_ms // 1000)
    if status == 405:
        methods = exchange.app.router.methods(exchange.head.path)
        return b"Allow: %b\r\n" % ", ".join(methods).encode()
    return b"WWW-Authenticate: Bearer\r\n" if status == 401 else b""
