"""Several front processes: the parent owns the sockets and what is wanted, the fronts serve.

Connections are spread by the kernel over one listening socket per front; as long as a front is not
there, the others take the connections of its socket. A model is loaded by every front, unless one
home is to serve all: that is in the host, which is started when a model needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from salver.control.options import follow
from salver.control.reload import Repository
from salver.engine.channel import create_arena
from salver.engine.frames import Fault, fault_of
from salver.errors import Internal, SalverError
from salver.observe.slab import Slab
from salver.server.fronts.fleet import Fleet
from salver.server.fronts.link import Link
from salver.server.fronts.orders import Accept, Answer, Ask, Heed, Setup, Stop, orders
from salver.server.fronts.pulse import HEARTBEAT_S
from salver.server.fronts.shares import num_processes, share_server
from salver.server.listen import (
    listening_sockets,
    on_signals,
    remove_socket,
    tls_context,
    unless_stopped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from salver.config import ServerConfig
    from salver.control.options import OptionsFile
    from salver.interfaces import Source
    from salver.server.fronts.fleet import FleetModel
    from salver.server.fronts.orders import AnyOrder

log = logging.getLogger("salver.server")
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 10.0
STEADY_S: Final = 60.0
"""A front that has lived for so long is started again without delay."""
_STOP_MARGIN_S: Final = 15.0
"""What a front may need beyond `drain_timeout_s`, to end what it had to cancel."""


class Fronts:
    """The parent of all fronts. `started` is called with it when all are ready."""

    def __init__(
        self,
        config: ServerConfig,
        source: Source,
        options: OptionsFile | None = None,
        *,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self.config = config
        self.port = 0
        self._source = source
        self._options = options
        self._heartbeat_s = heartbeat_s
        self._fleet: Fleet
        self._repository: Repository
        self._slab_fd = -1
        self._listeners: list[socket.socket] = []
        self._accepting: dict[Link, tuple[int, ...]] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._commands: set[asyncio.Task[None]] = set()
        self._stop: asyncio.Event
        self._hurry: asyncio.Event
        self._has_joined = False

    @property
    def models(self) -> Mapping[str, FleetModel]:
        return self._fleet.models

    async def run(self, started: Callable[[Fronts], None] = lambda fronts: None) -> None:
        """Serves until told to stop, then drains.

        Raises: ConfigError when the address cannot be had; LoadFailed when the source is wrong.
        """
        config = self.config
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._open()
        keepers = [asyncio.ensure_future(self._keep(i)) for i in range(config.processes)]
        keepers.append(asyncio.ensure_future(self._keep_host()))
        watcher = asyncio.ensure_future(self._watch())
        follower = None
        on_signals(self.stop, self._interrupt)
        try:
            if not await unless_stopped(self._start(keepers), self._stop):
                return
            follower = asyncio.ensure_future(
                follow(config, self._repository, self._options, self._pass_options_on)
            )
            started(self)
            await self._stopped((*keepers, watcher))
        finally:
            if follower is not None:
                follower.cancel()
            await self._drain(keepers)
            watcher.cancel()

    async def _start(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        await self._all_joined(keepers)
        await self._repository.start()

    async def _stopped(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Waits for the end that is wanted, or for a bug that ended a keeper before: raises it."""
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((stopped, *keepers), return_when=asyncio.FIRST_COMPLETED)
        for keeper in keepers:
            if keeper.done():
                keeper.result()

    def stop(self) -> None:
        """Ends `run`, from the loop."""
        self._stop.set()

    def _interrupt(self) -> None:
        """As `stop`; the second time it ends the calls that are still waited for."""
        if self._stop.is_set():
            self._hurry.set()
        self.stop()

    def _open(self) -> None:
        config = self.config
        tls_context(config)
        self._listeners = listening_sockets(config, config.processes)
        self.port = self._listeners[0].getsockname()[1]
        self._slab_fd = os.memfd_create("salver-counters", os.MFD_CLOEXEC)
        self._fleet = Fleet(config.processes, Slab(self._slab_fd, num_processes(config)))
        self._repository = Repository(self._source, self._fleet, config)
        self._fleet.names = self._repository.names

    async def _all_joined(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Raises: Internal when a front ends before it has served."""
        joined = asyncio.ensure_future(self._fleet.all_joined())
        await asyncio.wait((joined, *keepers), return_when=asyncio.FIRST_COMPLETED)
        if not joined.done():
            joined.cancel()
            raise Internal("a front process ended while the server was starting")
        self._has_joined = True

    def _pass_options_on(self) -> None:
        """The configuration has changed in place: all processes heed it."""
        for link in self._fleet.links.values():
            link.send(Heed(share_server(self.config)))

    async def _keep_host(self) -> None:
        """Runs the host from when it is wanted."""
        if await unless_stopped(self._fleet.host_is_wanted.wait(), self._stop):
            await self._keep(self.config.processes)

    async def _keep(self, index: int) -> None:
        """Runs one front after the other, or one host, until the server stops."""
        loop, backoff_s = asyncio.get_running_loop(), FIRST_BACKOFF_S
        while True:
            began = loop.time()
            status = await self._run_process(index)
            if self._stop.is_set() or not self._has_joined:
                return
            log.error("%s ended (%s); it is started again", self._name(index), how(status))
            if loop.time() - began > STEADY_S:
                backoff_s = FIRST_BACKOFF_S
            if await self._stops_within(backoff_s):
                return
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _name(self, index: int) -> str:
        return f"front process {index}" if index < self.config.processes else "the host process"

    async def _watch(self) -> None:
        """Ends processes that do not answer any more; `_keep` starts others."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            for link in self._fleet.links.values():
                if link.beat():
                    log.error("%s does not answer any more; it is ended", self._name(link.index))
                    self._processes[link.index].kill()

    async def _stops_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        return self._stop.is_set()

    async def _run_process(self, index: int) -> int:
        """Runs a front or the host to its end; its exit status."""
        is_front = index < self.config.processes
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        passage, exit_of_passage = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, exit_of_passage:
            process = execute(
                theirs, exit_of_passage, self._slab_fd, self._listeners if is_front else ()
            )
        # Now, for a process that has been waited for has none any more.
        pidfd = os.pidfd_open(process.pid)
        self._processes[index] = process
        ours.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        link = Link(index, writer, passage)
        level = logging.getLogger("salver").getEffectiveLevel()
        link.send(Setup(share_server(self.config), index, level))
        self._fleet.join(link)
        self._introduce(link)
        if self._stop.is_set():
            link.send(Stop())
        try:
            async for order in orders(reader):
                self._on_order(link, order)
        except msgspec.MsgspecError:
            log.exception("what %s sent cannot be read; it is ended", self._name(index))
        finally:
            self._fleet.leave(link)
            self._spread()
            if not self._stop.is_set():
                process.kill()
            status = await ended(process, pidfd)
            del self._processes[index]
        return status

    def _on_order(self, link: Link, order: AnyOrder) -> None:
        if isinstance(order, Ask):
            task = asyncio.ensure_future(self._command(link, order))
            self._commands.add(task)
            task.add_done_callback(self._commands.discard)
        self._fleet.heard(link, order)
        self._spread()

    def _spread(self) -> None:
        """Gives every listening socket to its own front, or to all while that is not there."""
        fronts = self._fleet.fronts
        present = {link.index for link in fronts}
        orphans = [i for i in range(len(self._listeners)) if i not in present]
        accepting = {link: (link.index, *orphans) for link in fronts}
        for link, listeners in accepting.items():
            if self._accepting.get(link) != listeners:
                link.send(Accept(listeners))
        self._accepting = accepting

    def _introduce(self, newcomer: Link) -> None:
        """Connects a front with the host, or the host with every front."""
        host = self.config.processes
        for link in self._fleet.links.values():
            if link is not newcomer and host in (link.index, newcomer.index):
                connect(link, newcomer)

    async def _command(self, link: Link, ask: Ask) -> None:
        """Does what a client of a front asked for, on all fronts."""
        fault: Fault | None = Fault("Unavailable", "the server is shutting down")
        try:
            if ask.command == "load":
                await self._repository.load(ask.model)
            else:
                await self._repository.unload(ask.model)
            fault = None
        except SalverError as error:
            fault = fault_of(error)
        except Exception:
            log.exception("a bug in %s %s", ask.command, ask.model)
            fault = Fault("Internal", "an internal error; the server's log has the details")
        finally:
            link.send(Answer(ask.number, fault))

    async def _drain(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Has all fronts end what they accepted; those that do not are killed in the end."""
        self._stop.set()
        for listener in self._listeners:
            listener.close()
        for command in tuple(self._commands):
            command.cancel()
        await asyncio.gather(*self._commands, return_exceptions=True)
        # The host last, for what the fronts have accepted may need it.
        *fronts, host = keepers
        await self._end(fronts, range(len(fronts)))
        await self._end([host], [len(fronts)])
        os.close(self._slab_fd)
        remove_socket(self.config.unix_socket)

    async def _end(self, keepers: Sequence[asyncio.Task[None]], indices: Collection[int]) -> None:
        """Has some processes finish; those that do not in time are killed."""
        self._tell(indices, Stop())
        ends = asyncio.wait(keepers, timeout=self.config.drain_timeout_s + _STOP_MARGIN_S)
        if not await unless_stopped(ends, self._hurry):
            self._tell(indices, Stop(now=True))
            await asyncio.wait(keepers, timeout=_STOP_MARGIN_S)
        for index, process in self._processes.items():
            if index in indices:
                process.kill()
        await asyncio.gather(*keepers, return_exceptions=True)

    def _tell(self, indices: Collection[int], order: Stop) -> None:
        for index, link in self._fleet.links.items():
            if index in indices:
                link.send(order)


def execute(
    control: socket.socket,
    passage: socket.socket,
    slab_fd: int,
    listeners: Sequence[socket.socket],
) -> subprocess.Popen[bytes]:
    """Starts the program of a front, or, without listeners, of the host. It dies with the thread
    that calls this.
    """
    descriptors = [control.fileno(), passage.fileno(), slab_fd]
    descriptors += [listener.fileno() for listener in listeners]
    return subprocess.Popen(
        # -P: a file in the working directory must not stand in for a module of the same name.
        [sys.executable, "-P", "-m", "salver.server.fronts.follower", str(os.getpid())]
        + [str(fd) for fd in descriptors],
        stdin=subprocess.DEVNULL,
        pass_fds=descriptors,
        # Ctrl-C is for the parent, which then lets the fronts finish.
        start_new_session=True,
    )


def connect(one: Link, other: Link) -> None:
    """Gives two processes a line for calls: a pair of sockets, and memory each way."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    to, fro = create_arena(), create_arena()
    try:
        one.pass_on([ours.fileno(), to, fro])
        other.pass_on([theirs.fileno(), fro, to])
    finally:
        ours.close()
        theirs.close()
        os.close(to)
        os.close(fro)


async def ended(process: subprocess.Popen[bytes], pidfd: int) -> int:
    """Waits for a process; its exit status."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, end.set)
    try:
        await end.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return process.wait()


def how(status: int) -> str:
    """A process's end in words."""
    return f"status {status}" if status >= 0 else f"signal {-status}"
