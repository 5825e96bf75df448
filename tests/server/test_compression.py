from __future__ import annotations

import gzip
import zlib

import pytest

from salver.errors import InvalidInput, TooLarge
from salver.server.compression import compress, decompress


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_codings_there_and_back(encoding):
    parts = [b"a" * 1000, memoryview(b"b" * 1000)]
    packed = compress(parts, encoding)
    assert len(packed) < 100
    assert decompress(memoryview(packed), encoding, 2000) == b"a" * 1000 + b"b" * 1000
    with pytest.raises(TooLarge):
        decompress(packed, encoding, 1999)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"plain",
        gzip.compress(b"a" * 99)[:-1],
        gzip.compress(b"a" * 99) + b"more",
        zlib.compress(b"a" * 99),
    ],
)
def test_broken_gzip(broken):
    with pytest.raises(InvalidInput, match="gzip"):
        decompress(broken, "gzip", 1000)
