"""What the two HTTP transports share: the library, its limits, and what its failures mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from salver.client.wire import HttpReply
from salver.errors import DeadlineExceeded, MissingExtra, SalverError, Unavailable, Undeliverable

if TYPE_CHECKING:
    import httpx

    from salver.client.session import Session
    from salver.client.wire import HttpRequest

GRACE_S: Final = 0.5
"""The server ends a late call first, so that its own message is what the caller sees."""
MAX_CONNECTIONS: Final = 256


def library() -> Any:
    """httpx.

    Raises: MissingExtra.
    """
    try:
        import httpx
    except ModuleNotFoundError:
        raise MissingExtra("the client needs `pip install 'salver[client]'`") from None
    return httpx


def options(session: Session, transport: Any) -> dict[str, Any]:
    """How to make an httpx client; `transport` replaces its sockets in tests."""
    httpx = library()
    return {
        "base_url": session.url,
        "headers": session.headers,
        "timeout": None,
        "limits": httpx.Limits(
            max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS
        ),
        "transport": transport,
    }


def build(client: Any, request: HttpRequest) -> httpx.Request:
    """The request as httpx sends it."""
    timeout_s = None if request.timeout_s is None else request.timeout_s + GRACE_S
    built: httpx.Request = client.build_request(
        request.method,
        request.path,
        headers=dict(request.headers),
        content=request.body,
        timeout=timeout_s,
    )
    return built


def reply_of(response: httpx.Response, body: bytes, source: Any = None) -> HttpReply:
    """What httpx received."""
    return HttpReply(response.status_code, response.headers, body, source)


def meaning(error: Exception, url: str) -> SalverError:
    """Why there is no answer: could not connect, too late, or broken off on the way."""
    httpx = library()
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        why = str(error) or "no answer in time"
        return Unavailable(
            f"cannot connect to {url} ({why}). Is the server running? Start it: salver serve PATH"
        )
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(f"no answer from {url} in time")
    return Undeliverable(
        f"the connection to {url} broke before the answer came; the model may have been run"
    )
