"""What all gRPC calls on an HTTP/2 connection have in common."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from salver.errors import DeadlineExceeded, Internal, InvalidInput, SalverError
from salver.server.grpc.wire import CallHead, Deframer, whole_message
from salver.server.inflation import Compressed
from salver.types import CallContext

if TYPE_CHECKING:
    from salver.interfaces import Infer
    from salver.server.http2.socket import Http2Socket
    from salver.server.http2.stream import Stream
    from salver.types import Buffer, Call

log = logging.getLogger("salver.server")
NO_MESSAGE: Final = "the call ended without a message"
MORE_MESSAGES: Final = "this method takes one message, more came"


class GrpcCall(ABC):
    """Head, messages and status of a call; its kinds say what becomes of messages.

    While it `is_full` it takes no further message.
    """

    __slots__ = (
        "_deframer", "head", "is_full", "is_over", "socket", "started", "stream", "touched",
    )  # fmt: skip

    def __init__(self, socket: Http2Socket, stream: Stream, head: CallHead) -> None:
        self.socket = socket
        self.stream = stream
        self.head = head
        self.started = socket.now
        self.is_full = False
        self.is_over = False
        self._deframer: Deframer | None = None

    def wait(self) -> None:
        """The body is to come; `touched` is when some of it came last."""
        self.touched = self.socket.now

    def feed(self, data: Buffer, end_stream: bool) -> None:
        """Takes a piece of the request's body."""
        if self.is_over:
            return
        try:
            if (
                self._deframer is not None
                or self.is_full
                or (message := whole_message(data, self._limit)) is None
            ):
                self._feed(data, end_stream)
            else:
                self.take(message)
                if end_stream:
                    self.end()
        except Exception as error:
            self.give_up(self.explain(error))

    def _feed(self, data: Buffer, end_stream: bool) -> None:
        """The same for what is not just one message."""
        self.touched = self.socket.now
        self._read(data)
        if end_stream:
            self._end_body()

    def _read(self, data: Buffer) -> int:
        """Takes messages while there is room for them; returns how many bytes it has read."""
        deframer = self._deframer
        if deframer is None:
            pool = self.socket.app.pool
            deframer = self._deframer = Deframer(self._limit, self.head.encoding, pool)
        rest = memoryview(data)
        while rest and not (self.is_full or self.is_over):
            message, rest = deframer.take(rest)
            if message is not None:
                self.take(message)
        if deframer.is_between_messages:
            self._deframer = None
        return len(data) - len(rest)

    def _end_body(self) -> None:
        if self._deframer is not None:
            raise InvalidInput("the body ends inside a gRPC message")
        self.end()

    @property
    def _limit(self) -> int:
        return self.socket.app.config.limits.body_bytes

    @abstractmethod
    def take(self, message: Buffer | Compressed) -> None:
        """A whole message."""

    @abstractmethod
    def end(self) -> None:
        """The last message has come."""

    def open(self, message: Buffer | Compressed) -> Buffer | None:
        """The plain message; None if it has to be inflated off the loop, which a few kilobytes of
        zeros could keep busy for long, or has to wait.

        Raises: InvalidInput, TooLarge.
        """
        if isinstance(message, Compressed):
            return self.socket.inflation.inflate_at_once(message, self._limit)
        return message

    async def inflate(self, message: Compressed) -> Buffer:
        """The same off the loop. Raises: SalverError."""
        with message:
            return await self.socket.inflation.inflate(message, self._limit)

    def submit(self, operation: Infer, sink: Any) -> Call:
        """Hands an inference to the engine. Raises: SalverError."""
        app, now = self.socket.app, self.socket.now
        own, whole = operation.timeout_ns, self.head.timeout_ns
        if not (own or whole):
            own = app.default_timeout_ns
        deadline = now + own if own else 0
        if whole and (not own or self.started + whole < deadline):
            deadline = self.started + whole
        return app.engine.submit(
            operation.ref, operation.request, sink, CallContext(deadline, operation.priority)
        )

    def explain(self, error: Exception) -> SalverError:
        """What the client is told of an error; of a bug, what it may know."""
        if isinstance(error, SalverError):
            return error
        log.error("a bug while answering %s", self.head.path, exc_info=error)
        return Internal("an internal error; the server's log has the details")

    def fail(self, error: SalverError) -> None:
        """Ends the call with the error's status."""
        if not self.is_over:
            self.is_over = True
            self.socket.fail(self.stream, error, self.head.request_id)

    @abstractmethod
    def abandon(self) -> None:
        """The client is gone or does not want the answer any more."""

    def give_up(self, error: SalverError) -> None:
        """Ends the call with the error's status, and what still runs for it."""
        # In this order, because what is cancelled may answer at once.
        self.fail(error)
        self.abandon()

    def expire(self) -> None:
        """The body has stopped coming."""
        self.give_up(DeadlineExceeded("the rest of the request did not come"))

    @abstractmethod
    def resume(self) -> None:
        """Everything that was to be sent is on its way; more may come."""

    def sweep(self, now: int) -> None:
        """Ends what has lasted too long without being in the engine's care."""
        if self._is_late(now):
            self.give_up(DeadlineExceeded("the call's time was over"))

    def _is_late(self, now: int) -> bool:
        """Whether the time that the client gave the whole call is over."""
        return 0 < self.head.timeout_ns <= now - self.started

    @abstractmethod
    def drain(self) -> None:
        """The server stops; what can end by itself may."""
