"""Header blocks of one connection to heads: decoded, checked, and cached where they repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from salver.server.http2.frames import ErrorCode, Http2Error
from salver.server.http2.head import RequestHead, check_trailers
from salver.server.http2.hpack import Decoder
from salver.server.http2.huffman import HpackError

if TYPE_CHECKING:
    from salver.server.http2.hpack import Field

_MAX_CACHED_HEADS: Final = 32
_MAX_CACHED_BLOCK_BYTES: Final = 1024


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
