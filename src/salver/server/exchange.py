"""One request and its answer: runs the operation and is the sink of its call."""

from __future__ import annotations

import asyncio
import logging
from inspect import isawaitable
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from salver.codecs.json_numbers import dumps
from salver.codecs.status import http_status, json_refusal
from salver.engine.each import bound
from salver.errors import Cancelled, Internal, Overloaded, SalverError, Unsupported
from salver.interfaces import HttpAnswer, Infer, Query
from salver.server.inflation import Compressed
from salver.types import CallContext, Object

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from salver.interfaces import Endpoint
    from salver.server.app import App
    from salver.server.head import HttpHead
    from salver.server.http2.stream import Stream
    from salver.types import Call, ModelRef, Request, Response, Tensors

    Payload = Tensors | Object

log = logging.getLogger("salver.server")
GONE: Final = Cancelled("the client went away")
_MAX_UNSENT: Final = 16 << 20
_PAUSE_UNSENT: Final = 1 << 20
"""Unsent bytes of a stream at which its model is asked to wait."""
_DECODED_AT_ONCE: Final = 256 << 10
_BINARY: Final = "inference-header-content-length"
"""Says that tensors come as bytes, which take no time to decode, unless they are texts."""
_HEAD_BYTES: Final = 4096
"""Tells of such tensors first; where it is longer, nothing is lost but some time."""


class Exchange:
    """A request on one connection. `connection.ready(self)` is called whenever it can send.

    A unary answer stands in `answer`; a streaming one has its head in `answer`, and pieces that
    the connection takes with `take_pieces` when it can send them. `is_open` until the last.
    """

    __slots__ = (
        "_compressed", "_unsent", "answer", "app", "call", "connection", "head", "is_open",
        "operation", "pieces", "started", "stream",
    )  # fmt: skip

    def __init__(self, app: App, connection: Any, head: HttpHead) -> None:
        self.app = app
        self.connection = connection
        self.head = head
        self.stream: Stream | None = None
        self.started = app.clock()
        self.call: Call | None = None
        self.operation: Any = None
        self.answer: HttpAnswer | None = None
        self.pieces: list[bytes] | None = None
        self.is_open = True
        self._compressed: Compressed | None = None

    def run(self, body: Any) -> None:
        """Starts the operation that head and body mean; errors become the answer."""
        head = self.head
        endpoint = head.endpoint
        try:
            if endpoint is None or head.error is not None:
                self._refuse()
            elif not head.encoding and len(body) <= _DECODED_AT_ONCE:
                self._run(endpoint, endpoint.decode(head, head.arguments, body))
            else:
                self._run_long(endpoint, body, head.encoding)
        except SalverError as error:
            self.fail(error)
        except Exception:
            self._fail_internally()

    def _run(self, endpoint: Endpoint, operation: Any, inputs: Payload | None = None) -> None:
        """`inputs` are those of an inference, if they are bound already."""
        head = self.head
        self.operation = operation
        if type(operation) is Infer:
            # The earliest of what body, head and server say.
            own, timeout = operation.timeout_ns, head.timeout_ns
            timeout = min(own, timeout) if own and timeout else own or timeout
            timeout = timeout or self.app.default_timeout_ns
            deadline = self.started + timeout if timeout else 0
            context = CallContext(deadline, operation.priority)
            request = operation.request
            if inputs is not None:
                request = replace(request, payload=inputs)
            self.call = self.app.engine.submit(operation.ref, request, self, context)
        elif isinstance(operation, Query):
            found = self.app.admin.query(operation)
            if isawaitable(found):
                self.app.spawn(self._answer(endpoint, found))
            else:
                self.send(endpoint.encode(operation, found))
        else:
            self.app.spawn(self._answer(endpoint, self.app.admin.command(self.operation)))

    def _run_long(self, endpoint: Endpoint, body: Any, encoding: str) -> None:
        """The same for a body that may be long to decode: compressed, or much text."""
        if encoding:
            compressed = self._compressed = Compressed(body, encoding)
            body = self.connection.inflation.inflate_at_once(compressed, self._limit)
            if body is None or self._is_much_text(body):
                self.app.spawn(self._run_aside(endpoint, self._open(endpoint, compressed, body)))
                return
        elif self._is_much_text(body):
            self.app.spawn(self._run_aside(endpoint, self._decode_aside(endpoint, body)))
            return
        self._run(endpoint, self._decode(endpoint, body))

    def _is_much_text(self, body: Any) -> bool:
        if len(body) <= _DECODED_AT_ONCE:
            return False
        return _BINARY not in self.head.headers or b"BYTES" in bytes(body[:_HEAD_BYTES])

    async def _run_aside(
        self, endpoint: Endpoint, decoding: Awaitable[tuple[Any, Payload | None]]
    ) -> None:
        """Off the loop, which a table of some megabytes, or of some kilobytes of compressed ones,
        would keep busy for seconds.
        """
        try:
            operation, inputs = await decoding
            if self.is_open:
                self._run(endpoint, operation, inputs)
        except SalverError as error:
            self.fail(error)
        except Exception:
            self._fail_internally()

    async def _open(
        self, endpoint: Endpoint, compressed: Compressed, plain: Any
    ) -> tuple[Any, Payload | None]:
        """What is in a compressed body; `plain` is the body, if that is known."""
        with compressed:
            if plain is None:
                plain = await self.connection.inflation.inflate(compressed, self._limit)
            return await self._decode_aside(endpoint, plain)

    async def _decode_aside(self, endpoint: Endpoint, body: Any) -> tuple[Any, Payload | None]:
        """The operation, and its inputs if they can be bound already."""
        operation = await asyncio.to_thread(self._decode, endpoint, body)
        if type(operation) is Infer and isinstance(operation.request.payload, Object):
            return operation, await self._bind_aside(operation.ref, operation.request)
        return operation, None

    async def _bind_aside(self, ref: ModelRef, request: Request) -> Payload:
        method = self.app.engine.find(ref).plan(request.method).method
        payload: Any = request.payload
        inputs = await asyncio.to_thread(bound, method, payload)
        # What is needed for the answer is in the rest; the text would be kept until then.
        payload.value = None
        return inputs

    def _decode(self, endpoint: Endpoint, body: Any) -> Any:
        return endpoint.decode(self.head, self.head.arguments, body)

    @property
    def _limit(self) -> int:
        return self.app.config.limits.body_bytes

    async def _answer(self, endpoint: Endpoint, result: Awaitable[Any]) -> None:
        try:
            found = await result
            if self.is_open:
                self.send(endpoint.encode(self.operation, found))
        except SalverError as error:
            self.fail(error)
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
            elif final and self.pieces is None and (item.names or not item.method.streams):
                endpoint: Any = self.head.endpoint
                answer = endpoint.encode(self.operation, item)
                if type(answer.body) is GeneratorType:
                    self.app.spawn(self._send_long(answer))
                else:
                    self.send(answer)
            else:
                self._stream(item, final)
        except SalverError as error:
            self.fail(error)
        except Exception:
            self._fail_internally()

    async def _send_long(self, answer: HttpAnswer) -> None:
        """Has a long answer written, and lets others have their turn between its parts."""
        parts = []
        try:
            for part in answer.body:
                parts.append(part)
                await asyncio.sleep(0)
                if not self.is_open:
                    return
            self.send(replace(answer, body=parts))
        except SalverError as error:
            self.fail(error)
        except Exception:
            self._fail_internally()

    def _stream(self, item: Response, final: bool) -> None:
        endpoint: Any = self.head.endpoint
        if endpoint.stream is None:
            raise Unsupported("this method streams; call it at /predict/MODEL/METHOD")
        if self.pieces is None:
            self.answer = HttpAnswer(200, b"Content-Type: application/x-ndjson\r\n", ())
            self.pieces = []
            self._unsent = 0
        if item.names:
            piece = endpoint.stream(self.operation, item)
            self.pieces.append(piece)
            self._unsent += len(piece)
            if self._unsent > _MAX_UNSENT:
                raise Overloaded("the stream ended because its reader is too slow")
            if self._unsent > _PAUSE_UNSENT and self.call is not None:
                self.call.lease.target.pause(self.call)
        self.is_open = not final
        if final:
            self._free()
        self.connection.ready(self)

    def take_pieces(self) -> list[bytes]:
        """The pieces of a stream that are to be sent next."""
        pieces = self.pieces or []
        if self._unsent > _PAUSE_UNSENT and self.call is not None:
            self.call.lease.target.resume(self.call)
        self.pieces, self._unsent = [], 0
        return pieces

    def _refuse(self) -> None:
        """Answers a request that its head alone rules out; `OPTIONS` asks what would be taken."""
        head, router = self.head, self.app.router
        if head.method == "OPTIONS" and not head.must_close:
            allowed = router.methods(head.path)
            if allowed or head.path == "*":
                names = ", ".join([*allowed, "OPTIONS"]).encode()
                self.send(HttpAnswer(204, b"Allow: %b\r\n" % names, ()))
                return
        self.fail(head.error or Internal("no endpoint"))

    def send(self, answer: HttpAnswer) -> None:
        """Ends the exchange with a complete answer."""
        self.answer = answer
        self.is_open = False
        if self._compressed is not None:
            self._free()
        self.connection.ready(self)

    def fail(self, error: SalverError) -> None:
        """Ends the exchange with an error in the protocol's form; a stream with a last piece."""
        if not self.is_open:
            return
        if self.pieces is not None:
            last = {"error": error.message, "status": http_status(error)}
            self.pieces.append(dumps(last) + b"\n")
            self.is_open = False
            self._free()
            self.connection.ready(self)
        else:
            answer = self._error_answer(error)
            self.send(replace(answer, headers=answer.headers + extra_headers(error, self)))
        self._cancel()

    def _error_answer(self, error: SalverError) -> HttpAnswer:
        endpoint = self.head.endpoint
        if endpoint is None:
            return json_refusal(error)
        return self.app.router.protocol_of(endpoint).refuse(error)

    def _fail_internally(self) -> None:
        log.exception("a bug while answering %s %s", self.head.method, self.head.path)
        self.fail(Internal("an internal error; the server's log has the details"))

    def abandon(self) -> None:
        """The client is gone: ends the call, sends nothing."""
        self.is_open = False
        self._free()
        self._cancel()

    def _free(self) -> None:
        """The body is of no more use."""
        if self._compressed is not None:
            self._compressed.free()

    def _cancel(self) -> None:
        call, self.call = self.call, None
        if call is not None:
            call.lease.target.cancel(call, GONE)


def extra_headers(error: SalverError, exchange: Exchange) -> bytes:
    """Headers that belong to an error: when to retry, which methods there are, which key."""
    status = http_status(error)
    if error.retry_after_ms is not None:
        return b"Retry-After: %d\r\n" % max(1, -(-error.retry_after_ms // 1000))
    if status == 405:
        methods = exchange.app.router.methods(exchange.head.path)
        return b"Allow: %b\r\n" % ", ".join(methods).encode()
    return b"WWW-Authenticate: Bearer\r\n" if status == 401 else b""
