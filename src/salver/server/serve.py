"""Runs a server: in this process, or with fronts in several more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from salver.config import ServerConfig
    from salver.control.options import OptionsFile
    from salver.interfaces import Source


class Serving(Protocol):
    """A server that is ready: where it listens, and its models by name."""

    config: ServerConfig
    port: int

    @property
    def models(self) -> Mapping[str, Any]: ...


def serve(
    config: ServerConfig,
    source: Source,
    started: Callable[[Serving], None] = lambda server: None,
    options: OptionsFile | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM; `config` follows the file of `options` meanwhile.

    Raises: ConfigError, LoadFailed.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_running(config, source, options, started))


def _running(
    config: ServerConfig,
    source: Source,
    options: OptionsFile | None,
    started: Callable[[Serving], None],
) -> Coroutine[Any, Any, None]:
    # The parent of fronts has no use for an engine and connections, and is there sooner without.
    if config.processes == 1:
        from salver.server.single import Server

        return Server(config, source, options).run(started)
    from salver.server.fronts.parent import Fronts

    return Fronts(config, source, options).run(started)
