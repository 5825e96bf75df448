"""Request bodies as they arrive: pooled buffers, and the chunked transfer coding."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

import numpy as np

from salver.errors import InvalidInput, TooLarge

if TYPE_CHECKING:
    from salver.types import Array

_POOLED_BYTES: Final = 256 << 20
_SMALLEST: Final = 1 << 16
_MAX_CHUNK_LINE: Final = 256
_FRAMING_ALLOWANCE: Final = 1 << 16
_FRAMING_PER_BYTE: Final = 16
_CHUNK_LINE: Final = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;[^\r\n\0]*)?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\0]*")
# What `map` counts for an object that only a list refers to; it differs between Python versions.
_FREE_REFERENCES: Final = next(map(sys.getrefcount, [np.empty(0)]))


class BufferPool:
    """Receive buffers that are used again as soon as nobody holds a view on them.

    Fresh memory costs ten times what copying into warm memory does (page faults). A buffer counts
    as free when only the pool refers to it, so tensors may be views for as long as they like.
    Fresh buffers are not written to, so that a body which is announced but never sent costs none.
    """

    def __init__(self, max_bytes: int = _POOLED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._buffers: dict[int, list[Array]] = {}

    def take(self, size: int) -> memoryview:
        """A writable view of `size` bytes with unspecified content."""
        capacity = _capacity(size)
        if capacity < _SMALLEST:
            return memoryview(bytearray(size))
        buffers = self._buffers.setdefault(capacity, [])
        for index, references in enumerate(map(sys.getrefcount, buffers)):
            if references <= _FREE_REFERENCES:
                return buffers[index].data[:size]
        fresh: Array = np.empty(capacity, np.uint8)
        if self._num_bytes + capacity > self._max_bytes:
            self._drop_free()
        if self._num_bytes + capacity <= self._max_bytes:
            buffers.append(fresh)
            self._num_bytes += capacity
        return fresh.data[:size]

    def _drop_free(self) -> None:
        for buffers in self._buffers.values():
            references = list(map(sys.getrefcount, buffers))
            for index in reversed(range(len(buffers))):
                if references[index] <= _FREE_REFERENCES:
                    self._num_bytes -= len(buffers.pop(index))


def _capacity(size: int) -> int:
    """`size` rounded up to one of four steps per power of two, so that buffers fit again."""
    step = max(1 << max(size.bit_length() - 3, 0), 1)
    return -(-size // step) * step


class ChunkedBody:
    """Decodes the chunked transfer coding (RFC 9112 section 7.1), bounded."""

    __slots__ = ("_framing", "_line", "_max_bytes", "_need", "_state", "body")

    def __init__(self, max_bytes: int) -> None:
        self.body = bytearray()
        self._max_bytes = max_bytes
        self._framing = 0
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
                piece = data[position : position + self._need]
                self.body += piece
                position += len(piece)
                self._need -= len(piece)
                if not self._need:
                    self._state = "end"
                continue
            end = data.find(b"\n", position) + 1
            piece = data[position : end or len(data)]
            position += len(piece)
            self._line += piece
            self._bound_framing(len(piece))
            if end and self._take_line():
                return data[position:]
        return None

    def _bound_framing(self, num_bytes: int) -> None:
        """Tiny chunks, extensions and trailers may not cost many times what the body is worth."""
        self._framing += num_bytes
        allowed = _FRAMING_ALLOWANCE + _FRAMING_PER_BYTE * len(self.body)
        if len(self._line) > _MAX_CHUNK_LINE or self._framing > allowed:
            raise InvalidInput("the chunked body has too long chunk lines or trailers")

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
            if line and _TRAILER.fullmatch(line) is None:
                raise InvalidInput("a trailer of the chunked body is not a header field")
            return not line
        else:
            self._start_chunk(line)
        return False

    def _start_chunk(self, line: bytes) -> None:
        matched = _CHUNK_LINE.fullmatch(line)
        if matched is None:
            raise InvalidInput("a chunk's size is not a hexadecimal number")
        self._need = int(matched[1], 16)
        if len(self.body) + self._need > self._max_bytes:
            raise TooLarge(f"the body has more than {self._max_bytes} bytes")
        self._state = "data" if self._need else "trailer"
