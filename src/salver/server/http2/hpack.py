"""HPACK (RFC 7541): a decoder of header blocks with limits, and an encoder that needs no state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from salver.errors import TooLarge
from salver.server.http2 import huffman
from salver.server.http2.huffman import HpackError

if TYPE_CHECKING:
    from collections.abc import Iterable

Field = tuple[str, str]

DEFAULT_TABLE_BYTES: Final = 4096
ENTRY_OVERHEAD_BYTES: Final = 32
SHRINK_TABLE_TO_ZERO: Final = b"\x20"

_STATIC: Final[tuple[Field, ...]] = (
    ("", ""),
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"),
    (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"), (":status", "200"),
    (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""),
    ("accept", ""), ("access-control-allow-origin", ""), ("age", ""), ("allow", ""),
    ("authorization", ""), ("cache-control", ""), ("content-disposition", ""),
    ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""),
    ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""),
    ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""),
    ("vary", ""), ("via", ""), ("www-authenticate", ""),
)  # fmt: skip
_FIRST_DYNAMIC: Final = len(_STATIC)
_STATIC_FIELD: Final = {field: index for index, field in enumerate(_STATIC)}
_STATIC_NAME: Final = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC)))}
_LARGEST_STATIC_BYTES: Final = max(len(n) + len(v) for n, v in _STATIC) + ENTRY_OVERHEAD_BYTES
_INTEGER_SHIFTS: Final = (0, 7, 14, 21, 28)


class HeaderListTooLarge(TooLarge):
    """A header block was decoded, and the table is intact, but it says more than is allowed."""

    def __init__(self, message: str, fields: list[Field]) -> None:
        super().__init__(message)
        self.fields = fields


class Decoder:
    """The receiving side of one connection's header compression.

    `max_list_bytes` bounds a header list as RFC 9113 counts it (32 bytes and both strings for each
    field), `max_fields` its length. A block that left `generation` unchanged means the same fields
    again until it changes: such blocks may be cached. Strings are Latin-1, a character per octet.
    """

    def __init__(
        self, max_list_bytes: int, max_fields: int, max_table_bytes: int = DEFAULT_TABLE_BYTES
    ) -> None:
        self.generation = 0
        self._max_list_bytes = max_list_bytes
        self._max_fields = max_fields
        self._max_table_bytes = max_table_bytes
        self._table_limit = max_table_bytes
        self._table_bytes = 0
        self._largest_bytes = _LARGEST_STATIC_BYTES
        self._table = list(_STATIC)
        """The static fields, then the dynamic ones, newest first: as the indices count them."""

    def decode(self, block: bytes) -> list[Field]:
        """Decodes one whole header block.

        Raises: HpackError, after which the connection cannot go on; HeaderListTooLarge, after which
        it can.
        """
        try:
            fields = self._decode(block)
        except IndexError:
            raise HpackError("a header block is cut off or points past the table") from None
        if len(fields) > self._max_fields:
            raise HeaderListTooLarge(
                f"{len(fields)} headers; at most {self._max_fields} are allowed", fields
            )
        # No field is larger than the largest of the table and twice its own octets (Huffman coding
        # saves less than half): most lists need no exact count.
        if len(fields) * self._largest_bytes + 2 * len(block) > self._max_list_bytes:
            self._check_bytes(fields)
        return fields

    def _check_bytes(self, fields: list[Field]) -> None:
        num_bytes = sum(len(name) + len(value) + ENTRY_OVERHEAD_BYTES for name, value in fields)
        if num_bytes > self._max_list_bytes:
            raise HeaderListTooLarge(
                f"headers of {num_bytes} bytes; at most {self._max_list_bytes} are allowed", fields
            )

    def _decode(self, block: bytes) -> list[Field]:
        fields: list[Field] = []
        table = self._table
        position, end = 0, len(block)
        while position < end:
            first = block[position]
            position += 1
            if first > 0x80:
                index = first & 0x7F
                if index == 0x7F:
                    index, position = _integer(block, position, 0x7F)
                fields.append(table[index])
            elif first == 0x80:
                raise HpackError("a header block holds index 0")
            elif first >= 0x40:
                field, position = self._literal(block, position, first & 0x3F, 0x3F)
                self._insert(field)
                fields.append(field)
            elif first >= 0x20:
                if fields:
                    raise HpackError("a table size update stands after a header")
                position = self._resize(block, position, first & 0x1F)
            else:
                field, position = self._literal(block, position, first & 0x0F, 0x0F)
                fields.append(field)
        return fields

    def _literal(self, block: bytes, position: int, index: int, mask: int) -> tuple[Field, int]:
        if index == mask:
            index, position = _integer(block, position, mask)
        if index:
            name = self._table[index][0]
        else:
            name, position = _string(block, position)
        first = block[position]
        if first & 0x7F == 0x7F:
            value, position = _string(block, position)
            return (name, value), position
        position += 1
        stop = position + (first & 0x7F)
        raw = block[position:stop]
        if stop > len(block):
            raise HpackError("a string of a header block is cut off")
        return (name, huffman.decode(raw) if first >= 0x80 else raw.decode("latin-1")), stop

    def _insert(self, field: Field) -> None:
        self.generation += 1
        self._table.insert(_FIRST_DYNAMIC, field)
        size = len(field[0]) + len(field[1]) + ENTRY_OVERHEAD_BYTES
        self._table_bytes += size
        if size > self._largest_bytes:
            self._largest_bytes = size
        if self._table_bytes > self._table_limit:
            self._evict()

    def _evict(self) -> None:
        while self._table_bytes > self._table_limit:
            name, value = self._table.pop()
            self._table_bytes -= len(name) + len(value) + ENTRY_OVERHEAD_BYTES

    def _resize(self, block: bytes, position: int, limit: int) -> int:
        if limit == 0x1F:
            limit, position = _integer(block, position, 0x1F)
        if limit > self._max_table_bytes:
            raise HpackError(
                f"a table of {limit} bytes was asked for; at most {self._max_table_bytes} are "
                "allowed"
            )
        self.generation += 1
        self._table_limit = limit
        self._evict()
        return position


def _integer(block: bytes, position: int, value: int) -> tuple[int, int]:
    """Reads the octets that follow a full prefix of `value`; five at most (35 bits)."""
    octet = block[position]
    if octet < 0x80:
        return value + octet, position + 1
    for shift in _INTEGER_SHIFTS:
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
    raise HpackError("an integer of a header block is longer than 5 octets")


def _string(block: bytes, position: int) -> tuple[str, int]:
    first = block[position]
    position += 1
    length = first & 0x7F
    if length == 0x7F:
        length, position = _integer(block, position, 0x7F)
    stop = position + length
    raw = block[position:stop]
    if len(raw) != length:
        raise HpackError("a string of a header block is cut off")
    return huffman.decode(raw) if first >= 0x80 else raw.decode("latin-1"), stop


def encode(fields: Iterable[Field]) -> bytes:
    """Encodes a header block that neither needs nor changes a dynamic table.

    Names must be lower-case; strings are sent as Latin-1, without Huffman coding.
    """
    return b"".join(map(_encode_field, fields))


def _encode_field(field: Field) -> bytes:
    index = _STATIC_FIELD.get(field)
    if index:
        return _encode_integer(index, 0x7F, 0x80)
    name, value = field
    index = _STATIC_NAME.get(name, 0)
    head = _encode_integer(index, 0x0F, 0)
    return (head if index else head + _encode_string(name)) + _encode_string(value)


def _encode_string(text: str) -> bytes:
    return _encode_integer(len(text), 0x7F, 0) + text.encode("latin-1")


def _encode_integer(value: int, mask: int, pattern: int) -> bytes:
    """Encodes `value` behind a prefix whose bits above `mask` are `pattern`."""
    if value < mask:
        return bytes((pattern | value,))
    octets = [pattern | mask]
    value -= mask
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)
