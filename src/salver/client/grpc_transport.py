"""The two gRPC transports, on the public library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from salver.codecs.status import from_grpc
from salver.errors import DeadlineExceeded, MissingExtra, Unavailable, Undeliverable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from salver.client.grpc_wire import GrpcRequest
    from salver.errors import SalverError

SERVICE: Final = "/inference.GRPCInferenceService/"
_DEADLINE_EXCEEDED: Final = 4
_UNAVAILABLE: Final = 14
_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
)


def library() -> Any:
    """grpc.

    Raises: MissingExtra.
    """
    try:
        import grpc
        import grpc.aio
    except ModuleNotFoundError:
        raise MissingExtra("the gRPC client needs `pip install 'salver[client]'`") from None
    return grpc


def open_channel(grpc: Any, address: str, is_secure: bool) -> Any:
    """A channel of `grpc` or `grpc.aio`, without limits of the library's own."""
    if not is_secure:
        return grpc.insecure_channel(address, options=_OPTIONS)
    credentials = library().ssl_channel_credentials()
    return grpc.secure_channel(address, credentials, options=_OPTIONS)


def key_metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """The headers that carry the key."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def meaning(error: Any, address: str) -> SalverError:
    """The error that the server sent, or why there is no answer."""
    status, details = error.code().value[0], error.details() or ""
    is_servers = "Error received from peer" in (error.debug_error_string() or "")
    if status == _DEADLINE_EXCEEDED and not is_servers:
        return DeadlineExceeded(f"no answer from {address} in time")
    if status != _UNAVAILABLE or is_servers:
        return from_grpc(status, details)
    if "failed to connect" in details:
        return Unavailable(
            f"cannot connect to {address} ({details}). Is the server running? "
            "Start it: salver serve PATH"
        )
    return Undeliverable(
        f"the connection to {address} broke before the answer came; the model may have been run"
    )


def stream_metadata(metadata: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """With the header by which a stream ends with an error's own status, as Triton has it."""
    return (*metadata, ("triton_grpc_error", "true"))


class Stream(NamedTuple):
    """A call that goes on, and its first message, which has come; None for a stream of none."""

    call: Any
    first: bytes | None


class GrpcTransport:
    """Sends for threads."""

    def __init__(self, address: str, api_key: str | None, *, is_secure: bool) -> None:
        self._address = address
        self._metadata = key_metadata(api_key)
        self._channel = open_channel(library(), address, is_secure)

    def send(self, request: GrpcRequest) -> bytes | Stream:
        """Raises: SalverError as the server meant it, or why there is no answer."""
        if request.streams:
            return self._open(request)
        call = self._channel.unary_unary(SERVICE + request.method)
        try:
            reply: bytes = call(request.body, timeout=request.timeout_s, metadata=self._metadata)
        except library().RpcError as error:
            raise meaning(error, self._address) from error
        return reply

    def _open(self, request: GrpcRequest) -> Stream:
        call = self._channel.stream_stream(SERVICE + request.method)(
            iter([request.body]),
            timeout=request.timeout_s,
            metadata=stream_metadata(self._metadata),
        )
        try:
            return Stream(call, next(call, None))
        except library().RpcError as error:
            raise meaning(error, self._address) from error

    def pieces(self, reply: Stream) -> Generator[bytes, None, None]:
        """The messages of a stream as they come. Raises: SalverError."""
        try:
            if reply.first is not None:
                yield reply.first
                yield from reply.call
        except library().RpcError as error:
            raise meaning(error, self._address) from error
        finally:
            reply.call.cancel()

    def close(self) -> None:
        self._channel.close()


class AsyncGrpcTransport:
    """Sends for the event loop on which it is first used."""

    def __init__(self, address: str, api_key: str | None, *, is_secure: bool) -> None:
        library()
        self._address = address
        self._is_secure = is_secure
        self._metadata = key_metadata(api_key)
        self._channel: Any = None

    async def send(self, request: GrpcRequest) -> bytes | Stream:
        """Raises: SalverError as the server meant it, or why there is no answer."""
        if self._channel is None:
            # A channel belongs to a loop, and there is none when a client is made at import.
            self._channel = open_channel(library().aio, self._address, self._is_secure)
        if request.streams:
            return await self._open(request)
        call = self._channel.unary_unary(SERVICE + request.method)
        try:
            reply: bytes = await call(
                request.body, timeout=request.timeout_s, metadata=self._metadata
            )
        except library().RpcError as error:
            raise meaning(error, self._address) from error
        return reply

    async def _open(self, request: GrpcRequest) -> Stream:
        call = self._channel.stream_stream(SERVICE + request.method)(
            [request.body],
            timeout=request.timeout_s,
            metadata=stream_metadata(self._metadata),
        )
        try:
            return Stream(call, await anext(aiter(call), None))
        except library().RpcError as error:
            raise meaning(error, self._address) from error

    async def pieces(self, reply: Stream) -> AsyncGenerator[bytes, None]:
        """The messages of a stream as they come. Raises: SalverError."""
        try:
            if reply.first is not None:
                yield reply.first
                async for piece in reply.call:
                    yield piece
        except library().RpcError as error:
            raise meaning(error, self._address) from error
        finally:
            reply.call.cancel()

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
