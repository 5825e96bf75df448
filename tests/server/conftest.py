"""Connections without sockets: a fake transport below, an engine that echoes above."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import orjson
import pytest

from salver.config import Limits, ServerConfig
from salver.errors import InvalidInput, NotFound
from salver.protocols.kserve_v2 import KserveV2
from salver.protocols.plain import PlainDoor
from salver.server.app import App
from salver.server.http1 import Http1Connection
from salver.server.router import Router
from salver.signature import Method, TensorSpec
from salver.types import FP32, Call, ModelRef, Request, Response, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ECHO = Method(
    inputs=(TensorSpec(name="x", dtype=FP32, shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", dtype=FP32, shape=(-1, 4)),),
    batching="rows",
)
WORDS = Method(inputs=ECHO.inputs, outputs=ECHO.outputs, streams=True)
SECOND = 1_000_000_000


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class FakeTransport:
    """Takes what is written; `window` bytes of it are sent at once, the rest waits."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def __init__(self) -> None:
        self.sent = b""
        self.window = 1 << 60
        self.waiting = b""
        self.writes = 0
        self.ended = ""
        self.half_closed = False
        self.can_half_close = True
        self.reading = True
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        assert not self.half_closed
        self.writes += 1
        self.waiting += bytes(data)
        self._push()

    def writelines(self, parts: list[Any]) -> None:
        self.write(b"".join(parts))

    def _push(self) -> None:
        taken = self.waiting[: self.window]
        self.sent += taken
        self.waiting = self.waiting[len(taken) :]
        self.window -= len(taken)
        if len(self.waiting) > 1 << 16:
            self.protocol.pause_writing()

    def read_on(self, num_bytes: int) -> None:
        """The client takes so many bytes more."""
        self.window += num_bytes
        self._push()
        if not self.waiting:
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)

    def can_write_eof(self) -> bool:
        return self.can_half_close

    def write_eof(self) -> None:
        self.half_closed = True

    def is_closing(self) -> bool:
        return bool(self.ended)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"


class EchoEngine:
    """Answers calls with their input, at once or when `holds` is over."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.calls: list[Call] = []
        self.cancelled: list[Call] = []
        self.flow: list[str] = []
        self.holds = False
        self.is_busy = False
        self.target = self

    def find(self, ref: ModelRef) -> EchoEngine:
        if ref.name == "missing":
            raise NotFound("'missing' is not served here.")
        return self

    def plan(self, method: str) -> Any:
        return SimpleNamespace(method=ECHO)

    def submit(self, ref: ModelRef, request: Request, sink: Any, context: Any) -> Call:
        self.find(ref)
        call = Call(request, sink, context, self, 0)
        self.calls.append(call)
        if not self.holds:
            self.loop.call_soon(self.answer, call)
        return call

    def answer(self, call: Call, value: Tensor | None = None) -> None:
        payload: Any = call.request.payload
        if value is None and isinstance(payload, Tensors):
            value = payload["x"]
        if value is None:
            value = Tensor.of([1.0])
        self.push(call, value, True)

    def push(self, call: Call, value: Tensor, final: bool) -> None:
        if not call.ended:
            call.ended = final
            rows = Rows(Tensors({"y": value}))
            call.sink.push(call, Response(rows, ModelRef("m", "1"), ECHO, ("y",)), final)

    def push_nothing(self, call: Call) -> None:
        """Ends a stream that had no items."""
        call.ended = True
        response = Response(Rows(Tensors()), ModelRef("m", "1"), WORDS, ())
        call.sink.push(call, response, True)

    def fail(self, call: Call, error: Any) -> None:
        call.ended = True
        call.sink.push(call, error, True)

    def pause(self, call: Call) -> None:
        self.flow.append("pause")

    def resume(self, call: Call) -> None:
        self.flow.append("resume")

    def cancel(self, call: Call, why: Any) -> None:
        if not call.ended:
            self.cancelled.append(call)
            self.fail(call, why)


class StubAdmin:
    def query(self, query: Any) -> Any:
        if query.name == "model_ready":
            raise ZeroDivisionError("a secret of the inside")
        return {query.name: True}

    async def command(self, command: Any) -> Any:
        if command.arguments.get("parameters"):
            raise InvalidInput("no parameters")
        return {}


class Client:
    """One connection, seen from its client."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.transport = FakeTransport()
        self.connection = Http1Connection(door.app)
        self.transport.protocol = self.connection
        self.unread = b""
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def feed(self, data: bytes) -> Client:
        """Sends, as far as the server reads."""
        self.unread += data
        while self.unread and self.transport.reading and not self.transport.ended:
            buffer = self.transport.protocol.get_buffer(-1)
            size = min(len(buffer), len(self.unread))
            assert size
            buffer[:size] = self.unread[:size]
            self.unread = self.unread[size:]
            self.transport.protocol.buffer_updated(size)
        return self

    def send(self, data: bytes) -> list[Answer]:
        """Sends, lets the server work, and reads what came in all."""
        self.feed(data)
        self.door.turn()
        return self.answers()

    def answers(self) -> list[Answer]:
        return read_answers(self.transport.sent)

    def end(self) -> None:
        """Closes the client's side, as `close` and `shutdown(SHUT_WR)` both do."""
        self.connection.eof_received()
        self.transport.close()
        self.door.turn()

    def leave(self) -> None:
        self.transport.ended = "gone"
        self.connection.connection_lost(None)


class Door:
    """A server's inside with a clock that the test moves."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: ServerConfig) -> None:
        self.loop = loop
        self.time = SECOND
        self.engine = EchoEngine(loop)
        router = Router([PlainDoor(config.limits), KserveV2(config.limits)])

        async def make() -> App:
            engine: Any = self.engine
            admin: Any = StubAdmin()
            return App(config, engine, router, admin, None, lambda: self.time)

        self.app = loop.run_until_complete(make())

    def connect(self) -> Client:
        return Client(self)

    @staticmethod
    def request(
        body: bytes = b"", method: str = "POST", path: str = "/v2/models/m/infer", **headers: str
    ) -> bytes:
        """An HTTP/1.1 request; header names are written with underscores."""
        lines = [f"{method} {path} HTTP/1.1", "Host: here"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body and "Transfer_Encoding" not in headers:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    @staticmethod
    def infer(*values: float) -> bytes:
        """The body of an infer request of one row."""
        data = list(values) or [1.5, 2.0, 3.0, 4.0]
        entry = {"name": "x", "shape": [1, len(data)], "datatype": "FP32", "data": data}
        return orjson.dumps({"inputs": [entry]})

    def turn(self, turns: int = 6) -> None:
        for _ in range(turns):
            self.loop.run_until_complete(asyncio.sleep(0))

    def pass_time(self, seconds: float) -> None:
        self.time += int(seconds * SECOND)
        self.app.sweep()
        self.turn()


@pytest.fixture
def door() -> Iterator[Callable[..., Door]]:
    """Makes doors: `door(api_key=..., body_bytes=...)` takes options and limits."""
    loop = asyncio.new_event_loop()

    def make(**options: Any) -> Door:
        names = {field.name for field in msgspec.structs.fields(Limits)}
        limits = Limits(**{name: options.pop(name) for name in names & options.keys()})
        return Door(loop, ServerConfig(limits=limits, access_log="off", **options))

    yield make
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def read_answers(data: bytes) -> list[Answer]:
    """All answers in a byte stream, which must be complete."""
    found = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator
        lines = head.decode("latin-1").split("\r\n")
        version, status, *_ = lines[0].split(" ")
        assert version == "HTTP/1.1"
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers
            headers[name.lower()] = value
        if headers.get("transfer-encoding") == "chunked":
            body, data = _read_chunks(data)
        else:
            length = int(headers.get("content-length", 0))
            body, data = data[:length], data[length:]
            assert len(body) == length
        found.append(Answer(int(status), headers, body))
    return found


def _read_chunks(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body += data[:length]
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]
        if not length:
            return body, data
