"""Huffman code of HPACK (RFC 7541, appendix B), decoded one byte at a time."""

from __future__ import annotations

from typing import Final

from salver.errors import InvalidInput

# Bits of the code of each octet and of the end-of-string mark. The code is canonical: the lengths
# alone give it.
_CODE_BITS: Final = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30,
    28, 28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5,
    5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6,
    6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23,
    22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23,
    24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22,
    23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27,
    26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21,
    22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27,
    27, 27, 27, 27, 26, 30,
)  # fmt: skip
_END_OF_STRING: Final = 256


class HpackError(InvalidInput):
    """A header block that cannot be decoded; the connection's table is lost with it."""


class _Node:
    """A place inside the code tree.

    `steps` maps the next byte to the place after it and the text that it ended. They are made when
    first needed: 256 places of 256 bytes at most, of which a client's own headers use a few
    hundred.
    """

    __slots__ = ("branches", "may_end", "steps")

    def __init__(self, may_end: bool) -> None:
        self.branches: list[_Node | int] = []
        self.may_end = may_end
        self.steps: list[tuple[_Node, str] | None] = []

    def step(self, byte: int) -> tuple[_Node, str]:
        node, ended = self, ""
        for shift in range(7, -1, -1):
            below = node.branches[byte >> shift & 1]
            if isinstance(below, _Node):
                node = below
            elif below == _END_OF_STRING:
                raise HpackError("a Huffman coded string holds the end-of-string mark")
            else:
                node, ended = _ROOT, ended + chr(below)
        if not node.steps:
            node.steps = [None] * 256
        step = self.steps[byte] = node, ended
        return step


def _tree() -> _Node:
    """Builds the tree breadth first: codes of one length follow each other in symbol order."""
    root = _Node(may_end=True)
    level, bits = [root], 0
    while level:
        bits += 1
        leaves = [symbol for symbol, length in enumerate(_CODE_BITS) if length == bits]
        slots = 2 * len(level)
        # Padding is up to seven bits of ones, the beginning of the end-of-string code.
        inner = [_Node(False) for _ in range(slots - len(leaves))]
        if inner:
            inner[-1].may_end = bits < 8
        below: list[_Node | int] = [*leaves, *inner]
        for i, node in enumerate(level):
            node.branches = below[2 * i : 2 * i + 2]
        level = inner
    return root


_ROOT: Final = _tree()
_ROOT.steps = [None] * 256


def decode(data: bytes) -> str:
    """Decodes a string; octets become the characters of Latin-1.

    Raises: HpackError.
    """
    node = _ROOT
    text = ""
    for byte in data:
        node, ended = node.steps[byte] or node.step(byte)
        text += ended
    if not node.may_end:
        raise HpackError("a Huffman coded string has wrong padding")
    return text
