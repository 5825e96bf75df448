"""Keeps what is served equal to what the source offers: loads, swaps and unloads versions."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from salver.errors import Conflict, NotFound, SalverError, did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.config import ServerConfig
    from salver.interfaces import Source, VersionOnDisk
    from salver.types import ModelRef

log = logging.getLogger("salver.models")


class Changes(NamedTuple):
    """What to do so that the present becomes the wanted."""

    load: list[VersionOnDisk]
    unload: list[ModelRef]


def decide(
    wanted: Mapping[ModelRef, VersionOnDisk],
    before: Mapping[ModelRef, VersionOnDisk],
    tried: Mapping[ModelRef, str],
) -> Changes:
    """Compares the files with those of the last look and with what was tried.

    A version whose files changed since the last look may be half written, so it waits for a look
    that finds them at rest. What failed is tried again only when its files change.
    """
    load = [
        version
        for ref, version in wanted.items()
        if tried.get(ref) != version.stamp
        and (ref not in before or before[ref].stamp == version.stamp)
    ]
    return Changes(load, [ref for ref in tried if ref not in wanted])


class Commands(Protocol):
    """What an administrator may ask for."""

    def names(self) -> list[str]:
        """Every name that could be loaded."""
        ...

    async def load(self, name: str) -> None: ...

    async def unload(self, name: str) -> None: ...


class Loads(Protocol):
    """What loads and unloads for the repository: this process's engine, or that of every front."""

    is_started: bool

    @property
    def models(self) -> Mapping[str, Any]: ...

    async def load(self, version: VersionOnDisk) -> Any: ...

    async def unload(self, ref: ModelRef, why: str = ...) -> None: ...

    def forget(self, name: str) -> None: ...


class Repository:
    """The models of one source, and the loop that follows it."""

    def __init__(self, source: Source, engine: Loads, config: ServerConfig) -> None:
        self._source = source
        self._engine = engine
        self._config = config
        self._before: Mapping[ModelRef, VersionOnDisk] = {}
        self._tried: dict[ModelRef, str] = {}
        self._problem = ""

    def names(self) -> list[str]:
        """Every name that the source offered at the last look."""
        return sorted({ref.name for ref in self._before})

    async def start(self) -> None:
        """Loads what is there, all at once; a model that fails leaves the others alone.

        Raises: LoadFailed, ConfigError when the source itself cannot be read.
        """
        self._before = await asyncio.to_thread(self._source.scan)
        if self._config.mode != "explicit":
            await self._apply(decide(self._before, {}, {}))
        self._engine.is_started = True

    async def follow(self) -> None:
        """Polls until cancelled."""
        while True:
            await asyncio.sleep(self._config.poll_interval_s)
            await self.look()

    async def look(self) -> None:
        """One look: what changed is loaded, what is gone is unloaded."""
        try:
            wanted = await asyncio.to_thread(self._source.scan)
        except (SalverError, OSError) as error:
            # An unreadable source says nothing about its models: what runs goes on.
            if str(error) != self._problem:
                log.error("the models' folder cannot be read: %s", error)
            self._problem = str(error)
            return
        self._problem = ""
        changes = decide(wanted, self._before, self._tried)
        self._before = wanted
        await self._apply(changes)

    async def _apply(self, changes: Changes) -> None:
        for ref in changes.unload:
            del self._tried[ref]
            await self._engine.unload(ref, "as its files are gone")
            self._engine.forget(ref.name)
        await asyncio.gather(*(self._try(version) for version in changes.load))

    async def _try(self, version: VersionOnDisk) -> None:
        self._tried[version.ref] = version.stamp
        try:
            await self._engine.load(version)
        except SalverError as error:
            log.error("%s could not be loaded: %s", version.ref, error.message)

    async def load(self, name: str) -> None:
        """Loads or reloads every version of a name that the source offers now.

        Raises: NotFound, Conflict outside explicit mode, LoadFailed.
        """
        self._demand_explicit()
        self._before = await asyncio.to_thread(self._source.scan)
        versions = [version for ref, version in self._before.items() if ref.name == name]
        if not versions:
            raise NotFound(
                f"the models' folder has no {name!r}.{did_you_mean(name, self.names())} "
                f"There are: {listed(self.names())}"
            )
        for version in versions:
            self._tried[version.ref] = version.stamp
            await self._engine.load(version)

    async def unload(self, name: str) -> None:
        """Takes every version of a name out of service.

        Raises: NotFound, Conflict outside explicit mode.
        """
        self._demand_explicit()
        model = self._engine.models.get(name)
        if model is None:
            raise NotFound(f"{name!r} is not served here.{did_you_mean(name, self._engine.models)}")
        for ref in [ref for ref in self._tried if ref.name == name]:
            del self._tried[ref]
            await self._engine.unload(ref)

    def _demand_explicit(self) -> None:
        if self._config.mode != "explicit":
            raise Conflict(
                "the files alone decide here what is served; start with --mode explicit to load "
                "and unload by command"
            )
