"""Content codings of bodies, and compression of gRPC messages: gzip and deflate, bounded."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from salver.errors import InvalidInput, TooLarge
from salver.interfaces import HttpAnswer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from salver.types import Buffer

INFLATED_AT_ONCE: Final = 4096
"""Compressed bytes that may be inflated on the loop; a few more could keep it busy for long."""
MAX_INFLATION: Final = 1032
"""Bytes that deflate can make of one, at most."""
_COMPRESSED_BYTES: Final = range(1024, 1 << 20)
_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}


def decompress(body: Buffer, encoding: str, max_bytes: int) -> bytes:
    """A body without its content coding, or a gRPC message without its compression.

    Raises: TooLarge before more than `max_bytes` are produced, InvalidInput for broken data.
    """
    inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidInput(f"the data is not valid {encoding}: {error}") from None
    if len(plain) > max_bytes:
        raise TooLarge(f"more than {max_bytes} bytes after decompression")
    if not inflater.eof or inflater.unused_data:
        raise InvalidInput(f"the {encoding} data is cut off or followed by other data")
    return plain


def compressed(answer: HttpAnswer, encoding: str) -> HttpAnswer:
    """An answer in the coding that its client takes, if that is worth the time."""
    if not encoding or b"octet-stream" in answer.headers:
        return answer
    if sum(map(len, answer.body)) not in _COMPRESSED_BYTES:
        return answer
    coding = b"Content-Encoding: %b\r\nVary: Accept-Encoding\r\n" % encoding.encode()
    body = [compress(answer.body, encoding)]
    return HttpAnswer(answer.status, answer.headers + coding, body)


def compress(parts: Iterable[Buffer], encoding: str) -> bytes:
    """A body with `gzip` or `deflate`, fast rather than small."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS[encoding])
    pieces = [deflater.compress(part) for part in parts]
    return b"".join([*pieces, deflater.flush()])
