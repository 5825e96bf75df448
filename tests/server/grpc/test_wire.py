"""gRPC's heads, messages and statuses as PROTOCOL-HTTP2.md defines them."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.errors import DeadlineExceeded, InvalidInput, TooLarge, Unsupported
from salver.server.bodies import BufferPool
from salver.server.compression import decompress
from salver.server.grpc import wire
from salver.server.grpc.wire import CallHead, Deframer
from salver.server.http2 import hpack
from salver.server.http2.head import RequestHead
from salver.server.inflation import Compressed

if TYPE_CHECKING:
    from collections.abc import Sequence


def head(
    *fields: tuple[str, str], method: str = "POST", kind: str = wire.CONTENT_TYPE
) -> RequestHead:
    return RequestHead(
        [
            (":method", method),
            (":scheme", "http"),
            (":path", "/package.Service/Method"),
            ("content-type", kind),
            ("te", "trailers"),
            *fields,
        ]
    )


def opened(messages: Sequence[object]) -> list[bytes]:
    return [
        decompress(m.data, m.encoding, 1 << 20) if isinstance(m, Compressed) else bytes(m)  # type: ignore[call-overload]
        for m in messages
    ]


def fed(deframer: Deframer, data: bytes | memoryview) -> list[Any]:
    """The messages that a piece of a body ends."""
    found, rest = [], memoryview(data)
    while rest:
        one, rest = deframer.take(rest)
        found += [] if one is None else [one]
    return found


def test_reads_a_call() -> None:
    call = CallHead(
        head(
            ("grpc-timeout", "250m"),
            ("grpc-encoding", "gzip"),
        )
    )
    assert (call.path, call.timeout_ns) == ("/package.Service/Method", 250_000_000)
    assert call.encoding == "gzip"


def test_a_head_without_options_has_none() -> None:
    call = CallHead(head())
    assert (call.timeout_ns, call.encoding) == (0, "identity")


@pytest.mark.parametrize(
    "kind", ["application/grpc", "application/grpc+proto", "application/grpc;x"]
)
def test_takes_every_message_format(kind: str) -> None:
    assert wire.is_grpc(head(kind=kind).headers)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (head(method="GET"), InvalidInput),
        (head(("grpc-timeout", "soon")), InvalidInput),
        (head(("grpc-timeout", "0n")), DeadlineExceeded),
        (head(("grpc-encoding", "snappy")), Unsupported),
    ],
)
def test_refuses_heads(wrong: RequestHead, error: type[Exception]) -> None:
    with pytest.raises(error):
        CallHead(wrong)


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("1H", 3600 * 10**9),
        ("2M", 120 * 10**9),
        ("3S", 3 * 10**9),
        ("4m", 4 * 10**6),
        ("5u", 5000),
        ("99999999n", 99_999_999),
    ],
)
def test_timeouts(text: str, expected_ns: int) -> None:
    assert wire.parse_timeout(text) == expected_ns


@pytest.mark.parametrize("text", ["", "1", "S", "1s", "-1S", "100000000S", "1.5S", "1S ", "١S"])
def test_refuses_timeouts(text: str) -> None:
    with pytest.raises(InvalidInput):
        wire.parse_timeout(text)


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=6),
    st.sampled_from(["gzip", "deflate"]),
    st.lists(st.integers(1, 100), max_size=40),
)
def test_messages_survive_any_division_into_pieces(
    messages: list[tuple[bytes, bool]], encoding: str, sizes: list[int]
) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    body = b""
    for message, compressed in messages:
        data = pack(message) if compressed else message
        framed = b"".join(wire.frame([data[:7], data[7:]]))
        body += bytes((compressed,)) + framed[1:]
    deframer, found = Deframer(1000, encoding, BufferPool()), []
    for size in [*sizes, len(body) + 1]:
        found += opened(fed(deframer, body[:size]))
        body = body[size:]
    assert deframer.is_between_messages
    assert found == [message for message, _ in messages]


def test_a_large_message_in_many_pieces_is_one_buffer() -> None:
    message = bytes(range(256)) * 8000
    body = memoryview(b"".join(wire.frame([message])))
    deframer, found = Deframer(1 << 22, "identity", BufferPool()), []
    for start in range(0, len(body), 10_000):
        found += fed(deframer, body[start : start + 10_000])
    assert [bytes(one) for one in found] == [message]


def test_memory_grows_with_what_came() -> None:
    deframer = Deframer(1 << 40, "identity", BufferPool())
    fed(deframer, b"\0\xff\xff\xff\xff" + bytes(100))
    assert len(deframer._message or b"") == 1 << 20


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"\x02\0\0\0\0", InvalidInput),
        (b"\x01\0\0\0\0", InvalidInput),
        (b"\0\0\0\0\x65" + bytes(0x65), TooLarge),
        (b"\0\xff\xff\xff\xff", TooLarge),
    ],
)
def test_refuses_messages(body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        fed(Deframer(100, "identity", BufferPool()), body)


@pytest.mark.parametrize("body", [b"\0", b"\0\0\0\0\x05", b"\0\0\0\0\x05abc"])
def test_tells_an_unfinished_body(body: bytes) -> None:
    deframer = Deframer(100, "identity", BufferPool())
    assert not fed(deframer, body)
    assert not deframer.is_between_messages


def test_a_whole_message_needs_no_deframer() -> None:
    assert wire.whole_message(b"\0\0\0\0\x03abc", 3) == b"abc"
    assert wire.whole_message(memoryview(b"\0\0\0\0\0"), 3) == b""


@pytest.mark.parametrize(
    "body", [b"", b"\0\0\0\0", b"\0\0\0\0\x03ab", b"\0\0\0\0\x03abcd", b"\x01\0\0\0\0"]
)
def test_what_is_not_one_plain_message_needs_one(body: bytes) -> None:
    assert wire.whole_message(body, 100) is None


def test_a_message_above_the_limit_is_no_whole_one() -> None:
    assert wire.whole_message(b"\0\0\0\0\x03abc", 2) is None


def test_other_content_types_are_no_grpc() -> None:
    assert not wire.is_grpc(head(kind="application/grpc-web").headers)
    assert not wire.is_grpc(head(kind="application/json").headers)


def test_statuses() -> None:
    decode = hpack.Decoder(1 << 16, 100).decode
    assert decode(wire.OK_BLOCK) == [("grpc-status", "0")]
    assert decode(wire.status_block(5, "no model 'ä'")) == [
        ("grpc-status", "5"),
        ("grpc-message", "no model '%C3%A4'"),
    ]
    assert decode(wire.error_block(12, "no")) == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity, deflate, gzip"),
        ("grpc-status", "12"),
        ("grpc-message", "no"),
    ]


@given(st.text())
def test_status_messages_round_trip(message: str) -> None:
    text = wire.encode_status_message(message)
    assert all(" " <= c <= "~" for c in text)
    assert unquote(text) == message.encode("utf-8", "replace").decode()


def test_long_status_messages_are_cut_between_escapes() -> None:
    text = wire.encode_status_message("é" * 5000)
    assert 4090 <= len(text) <= 4096
    assert len(text) % 3 == 0
