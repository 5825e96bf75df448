"""What a browser sees: the page on `/`, the API's documentation, and the files they need."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from salver.codecs.json_numbers import dumps
from salver.codecs.status import json_refusal
from salver.errors import NotFound
from salver.interfaces import JSON_HEADERS, Endpoint, HttpAnswer, Query
from salver.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from salver.errors import SalverError
    from salver.interfaces import Head

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_METRICS: Final = b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"


class Pages:
    """Files, and the state that they show."""

    name = "pages"

    def endpoints(self) -> Sequence[Endpoint]:
        get = ("GET",)
        return (
            Endpoint(get, "/", "The page, or a short text.", _decode_root, _encode_root),
            Endpoint(
                get, "/docs", "This documentation.", _query("live", "docs.html"), _encode_file
            ),
            Endpoint(get, "/page/state", "What the page shows.", _query("state"), _encode_json),
            Endpoint(get, "/page/{file}", "A file of the page.", _decode_file, _encode_file),
            Endpoint(get, "/openapi.json", "OpenAPI.", _query("openapi"), _encode_json),
            Endpoint(get, "/metrics", "Prometheus metrics.", _query("metrics"), _encode_metrics),
        )

    def refuse(self, error: SalverError) -> HttpAnswer:
        return json_refusal(error)


def _query(name: str, file: str = "") -> Callable[[Head, Mapping[str, str], Any], Query]:
    """A decoder for requests of which nothing matters but where they go."""
    return lambda head, arguments, body: Query(name=name, encoding=file)


@cache
def page_file(name: str) -> tuple[bytes, bytes]:
    """Headers and content of a file of the page.

    Raises: NotFound.
    """
    known = {entry.name for entry in resources.files("salver.server.page").iterdir()}
    suffix = name[name.rfind(".") :]
    if name not in known or suffix not in _TYPES:
        raise NotFound(f"there is no page file {name[:100]!r}")
    headers = (
        f"Content-Type: {_TYPES[suffix]}\r\nContent-Security-Policy: {_POLICY}\r\n"
        "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
        "Cache-Control: no-cache\r\n"
    )
    return headers.encode(), resources.files("salver.server.page").joinpath(name).read_bytes()


def _decode_root(head: Head, arguments: Mapping[str, str], body: Any) -> Query:
    wants_page = "text/html" in head.headers.get("accept", "")
    return Query(name="state", encoding="index.html" if wants_page else None)


def _encode_root(operation: Query, state: dict[str, Any]) -> HttpAnswer:
    if operation.encoding:
        return _encode_file(operation, None)
    lines = [f"Salver {__version__}", ""]
    lines += [f"  {model['name']}  version {model['version']}  {model['state'].lower()}"
              for model in state["models"]]  # fmt: skip
    lines += ["", 'POST /predict/NAME {"input": ...}    GET /docs    GET /metrics', ""]
    text = "\n".join(lines).encode()
    return HttpAnswer(200, b"Content-Type: text/plain; charset=utf-8\r\n", [text])


def _decode_file(head: Head, arguments: Mapping[str, str], body: Any) -> Query:
    return Query(name="live", encoding=arguments["file"])


def _encode_file(operation: Query, _: Any) -> HttpAnswer:
    headers, content = page_file(operation.encoding)
    return HttpAnswer(200, headers, [content])


def _encode_json(operation: Query, value: Any) -> HttpAnswer:
    return HttpAnswer(200, JSON_HEADERS + b"Cache-Control: no-store\r\n", [dumps(value)])


def _encode_metrics(operation: Query, text: bytes) -> HttpAnswer:
    return HttpAnswer(200, _METRICS, [text])
