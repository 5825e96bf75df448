"""One HTTP/2 connection, seen from its client, which is the `h2` library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import h2.config
import h2.connection
import h2.events
import h2.settings
from tests.server.conftest import FakeTransport

from salver.codecs.protobuf import message
from salver.server.grpc.wire import frame
from salver.server.http2.socket import Http2Socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.server.conftest import Door

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
WATCH = "/grpc.health.v1.Health/Watch"
ROW = bytes(range(16))
_AS_WRITTEN = {"triton_grpc_error"}


class Received(NamedTuple):
    """What came on one stream."""

    heads: list[dict[str, str]]
    data: bytes
    ended: bool
    reset: int | None

    @property
    def head(self) -> dict[str, str]:
        return self.heads[0]

    @property
    def status(self) -> str | None:
        return self.heads[-1].get("grpc-status") if self.heads else None

    @property
    def error(self) -> str:
        return self.heads[-1].get("grpc-message", "")

    def messages(self, name: str) -> list[Any]:
        found, rest = [], self.data
        while rest:
            size = int.from_bytes(rest[1:5], "big")
            found.append(message(name).FromString(rest[5 : 5 + size]))
            rest = rest[5 + size :]
        return found

    def rows(self) -> list[bytes]:
        """The outputs of unary answers."""
        answers = self.messages("inference.ModelInferResponse")
        return [answer.raw_output_contents[0] for answer in answers]


class Http2Client:
    """Keeps what came by stream. `reads` off leaves the flow-control windows as they are."""

    def __init__(self, door: Door, window: int = 1 << 20) -> None:
        self.door = door
        self.transport = FakeTransport()
        self.socket = Http2Socket(door.app)
        self.transport.protocol = self.socket
        self.socket.connection_made(self.transport)  # type: ignore[arg-type]
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.reads = True
        self.events: list[Any] = []
        self._seen = 0
        self._rest = b""
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.turn()

    def turn(self) -> None:
        """Both sides say what they have to say, until nobody has anything left."""
        is_quiet = False
        while not is_quiet:
            out = self.h2.data_to_send()
            self.feed(out)
            self.door.turn(4)
            is_quiet = not out and self._receive() == 0

    def _receive(self) -> int:
        """Reads what came frame by frame; `h2` would take nothing after a GOAWAY."""
        new = self.transport.sent[self._seen :]
        self._seen += len(new)
        self._rest += new
        while len(self._rest) >= 9:
            stop = 9 + int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < stop:
                break
            self._take(self.h2.receive_data(self._rest[:stop]))
            if self.goaways:
                self.h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
            self._rest = self._rest[stop:]
        return len(new)

    def feed(self, data: bytes) -> None:
        while data and not self.transport.ended:
            buffer = self.socket.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.socket.buffer_updated(size)
            data = data[size:]

    def _take(self, events: Iterable[Any]) -> None:
        for event in events:
            self.events.append(event)
            if self.reads and isinstance(event, h2.events.DataReceived):
                length = event.flow_controlled_length
                self.h2.acknowledge_received_data(length, event.stream_id)

    def request(
        self, path: str, body: bytes | None = b"", method: str = "POST", **headers: str
    ) -> int:
        """Sends a request, whole unless `body` is None. `a_b` stands for the header `a-b`."""
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "here")]
        for name, value in headers.items():
            fields.append((name if name in _AS_WRITTEN else name.replace("_", "-"), value))
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, fields, end_stream=body == b"")
        if body:
            self.send(stream, body, end=True)
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Sends a piece of a body as far as flow control allows, and waits where it does not."""
        while data:
            if self.h2.local_flow_control_window(stream) <= 0:
                self.turn()
            size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            assert size > 0, "the server gives no window"
            self.h2.send_data(stream, data[:size], end_stream=end and size >= len(data))
            data = data[size:]
            if data:
                self.turn()

    def finish(self, stream: int) -> None:
        self.h2.end_stream(stream)

    def call(self, path: str, *messages: bytes, ends: bool = True, **headers: str) -> int:
        """A gRPC call with these messages."""
        fields = {"content_type": "application/grpc", "te": "trailers", **headers}
        stream = self.request(path, None, **fields)
        for one in messages:
            self.send(stream, framed(one))
        if ends:
            self.finish(stream)
        return stream

    def answer(self, stream: int) -> Received:
        """What has come on a stream so far."""
        self.turn()
        heads, data, ended, reset = [], b"", False, None
        for event in self.events:
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, h2.events.StreamReset):
                reset = int(event.error_code)
            elif isinstance(event, h2.events.DataReceived):
                data += event.data
            elif isinstance(event, h2.events.StreamEnded):
                ended = True
            elif getattr(event, "headers", None):
                heads.append(dict(event.headers))
        return Received(heads, data, ended, reset)

    @property
    def goaways(self) -> int:
        return sum(isinstance(e, h2.events.ConnectionTerminated) for e in self.events)


def held(door: Callable[..., Door], **options: Any) -> Http2Client:
    """A client of an engine that answers when it is told to."""
    client = Http2Client(door(**options))
    client.door.engine.holds = True
    return client


def framed(data: bytes) -> bytes:
    return b"".join(frame([data]))


def infer(row: bytes = ROW, model: str = "m", **fields: Any) -> bytes:
    """A ModelInferRequest of rows of four numbers."""
    request = message("inference.ModelInferRequest")(model_name=model, **fields)
    request.inputs.add(name="x", datatype="FP32", shape=[len(row) // 16, 4])
    request.raw_input_contents.append(row)
    encoded: bytes = request.SerializeToString()
    return encoded
