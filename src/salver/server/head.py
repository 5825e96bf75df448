"""HTTP/1.1 request heads: strict parsing (RFC 9112), limits, and a cache by exact bytes.

Clients repeat their heads byte for byte, so everything that follows from a head alone (route,
length, keep-alive, permission) is worked out once and kept with it.
"""

from __future__ import annotations

import re
from hmac import compare_digest
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import httptools

from salver.clock import NS_PER_MS
from salver.errors import (
    InvalidInput,
    SalverError,
    TooLarge,
    Unauthenticated,
    Unsupported,
    UnsupportedMedia,
)
from salver.server.compression import MAX_INFLATION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.config import Limits
    from salver.interfaces import Endpoint
    from salver.server.http2.head import RequestHead
    from salver.server.router import Router

_MAX_CACHED_HEADS: Final = 1024
_MAX_CACHED_BYTES: Final = 2048
_MAX_LENGTH_DIGITS: Final = 18
_SMALL_BODY: Final = 1 << 16
OWS: Final = " \t"
_WEIGHT: Final = re.compile(r"[ \t]*(?:q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?[ \t]*")
MAX_ID_LENGTH: Final = 128
"""Of an `X-Request-Id`; longer ones are cut off."""


class HttpHead:
    """One parsed head and what it decides.

    `length` is the body's in bytes, -1 for chunked; `weight` is what it may hold once inflated.
    `error` is why the request is refused, and `must_close` that nothing after this head is read.
    `common_headers` belong to every answer; an answer to a head that `is_plain` needs nothing but
    its length.
    """

    __slots__ = (
        "accepts", "arguments", "common_headers", "encoding", "endpoint", "error",
        "expects_continue", "headers", "is_plain", "keep_alive", "length", "method",
        "must_close", "path", "query", "request_id", "timeout_ns", "version", "weight",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = ""
        self.version = "1.1"
        self.headers: Mapping[str, str] = {}
        self.endpoint: Endpoint | None = None
        self.arguments: Mapping[str, str] = {}
        self.is_plain = False
        self.length = self.weight = 0
        self.keep_alive = True
        self.expects_continue = False
        self.accepts = ""
        self.common_headers = b""
        self.encoding = ""
        self.request_id = ""
        self.timeout_ns = 0
        self.error: SalverError | None = None
        self.must_close = False

    def weigh(self, num_bytes: int) -> None:
        """Notes what a body of so many bytes may hold in memory."""
        self.weight = num_bytes * MAX_INFLATION if self.encoding else num_bytes


class _Fields:
    """Collects what httptools reports."""

    __slots__ = ("fields", "url")

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


class HeadReader:
    """Parses heads for all connections of a server. Everything it keeps is bounded."""

    def __init__(self, limits: Limits, router: Router, api_key: str) -> None:
        self._limits = limits
        self._router = router
        self._api_key = api_key
        self._cache: dict[bytes, HttpHead] = {}
        self.known = self._cache.get
        """The head of bytes that were read before, or None."""

    def read(self, raw: bytes) -> HttpHead:
        """The head in `raw`, which ends with its empty line. Never raises for bad input."""
        head = HttpHead()
        try:
            self._parse(head, raw)
        except SalverError as error:
            head.error = error
            head.must_close = True
            return head
        self.decide(head)
        return head

    def of_http2(self, request: RequestHead) -> HttpHead:
        """The same for a head that came by HTTP/2."""
        head = HttpHead()
        head.method = request.method
        head.path = unquote(request.path, errors="replace")
        head.query = request.query
        head.headers = request.headers
        self.decide(head)
        # Its connection keeps the head, so each request checks its length.
        head.length = max(request.content_length, 0)
        return head

    def remember(self, raw: bytes, head: HttpHead) -> None:
        """Makes `head` known, unless nothing after it can be trusted."""
        if len(raw) > _MAX_CACHED_BYTES or head.must_close:
            return
        if len(self._cache) >= _MAX_CACHED_HEADS:
            self._cache.clear()
        self._cache[raw] = head

    def forget(self) -> None:
        """Heads are judged anew."""
        self._cache.clear()

    def _parse(self, head: HttpHead, raw: bytes) -> None:
        collected = _Fields()
        parser = httptools.HttpRequestParser(collected)
        try:
            parser.feed_data(raw)
        except httptools.HttpParserUpgrade:
            # A server may go on in HTTP/1.1, which is what happens here.
            pass
        except httptools.HttpParserError as error:
            raise InvalidInput(f"not a valid HTTP request: {error}") from None
        head.version = parser.get_http_version()
        if head.version not in ("1.0", "1.1"):
            raise InvalidInput(f"HTTP/{head.version} is not spoken here")
        head.method = parser.get_method().decode()
        self._target(head, collected.url)
        self._fields(head, collected.fields)
        self._framing(head)

    def _target(self, head: HttpHead, url: bytes) -> None:
        target = url.decode("latin-1")
        if target.startswith(("http://", "https://")):
            # The absolute form (RFC 9112 section 3.2.2): scheme, nothing, authority, path.
            target = "/" + "".join(target.split("/", 3)[3:])
        path, _, head.query = target.partition("?")
        head.path = unquote(path, errors="replace") if "%" in path else path

    def _fields(self, head: HttpHead, fields: list[tuple[bytes, bytes]]) -> None:
        headers: dict[str, str] = {}
        for raw_name, raw_value in fields:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip(OWS)
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if head.version == "1.1" and ("host" not in headers or "," in headers["host"]):
            raise InvalidInput("exactly one Host header is needed")
        head.headers = headers

    def _framing(self, head: HttpHead) -> None:
        """The body's length (RFC 9112 section 6). What is ambiguous is refused."""
        headers = head.headers
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if coding is not None:
            if length is not None or head.version == "1.0":
                raise InvalidInput("Transfer-Encoding together with Content-Length or HTTP/1.0")
            if coding.lower() != "chunked":
                raise Unsupported(f"transfer coding {coding[:40]!r} is not spoken here")
            head.length = -1
        elif length is not None:
            if not (length.isascii() and length.isdigit() and len(length) <= _MAX_LENGTH_DIGITS):
                raise InvalidInput("Content-Length must be one number")
            head.length = int(length)
        options = {word.strip(OWS) for word in headers.get("connection", "").lower().split(",")}
        head.keep_alive = "close" not in options and (
            head.version == "1.1" or "keep-alive" in options
        )

    def decide(self, head: HttpHead) -> None:
        """Route, permission and limits: everything that needs no body."""
        headers = head.headers
        head.request_id = headers.get("x-request-id", "")[:MAX_ID_LENGTH]
        head.expects_continue = (
            head.version != "1.0" and headers.get("expect", "").lower() == "100-continue"
        )
        try:
            head.endpoint, head.arguments = self._router.find(head.method, head.path)
            if self._api_key and not is_open(head.path, headers):
                check_key(headers, self._api_key)
            if not head.path.startswith("/v2") or head.path.endswith("/infer"):
                # Triton's asyncio client always offers gzip, but undoes it for inference only.
                head.accepts = accepted_encoding(headers.get("accept-encoding", ""))
            head.timeout_ns = timeout_ns(headers.get("x-request-timeout-ms"))
            head.encoding = content_encoding(headers.get("content-encoding", ""))
            head.weigh(head.length)
            check_length(head, self._limits)
        except SalverError as error:
            head.error = error
            # The body of a refused request is not read, unless it is small and on its way.
            head.must_close = head.expects_continue or not 0 <= head.length <= _SMALL_BODY


def check_length(head: HttpHead, limits: Limits) -> None:
    """Raises: TooLarge for the body that a head announces."""
    if head.length > limits.body_bytes:
        raise TooLarge(f"the body has {head.length} bytes, at most {limits.body_bytes} are taken")


def is_open(path: str, headers: Mapping[str, str]) -> bool:
    """What needs no key: health, and the page, which holds no data of its own."""
    if path.startswith("/page/"):
        return path != "/page/state"
    if path == "/":
        return wants_page(headers)
    return path == "/docs" or path.startswith("/v2/health/")


def wants_page(headers: Mapping[str, str]) -> bool:
    """Whether a browser asks, and not a program that would rather have text."""
    return "text/html" in headers.get("accept", "")


def check_key(headers: Mapping[str, str], api_key: str) -> None:
    """Raises: Unauthenticated unless the request carries the server's key."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = headers.get("x-api-key") or (token if scheme.lower() == "bearer" else "")
    if not compare_digest(given.encode(), api_key.encode()):
        raise Unauthenticated(
            "this server needs its API key: send Authorization: Bearer KEY or X-API-Key: KEY"
        )


def timeout_ns(value: str | None) -> int:
    """`X-Request-Timeout-Ms` in nanoseconds; 0 if there is none.

    Raises: InvalidInput.
    """
    if value is None:
        return 0
    try:
        timeout = float(value)
    except ValueError:
        timeout = -1.0
    if not 0 < timeout < 1e12:
        raise InvalidInput(f"X-Request-Timeout-Ms: expected milliseconds, got {value[:40]!r}")
    return max(int(timeout * NS_PER_MS), 1)


def content_encoding(value: str) -> str:
    """`gzip`, `deflate` or nothing.

    Raises: UnsupportedMedia.
    """
    value = value.lower()
    if value in ("", "identity"):
        return ""
    if value == "x-gzip":
        # An old name that counts as the same (RFC 9110 section 8.4.1.3).
        return "gzip"
    if value not in ("gzip", "deflate"):
        raise UnsupportedMedia(f"content encoding {value[:40]!r}: gzip and deflate are taken")
    return value


def accepted_encoding(value: str) -> str:
    """The coding to answer with: the one of `gzip` and `deflate` that the client prefers, else
    nothing (RFC 9110 section 12.5.3).
    """
    weights = {}
    for word in value.lower().split(","):
        coding, _, weight = word.partition(";")
        weights[coding.strip(OWS)] = _weight(weight)
    others = weights.get("*", 0.0)
    gzip = weights.get("gzip", weights.get("x-gzip", others))
    deflate = weights.get("deflate", others)
    if not (gzip or deflate):
        return ""
    return "gzip" if gzip >= deflate else "deflate"


def _weight(text: str) -> float:
    """What stands behind a coding; 0, so that it is not used, for what is not a weight."""
    matched = _WEIGHT.fullmatch(text)
    return float(matched[1] or 1) if matched else 0.0
