"""What the two HTTP transports share: the library, its limits, and what its failures mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from salver.client.http_wire import HttpReply, error_of
from salver.errors import DeadlineExceeded, MissingExtra, SalverError, Unavailable, Undeliverable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    import httpx

    from salver.client.http_wire import HttpRequest

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


def options(url: str, api_key: str | None, transport: Any) -> dict[str, Any]:
    """How to make an httpx client; `transport` replaces its sockets in tests."""
    httpx = library()
    return {
        "base_url": url,
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
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


def checked(response: httpx.Response, body: bytes) -> HttpReply:
    """What httpx received. Raises: SalverError that it stands for."""
    reply = HttpReply(response.status_code, response.headers, body, response)
    error = error_of(reply)
    if error is not None:
        raise error
    return reply


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


class HttpTransport:
    """Sends for threads, over pooled connections."""

    def __init__(self, url: str, api_key: str | None, transport: Any) -> None:
        self._url = url
        self._client = library().Client(**options(url, api_key, transport))

    def send(self, request: HttpRequest) -> HttpReply:
        """Raises: SalverError as the server meant it, or why there is no answer."""
        try:
            response = self._client.send(build(self._client, request), stream=request.streams)
            is_open = request.streams and response.is_success
            return checked(response, b"" if is_open else response.read())
        except library().HTTPError as error:
            raise meaning(error, self._url) from error

    def pieces(self, reply: HttpReply) -> Iterator[str]:
        """The lines of an open stream as they come. Raises: SalverError."""
        try:
            yield from reply.source.iter_lines()
        except library().HTTPError as error:
            raise meaning(error, self._url) from error
        finally:
            reply.source.close()

    def close(self) -> None:
        self._client.close()


class AsyncHttpTransport:
    """Sends for an event loop, over pooled connections."""

    def __init__(self, url: str, api_key: str | None, transport: Any) -> None:
        self._url = url
        self._client = library().AsyncClient(**options(url, api_key, transport))

    async def send(self, request: HttpRequest) -> HttpReply:
        """Raises: SalverError as the server meant it, or why there is no answer."""
        try:
            response = await self._client.send(build(self._client, request), stream=request.streams)
            is_open = request.streams and response.is_success
            return checked(response, b"" if is_open else await response.aread())
        except library().HTTPError as error:
            raise meaning(error, self._url) from error

    async def pieces(self, reply: HttpReply) -> AsyncGenerator[str, None]:
        """The lines of an open stream as they come. Raises: SalverError."""
        try:
            async for line in reply.source.aiter_lines():
                yield line
        except library().HTTPError as error:
            raise meaning(error, self._url) from error
        finally:
            await reply.source.aclose()

    async def close(self) -> None:
        await self._client.aclose()
