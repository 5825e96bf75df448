"""A front: the engine, protocols and connections of one process that answers clients."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import io
import logging
import sys
from typing import TYPE_CHECKING, Final

from salver.clock import system_clock
from salver.observe.access import AccessLog
from salver.observe.rates import Rates
from salver.protocols.kserve_v2 import KserveV2
from salver.protocols.plain import PlainDoor
from salver.server.admin import Admin
from salver.server.app import App
from salver.server.http1 import Http1Connection
from salver.server.listen import BACKLOG, tls_context, unless_stopped
from salver.server.pages import Pages
from salver.server.router import Router

if TYPE_CHECKING:
    import socket

    from salver.config import ServerConfig
    from salver.control.reload import Commands
    from salver.engine.engine import Engine

log = logging.getLogger("salver.server")
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8


class Front:
    """Serves what the engine has. `commands` are the loads and unloads that clients ask for.

    Raises: ConfigError for certificates that cannot be used.
    """

    def __init__(self, config: ServerConfig, engine: Engine, commands: Commands) -> None:
        self._config = config
        self._engine = engine
        self._rates = Rates()
        limits = config.limits
        router = Router([PlainDoor(limits), KserveV2(limits), Pages()])
        admin = Admin(config, engine, commands, self._rates, router)
        self._tls = tls_context(config)
        self._access = _access_log(config)
        self._app = App(config, engine, router, admin, self._access, system_clock)
        self._servers: list[asyncio.Server] = []
        self._hurry = asyncio.Event()
        self._sweeper = asyncio.ensure_future(self._sweep())

    async def accept(self, listener: socket.socket) -> asyncio.Server:
        """Takes connections from a listening socket, which it owns from now on."""
        server = await asyncio.get_running_loop().create_server(
            lambda: Http1Connection(self._app),
            sock=listener,
            ssl=self._tls,
            ssl_handshake_timeout=self._config.limits.header_timeout_s if self._tls else None,
            backlog=BACKLOG,
        )
        self._servers.append(server)
        return server

    def release(self, server: asyncio.Server) -> None:
        """Takes no more connections from a socket; those that there are go on."""
        server.close()
        self._servers.remove(server)

    def heed_options(self) -> None:
        """The configuration has changed in place."""
        self._app.heed_options()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._app.sweep()
            if self._config.processes > 1:
                # Whichever front is asked tells of all.
                for generation in self._engine.generations():
                    generation.observe()
            statistics = {name: model.statistics for name, model in self._engine.models.items()}
            self._rates.sample(statistics, system_clock())

    async def drain(self) -> None:
        """Takes no new connections, ends accepted calls, at most `drain_timeout_s`."""
        for server in self._servers:
            server.close()
        self._app.drain()
        engine, drain_s = self._engine, self._config.drain_timeout_s
        if engine.num_calls:
            calls = "1 call" if engine.num_calls == 1 else f"{engine.num_calls} calls"
            log.info("waiting for %s, at most %g s; Ctrl-C again ends them now", calls, drain_s)
        await unless_stopped(engine.drain(drain_s), self._hurry)
        await engine.stop(0)
        for _ in range(50):
            if not self._app.connections:
                break
            self._app.sweep()
            await asyncio.sleep(0.02)
        self._sweeper.cancel()
        if self._access is not None:
            self._access.close()

    def hurry(self) -> None:
        """Has `drain` end what is left of the accepted calls now."""
        self._hurry.set()


def tune_process() -> None:
    """Keeps freed memory warm (page faults cost more than copies) and the loop responsive.

    Requests make no reference cycles, so the collector need not look after every 700 objects. Of
    several arenas the C library would keep up to 64 MiB each after a model is unloaded, and they
    gain nothing where threads wait for the interpreter anyway.
    """
    sys.setswitchinterval(1e-4)
    gc.set_threshold(50_000, 20, 20)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 256 << 20)
        libc.mallopt(_M_ARENA_MAX, 1)


def _access_log(config: ServerConfig) -> AccessLog | None:
    if config.access_log == "off":
        return None
    as_json = config.access_log == "json" or (
        config.access_log == "auto" and not sys.stdout.isatty()
    )
    return AccessLog(io.FileIO(sys.stdout.fileno(), "w", closefd=False), as_json=as_json)
