"""Whether a UBJSON document goes to its end (Universal Binary JSON, draft 12)."""

from __future__ import annotations

from typing import Final

_INTEGERS: Final = {ord(kind): size for kind, size in zip("iUIlL", (1, 1, 2, 4, 8), strict=True)}
_SIZES: Final = _INTEGERS | {
    ord(kind): size for kind, size in zip("ZNTFCdD", (0, 0, 0, 0, 1, 4, 8), strict=True)
}


def is_whole(data: bytes | bytearray) -> bool:
    """Whether `data` is one value and nothing else. Values are passed over, not read."""
    try:
        return _end_of(data, data[0], 1) == len(data)
    except (IndexError, KeyError, RecursionError):
        return False


def _end_of(data: bytes | bytearray, kind: int, at: int) -> int:
    """Where a value ends whose type is known and whose content begins at `at`."""
    if kind in _SIZES:
        return at + _SIZES[kind]
    if kind in b"SH":
        length, at = _length(data, at)
        return at + length
    if kind == ord("["):
        return _end_of_container(data, at, is_object=False)
    if kind == ord("{"):
        return _end_of_container(data, at, is_object=True)
    raise KeyError(kind)


def _length(data: bytes | bytearray, at: int) -> tuple[int, int]:
    stop = at + 1 + _INTEGERS[data[at]]
    return int.from_bytes(data[at + 1 : stop], "big"), stop


def _end_of_container(data: bytes | bytearray, at: int, *, is_object: bool) -> int:
    kind = count = -1
    if data[at] == ord("$"):
        kind, at = data[at + 1], at + 2
    if data[at] == ord("#"):
        count, at = _length(data, at + 1)
    if kind in _SIZES and count >= 0 and not is_object:
        return at + count * _SIZES[kind]
    end = ord("}" if is_object else "]")
    while count and (count > 0 or data[at] != end):
        if is_object:
            length, at = _length(data, at)
            at += length
        at = _end_of(data, data[at], at + 1) if kind < 0 else _end_of(data, kind, at)
        count -= 1
    return at + (count < 0)
