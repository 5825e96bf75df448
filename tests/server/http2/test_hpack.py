"""HPACK held against the examples of RFC 7541 and against the `hpack` library, both ways."""

from __future__ import annotations

import hpack as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.server.http2 import hpack, huffman
from salver.server.http2.hpack import Decoder, HeaderListTooLarge, HpackError

TEXT = st.text(st.characters(max_codepoint=255), max_size=40)
NAME = st.sampled_from(
    [":path", ":method", "te", "grpc-timeout", "traceparent", "x-trace-bin"]
) | st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20)
VALUE = st.sampled_from(["", "POST", "trailers", "00-4bf92f3577b34da6a3ce929d0e0e4736-01"]) | TEXT
FIELDS = st.lists(st.tuples(NAME, VALUE), max_size=12)


def decoder(max_list_bytes: int = 1 << 16, max_fields: int = 1000) -> Decoder:
    return Decoder(max_list_bytes, max_fields)


def as_latin_1(fields: object) -> list[tuple[str, str]]:
    return [(n.decode("latin-1"), v.decode("latin-1")) for n, v in fields]  # type: ignore[attr-defined]


def test_decodes_the_huffman_coded_requests_of_rfc_7541_appendix_c_4() -> None:
    ours = decoder()
    first = ours.decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))
    second = ours.decode(bytes.fromhex("828684be5886a8eb10649cbf"))
    third = ours.decode(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"))
    assert first[-1] == (":authority", "www.example.com")
    assert second[-2:] == [(":authority", "www.example.com"), ("cache-control", "no-cache")]
    assert third == [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ]


@given(st.lists(st.tuples(FIELDS, st.booleans(), st.none() | st.integers(0, 4096)), max_size=8))
def test_decodes_what_the_oracle_encodes(
    blocks: list[tuple[list[tuple[str, str]], bool, int | None]],
) -> None:
    encoder, ours = oracle.Encoder(), decoder()
    for fields, coded, table_bytes in blocks:
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        raw = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in fields]
        assert ours.decode(encoder.encode(raw, huffman=coded)) == fields


@given(st.lists(FIELDS, max_size=6))
def test_the_oracle_decodes_what_we_encode(blocks: list[list[tuple[str, str]]]) -> None:
    theirs = oracle.Decoder()
    for fields in blocks:
        assert as_latin_1(theirs.decode(hpack.encode(fields), raw=True)) == fields


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_agrees_with_the_oracle_on_arbitrary_bytes(blocks: list[bytes]) -> None:
    theirs, ours = oracle.Decoder(1 << 20), decoder(1 << 20)
    for block in blocks:
        try:
            expected = as_latin_1(theirs.decode(block, raw=True))
        except oracle.HPACKError:
            with pytest.raises(HpackError):
                ours.decode(block)
            return
        assert ours.decode(block) == expected


@given(st.binary(max_size=40))
def test_huffman_agrees_with_the_oracle_on_arbitrary_bytes(data: bytes) -> None:
    block = b"\x00\x01a" + bytes((0x80 | len(data),)) + data
    try:
        expected = as_latin_1(oracle.Decoder().decode(block, raw=True))
    except oracle.HPACKError:
        with pytest.raises(HpackError):
            huffman.decode(data)
        return
    assert huffman.decode(data) == expected[0][1]


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xff\xff\xff\xff\xff\xff\x0f",
        b"\xbe",
        b"\x40",
        b"\x00\x05ab",
        b"\x00\x01a\x7f\xff\xff\xff\xff\x07",
        b"\x82\x20",
        b"\x3f\xe2\x1f",
        b"\x00\x01a\x84\xff\xff\xff\xff",
        b"\x00\x01a\x81\x00",
        b"\x00\x01a\x82\x07\xff",
    ],
    ids=[
        "index 0",
        "integer too long",
        "empty table",
        "cut off",
        "name cut off",
        "value cut off",
        "late size update",
        "table too large",
        "end of string",
        "padding of zeros",
        "padding of a byte",
    ],
)
def test_refuses(block: bytes) -> None:
    with pytest.raises(HpackError):
        decoder().decode(block)


def test_a_list_over_the_limits_leaves_the_table_intact() -> None:
    insert = b"\x40\x01a\x01b"
    for small in (decoder(max_list_bytes=60), decoder(max_fields=1)):
        with pytest.raises(HeaderListTooLarge):
            small.decode(insert + b"\xbe")
        assert small.decode(b"\xbe") == [("a", "b")]


@given(FIELDS, st.integers(0, 400), st.booleans())
def test_the_size_of_a_list_is_exact(
    fields: list[tuple[str, str]], max_list_bytes: int, coded: bool
) -> None:
    raw = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in fields]
    block = oracle.Encoder().encode(raw, huffman=coded)
    if sum(len(n) + len(v) + 32 for n, v in fields) <= max_list_bytes:
        assert decoder(max_list_bytes).decode(block) == fields
    else:
        with pytest.raises(HeaderListTooLarge):
            decoder(max_list_bytes).decode(block)


def test_only_insertions_and_size_updates_change_the_generation() -> None:
    ours = decoder()
    generations = []
    for block in (b"\x82", b"\x00\x01a\x01b", b"\x10\x01a\x01b", b"\x40\x01a\x01b", b"\x20"):
        ours.decode(block)
        generations.append(ours.generation)
    assert generations == [0, 0, 0, 1, 2]


def test_a_field_larger_than_the_table_empties_it() -> None:
    ours = decoder()
    ours.decode(b"\x40\x01a\x01b")
    assert ours.decode(b"\x40\x01a" + b"\x7f\x81\x1f" + bytes(4096)) == [("a", "\0" * 4096)]
    with pytest.raises(HpackError):
        ours.decode(b"\xbe")


def test_the_encoder_uses_the_static_table() -> None:
    assert hpack.encode([(":status", "200")]) == b"\x88"
    assert hpack.encode([("content-type", "a")]) == b"\x0f\x10\x01a"
    assert hpack.encode([("x", "y")]) == b"\x00\x01x\x01y"
