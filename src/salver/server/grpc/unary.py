"""gRPC calls of one message in and one out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from salver.errors import InvalidInput, SalverError, Unsupported
from salver.interfaces import Infer, Query
from salver.protocols.kserve_v2_grpc import Answered
from salver.server.exchange import GONE
from salver.server.grpc.call import MORE_MESSAGES, NO_MESSAGE, GrpcCall
from salver.server.grpc.wire import CallHead, frame
from salver.server.inflation import Compressed

if TYPE_CHECKING:
    from salver.server.http2.socket import Http2Socket
    from salver.server.http2.stream import Stream
    from salver.types import Buffer, Call, Response

_STREAMS: Final = "this method streams; call it by ModelStreamInfer"


class UnaryCall(GrpcCall):
    """One message in, one out."""

    __slots__ = ("_compressed", "_message", "call", "operation")

    def __init__(self, socket: Http2Socket, stream: Stream, head: CallHead) -> None:
        super().__init__(socket, stream, head)
        self.call: Call | None = None
        self.operation: Any = None
        self._message: Buffer | Compressed | None = None
        self._compressed: Compressed | None = None

    def take(self, message: Buffer | Compressed) -> None:
        if self._message is not None:
            raise InvalidInput(MORE_MESSAGES)
        self._message = message

    def end(self) -> None:
        message, self._message = self._message, None
        if message is None:
            raise InvalidInput(NO_MESSAGE)
        if isinstance(message, Compressed):
            self._compressed = message
            plain = self.open(message)
            if plain is None:
                self.socket.app.spawn(self._inflate(message))
                return
            message = plain
        self._run(message)

    def _run(self, message: Buffer) -> None:
        operation = self.operation = self.head.method.decode(message)
        if type(operation) is Infer:
            self.call = self.submit(operation, self)
        elif isinstance(operation, Query):
            self._answer(self.socket.app.admin.query(operation))
        elif isinstance(operation, Answered):
            self._answer(operation.item)
        else:
            self.socket.app.spawn(self._command())

    async def _inflate(self, message: Compressed) -> None:
        try:
            plain = await self.inflate(message)
            if not self.is_over:
                self._run(plain)
        except Exception as error:
            self.fail(self.explain(error))

    async def _command(self) -> None:
        try:
            self._answer(await self.socket.app.admin.command(self.operation))
        except Exception as error:
            self.fail(self.explain(error))

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        """Takes the answer from the engine."""
        if self.is_over:
            return
        if final:
            self.call = None
        try:
            if isinstance(item, SalverError):
                self.fail(item)
            elif final and (item.names or not item.method.streams):
                self._answer(item)
            else:
                self.give_up(Unsupported(_STREAMS))
        except Exception as error:
            self.fail(self.explain(error))

    def _answer(self, item: Any) -> None:
        parts = self.head.method.encode(self.operation, item, True)
        self.is_over = True
        if self._compressed is not None:
            self._compressed.free()
        self.socket.send_unary(self.stream, self.head.answer_block, frame(parts))

    def fail(self, error: SalverError) -> None:
        super().fail(error)
        if self._compressed is not None:
            self._compressed.free()

    def abandon(self) -> None:
        self.is_over = True
        if self._compressed is not None:
            self._compressed.free()
        call, self.call = self.call, None
        if call is not None:
            call.lease.target.cancel(call, GONE)

    def resume(self) -> None:
        """Its one message has nothing to follow it."""

    def drain(self) -> None:
        """It ends by itself."""
