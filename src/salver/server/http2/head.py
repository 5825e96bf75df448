"""The head of an HTTP/2 request: its fields checked and sorted (RFC 9113, section 8)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from salver.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from salver.server.http2.hpack import Field

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
    headers = dict(fields)
    if len(headers) < len(fields):
        headers = _join(fields)
    _check_names(tuple(headers))
    text = "".join(headers.values())
    if "\0" in text or "\r" in text or "\n" in text:
        raise MalformedHead("a header's value holds NUL, CR or LF")
    return headers


def _join(fields: Sequence[Field]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in fields:
        if name not in headers:
            headers[name] = value
        elif name.startswith(":"):
            raise MalformedHead(f"{name} is given twice")
        else:
            headers[name] += ("; " if name == "cookie" else ", ") + value
    return headers


@lru_cache(maxsize=128)
def _check_names(names: tuple[str, ...]) -> None:
    """Checks the names of a header list; cached, as a client repeats them with changing values.

    Raises: MalformedHead.
    """
    pseudo = tuple(name for name in names if name.startswith(":"))
    if pseudo != names[: len(pseudo)]:
        raise MalformedHead("a pseudo-header stands after a header")
    if not _PSEUDO.issuperset(pseudo):
        raise MalformedHead("a pseudo-header is unknown")
    for name in names[len(pseudo) :]:
        if not _NAME.fullmatch(name):
            raise MalformedHead("a header has a name that is empty or holds forbidden characters")
        if name in _CONNECTION_SPECIFIC:
            raise MalformedHead(f"{name} has no meaning in HTTP/2")


def _content_length(headers: dict[str, str]) -> int:
    text = headers.get("content-length")
    if text is None:
        return -1
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise MalformedHead("content-length is not a number")
    return int(text)
