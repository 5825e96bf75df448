"""gRPC over HTTP/2 (grpc PROTOCOL-HTTP2.md), without sockets: heads, messages, statuses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from salver.clock import NS_PER_MS, NS_PER_S, NS_PER_US
from salver.codecs.status import MAX_MESSAGE_LENGTH
from salver.errors import DeadlineExceeded, InvalidInput, TooLarge, Unsupported
from salver.server.head import MAX_ID_LENGTH
from salver.server.http2 import hpack
from salver.server.inflation import Compressed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from salver.server.bodies import BufferPool
    from salver.server.http2.head import RequestHead
    from salver.types import Buffer

CONTENT_TYPE: Final = "application/grpc"
_ENCODINGS: Final = ("identity", "deflate", "gzip")
ACCEPTED_ENCODINGS: Final = ", ".join(_ENCODINGS)

_SUBTYPES: Final = (f"{CONTENT_TYPE}+", f"{CONTENT_TYPE};")
PREFIX_BYTES: Final = 5
_FIRST_BUFFER_BYTES: Final = 1 << 20
_BUFFER_GROWTH: Final = 8
_UNIT_NS: Final = {
    "H": 3600 * NS_PER_S,
    "M": 60 * NS_PER_S,
    "S": NS_PER_S,
    "m": NS_PER_MS,
    "u": NS_PER_US,
    "n": 1,
}
_PLAIN_IN_STATUS: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_CUT_ESCAPE: Final = re.compile(r"%.?$")

_ANSWER_FIELDS: Final = (
    (":status", "200"),
    ("content-type", CONTENT_TYPE),
    ("grpc-accept-encoding", ACCEPTED_ENCODINGS),
)
_ANSWER_BLOCK: Final = hpack.encode(_ANSWER_FIELDS)
OK_BLOCK: Final = hpack.encode([("grpc-status", "0")])
"""The trailer block of a call that succeeded."""


class CallHead:
    """What the head of a request that `is_grpc` says; made once per header block.

    `timeout_ns` is 0 when the client set none. `encoding` is that of compressed messages. `method`
    is for whoever knows what stands behind `path`. `answer_block` is the header block before the
    first message of an answer.
    """

    __slots__ = (
        "answer_block", "encoding", "headers", "method", "path", "request_id", "timeout_ns",
    )  # fmt: skip

    def __init__(self, head: RequestHead) -> None:
        """Raises: InvalidInput, Unsupported, DeadlineExceeded."""
        headers = head.headers
        if head.method != "POST":
            raise InvalidInput(f"gRPC calls are POST requests, not {head.method}")
        self.path = head.path
        self.method: Any = None
        self.headers = headers
        timeout = headers.get("grpc-timeout")
        self.timeout_ns = 0 if timeout is None else parse_timeout(timeout)
        if timeout is not None and not self.timeout_ns:
            raise DeadlineExceeded("the call's time was over before it came")
        self.request_id = request_id_of(head)
        self.answer_block = _ANSWER_BLOCK + _echo(self.request_id)
        self.encoding = headers.get("grpc-encoding", "identity")
        if self.encoding not in _ENCODINGS:
            raise Unsupported(
                f"messages compressed with {self.encoding!r} are not taken; there are: "
                f"{ACCEPTED_ENCODINGS}"
            )


def whole_message(data: Buffer, max_bytes: int) -> bytes | None:
    """The message if `data` is just one that needs no further care, as most often; else None."""
    size = len(data) - PREFIX_BYTES
    if 0 <= size <= max_bytes and int.from_bytes(data[:PREFIX_BYTES], "big") == size:
        return bytes(data[PREFIX_BYTES:])
    return None


class Deframer:
    """Cuts one call's body into messages of at most `max_message_bytes`.

    A message is a memoryview of a buffer from the pool, or `Compressed`. Memory grows with what has
    come, not with what a prefix promises.
    """

    __slots__ = ("_encoding", "_filled", "_head", "_max_bytes", "_message", "_pool", "_size")

    def __init__(self, max_message_bytes: int, encoding: str, pool: BufferPool) -> None:
        self._max_bytes = max_message_bytes
        self._encoding = encoding
        self._pool = pool
        self._head = b""
        self._size = 0
        self._filled = 0
        self._message: memoryview | None = None

    @property
    def is_between_messages(self) -> bool:
        """Nothing of a further message has come."""
        return not self._head

    def take(self, data: memoryview) -> tuple[Buffer | Compressed | None, memoryview]:
        """Takes the next bytes of the body, which may be reused after, up to a message's end.

        Returns the message, None if more of it is to come, and what of `data` comes after it.
        Raises: InvalidInput, TooLarge.
        """
        if self._message is None:
            missing = PREFIX_BYTES - len(self._head)
            self._head += bytes(data[:missing])
            data = data[missing:]
            if len(self._head) < PREFIX_BYTES:
                return None, data
            self._size = self._read_prefix(self._head)
            self._message = self._buffer(len(data))
            self._filled = 0
        data = self._fill(self._message, data)
        return (self._finish(self._message) if self._filled == self._size else None), data

    def _read_prefix(self, prefix: bytes) -> int:
        flag, size = prefix[0], int.from_bytes(prefix[1:], "big")
        if flag > 1:
            raise InvalidInput(f"a gRPC message begins with {flag}, neither plain nor compressed")
        if flag and self._encoding == "identity":
            raise InvalidInput("a message is compressed, but grpc-encoding does not say how")
        if size > self._max_bytes:
            raise TooLarge(f"a message of {size} bytes; at most {self._max_bytes} are allowed")
        return size

    def _buffer(self, num_bytes: int) -> memoryview:
        """Room for the message, of which `num_bytes` are there."""
        capacity = max(_FIRST_BUFFER_BYTES, _BUFFER_GROWTH * num_bytes)
        return self._pool.take(min(self._size, capacity))

    def _fill(self, message: memoryview, data: memoryview) -> memoryview:
        """Copies what belongs to the message; returns what comes after it."""
        filled = self._filled
        stop = filled + min(len(data), self._size - filled)
        if stop > len(message):
            larger = self._buffer(stop)
            larger[:filled] = message[:filled]
            self._message = message = larger
        message[filled:stop] = data[: stop - filled]
        self._filled = stop
        return data[stop - filled :]

    def _finish(self, message: memoryview) -> Buffer | Compressed:
        compressed = self._head[0]
        self._head, self._message = b"", None
        return Compressed(bytes(message), self._encoding) if compressed else message


def is_grpc(headers: Mapping[str, str]) -> bool:
    """Whether a request is a gRPC call, of whatever message format."""
    content_type = headers.get("content-type", "")
    return content_type == CONTENT_TYPE or content_type.startswith(_SUBTYPES)


def parse_timeout(text: str) -> int:
    """A `grpc-timeout` in ns: at most eight digits and a unit.

    Raises: InvalidInput.
    """
    digits, unit_ns = text[:-1], _UNIT_NS.get(text[-1:])
    if unit_ns is None or len(digits) > 8 or not (digits.isdigit() and digits.isascii()):
        raise InvalidInput(f"grpc-timeout {text!r} is not up to 8 digits and one of H M S m u n")
    return int(digits) * unit_ns


def frame(parts: Sequence[Buffer]) -> list[Buffer]:
    """One uncompressed message, its prefix in front of its parts."""
    return [sum(map(len, parts)).to_bytes(PREFIX_BYTES, "big"), *parts]


def status_block(code: int, message: str = "") -> bytes:
    """The trailer block that ends a call whose answer has begun."""
    return hpack.encode(_status_fields(code, message))


def error_block(code: int, message: str = "", request_id: str = "") -> bytes:
    """The only header block of a call that fails before its first message (`Trailers-Only`)."""
    fields = hpack.encode((*_ANSWER_FIELDS, *_status_fields(code, message)))
    return fields + _echo(request_id)


def request_id_of(head: RequestHead) -> str:
    """What the client calls its request, as far as it is told back."""
    return head.headers.get("x-request-id", "")[:MAX_ID_LENGTH]


def _echo(request_id: str) -> bytes:
    return hpack.encode([("x-request-id", request_id)]) if request_id else b""


def _status_fields(code: int, message: str) -> list[hpack.Field]:
    fields = [("grpc-status", str(code))]
    if message:
        fields.append(("grpc-message", encode_status_message(message)))
    return fields


def encode_status_message(message: str) -> str:
    """Percent-encodes the UTF-8 of a `grpc-message`, and cuts it to 4 kB."""
    text = quote(message[:MAX_MESSAGE_LENGTH], safe=_PLAIN_IN_STATUS, errors="replace")
    if len(text) <= MAX_MESSAGE_LENGTH:
        return text
    return _CUT_ESCAPE.sub("", text[:MAX_MESSAGE_LENGTH])
