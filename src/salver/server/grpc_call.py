"""gRPC calls on an HTTP/2 connection: messages in, operations, messages and a status out."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from salver.codecs.status import grpc_status
from salver.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    Overloaded,
    SalverError,
    Unsupported,
)
from salver.interfaces import Infer, Query
from salver.protocols.kserve_v2_grpc import Answered
from salver.server.bodies import decompress
from salver.server.exchange import GONE
from salver.server.grpc import (
    OK_BLOCK,
    CallHead,
    Compressed,
    Deframer,
    frame,
    status_block,
)
from salver.types import CallContext

if TYPE_CHECKING:
    from salver.protocols.kserve_v2_grpc import GrpcMethod
    from salver.server.http2_socket import Http2Socket
    from salver.server.stream import Stream
    from salver.types import Buffer, Call, Response

log = logging.getLogger("salver.server")
MAX_QUEUED_BYTES = 16 << 20
PAUSE_QUEUED_BYTES = 1 << 20
"""Unsent bytes of a stream at which its model is asked to wait."""
MAX_REQUESTS_OF_STREAM = 1024


class GrpcCall:
    """What unary and streaming calls have in common: head, messages, status."""

    __slots__ = (
        "_deframer", "app", "head", "is_over", "method", "socket", "started", "stream", "touched",
    )  # fmt: skip

    def __init__(self, socket: Http2Socket, stream: Stream, head: CallHead) -> None:
        self.app = socket.app
        self.socket = socket
        self.stream = stream
        self.head = head
        self.method: GrpcMethod = head.method
        self.started = self.app.clock()
        self.touched = self.app.now
        self.is_over = False
        self._deframer = Deframer(self.app.config.limits.body_bytes, head.encoding)

    def feed(self, data: Buffer, end_stream: bool) -> None:
        """Takes a piece of the request's body."""
        if self.is_over:
            return
        self.touched = self.app.now
        try:
            for message in self._deframer.feed(data):
                self.take(self._plain(message))
            if end_stream:
                self._deframer.finish()
                self.end()
        except SalverError as error:
            self.fail(error)
        except Exception:
            log.exception("a bug while answering %s", self.head.path)
            self.fail(Internal("an internal error; the server's log has the details"))

    def _plain(self, message: Buffer | Compressed) -> Buffer:
        if isinstance(message, Compressed):
            return decompress(message.data, message.encoding, self.app.config.limits.body_bytes)
        return message

    def take(self, message: Buffer) -> None:
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError

    def submit(self, operation: Infer, sink: Any, since: int) -> Call:
        """Hands an inference that came at `since` to the engine. Raises: SalverError."""
        whole = self.head.timeout_ns
        own = operation.timeout_ns or (0 if whole else self.app.default_timeout_ns)
        ends = [start + length for start, length in ((since, own), (self.started, whole)) if length]
        deadline = min(ends, default=0)
        return self.app.engine.submit(
            operation.ref, operation.request, sink, CallContext(deadline, operation.priority)
        )

    def fail(self, error: SalverError) -> None:
        """Ends the call with the error's status."""
        if self.is_over:
            return
        self.is_over = True
        self.socket.send_status(self.stream, grpc_status(error), error.message)

    def abandon(self) -> None:
        """The client is gone or does not want the answer any more."""
        raise NotImplementedError

    def resume(self) -> None:
        """Everything that was to be sent is on its way; more may come."""

    def give_up(self, error: SalverError) -> None:
        """Ends the call with the error's status and what still runs for it."""
        # In this order, because what is cancelled may answer at once.
        self.fail(error)
        self.abandon()

    def sweep(self, now: int) -> None:
        """Ends what has lasted too long without being in the engine's care."""
        timeout = self.head.timeout_ns
        if timeout and now > self.started + timeout:
            self.give_up(DeadlineExceeded("the call's time was over"))


class UnaryCall(GrpcCall):
    """One message in, one out."""

    __slots__ = ("_message", "call", "operation")

    def __init__(self, socket: Http2Socket, stream: Stream, head: CallHead) -> None:
        super().__init__(socket, stream, head)
        self.call: Call | None = None
        self.operation: Any = None
        self._message: Buffer | None = None

    def take(self, message: Buffer) -> None:
        if self._message is not None:
            raise InvalidInput("this method takes one message, more came")
        self._message = message

    def end(self) -> None:
        message, self._message = self._message, None
        if message is None:
            raise InvalidInput("the call ended without a message")
        operation = self.operation = self.method.decode(message)
        if type(operation) is Infer:
            self.call = self.submit(operation, self, self.started)
        elif isinstance(operation, Query):
            self._answer(self.app.admin.query(operation))
        elif isinstance(operation, Answered):
            self._answer(operation.item)
        else:
            self.app.spawn(self._command())

    async def _command(self) -> None:
        try:
            self._answer(await self.app.admin.command(self.operation))
        except SalverError as error:
            self.fail(error)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a bug while answering %s", self.head.path)
            self.fail(Internal("an internal error; the server's log has the details"))

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        """Takes the answer from the engine."""
        if self.is_over:
            return
        if not final:
            self.give_up(Unsupported("this method streams; call it by ModelStreamInfer"))
            return
        self.call = None
        if isinstance(item, SalverError):
            self.fail(item)
            return
        try:
            self._answer(item)
        except SalverError as error:
            self.fail(error)
        except Exception:
            log.exception("a bug while answering %s", self.head.path)
            self.fail(Internal("an internal error; the server's log has the details"))

    def _answer(self, item: Any) -> None:
        parts = self.method.encode(self.operation, item, True) or ()
        self.is_over = True
        self.socket.send_unary(self.stream, frame(parts))

    def abandon(self) -> None:
        call, self.call = self.call, None
        if call is not None:
            call.lease.target.cancel(call, GONE)


class Asked:
    """One request of a stream, and its answers while they wait for those before it."""

    __slots__ = ("call", "is_done", "operation", "parts", "stream")

    def __init__(self, stream: StreamCall, operation: Any) -> None:
        self.stream = stream
        self.operation = operation
        self.call: Call | None = None
        self.parts: list[Buffer] = []
        self.is_done = False

    def push(self, call: Call | None, item: Any, final: bool) -> None:
        """Takes an answer from the engine."""
        if final:
            self.call = None
        self.stream.answer(self, item, final)


class StreamCall(GrpcCall):
    """Messages both ways. Single answers leave in the order of requests, streamed ones at once."""

    __slots__ = ("_asked", "_has_begun", "_has_ended")

    def __init__(self, socket: Http2Socket, stream: Stream, head: CallHead) -> None:
        super().__init__(socket, stream, head)
        self._asked: deque[Asked] = deque()
        self._has_begun = False
        self._has_ended = False

    def feed(self, data: Buffer, end_stream: bool) -> None:
        super().feed(data, end_stream)
        self.socket.consumed(self.stream, len(data))

    def take(self, message: Buffer) -> None:
        if len(self._asked) >= MAX_REQUESTS_OF_STREAM:
            raise Overloaded(f"more than {MAX_REQUESTS_OF_STREAM} requests of this stream wait")
        asked = Asked(self, self.method.decode(message))
        self._asked.append(asked)
        try:
            if type(asked.operation) is Infer:
                asked.call = self.submit(asked.operation, asked, self.app.clock())
            elif isinstance(asked.operation, Answered):
                asked.push(None, asked.operation.item, True)
            else:
                asked.push(None, self.app.admin.query(asked.operation), True)
        except SalverError as error:
            asked.push(None, error, True)

    def end(self) -> None:
        self._has_ended = True
        self._finish()

    def answer(self, asked: Asked, item: Any, final: bool) -> None:
        """Sends an answer, or keeps it until it is its turn."""
        if self.is_over:
            return
        try:
            if isinstance(item, SalverError) and self._is_the_end(item):
                raise item
            parts = self.method.encode(asked.operation, item, final)
        except SalverError as error:
            self.give_up(error)
            return
        if parts is not None:
            asked.parts += frame(parts)
        asked.is_done = asked.is_done or final
        if not final:
            self._send(asked)
        while self._asked and self._asked[0].is_done:
            self._send(self._asked.popleft())
        self._finish()

    def _is_the_end(self, error: SalverError) -> bool:
        """Whether an error of one request is the status of the whole call."""
        timeout = self.head.timeout_ns
        is_over = bool(timeout) and self.app.clock() >= self.started + timeout
        return (isinstance(error, DeadlineExceeded) and is_over) or bool(
            self.head.headers.get("triton_grpc_error")
        )

    def _send(self, asked: Asked) -> None:
        parts, asked.parts = asked.parts, []
        if not parts:
            return
        self._begin()
        self.socket.send(self.stream, parts)
        if self.stream.queued > PAUSE_QUEUED_BYTES and asked.call is not None:
            asked.call.lease.target.pause(asked.call)
        if self.stream.queued > MAX_QUEUED_BYTES:
            self.give_up(
                Overloaded(f"more than {MAX_QUEUED_BYTES} bytes of the answer wait unread")
            )

    def resume(self) -> None:
        for asked in self._asked:
            if asked.call is not None:
                asked.call.lease.target.resume(asked.call)

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self.socket.begin(self.stream)

    def _finish(self) -> None:
        if self._has_ended and not self._asked and not self.is_over:
            self.is_over = True
            self._begin()
            self.socket.finish(self.stream, OK_BLOCK)

    def fail(self, error: SalverError) -> None:
        if self.is_over or not self._has_begun:
            super().fail(error)
            return
        self.is_over = True
        self.socket.finish(self.stream, status_block(grpc_status(error), error.message))

    def abandon(self) -> None:
        waiting, self._asked = self._asked, deque()
        for asked in waiting:
            call, asked.call = asked.call, None
            if call is not None:
                call.lease.target.cancel(call, GONE)


class WatchCall(StreamCall):
    """One message in; an answer at once, and another whenever it has changed."""

    __slots__ = ("_last", "_operation")

    def __init__(self, socket: Http2Socket, stream: Stream, head: CallHead) -> None:
        super().__init__(socket, stream, head)
        self._operation: Any = None
        self._last: list[Buffer] | None = None

    def take(self, message: Buffer) -> None:
        if self._operation is not None:
            raise InvalidInput("this method takes one message, more came")
        self._operation = self.method.decode(message)
        self._look()

    def end(self) -> None:
        if self._operation is None:
            raise InvalidInput("the call ended without a message")

    def _look(self) -> None:
        operation = self._operation
        if isinstance(operation, Answered):
            item: Any = operation.item
        else:
            try:
                item = self.app.admin.query(operation)
            except SalverError as error:
                item = error
        parts = self.method.encode(operation, item, False)
        if parts is not None and list(parts) != self._last:
            self._last = list(parts)
            self._begin()
            self.socket.send(self.stream, frame(parts))

    def sweep(self, now: int) -> None:
        super().sweep(now)
        if self._operation is not None and not self.is_over:
            self._look()


CALLS = {"unary": UnaryCall, "stream": StreamCall, "watch": WatchCall}
