"""A server in one process, from start to end: its socket, its models, signals, drain."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

from salver.clock import system_clock
from salver.control.options import follow
from salver.control.reload import Repository
from salver.engine.engine import Engine
from salver.server.front import Front, tune_process
from salver.server.listen import listening_sockets, on_signals, remove_socket, unless_stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from salver.config import ServerConfig
    from salver.control.options import OptionsFile
    from salver.interfaces import Source


class Server:
    """Everything in one process, which follows `options` if there are any."""

    def __init__(
        self, config: ServerConfig, source: Source, options: OptionsFile | None = None
    ) -> None:
        self.config = config
        self.engine: Engine
        self.port = 0
        self._source = source
        self._options = options
        self._stop: asyncio.Event
        self._front: Front

    @property
    def models(self) -> Mapping[str, Any]:
        return self.engine.models

    async def run(self, started: Callable[[Server], None] = lambda server: None) -> None:
        """Serves until told to stop, then drains. Calls `started` when it is ready.

        Raises: ConfigError when the address cannot be had; LoadFailed when the source is wrong.
        """
        tune_process()
        config = self.config
        self._stop = asyncio.Event()
        self.engine = Engine(config, system_clock)
        repository = Repository(self._source, self.engine, config)
        front = self._front = Front(config, self.engine, repository)
        listeners, follower = [], None
        on_signals(self.stop, self._interrupt)
        try:
            listeners = listening_sockets(config, 1)
            self.port = listeners[0].getsockname()[1]
            for listener in listeners:
                await front.accept(listener)
            if not await unless_stopped(repository.start(), self._stop):
                return
            gc.freeze()
            follower = asyncio.ensure_future(
                follow(config, repository, self._options, front.heed_options)
            )
            started(self)
            await self._stop.wait()
        finally:
            if follower is not None:
                follower.cancel()
            await front.drain()
            if listeners:
                remove_socket(config.unix_socket)

    def stop(self) -> None:
        """Ends `run`, from the loop."""
        self._stop.set()

    def _interrupt(self) -> None:
        """As `stop`; the second time it ends the calls that are still waited for."""
        if self._stop.is_set():
            self._front.hurry()
        self.stop()
