"""Header blocks of one connection to heads: joined, decoded, checked, cached where they repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from salver.server.http2.frames import HAS_PRIORITY, PADDED, ErrorCode, Http2Error, calm
from salver.server.http2.head import RequestHead, check_trailers
from salver.server.http2.hpack import Decoder
from salver.server.http2.huffman import HpackError

if TYPE_CHECKING:
    from salver.server.http2.hpack import Field

_MAX_CACHED_HEADS: Final = 32
_MAX_CACHED_BLOCK_BYTES: Final = 1024
_MAX_CONTINUATIONS: Final = 32


class BlockReader:
    """Owns the decoder. A block is cached while it leaves the decoder's table as it was."""

    def __init__(self, max_list_bytes: int, max_fields: int) -> None:
        self._decoder = Decoder(max_list_bytes, max_fields)
        self._generation = self._decoder.generation
        self._cache: dict[bytes, RequestHead] = {}

    def request(self, block: bytes) -> RequestHead:
        """Reads the head of a request.

        Raises: Http2Error, HeaderListTooLarge, MalformedHead.
        """
        head = self._cache.get(block)
        if head is not None:
            return head
        generation = self._generation
        head = RequestHead(self._decode(block))
        if generation == self._generation and len(block) <= _MAX_CACHED_BLOCK_BYTES:
            if len(self._cache) >= _MAX_CACHED_HEADS:
                self._cache.clear()
            self._cache[block] = head
        return head

    def trailers(self, block: bytes) -> None:
        """Reads what follows a body, and forgets it.

        Raises: Http2Error, HeaderListTooLarge, MalformedHead.
        """
        check_trailers(self._decode(block))

    def _decode(self, block: bytes) -> list[Field]:
        decoder = self._decoder
        try:
            return decoder.decode(block)
        except HpackError as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, error.message) from None
        finally:
            if decoder.generation != self._generation:
                self._generation = decoder.generation
                self._cache.clear()


class PartialBlock:
    """A header block of which further frames are to come; `ends` if it ends its stream."""

    __slots__ = ("_num_bytes", "_parts", "ends", "stream_id")

    def __init__(self, stream_id: int, ends: bool, payload: bytes) -> None:
        self.stream_id = stream_id
        self.ends = ends
        self._parts = [payload]
        self._num_bytes = len(payload)

    def add(self, payload: bytes, max_bytes: int) -> None:
        """Raises: Http2Error for more than `max_bytes`, or too many frames."""
        self._parts.append(payload)
        self._num_bytes += len(payload)
        if self._num_bytes > max_bytes or len(self._parts) > _MAX_CONTINUATIONS:
            raise calm(f"a header block of {len(self._parts)} frames, {self._num_bytes} bytes")

    def whole(self) -> bytes:
        return b"".join(self._parts)


def strip(flags: int, payload: bytes) -> bytes:
    """A HEADERS payload without its padding and priority.

    Raises: Http2Error.
    """
    start, stop = 0, len(payload)
    if flags & PADDED:
        start = 1
        stop -= payload[0] if payload else 1
    if flags & HAS_PRIORITY:
        start += 5
    if start > stop:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding exceeds its frame")
    return payload[start:stop]
