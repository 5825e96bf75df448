"""Keeps what is served equal to what the source offers: loads, swaps and unloads versions."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

from salver.clock import NS_PER_S, system_clock
from salver.errors import Conflict, NotFound, SalverError, did_you_mean, listed
from salver.types import ModelRef

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from salver.clock import Clock
    from salver.config import ServerConfig
    from salver.interfaces import Source, VersionOnDisk

    Versions = Mapping[ModelRef, VersionOnDisk]

log = logging.getLogger("salver.models")
_FIRST_RETRY_NS: Final = NS_PER_S
_MAX_RETRIES: Final = 6


class Interruption(NamedTuple):
    """The last of so many `times` in a row that a load of these files was cut off, in ns."""

    stamp: str
    times: int
    at: int


def to_load(wanted: Versions, before: Versions, tried: Mapping[ModelRef, str]) -> list[ModelRef]:
    """Versions that are new or changed, compared with what was tried, and at rest since `before`.

    A version whose files changed since the last look may be half written. What failed by its files
    is tried again only when they change.
    """
    return [
        ref
        for ref, version in wanted.items()
        if tried.get(ref) != version.stamp and ref in before and before[ref].stamp == version.stamp
    ]


def to_retry(
    wanted: Versions, interrupted: Mapping[ModelRef, Interruption], now: int
) -> list[ModelRef]:
    """Versions whose load was cut off and is due again: ever later, and not for ever."""
    return [
        ref
        for ref, last in interrupted.items()
        if ref in wanted
        and wanted[ref].stamp == last.stamp
        and last.times <= _MAX_RETRIES
        and now - last.at >= _FIRST_RETRY_NS << (last.times - 1)
    ]


def to_unload(
    wanted: Versions, tried: Mapping[ModelRef, str], served: Collection[ModelRef]
) -> list[ModelRef]:
    """Versions that are not wanted any more, once everything wanted of that name is served.

    So a new version takes over without a gap, and one that fails leaves the old ones in service.
    """
    incomplete = {ref.name for ref in wanted if ref not in served}
    return [
        ref
        for ref in tried
        if ref not in wanted and (ref not in served or ref.name not in incomplete)
    ]


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

    def served(self) -> Iterable[ModelRef]:
        """Every version in service."""
        ...

    async def load(self, version: VersionOnDisk) -> object: ...

    async def unload(self, ref: ModelRef, why: str = ...) -> None: ...

    def forget(self, ref: ModelRef) -> None: ...


class Repository:
    """The models of one source."""

    def __init__(
        self, source: Source, engine: Loads, config: ServerConfig, clock: Clock = system_clock
    ) -> None:
        self._source = source
        self._engine = engine
        self._config = config
        self._clock = clock
        self._wanted: Versions = {}
        self._tried: dict[ModelRef, str] = {}
        self._interrupted: dict[ModelRef, Interruption] = {}
        self._loading: dict[ModelRef, asyncio.Task[None]] = {}
        self._next_loads: dict[str, asyncio.Task[None]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._problem = ""

    def names(self) -> list[str]:
        """Every name that the source offered at the last look."""
        return sorted({ref.name for ref in self._wanted})

    async def start(self) -> None:
        """Loads what is there, all at once; a model that fails leaves the others alone.

        Raises: LoadFailed, ConfigError when the source itself cannot be read.
        """
        self._wanted = await asyncio.to_thread(self._source.scan)
        if self._config.mode != "explicit":
            await asyncio.gather(*(self._begin(ref) for ref in self._wanted))
        self._engine.is_started = True

    async def look(self) -> None:
        """One look: begins to load what changed, unloads what is gone. Loads go on beside it."""
        try:
            wanted = await asyncio.to_thread(self._source.scan)
        except Exception as error:
            # An unreadable source says nothing about its models: what runs goes on.
            if str(error) != self._problem:
                self._problem = str(error)
                log.error(
                    "the models cannot be listed: %s",
                    error,
                    exc_info=not isinstance(error, SalverError),
                )
            return
        self._problem = ""
        before, self._wanted = self._wanted, wanted
        changed = to_load(wanted, before, self._tried)
        for ref in changed + to_retry(wanted, self._interrupted, self._clock()):
            # What changes while it is loaded is loaded again after that.
            if ref not in self._loading:
                self._begin(ref)
        await self._clear()

    def _begin(self, ref: ModelRef) -> asyncio.Task[None]:
        version = self._wanted[ref]
        self._tried[ref] = version.stamp
        task = self._loading[ref] = asyncio.ensure_future(self._load(version))
        return task

    async def _load(self, version: VersionOnDisk) -> None:
        ref = version.ref
        last = self._interrupted.pop(ref, None)
        try:
            await self._engine.load(version)
        except SalverError as error:
            log.error("%s could not be loaded: %s", ref, error.message)
            if error.retryable:
                times = 1 + (last.times if last and last.stamp == version.stamp else 0)
                self._interrupted[ref] = Interruption(version.stamp, times, self._clock())
        except Exception:
            log.exception("a bug while loading %s", ref)
        finally:
            del self._loading[ref]
        await self._clear()

    async def _clear(self, name: str = "") -> None:
        """Unloads what is not wanted any more, of one name or of all."""
        served = set(self._engine.served())
        refs = [
            ref for ref in to_unload(self._wanted, self._tried, served) if name in ("", ref.name)
        ]
        for ref in refs:
            del self._tried[ref]
            self._interrupted.pop(ref, None)
            if (task := self._loading.get(ref)) is not None:
                task.cancel()
        for ref in refs:
            with suppress(NotFound):
                await self._engine.unload(ref, "as it is not offered any more")
            if ref not in self._tried:
                self._engine.forget(ref)

    async def load(self, name: str) -> None:
        """Loads or reloads every version of a name that the source offers now; then unloads those
        that it does not offer any more. Those who ask while another load of it waits to begin share
        that.

        Raises: NotFound, Conflict outside explicit mode, LoadFailed.
        """
        self._demand_explicit()
        following = self._next_loads.get(name)
        if following is None:
            following = asyncio.ensure_future(self._load_in_turn(name))
            self._next_loads[name] = following
        await asyncio.shield(following)

    async def _load_in_turn(self, name: str) -> None:
        async with self._turn(name):
            if self._next_loads.get(name) is asyncio.current_task():
                del self._next_loads[name]
            await self._load_name(name)

    def _turn(self, name: str) -> asyncio.Lock:
        """What commands for a name hold, one after the other as they came."""
        return self._turns.setdefault(name, asyncio.Lock())

    async def _load_name(self, name: str) -> None:
        self._wanted = await asyncio.to_thread(self._source.scan)
        versions = [version for ref, version in self._wanted.items() if ref.name == name]
        if not versions:
            raise NotFound(
                f"the models' folder has no {name!r}.{did_you_mean(name, self.names())} "
                f"There are: {listed(self.names())}"
            )
        self._tried |= {version.ref: version.stamp for version in versions}
        loads = (self._engine.load(version) for version in versions)
        for result in await asyncio.gather(*loads, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        await self._clear(name)

    async def unload(self, name: str) -> None:
        """Takes every version of a name out of service.

        Raises: NotFound, Conflict outside explicit mode.
        """
        self._demand_explicit()
        # Whoever asks for a load after this gets one after this.
        self._next_loads.pop(name, None)
        async with self._turn(name):
            await self._engine.unload(ModelRef(name))
            for ref in [ref for ref in self._tried if ref.name == name]:
                del self._tried[ref]

    def _demand_explicit(self) -> None:
        if self._config.mode != "explicit":
            raise Conflict(
                "the files alone decide here what is served; start with --mode explicit to load "
                "and unload by command"
            )
