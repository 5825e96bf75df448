"""What a client says beside its requests (RFC 9113, section 6): SETTINGS, PING and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from salver.server.http2 import frames
from salver.server.http2.frames import ErrorCode, Http2Error

if TYPE_CHECKING:
    from collections.abc import Callable

    from salver.server.http2.streams import Streams

SHUTDOWN_PING: Final = frames.frame(frames.PING, 0, 0, b"\0salver\0")
_SHUTDOWN_PAYLOAD: Final = SHUTDOWN_PING[frames.HEAD_BYTES :]


class ControlFrames:
    """Heeds control frames; each method takes stream id, flags and payload.

    `on_shutdown_ack` is called when the peer has answered `SHUTDOWN_PING`. Every method raises
    Http2Error for what ends the connection.
    """

    def __init__(self, streams: Streams, on_shutdown_ack: Callable[[], None]) -> None:
        self._streams = streams
        self._sender = streams.sender
        self._on_shutdown_ack = on_shutdown_ack

    def handlers(self) -> dict[int, Callable[[int, int, bytes], None]]:
        """The methods by the kinds of frames that they heed."""
        return {
            frames.PRIORITY: self.on_priority,
            frames.RST_STREAM: self.on_rst_stream,
            frames.SETTINGS: self.on_settings,
            frames.PUSH_PROMISE: self.on_push_promise,
            frames.PING: self.on_ping,
            frames.GOAWAY: self.on_goaway,
            frames.WINDOW_UPDATE: self.on_window_update,
        }

    def on_settings(self, stream_id: int, flags: int, payload: bytes) -> None:
        _check_no_stream("SETTINGS", stream_id)
        self._streams.count_noise()
        if flags & frames.ACK:
            _check_size("SETTINGS with ACK", payload, 0)
            return
        if len(payload) % frames.SETTING.size:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        # Each window costs a step for every stream: of many in one frame only the last counts.
        for name, value in dict(frames.SETTING.iter_unpack(payload)).items():
            self._sender.apply(name, value, self._streams.open.values())
        self._sender.control(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def on_ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        _check_size("PING", payload, 8)
        _check_no_stream("PING", stream_id)
        self._streams.count_noise()
        if not flags & frames.ACK:
            self._sender.control(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _SHUTDOWN_PAYLOAD:
            self._on_shutdown_ack()

    def on_goaway(self, stream_id: int, flags: int, payload: bytes) -> None:
        """Nothing follows from it: a client that makes no more requests closes when it likes."""
        _check_no_stream("GOAWAY", stream_id)
        if len(payload) < 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        self._streams.count_noise()

    def on_window_update(self, stream_id: int, flags: int, payload: bytes) -> None:
        _check_size("WINDOW_UPDATE", payload, 4)
        streams = self._streams
        streams.count_noise()
        num_bytes = int.from_bytes(payload, "big") & frames.MAX_WINDOW_BYTES
        if stream_id == 0:
            if not num_bytes:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 bytes")
            self._sender.add_window(num_bytes)
            return
        stream = streams.open.get(stream_id)
        if stream is None:
            streams.check_used(stream_id)
        elif not num_bytes:
            streams.fail(stream, ErrorCode.PROTOCOL_ERROR)
        elif not self._sender.add_stream_window(stream, num_bytes):
            streams.fail(stream, ErrorCode.FLOW_CONTROL_ERROR)

    def on_rst_stream(self, stream_id: int, flags: int, payload: bytes) -> None:
        _check_size("RST_STREAM", payload, 4)
        self._streams.on_reset(stream_id, int.from_bytes(payload, "big"))

    def on_priority(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        streams = self._streams
        streams.count_noise()
        if len(payload) != 5:
            stream = streams.open.get(stream_id)
            if stream is None:
                streams.reset_id(stream_id, ErrorCode.FRAME_SIZE_ERROR)
            else:
                streams.fail(stream, ErrorCode.FRAME_SIZE_ERROR)

    def on_push_promise(self, stream_id: int, flags: int, payload: bytes) -> None:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a client may not push")


def _check_no_stream(name: str, stream_id: int) -> None:
    if stream_id:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"{name} on stream {stream_id}")


def _check_size(name: str, payload: bytes, num_bytes: int) -> None:
    if len(payload) != num_bytes:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"{name} of {len(payload)} bytes")
