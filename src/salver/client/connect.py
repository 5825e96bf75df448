"""Which wire and transport a URL means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salver.client.http_wire import HttpWire
from salver.codecs.api_key import must_be_sendable
from salver.errors import ConfigError

if TYPE_CHECKING:
    from salver.client.wire import Wire


def connect(url: str, api_key: str | None, transport: Any, *, is_async: bool) -> tuple[Wire, Any]:
    """The wire and the transport for `http`, `https`, `grpc` or `grpcs`; without any, `http`.

    Raises: ConfigError, MissingExtra.
    """
    must_be_sendable(api_key or "")
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    scheme, _, address = url.partition("://")
    if scheme in ("http", "https"):
        from salver.client.http_transport import AsyncHttpTransport, HttpTransport

        http = AsyncHttpTransport if is_async else HttpTransport
        return HttpWire(), http(url, api_key, transport)
    if scheme in ("grpc", "grpcs"):
        from salver.client.grpc_transport import AsyncGrpcTransport, GrpcTransport
        from salver.client.grpc_wire import GrpcWire

        grpc = AsyncGrpcTransport if is_async else GrpcTransport
        return GrpcWire(), grpc(address, api_key, is_secure=scheme == "grpcs")
    raise ConfigError(f"{url}: the client speaks http, https, grpc and grpcs, not {scheme}")
