"""A server process from start to end: sockets, signals, drain."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import io
import logging
import os
import signal
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from salver.clock import system_clock
from salver.control.reload import Repository
from salver.engine.engine import Engine
from salver.errors import ConfigError
from salver.observe.access import AccessLog
from salver.observe.rates import Rates
from salver.protocols.kserve_v2 import KserveV2
from salver.protocols.plain import PlainDoor
from salver.server.admin import Admin
from salver.server.app import App
from salver.server.http1 import Http1Connection
from salver.server.pages import Pages
from salver.server.router import Router

if TYPE_CHECKING:
    from collections.abc import Callable

    from salver.config import ServerConfig
    from salver.interfaces import Source

log = logging.getLogger("salver.server")
_BACKLOG = 4096
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Server:
    """Everything of one process. `started` is called with the server when it is ready."""

    def __init__(self, config: ServerConfig, source: Source) -> None:
        self.config = config
        self._source = source
        self.engine: Engine
        self.app: App
        self.port = 0
        self._stop: asyncio.Event
        self._sockets: list[asyncio.Server] = []

    async def run(self, started: Callable[[Server], None] = lambda server: None) -> None:
        """Serves until told to stop, then drains.

        Raises: ConfigError when the address cannot be had; LoadFailed when the source is wrong.
        """
        config = self.config
        self._stop = asyncio.Event()
        self.engine = Engine(config, system_clock)
        repository = Repository(self._source, self.engine, config)
        rates = Rates()
        admin = Admin(config, self.engine, repository, rates)
        limits = config.limits
        router = Router([PlainDoor(limits), KserveV2(limits), Pages()])
        admin.router = router
        access = _access_log(config)
        self.app = App(config, self.engine, router, admin, access, system_clock)
        try:
            await self._listen()
            await repository.start()
            gc.freeze()
            tasks = [asyncio.ensure_future(self._sweep(rates))]
            if config.mode == "poll":
                tasks.append(asyncio.ensure_future(repository.follow()))
            self._handle_signals()
            started(self)
            await self._stop.wait()
            for task in tasks:
                task.cancel()
        finally:
            await self._drain()
            if access is not None:
                access.close()

    def stop(self) -> None:
        """Ends `run`, from the loop."""
        self._stop.set()

    async def _listen(self) -> None:
        config, loop = self.config, asyncio.get_running_loop()
        context = _tls(config)
        try:
            listener = listening_socket(config.host, config.port)
        except OSError as error:
            raise ConfigError(explain_address(error, config.host, config.port)) from None
        self.port = listener.getsockname()[1]
        self._sockets.append(
            await loop.create_server(
                lambda: Http1Connection(self.app), sock=listener, ssl=context, backlog=_BACKLOG
            )
        )
        if config.unix_socket:
            self._sockets.append(
                await loop.create_unix_server(
                    lambda: Http1Connection(self.app), config.unix_socket, backlog=_BACKLOG
                )
            )

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, self.stop)

    async def _sweep(self, rates: Rates) -> None:
        while True:
            await asyncio.sleep(1)
            self.app.sweep()
            statistics = {name: model.statistics for name, model in self.engine.models.items()}
            rates.sample(statistics, system_clock())

    async def _drain(self) -> None:
        """Takes no new connections, ends accepted calls, at most `drain_timeout_s`."""
        for server in self._sockets:
            server.close()
        self.app.drain()
        await self.engine.stop(self.config.drain_timeout_s)
        for _ in range(50):
            if not self.app.connections:
                break
            await asyncio.sleep(0.02)
        if self.config.unix_socket:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.config.unix_socket)


def serve(
    config: ServerConfig, source: Source, started: Callable[[Server], None] = lambda server: None
) -> None:
    """Runs a server in this process until SIGINT or SIGTERM.

    Raises: ConfigError, LoadFailed.
    """
    tune_process()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Server(config, source).run(started))


def tune_process() -> None:
    """Keeps freed memory warm (page faults cost more than copies) and the loop responsive.

    Requests make no reference cycles, so the collector need not look after every 700 objects.
    """
    sys.setswitchinterval(1e-4)
    gc.set_threshold(50_000, 20, 20)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises: OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def explain_address(error: OSError, host: str, port: int) -> str:
    """Why an address cannot be had, and what to do."""
    if error.errno == errno.EADDRINUSE:
        owner = owner_of_port(port)
        who = f" (pid {owner})" if owner else ""
        return f"port {port} is in use{who}: stop it or add --port {port + 10}"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights: choose one above 1023 with --port"
    return f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0).lower()}"


def owner_of_port(port: int) -> int | None:
    """The process that listens on a local TCP port, if it may be known (Linux, /proc)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            for entry in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(entry.readlink()) in inodes:
                        return int(process.name)
    return None


def _tls(config: ServerConfig) -> ssl.SSLContext | None:
    """Raises: ConfigError for files that cannot be used."""
    if not config.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"tls_cert and tls_key cannot be used: {error}") from None
    return context


def _access_log(config: ServerConfig) -> AccessLog | None:
    if config.access_log == "off":
        return None
    as_json = config.access_log == "json" or (
        config.access_log == "auto" and not sys.stdout.isatty()
    )
    return AccessLog(io.FileIO(sys.stdout.fileno(), "w", closefd=False), as_json=as_json)
