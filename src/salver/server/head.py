"""The head of an HTTP/2 request: its fields checked and sorted (RFC 9113, section 8)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from salver.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from salver.server.hpack import Field

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_CONNECTION_SPECIFIC: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)
_PSEUDO: Final = frozenset({":method", ":scheme", ":path", ":authority"})


class MalformedHead(InvalidInput):
    """Fields that RFC 9113 does not allow; the request must not be processed."""


class RequestHead:
    """What a request says before its body. Shared by requests with the same header block.

    Header names are lower-case, values Latin-1; a repeated header is joined by commas.
    `content_length` is in bytes, -1 if not told. `note` is for whoever derives more from the head.
    """

    __slots__ = (
        "authority", "content_length", "headers", "method", "note", "path", "query", "scheme",
    )  # fmt: skip

    def __init__(self, fields: Sequence[Field]) -> None:
        """Raises: MalformedHead."""
        headers = _collect(fields)
        self.method = headers.pop(":method", "")
        self.scheme = headers.pop(":scheme", "")
        target = headers.pop(":path", "")
        self.authority = headers.pop(":authority", "")
        if not self.method or (not (self.scheme and target) and self.method != "CONNECT"):
            raise MalformedHead("a request needs :method, :scheme and :path")
        if headers.get("te", "trailers") != "trailers":
            raise MalformedHead("TE may only say trailers")
        self.path, _, self.query = target.partition("?")
        self.content_length = _content_length(headers)
        if self.authority:
            headers.setdefault("host", self.authority)
        self.headers: Mapping[str, str] = headers
        self.note: Any = None


def check_trailers(fields: Sequence[Field]) -> None:
    """Raises: MalformedHead."""
    if any(name.startswith(":") for name in _collect(fields)):
        raise MalformedHead("trailers hold a pseudo-header")


def _collect(fields: Sequence[Field]) -> dict[str, str]:
    """Checks names and values; joins the values of repeated headers."""
    names, values = zip(*fields, strict=True) if fields else ((), ())
    text = "".join(values)
    if "\0" in text or "\r" in text or "\n" in text:
        raise MalformedHead("a header's value holds NUL, CR or LF")
    if _are_distinct(names):
        return dict(fields)
    headers: dict[str, str] = {}
    for name, value in fields:
        if name in headers:
            value = headers[name] + ("; " if name == "cookie" else ", ") + value
        headers[name] = value
    return headers


@lru_cache(maxsize=128)
def _are_distinct(names: tuple[str, ...]) -> bool:
    """Checks the names of a header list, which a client repeats with changing values.

    Raises: MalformedHead.
    """
    pseudo = [name for name in names if name.startswith(":")]
    if tuple(pseudo) != names[: len(pseudo)]:
        raise MalformedHead("a pseudo-header stands after a header")
    if len(set(pseudo)) != len(pseudo) or not _PSEUDO.issuperset(pseudo):
        raise MalformedHead("a pseudo-header is unknown or given twice")
    for name in names[len(pseudo) :]:
        if not _NAME.fullmatch(name):
            raise MalformedHead("a header has a name that is empty or holds forbidden characters")
        if name in _CONNECTION_SPECIFIC:
            raise MalformedHead(f"{name} has no meaning in HTTP/2")
    return len(set(names)) == len(names)


def _content_length(headers: dict[str, str]) -> int:
    text = headers.get("content-length")
    if text is None:
        return -1
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise MalformedHead("content-length is not a number")
    return int(text)
