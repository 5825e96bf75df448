"""Request bodies: pooled buffers, chunked transfer coding, bounded decompression."""

from __future__ import annotations

import sys
import zlib
from typing import Final

from salver.errors import InvalidInput, TooLarge

_POOLED_BYTES: Final = 256 << 20
_SMALLEST: Final = 1 << 16
_MAX_CHUNK_LINE: Final = 256
_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}


class BufferPool:
    """Receive buffers that are used again as soon as nobody holds a view on them.

    Fresh memory costs ten times what copying into warm memory does (page faults). A buffer counts
    as free when only the pool refers to it, so tensors may be views for as long as they like.
    """

    def __init__(self, max_bytes: int = _POOLED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._buffers: dict[int, list[bytearray]] = {}

    def take(self, size: int) -> memoryview:
        """A writable view of `size` bytes with unspecified content."""
        capacity = _capacity(size)
        if capacity < _SMALLEST:
            return memoryview(bytearray(size))
        buffers = self._buffers.setdefault(capacity, [])
        for buffer in buffers:
            # References: the list, the loop variable, and the argument of getrefcount itself.
            if sys.getrefcount(buffer) <= 3:
                return memoryview(buffer)[:size]
        fresh = bytearray(capacity)
        if self._num_bytes + capacity > self._max_bytes:
            self._drop_free()
        if self._num_bytes + capacity <= self._max_bytes:
            buffers.append(fresh)
            self._num_bytes += capacity
        return memoryview(fresh)[:size]

    def _drop_free(self) -> None:
        for buffers in self._buffers.values():
            kept = [buffer for buffer in buffers if sys.getrefcount(buffer) > 3]
            self._num_bytes -= sum(map(len, buffers)) - sum(map(len, kept))
            buffers[:] = kept


def _capacity(size: int) -> int:
    """`size` rounded up to one of four steps per power of two, so that buffers fit again."""
    step = max(1 << max(size.bit_length() - 3, 0), 1)
    return -(-size // step) * step


class ChunkedBody:
    """Decodes the chunked transfer coding (RFC 9112 section 7.1), bounded."""

    __slots__ = ("_line", "_max_bytes", "_need", "_state", "body")

    def __init__(self, max_bytes: int) -> None:
        self.body = bytearray()
        self._max_bytes = max_bytes
        self._line = b""
        self._need = 0
        self._state = "size"

    def feed(self, data: bytes) -> bytes | None:
        """Takes the next bytes. None: more are needed; else the body is complete and what follows.

        Raises: InvalidInput, TooLarge.
        """
        position = 0
        while position < len(data):
            if self._state == "data":
                taken = min(self._need, len(data) - position)
                self.body += data[position : position + taken]
                position += taken
                self._need -= taken
                if not self._need:
                    self._state = "end"
                continue
            end = data.find(b"\n", position)
            piece = data[position : end + 1] if end >= 0 else data[position:]
            self._line += piece
            position += len(piece)
            if len(self._line) > _MAX_CHUNK_LINE:
                raise InvalidInput("a chunk's size line or trailer is too long")
            if end >= 0 and self._take_line():
                return data[position:]
        return None

    def _take_line(self) -> bool:
        """Handles one complete line; True after the last."""
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise InvalidInput("a line of the chunked body ends without CRLF")
        line = line[:-2]
        if self._state == "end":
            if line:
                raise InvalidInput("a chunk is longer than its size says")
            self._state = "size"
        elif self._state == "trailer":
            return not line
        else:
            self._start_chunk(line.partition(b";")[0].rstrip(b" \t"))
        return False

    def _start_chunk(self, size: bytes) -> None:
        if not size or len(size) > 16 or not all(c in b"0123456789abcdefABCDEF" for c in size):
            raise InvalidInput("a chunk's size is not a hexadecimal number")
        self._need = int(size, 16)
        if len(self.body) + self._need > self._max_bytes:
            raise TooLarge(f"the body has more than {self._max_bytes} bytes")
        self._state = "data" if self._need else "trailer"


def decompress(body: bytes | bytearray | memoryview, encoding: str, max_bytes: int) -> bytes:
    """The body without its content coding.

    Raises: TooLarge before more than `max_bytes` are produced, InvalidInput for broken data.
    """
    try:
        inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
        plain = inflater.decompress(body, max_bytes + 1)
        if len(plain) <= max_bytes and not inflater.eof and inflater.unconsumed_tail:
            plain += inflater.decompress(inflater.unconsumed_tail, max_bytes + 1 - len(plain))
    except zlib.error as error:
        raise InvalidInput(f"the body is not valid {encoding}: {error}") from None
    if len(plain) > max_bytes:
        raise TooLarge(f"the decompressed body has more than {max_bytes} bytes")
    if not inflater.eof or inflater.unused_data:
        raise InvalidInput(f"the {encoding} body is cut off or followed by other data")
    return plain


def compress(parts: list[bytes], encoding: str) -> bytes:
    """A body with `gzip` or `deflate`, fast rather than small."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS[encoding])
    pieces = [deflater.compress(part) for part in parts]
    return b"".join([*pieces, deflater.flush()])
