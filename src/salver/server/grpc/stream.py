"""gRPC calls of messages both ways: ModelStreamInfer, and the health that is watched."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from salver.codecs.status import grpc_status
from salver.errors import (
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    SalverError,
    TooLarge,
    Unavailable,
)
from salver.interfaces import Infer
from salver.protocols.kserve_v2_grpc import Answered
from salver.server.compression import INFLATED_AT_ONCE, decompress
from salver.server.exchange import GONE
from salver.server.grpc.call import MORE_MESSAGES, NO_MESSAGE, GrpcCall
from salver.server.grpc.wire import (
    OK_BLOCK,
    PREFIX_BYTES,
    CallHead,
    frame,
    status_block,
)
from salver.server.inflation import Compressed

if TYPE_CHECKING:
    from salver.server.http2.socket import Http2Socket
    from salver.server.http2.stream import Stream
    from salver.types import Buffer, Call, Response

MAX_UNREAD_BYTES: Final = 16 << 20
"""Of a streamed answer whose model does not wait."""
PAUSE_UNREAD_BYTES: Final = 1 << 20
"""Unread bytes of a stream at which its models are asked to wait, and further answers do."""
MAX_ASKED: Final = 1024
"""Requests of one stream that wait for their answers; further ones wait unread."""
MAX_ASKED_BYTES: Final = 16 << 20
"""The same in bytes of their messages, as they came and decompressed."""
MAX_INFLATING: Final = 4
"""Messages of one stream that are decompressed in threads at the same time."""
MAX_TAKEN: Final = 256
"""Requests of one stream that are taken in one turn of the loop."""
READ_BYTES: Final = 1 << 18
"""Read in one turn of the loop of what has waited, which is no more than a socket brings."""


class Asked:
    """One request of a stream, and its answers while they wait for those before it.

    `num_bytes` came for it, `inflated_bytes` more have become of them.
    """

    __slots__ = (
        "call", "compressed", "inflated_bytes", "is_done", "num_bytes", "operation", "parts",
        "stream",
    )  # fmt: skip

    def __init__(self, stream: StreamCall, num_bytes: int) -> None:
        self.stream = stream
        self.compressed: Compressed | None = None
        self.num_bytes = num_bytes
        self.inflated_bytes = 0
        self.operation: Any = None
        self.call: Call | None = None
        self.parts: list[Buffer] = []
        self.is_done = False

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        """Takes an answer from the engine."""
        self.stream.answer(self, item, final)

    def free(self) -> None:
        """Lets go of the request, whose answer may still have to wait."""
        self.operation = self.call = None
        if self.compressed is not None:
            self.compressed.free()


class StreamCall(GrpcCall):
    """Messages both ways. Single answers leave in the order of requests, streamed ones at once.

    When it is full, what still comes waits as it came, in `_later`, and the client gets no window:
    so that is at most the window it had. Half of the answers must have left before it reads on.
    """

    __slots__ = (
        "_asked", "_asked_bytes", "_ends_later", "_has_begun", "_has_ended", "_has_paused",
        "_is_draining", "_later", "_num_inflating", "_num_taken", "_reads_soon", "_turn",
    )  # fmt: skip

    def __init__(self, socket: Http2Socket, stream: Stream, head: CallHead) -> None:
        super().__init__(socket, stream, head)
        self._asked: deque[Asked] = deque()
        self._asked_bytes = 0
        self._has_begun = False
        self._has_ended = False
        self._has_paused = False
        self._is_draining = False
        self._later = bytearray()
        self._ends_later = False
        self._num_inflating = 0
        self._num_taken = 0
        self._reads_soon = False
        self._turn = 0

    def _feed(self, data: Buffer, end_stream: bool) -> None:
        read = 0 if self.is_full else self._read(data)
        if self.is_full:
            self._later += data[read:]
            self._ends_later = end_stream
        elif end_stream and not self.is_over:
            self._end_body()

    def take(self, message: Buffer | Compressed) -> None:
        size = len(message.data if isinstance(message, Compressed) else message) + PREFIX_BYTES
        asked = Asked(self, size)
        self._asked.append(asked)
        self._asked_bytes += size
        try:
            if not isinstance(message, Compressed):
                self._run(asked, message)
            else:
                asked.compressed = message
                plain = self.open(message)
                if plain is not None:
                    self._run_inflated(asked, plain)
                else:
                    self._num_inflating += 1
                    self.socket.app.spawn(self._inflate(asked, message))
        except Exception as error:
            self.answer(asked, self.explain(error), True)
        if self._is_enough_for_now():
            self.is_full = True
            self._read_on_soon()
        if (
            len(self._asked) >= MAX_ASKED
            or self._asked_bytes > MAX_ASKED_BYTES
            or self._num_inflating >= MAX_INFLATING
            or self.stream.queued > PAUSE_UNREAD_BYTES
        ):
            self.is_full = True
            self.socket.pause(self.stream)

    def _is_enough_for_now(self) -> bool:
        """Counts a request; whether the others of this turn of the loop must wait for the next."""
        if self._turn != self.socket.now:
            self._turn, self._num_taken = self.socket.now, 0
        self._num_taken += 1
        return self._num_taken >= MAX_TAKEN

    def _run(self, asked: Asked, message: Buffer) -> None:
        operation = asked.operation = self.head.method.decode(message)
        if type(operation) is Infer:
            asked.call = self.submit(operation, asked)
        elif isinstance(operation, Answered):
            if isinstance(operation.item, SalverError):
                self.socket.app.engine.count_refused(operation.encoding[0], operation.item)
            self.answer(asked, operation.item, True)
        else:
            self.answer(asked, self.socket.app.admin.query(operation), True)

    async def _inflate(self, asked: Asked, message: Compressed) -> None:
        try:
            plain = await self.inflate(message)
            if not self.is_over:
                self._run_inflated(asked, plain)
        except Exception as error:
            self.answer(asked, self.explain(error), True)
        self._num_inflating -= 1
        self._read_on()

    def _run_inflated(self, asked: Asked, message: Buffer) -> None:
        asked.inflated_bytes = len(message)
        self._asked_bytes += len(message)
        self._run(asked, message)

    def end(self) -> None:
        self._has_ended = True
        self._finish()

    def answer(self, asked: Asked, item: Any, final: bool) -> None:
        """Sends an answer, or keeps it until it is its turn."""
        if self.is_over:
            return
        try:
            if isinstance(item, SalverError) and self._ends_stream(asked, item):
                raise item
            parts = self.head.method.encode(asked.operation, item, final)
            if parts is not None:
                asked.parts += frame(parts)
            if final:
                asked.is_done = True
                asked.free()
                self._send_done()
            else:
                self._send(asked)
        except Exception as error:
            self.give_up(self.explain(error))

    def _ends_stream(self, asked: Asked, error: SalverError) -> bool:
        """Whether an error is the call's status, not the answer to one of its requests."""
        if asked.operation is None or self.head.headers.get("triton_grpc_error") == "true":
            return True
        return isinstance(error, DeadlineExceeded) and self._is_late(self.socket.app.clock())

    def _send_done(self) -> None:
        """Sends whole answers whose turn it is, as far as the client reads them."""
        while self._asked and self._asked[0].is_done and self.stream.queued <= PAUSE_UNREAD_BYTES:
            first = self._asked.popleft()
            self._asked_bytes -= first.num_bytes + first.inflated_bytes
            self.socket.consumed(self.stream, first.num_bytes)
            self._send(first)
        self._finish()

    def _send(self, asked: Asked) -> None:
        parts, asked.parts = asked.parts, []
        if parts:
            self._begin()
        # Nothing is sent as well: `resume` is called in any case.
        self.socket.send(self.stream, parts)
        if self.stream.queued > PAUSE_UNREAD_BYTES and asked.call is not None:
            self._has_paused = True
            asked.call.lease.target.pause(asked.call)
        if self.stream.queued > MAX_UNREAD_BYTES and not asked.is_done:
            raise Overloaded(f"more than {MAX_UNREAD_BYTES} bytes of the answer wait unread")

    def resume(self) -> None:
        if self._has_paused:
            self._has_paused = False
            for asked in self._asked:
                if asked.call is not None:
                    asked.call.lease.target.resume(asked.call)
        if self.is_full:
            self._read_on_soon()
        self._send_done()

    def _read_on_soon(self) -> None:
        if not self._reads_soon:
            self._reads_soon = True
            self.socket.app.call_soon(self._read_on)

    def _read_on(self) -> None:
        """Takes some of the requests that have waited; behind the last the client may send more."""
        self._reads_soon = False
        if (
            self.is_over
            or not self.is_full
            or len(self._asked) > MAX_ASKED // 2
            or self._asked_bytes > MAX_ASKED_BYTES // 2
            or self._num_inflating
        ):
            return
        self.is_full = False
        self._num_taken = 0
        # The time of these requests begins here.
        self.socket.now = self.socket.app.clock()
        try:
            del self._later[: self._read(self._later[:READ_BYTES])]
            if self.is_full or self.is_over:
                return
            if self._later:
                self.is_full = True
                self._read_on_soon()
            elif self._ends_later:
                self._end_body()
            else:
                self.socket.resume(self.stream)
        except Exception as error:
            self.give_up(self.explain(error))

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self.socket.send_head(self.stream, self.head.answer_block)

    def _finish(self) -> None:
        if self._asked or self.is_over:
            return
        if self._has_ended:
            self.is_over = True
            self._begin()
            self.socket.finish(self.stream, OK_BLOCK)
        elif self._is_draining:
            self.fail(Unavailable("the server is shutting down; send the request elsewhere"))

    def fail(self, error: SalverError) -> None:
        if self.is_over or not self._has_begun:
            super().fail(error)
            return
        self.is_over = True
        self.socket.finish(self.stream, status_block(grpc_status(error), error.message))

    def abandon(self) -> None:
        self.is_over = True
        self._later.clear()
        waiting, self._asked = self._asked, deque()
        for asked in waiting:
            call = asked.call
            asked.free()
            if call is not None:
                call.lease.target.cancel(call, GONE)

    def expire(self) -> None:
        """A stream of messages may be quiet, but not in the middle of one."""
        if self._deframer is not None and not self.is_full:
            super().expire()

    def drain(self) -> None:
        self._is_draining = True
        self._finish()


class WatchCall(StreamCall):
    """One message in; an answer at once, and another whenever it has changed."""

    __slots__ = ("_last", "_operation")

    def __init__(self, socket: Http2Socket, stream: Stream, head: CallHead) -> None:
        super().__init__(socket, stream, head)
        self._operation: Any = None
        self._last: list[Buffer] | None = None

    def take(self, message: Buffer | Compressed) -> None:
        if self._operation is not None:
            raise InvalidInput(MORE_MESSAGES)
        if isinstance(message, Compressed):
            if len(message.data) > INFLATED_AT_ONCE:
                raise TooLarge("the message is larger than any that this method takes")
            # It is not kept, so that it needs no room among others.
            message = decompress(message.data, message.encoding, self._limit)
        self._operation = self.head.method.decode(message)
        self._look()

    def end(self) -> None:
        if self._operation is None:
            raise InvalidInput(NO_MESSAGE)

    def _look(self) -> None:
        """Sends what is to be told, if it is news."""
        operation = self._operation
        is_answered = isinstance(operation, Answered)
        item = operation.item if is_answered else self.socket.app.admin.query(operation)
        parts = list(self.head.method.encode(operation, item, False))
        if parts != self._last:
            self._last = parts
            self._begin()
            self.socket.send(self.stream, frame(parts))

    def sweep(self, now: int) -> None:
        super().sweep(now)
        if self._operation is not None and not self.is_over:
            self._look()

    def drain(self) -> None:
        if self._operation is not None:
            self._look()
        super().drain()
