from __future__ import annotations

import pytest

from salver.runtimes.ubjson import is_whole

WHOLE = [
    b"Z",
    b"{}",
    b"Si\x02ab",
    b"{i\x01aTi\x01bl\0\0\0\x01}",
    b"[i\x01FD" + b"\0" * 8 + b"CxHU\x0211]",
    b"[$d#L" + b"\0" * 7 + b"\x02" + b"\0" * 8,
    b"[#i\x02i\x01[]",
    b"{#i\x01i\x01a{}",
    b"[$S#i\x01i\x01a",
    b"{$U#i\x01i\x01a\x07",
]


@pytest.mark.parametrize("data", WHOLE)
def test_documents_end_where_their_value_does(data: bytes) -> None:
    assert is_whole(data)
    assert not is_whole(data + b"Z")
    assert not any(is_whole(data[:end]) for end in range(len(data)))


@pytest.mark.parametrize("data", [b"?", b"{?}", b"[#S]", b"[" * 100_000])
def test_what_is_no_document_is_not_whole(data: bytes) -> None:
    assert not is_whole(data)
