"""What all connections of a process share: engine, routes, limits, buffers, and the write turn."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from salver.clock import NS_PER_S, NS_PER_US
from salver.interfaces import Infer
from salver.observe.access import Record
from salver.observe.cores import usable_cores
from salver.server.bodies import BufferPool
from salver.server.head import HeadReader
from salver.server.inflation import InflationGate
from salver.server.polling import BusyPolling

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from salver.clock import Clock
    from salver.config import ServerConfig
    from salver.engine.engine import Engine
    from salver.observe.access import AccessLog
    from salver.server.admin import Admin
    from salver.server.exchange import Exchange
    from salver.server.head import HttpHead
    from salver.server.router import Router

_MAX_INFLATED: Final = 4
"""Bodies of the largest size whose memory all that are inflated at once may take together."""
_VARY_ORIGIN: Final = b"Vary: Origin\r\n"
_EXPOSED: Final = (
    b"Access-Control-Expose-Headers: Inference-Header-Content-Length, Retry-After, X-Request-Id\r\n"
)
_PREFLIGHT: Final = (
    b"Access-Control-Allow-Methods: GET, POST, PUT, OPTIONS\r\n"
    b"Access-Control-Allow-Headers: Authorization, Content-Encoding, Content-Type, "
    b"Inference-Header-Content-Length, Traceparent, Tracestate, X-Api-Key, X-Request-Id, "
    b"X-Request-Timeout-Ms\r\n"
    b"Access-Control-Max-Age: 600\r\n"
)


class Connection(Protocol):
    """What the app asks of a connection, whatever it speaks."""

    transport: asyncio.Transport

    def flush(self) -> None: ...

    def sweep(self, now: int) -> None: ...

    def drain(self) -> None: ...


class App:
    """Lives on the loop. Connections register here; what they want to write leaves once a turn."""

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        router: Router,
        admin: Admin,
        access: AccessLog | None,
        clock: Clock,
    ) -> None:
        self.config = config
        self.engine = engine
        self.router = router
        self.admin = admin
        self.clock = clock
        self.now = clock()
        self.heads = HeadReader(config.limits, router, config.api_key)
        self.pool = BufferPool()
        self.inflation = InflationGate(config.limits, _MAX_INFLATED)
        self.is_draining = False
        self.default_timeout_ns = 0
        self.connections: set[Connection] = set()
        self._access = access
        self._dirty: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_flush_scheduled = False
        self._loop = asyncio.get_running_loop()
        can_poll = usable_cores() > config.processes
        self._polling = BusyPolling(
            config.busy_poll_us * NS_PER_US if can_poll else 0,
            lambda: engine.is_busy,
            clock,
            self._loop,
        )
        self._origins = {origin.encode() for origin in config.cors_origins}
        self.heed_options()

    def heed_options(self) -> None:
        """Derives from the options that may change while serving what is not looked up in them."""
        self.default_timeout_ns = int(self.config.limits.request_timeout_s * NS_PER_S)
        self.heads.forget()

    def opened(self, connection: Connection) -> None:
        """Counts a connection in, or turns it away when there are too many."""
        if len(self.connections) >= self.config.limits.connections or self.is_draining:
            connection.transport.abort()
            return
        self.connections.add(connection)

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._dirty.discard(connection)

    def dirty(self, connection: Connection) -> None:
        """The connection has something to write; all write together at the end of the turn."""
        self._dirty.add(connection)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Has everything written that is ready by then.

        Who has just passed requests to the engine calls it as well: so their answers, if they are
        there by the end of this turn, do not wait for the next.
        """
        if not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, set()
        for connection in dirty:
            connection.flush()
        self._polling.answered()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Calls it in the next turn of the loop."""
        self._loop.call_soon(function)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs slow work, such as a load, beside the data plane."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def common_headers(self, head: HttpHead) -> bytes:
        """Headers of every answer: the request's id, and permission for other origins."""
        headers = b""
        if head.request_id:
            headers = b"X-Request-Id: %b\r\n" % head.request_id.encode("latin-1")
        if self._origins:
            headers += self._cors(head)
        return headers

    def _cors(self, head: HttpHead) -> bytes:
        """What the Fetch standard asks for; caches are told when the answer depends on who asks."""
        if b"*" in self._origins:
            allowed = b"Access-Control-Allow-Origin: *\r\n"
        else:
            origin = head.headers.get("origin", "").encode("latin-1")
            if origin not in self._origins:
                return _VARY_ORIGIN
            allowed = b"Access-Control-Allow-Origin: %b\r\n%b" % (origin, _VARY_ORIGIN)
        return allowed + (_PREFLIGHT if head.method == "OPTIONS" else _EXPOSED)

    def answered(self, exchange: Exchange, status: int, length: int) -> None:
        """Notes an answer in the access log."""
        if self._access is None:
            return
        head = exchange.head
        self._access.write(
            Record(
                time.time(),
                head.method,
                head.path,
                self._model_of(exchange),
                status,
                length,
                self.clock() - exchange.started,
                head.request_id,
            )
        )

    def _model_of(self, exchange: Exchange) -> str:
        """The model that a request was for; an empty name in it means the only one."""
        operation, models = exchange.operation, self.engine.models
        if not isinstance(operation, Infer):
            return exchange.head.arguments.get("model", "")
        return operation.ref.name or (next(iter(models)) if len(models) == 1 else "")

    def sweep(self) -> None:
        """Once a second: time limits of connections, and what the log holds."""
        self.now = self.clock()
        for connection in tuple(self.connections):
            connection.sweep(self.now)
        if self._access is not None:
            self._access.flush()

    def drain(self) -> None:
        """Lets every connection end after its present answers."""
        self.is_draining = True
        for connection in tuple(self.connections):
            connection.drain()
