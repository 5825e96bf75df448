"""The head of an HTTP/2 request: its fields checked and sorted (RFC 9113, section 8)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from salver.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from salver.server.hpack import Field

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_FORBIDDEN_IN_VALUE: Final = re.compile(r"[\0\r\n]")
_CONNECTION_SPECIFIC: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)
# Names that need no further look; whatever clients send often belongs here.
_GOOD_NAMES: Final = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "authorization", "cache-control",
        "content-encoding", "content-length", "content-type", "cookie", "grpc-accept-encoding",
        "grpc-encoding", "grpc-timeout", "host", "origin", "referer", "te", "traceparent",
        "tracestate", "user-agent", "x-request-id",
    }
)  # fmt: skip


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
        num_fields = len(headers)
        self.method = headers.pop(":method", "")
        self.scheme = headers.pop(":scheme", "")
        target = headers.pop(":path", "")
        self.authority = headers.pop(":authority", "")
        _check_order(fields, num_fields - len(headers))
        if not self.method or (not (self.scheme and target) and self.method != "CONNECT"):
            raise MalformedHead("a request needs :method, :scheme and :path")
        _check_regular(headers)
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
    _check_regular(_collect(fields))


def _collect(fields: Sequence[Field]) -> dict[str, str]:
    headers = dict(fields)
    if len(headers) == len(fields):
        return headers
    headers.clear()
    for name, value in fields:
        if name not in headers:
            headers[name] = value
        elif name.startswith(":"):
            raise MalformedHead(f"{name} is given twice")
        else:
            headers[name] += ("; " if name == "cookie" else ", ") + value
    return headers


def _check_order(fields: Sequence[Field], num_pseudo: int) -> None:
    for name, _ in fields[:num_pseudo]:
        if not name.startswith(":"):
            raise MalformedHead("a pseudo-header stands after a header")


def _check_regular(headers: dict[str, str]) -> None:
    for name in headers.keys() - _GOOD_NAMES:
        if not _NAME.fullmatch(name):
            raise MalformedHead("a header has a name that is empty, upper-case or misplaced")
        if name in _CONNECTION_SPECIFIC:
            raise MalformedHead(f"{name} has no meaning in HTTP/2")
    text = "".join(headers.values())
    if _FORBIDDEN_IN_VALUE.search(text):
        raise MalformedHead("a header's value holds NUL, CR or LF")


def _content_length(headers: dict[str, str]) -> int:
    text = headers.get("content-length")
    if text is None:
        return -1
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise MalformedHead("content-length is not a number")
    return int(text)
