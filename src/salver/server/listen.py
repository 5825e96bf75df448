"""What reaches a server from outside: the sockets that it listens on, and signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from salver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from salver.config import ServerConfig

BACKLOG: Final = 4096
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
"""For a client that vanishes without a word while it waits, as in a health watch: seconds of
silence, seconds between probes, and how many of them (tcp(7)). Connections inherit it.
"""


def listening_sockets(config: ServerConfig, count: int) -> list[socket.socket]:
    """`count` sockets on one TCP address, over which the kernel spreads connections; then the one
    of the Unix socket, if that is wanted.

    Raises: ConfigError when an address cannot be had.
    """
    host, port = config.host, config.port
    try:
        listeners = [_bound(host, port)] if count == 1 else _sharing(host, port, count)
    except OSError as error:
        raise ConfigError(explain_address(error, host, port)) from None
    try:
        if config.unix_socket:
            listeners.append(_unix(config.unix_socket))
        for listener in listeners:
            listener.listen(BACKLOG)
            listener.setblocking(False)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _sharing(host: str, port: int, count: int) -> list[socket.socket]:
    # Only a socket that does not share its port notices that another server has it.
    with _bound(host, port) as first:
        port = first.getsockname()[1]
    with contextlib.ExitStack() as on_failure:
        listeners = [
            on_failure.enter_context(_bound(host, port, shares=True)) for _ in range(count)
        ]
        on_failure.pop_all()
    return listeners


def _bound(host: str, port: int, *, shares: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for option in _KEEPALIVE:
            listener.setsockopt(*option)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def _unix(path: str) -> socket.socket:
    """A socket at `path`, in place of one that an earlier server left there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.unlink(path)
        listener.bind(path)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise ConfigError(f"unix_socket: cannot listen on {path}: {reason}") from None
    return listener


def remove_socket(path: str) -> None:
    """Removes a Unix socket that was listened on; nothing for an empty path."""
    if path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


async def unless_stopped(work: Coroutine[Any, Any, object], stop: asyncio.Event) -> bool:
    """Does `work` to its end, or leaves it as soon as `stop` is set; whether it was done."""
    doing, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((doing, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if doing.done():
        await doing
        return True
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)
    return False


def on_signals(stop: Callable[[], object], interrupt: Callable[[], object]) -> None:
    """Has SIGTERM call `stop` and SIGINT `interrupt` on the running loop."""
    loop = asyncio.get_running_loop()
    for number, handle in ((signal.SIGTERM, stop), (signal.SIGINT, interrupt)):
        with contextlib.suppress(ValueError, RuntimeError):
            loop.add_signal_handler(number, handle)


def explain_address(error: OSError, host: str, port: int) -> str:
    """Why an address cannot be had, and what to do."""
    if error.errno == errno.EADDRINUSE:
        owner = owner_of_port(port)
        who = f" (pid {owner})" if owner else ""
        return f"port {port} is in use{who}: stop it or add --port {port + 10}"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights: choose one above 1023 with --port"
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {host}: no such host; --host takes an address of this machine"
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


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """None without a certificate. Raises: ConfigError for files that cannot be used."""
    if not config.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        for option, file in (("tls_cert", config.tls_cert), ("tls_key", config.tls_key)):
            if file and not Path(file).is_file():
                raise ConfigError(f"{option}: there is no file {file}")
        context.load_cert_chain(config.tls_cert, config.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"tls_cert and tls_key cannot be used: {error}") from None
    return context
