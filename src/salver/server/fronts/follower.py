"""The program of a front that has a parent, and of their host, which is a front without sockets: it
serves what the parent's document says.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import uvloop

from salver.clock import system_clock
from salver.control.options import take_over
from salver.engine.channel import InSlots, OutSlots
from salver.engine.engine import Engine
from salver.engine.frames import error_of, fault_of
from salver.engine.generation import elsewhere
from salver.engine.home import HomeTarget
from salver.engine.lifeline import die_with
from salver.engine.loader import NeedsHost
from salver.engine.peers import Peers
from salver.errors import SalverError
from salver.interfaces import VersionOnDisk
from salver.observe.slab import Slab
from salver.server.front import Front, tune_process
from salver.server.fronts.orders import (
    About,
    Accept,
    Answer,
    Applied,
    Ask,
    Change,
    Discard,
    Health,
    Heed,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Setup,
    Stop,
    orders,
    packed,
    read,
)
from salver.server.fronts.shares import num_processes
from salver.server.listen import on_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from salver.engine.generation import Generation
    from salver.server.fronts.orders import AnyOrder, Wanted
    from salver.types import ModelRef

log = logging.getLogger("salver.server")


class Follower:
    """Does what the parent says, and passes clients' commands on to it. Lives on the loop."""

    def __init__(
        self,
        setup: Setup,
        listeners: list[socket.socket],
        slab: Slab,
        writer: asyncio.StreamWriter,
        passage: socket.socket,
    ) -> None:
        self._index = setup.index
        self._is_host = setup.index == setup.config.processes
        self._config = setup.config
        self._listeners = listeners
        self._slab = slab
        self._writer = writer
        self._engine = Engine(setup.config, system_clock)
        self._front = Front(setup.config, self._engine, self)
        self._peers = Peers(self._engine)
        self._passage = passage
        self._servers: dict[int, asyncio.Server] = {}
        self._accepting = asyncio.Lock()
        self._names: tuple[str, ...] = ()
        self._prepared: dict[int, Generation] = {}
        self._shown: dict[ModelRef, int] = {}
        self._missing: set[ModelRef] = set()
        self._changes: asyncio.Queue[Change] = asyncio.Queue()
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._handlers: dict[type[AnyOrder], Callable[[Any], None]] = {
            Prepare: lambda order: self._spawn(self._prepare(order.wanted)),
            Discard: self._discard,
            Change: self._changes.put_nowait,
            Health: self._heed_health,
            Heed: self._heed_options,
            Accept: lambda order: self._spawn(self._accept(order.listeners)),
            Answer: self._take_answer,
            Ping: lambda order: self._send(Pong()),
            Stop: self._heed_stop,
        }

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Serves until the parent, or a signal, says stop; then drains."""
        following = asyncio.ensure_future(self._follow(reader))
        applying = asyncio.ensure_future(self._apply_changes())
        stopping = asyncio.ensure_future(self._stop.wait())
        tasks = (following, applying, stopping)
        asyncio.get_running_loop().add_reader(self._passage, self._meet)
        on_signals(self._stop.set, self._stop.set)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stop.set()
            applying.cancel()
            for listener in self._listeners:
                listener.close()
            self._peers.drop_holds()
            await self._front.drain()
            self._peers.close()
            following.cancel()
            asyncio.get_running_loop().remove_reader(self._passage)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        async for order in orders(reader):
            # While it drains it takes no other orders, but is not hung either.
            if isinstance(order, Ping | Stop) or not self._stop.is_set():
                self._handlers[type(order)](order)

    def _meet(self) -> None:
        """Takes the line to another process."""
        _, descriptors, _, _ = socket.recv_fds(self._passage, 1, 3, socket.MSG_CMSG_CLOEXEC)
        if not descriptors:  # the parent is gone
            asyncio.get_running_loop().remove_reader(self._passage)
            return
        line, out_fd, in_fd = descriptors
        slots = OutSlots(out_fd), InSlots(in_fd)
        os.close(out_fd)
        os.close(in_fd)
        sock = socket.socket(fileno=line)
        sock.setblocking(False)
        self._peers.connect(sock, slots)

    def _send(self, order: AnyOrder) -> None:
        self._writer.write(packed(order))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What is served

    async def _prepare(self, wanted: Wanted) -> None:
        number = wanted.generation
        try:
            generation = await self._load(wanted, has_host=not self._is_host)
        except NeedsHost:
            self._send(Prepared(number))
        except Exception as error:
            self._send(Prepared(number, fault=fault_of(error)))
        else:
            self._prepared[number] = generation
            is_idempotent = generation.target.is_idempotent
            about = About(
                generation.runtime, generation.signature, is_idempotent, generation.batches
            )
            self._send(Prepared(number, about))

    async def _load(self, wanted: Wanted, *, has_host: bool = False) -> Generation:
        version = VersionOnDisk(wanted.ref, wanted.path, "", wanted.config, trusted=wanted.trusted)
        counters = self._slab.statistics(wanted.generation, self._index)
        return await self._engine.prepare(version, counters, has_host=has_host)

    def _discard(self, order: Discard) -> None:
        generation = self._prepared.pop(order.generation, None)
        if generation is not None:
            self._spawn(generation.retire(0))

    async def _apply_changes(self) -> None:
        while True:
            change = await self._changes.get()
            self._names = change.names
            for name, generations in change.past.items():
                for number in generations:
                    self._engine.remember(name, self._slab.statistics(number, self._index))
            await asyncio.gather(
                *(self._apply(wanted) for wanted in change.wanted),
                *(self._forget(ref) for ref in change.gone),
            )
            self._send(Applied(change.number, tuple(self._missing)))

    async def _apply(self, wanted: Wanted) -> None:
        ref, number = wanted.ref, wanted.generation
        self._missing.discard(ref)
        if not number:
            await self._take_out(ref)
            self._engine.note(ref, wanted.state, wanted.reason)
        elif self._shown.get(ref) == number:
            self._engine.note(ref, wanted.state, wanted.reason)
        elif wanted.is_hosted != self._is_host:
            self._show(wanted, self._elsewhere(wanted))
        else:
            await self._show_own(wanted)

    async def _show_own(self, wanted: Wanted) -> None:
        """Shows a version that has a home here."""
        ref, number = wanted.ref, wanted.generation
        try:
            generation = self._prepared.pop(number, None) or await self._load(wanted)
        except SalverError as error:
            log.error("%s could not be loaded again: %s", ref, error.message)
            self._missing.add(ref)
            self._peers.fail(number, error)
            self._engine.note(ref, "UNAVAILABLE", error.message)
        else:
            self._show(wanted, generation)
            self._peers.offer(number, generation)

    def _show(self, wanted: Wanted, generation: Generation) -> None:
        self._peers.withdraw(self._shown.get(wanted.ref, 0))
        self._engine.show(generation)
        generation.observe()
        self._shown[wanted.ref] = wanted.generation

    def _elsewhere(self, wanted: Wanted) -> Generation:
        """A version that has its home in another process."""
        about = wanted.about
        assert about is not None
        target = HomeTarget(
            wanted.ref,
            wanted.generation,
            about.signature,
            self._peers,
            config=wanted.config,
            statistics=self._slab.statistics(wanted.generation, self._index),
            is_idempotent=about.is_idempotent,
            clock=system_clock,
        )
        return elsewhere(target, about.runtime, batches=about.batches)

    async def _take_out(self, ref: ModelRef) -> None:
        if number := self._shown.pop(ref, 0):
            self._peers.withdraw(number)
            await self._engine.unload(ref)

    async def _forget(self, ref: ModelRef) -> None:
        self._missing.discard(ref)
        await self._take_out(ref)
        self._engine.forget(ref)

    def _heed_stop(self, order: Stop) -> None:
        self._stop.set()
        if order.now:
            self._front.hurry()

    def _heed_health(self, order: Health) -> None:
        self._engine.is_started = order.is_ready
        if order.is_ready:
            gc.freeze()

    def _heed_options(self, order: Heed) -> None:
        take_over(self._config, order.config)
        self._front.heed_options()

    async def _accept(self, wanted: tuple[int, ...]) -> None:
        async with self._accepting:
            for index in set(self._servers) - set(wanted):
                self._front.release(self._servers.pop(index))
            for index in set(wanted) - set(self._servers):
                self._servers[index] = await self._front.accept(self._listeners[index].dup())

    # Clients' commands

    def names(self) -> list[str]:
        """Every name that the source offers."""
        return list(self._names)

    async def load(self, name: str) -> None:
        """Has all fronts load a name. Raises: SalverError as the parent does."""
        await self._ask("load", name)

    async def unload(self, name: str) -> None:
        """Has all fronts unload a name. Raises: SalverError as the parent does."""
        await self._ask("unload", name)

    async def _ask(self, command: str, model: str) -> None:
        number = next(self._numbers)
        answered = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send(Ask(number, command, model))
        await answered

    def _take_answer(self, order: Answer) -> None:
        answered = self._asked.pop(order.number)
        if answered.done():
            return
        if order.fault is None:
            answered.set_result(None)
        else:
            answered.set_exception(error_of(order.fault))


async def follow(
    control: socket.socket,
    passage: socket.socket,
    slab_fd: int,
    listeners: list[socket.socket],
) -> None:
    """Serves as the process at the other end of `control` says."""
    reader, writer = await asyncio.open_unix_connection(sock=control)
    setup = await read(reader)
    assert isinstance(setup, Setup)
    logger = logging.getLogger("salver")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    name = f"front {setup.index}" if setup.index < setup.config.processes else "host"
    logger.handlers[0].setFormatter(logging.Formatter(f"%(levelname)s {name}: %(message)s"))
    logger.setLevel(setup.log_level)
    slab = Slab(slab_fd, num_processes(setup.config))
    os.close(slab_fd)
    await Follower(setup, listeners, slab, writer, passage).run(reader)
    writer.close()


def main() -> None:
    """`python -m salver.server.fronts.follower PARENT CONTROL PASSAGE SLAB LISTENER…`.

    The first is a process id, the others are descriptors.
    """
    parent, *descriptors = map(int, sys.argv[1:])
    die_with(parent)
    for fd in descriptors:
        os.set_inheritable(fd, False)
    control, passage, slab_fd, *listeners = descriptors
    tune_process()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            follow(
                socket.socket(fileno=control),
                socket.socket(fileno=passage),
                slab_fd,
                [socket.socket(fileno=fd) for fd in listeners],
            )
        )


if __name__ == "__main__":
    main()
