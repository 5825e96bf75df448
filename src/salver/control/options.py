"""Follows the file of server options: what may change while serving does, without a restart."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import force_setattr

from salver.config import ServerConfig, is_hot, walk
from salver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from salver.control.reload import Repository

log = logging.getLogger("salver.server")


class Difference(NamedTuple):
    """An option in which two configurations differ."""

    name: str
    is_hot: bool
    before: Any
    after: Any


async def follow(
    config: ServerConfig,
    repository: Repository,
    options: OptionsFile | None,
    changed: Callable[[], None],
) -> None:
    """Looks at the files every `poll_interval_s` until cancelled: at those of models in the mode
    `poll`, at that of options in every mode. Then calls `changed` if options did.
    """
    while True:
        await asyncio.sleep(config.poll_interval_s)
        if options is not None and await options.look(config):
            changed()
        if config.mode == "poll":
            await repository.look()


def take_over(config: ServerConfig, wanted: ServerConfig) -> list[Difference]:
    """Gives `config` the hot options of `wanted`; returns everything in which the two differed.

    It changes in place, and by this function alone: so whoever looks an option up there, instead of
    keeping a copy, follows the file.
    """
    found = []
    for name, _, meta, _ in walk(ServerConfig):
        ours: Any = config
        theirs: Any = wanted
        *groups, last = name.split(".")
        for group in groups:
            ours, theirs = getattr(ours, group), getattr(theirs, group)
        before, after = getattr(ours, last), getattr(theirs, last)
        if before != after:
            found.append(Difference(name, is_hot(meta), before, after))
            if is_hot(meta):
                force_setattr(ours, last, after)
    return found


class OptionsFile:
    """`salver.yaml`, there or not. `read` gives the whole configuration, in which flags and the
    environment have won over the file.
    """

    def __init__(self, path: Path, read: Callable[[], ServerConfig]) -> None:
        self._path = path
        self._read = read
        self._seen = self._heeded = self._stamp()

    async def look(self, config: ServerConfig) -> bool:
        """Lets `config` follow the file if that has changed and is at rest since the last look;
        whether that changed anything. A broken file changes nothing.
        """
        before, self._seen = self._seen, await asyncio.to_thread(self._stamp)
        if self._seen in (self._heeded, None) or self._seen != before:
            return False
        self._heeded = self._seen
        try:
            wanted = await asyncio.to_thread(self._read)
        except Exception as error:
            is_told = isinstance(error, ConfigError | OSError)
            log.error("the options stay as they are: %s", error, exc_info=not is_told)
            return False
        return self._tell(take_over(config, wanted))

    def _stamp(self) -> tuple[int, ...] | None:
        """Changes whenever the file does; None while there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _tell(self, differences: list[Difference]) -> bool:
        hot = [f"{each.name}: {each.before} -> {each.after}" for each in differences if each.is_hot]
        cold = [each.name for each in differences if not each.is_hot]
        if hot:
            log.info("%s: %s", self._path.name, ", ".join(hot))
        if cold:
            log.warning("%s: needs a restart: %s", self._path.name, ", ".join(cold))
        return bool(hot)
