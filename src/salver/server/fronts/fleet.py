"""What all fronts serve: the one document of wanted versions, and how it becomes true everywhere.

A version is first prepared by every front, or by their host if one home is to serve all, without a
call reaching it. It becomes visible only when all have it; so a load that fails anywhere changes
nothing anywhere.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from salver.engine.frames import error_of
from salver.engine.served import why_unavailable
from salver.errors import LoadFailed, LoadInterrupted, NotFound, did_you_mean
from salver.observe.cores import usable_cores
from salver.observe.slab import NUM_SLOTS
from salver.observe.statistics import Gauges
from salver.server.fronts.orders import (
    About,
    Applied,
    Change,
    Discard,
    Health,
    Prepare,
    Prepared,
    Wanted,
)
from salver.server.fronts.shares import share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from salver.interfaces import VersionOnDisk
    from salver.observe.slab import Slab
    from salver.server.fronts.link import Link
    from salver.server.fronts.orders import AnyOrder
    from salver.types import ModelRef


log = logging.getLogger("salver.models")


class FleetModel(NamedTuple):
    """A name: the versions that all fronts serve, and the state of every one."""

    versions: dict[str, Wanted]
    states: dict[str, tuple[str, str]]

    @property
    def answers(self) -> bool:
        """It has a ready version, or was unloaded on purpose."""
        return bool(self.versions) or all(why == "unloaded" for _, why in self.states.values())


class Fleet:
    """Loads and unloads on all fronts alike. `names` tells what the source offers, and
    `host_is_wanted` that a version needs the host, whose index is `num_fronts`.
    """

    def __init__(self, num_fronts: int, slab: Slab) -> None:
        self.links: dict[int, Link] = {}
        self.names: Callable[[], list[str]] = list
        self.host_is_wanted = asyncio.Event()
        self._num_fronts = num_fronts
        self._slab = slab
        self._wanted: dict[ModelRef, Wanted] = {}
        self._number = 1
        self._generation = 0
        self._past: dict[str, list[int]] = {}
        self._preparing: set[int] = set()
        self._changing: dict[str, asyncio.Lock] = {}
        self._news = asyncio.Event()
        self._is_started = False
        self._is_ready = False

    @property
    def models(self) -> dict[str, FleetModel]:
        """Every known name."""
        found: dict[str, FleetModel] = {}
        for ref, wanted in self._wanted.items():
            model = found.setdefault(ref.name, FleetModel({}, {}))
            model.states[ref.version] = (wanted.state, wanted.reason)
            if wanted.generation:
                model.versions[ref.version] = wanted
        return found

    @property
    def joined(self) -> list[Link]:
        """The processes that serve."""
        return [link for link in self.links.values() if link.applied]

    @property
    def fronts(self) -> list[Link]:
        """The fronts that serve."""
        return [link for link in self.joined if link.index < self._num_fronts]

    @property
    def host(self) -> list[Link]:
        """The host, if it serves."""
        return [link for link in self.joined if link.index == self._num_fronts]

    @property
    def is_started(self) -> bool:
        """Everything that was there at the start has been tried."""
        return self._is_started

    @is_started.setter
    def is_started(self, value: bool) -> None:
        self._is_started = value
        self._publish()

    def join(self, link: Link) -> None:
        """A process is there: it gets the whole document."""
        self.links[link.index] = link
        wanted = tuple(self._wanted.values())
        link.send(Change(self._number, tuple(self.names()), wanted, past=self._past))
        link.send(Health(self._is_ready))

    def leave(self, link: Link) -> None:
        """A process is gone; nobody waits for it any more, and nothing waits in it."""
        for wanted in self._wanted.values():
            if wanted.generation:
                self._slab.statistics(wanted.generation, link.index).gauges = Gauges()
        link.close()
        del self.links[link.index]
        self._notify()

    def heard(self, link: Link, order: AnyOrder) -> None:
        """A process tells how far it is, or just that it is there."""
        link.heard(order)
        if isinstance(order, Prepared | Applied):
            self._notify()

    async def all_joined(self) -> None:
        """Waits until every front serves."""
        await self._until(lambda: len(self.fronts) == self._num_fronts)

    async def load(self, *versions: VersionOnDisk) -> None:
        """Loads versions of one name on all fronts; returns when each of them serves them.

        Raises: LoadFailed and its kinds; then all go on with what they had.
        """
        refs = [version.ref for version in versions]
        async with self._changing.setdefault(refs[0].name, asyncio.Lock()):
            prepared: list[Wanted] = []
            for ref in refs:
                self._note(ref, "LOADING")
            try:
                for version in versions:
                    prepared.append(await self._prepare(version))
            except BaseException as error:
                for wanted in prepared:
                    self._discard(wanted)
                for ref in refs:
                    self._note(ref, "UNAVAILABLE", why_unavailable(ref, version.ref, error))
                raise
            finally:
                self._preparing.difference_update(wanted.generation for wanted in prepared)
            await self._apply(*prepared)

    def served(self) -> list[ModelRef]:
        """Every version in service."""
        return [ref for ref, wanted in self._wanted.items() if wanted.generation]

    async def unload(self, ref: ModelRef, why: str = "as it was told") -> None:
        """Takes a version out of service on all fronts, all of them without one; returns when each
        has done so.

        Raises: NotFound if the name is not served.
        """
        async with self._changing.setdefault(ref.name, asyncio.Lock()):
            known = [one for one in self._wanted if one.name == ref.name]
            if not known:
                raise NotFound(
                    f"{ref.name!r} is not served here.{did_you_mean(ref.name, self.models)}"
                )
            chosen = [one for one in known if ref.version in ("", one.version)]
            await self._apply(*(Wanted(one, "UNAVAILABLE", "unloaded") for one in chosen))
            log.info("%s is unloaded everywhere, %s", ref, why)

    def forget(self, ref: ModelRef) -> None:
        """Drops a version that is not in service, so that it counts as unknown."""
        if ref in self._wanted and not self._wanted[ref].generation:
            del self._wanted[ref]
            if all(other.name != ref.name for other in self._wanted):
                self._past.pop(ref.name, None)
            self._publish(gone=(ref,))

    async def _prepare(self, version: VersionOnDisk) -> Wanted:
        """Has a version prepared; its generation stays in `_preparing`. Raises: as `load` does."""
        if version.problem is not None:
            raise version.problem
        await self._until(lambda: bool(self.fronts))
        wanted = Wanted(
            version.ref,
            "READY",
            generation=self._next_generation(),
            path=version.path,
            config=share(version.config, self._num_fronts, usable_cores()),
            trusted=version.trusted,
        )
        self._preparing.add(wanted.generation)
        try:
            about = await self._prepared_by(self.fronts, wanted)
            if about is None:
                wanted = replace(wanted, config=version.config, is_hosted=True)
                self.host_is_wanted.set()
                await self._until(lambda: bool(self.host))
                about = await self._prepared_by(self.host, wanted)
            return replace(wanted, about=about)
        except BaseException:
            self._preparing.discard(wanted.generation)
            raise

    def _discard(self, wanted: Wanted) -> None:
        """Has those that have prepared a version drop it again."""
        for link in self.host if wanted.is_hosted else self.fronts:
            link.send(Discard(wanted.generation))

    async def _prepared_by(self, asked: Sequence[Link], wanted: Wanted) -> About | None:
        """Has processes prepare a version; None if the host is to do that for all fronts.

        Raises: LoadFailed and its kinds. Then, and with None, all have dropped it again.
        """
        number = wanted.generation
        for link in asked:
            link.send(Prepare(wanted))
        await self._until(lambda: all(number in x.prepared or not x.is_open for x in asked))
        answers = [link.prepared.pop(number) for link in asked if number in link.prepared]
        fault = next((answer.fault for answer in answers if answer.fault is not None), None)
        is_for_host = any(answer.about is None for answer in answers)
        if answers and fault is None and not is_for_host:
            return answers[0].about
        for link in asked:
            link.send(Discard(number))
        if fault is not None:
            raise error_of(fault)
        if not answers:
            raise LoadInterrupted(f"{wanted.ref}: every process that loaded it came to its end")
        return None

    def _next_generation(self) -> int:
        """Raises: LoadFailed when there are too many versions to be counted."""
        used = {wanted.generation for wanted in self._wanted.values()} | self._preparing
        slots = {generation % NUM_SLOTS for generation in used}
        for generation in range(self._generation + 1, self._generation + NUM_SLOTS):
            slot = generation % NUM_SLOTS
            if slot not in slots:
                self._generation = generation
                self._slab.clear(generation)
                for name, past in self._past.items():
                    self._past[name] = [each for each in past if each % NUM_SLOTS != slot]
                return generation
        raise LoadFailed(f"more than {NUM_SLOTS - 2} versions cannot be served at once")

    def _note(self, ref: ModelRef, state: str, reason: str = "") -> None:
        """Says what becomes of a version. One that is in service goes on, whatever is tried."""
        present = self._wanted.get(ref)
        if present is None or not present.generation:
            self._publish(Wanted(ref, state, reason))
        elif present.reason != reason:
            self._publish(replace(present, reason=reason))

    async def _apply(self, *wanted: Wanted) -> None:
        number = self._publish(*wanted)
        await self._until(lambda: all(link.applied >= number for link in self.joined))

    def _publish(self, *wanted: Wanted, gone: tuple[ModelRef, ...] = ()) -> int:
        """Makes the next document and sends every front what is new in it; its number."""
        self._number += 1
        for one in wanted:
            self._note_past(one)
        self._wanted |= {one.ref: one for one in wanted}
        change = Change(self._number, tuple(self.names()), wanted, gone)
        for link in self.links.values():
            link.send(change)
        self._notify()
        return self._number

    def _note_past(self, successor: Wanted) -> None:
        """Notes the generation that another takes the place of."""
        ref = successor.ref
        number = self._wanted[ref].generation if ref in self._wanted else 0
        if number not in (0, successor.generation):
            self._past.setdefault(ref.name, []).append(number)

    def _notify(self) -> None:
        """Something changed: whoever waits looks again, and the fronts hear of their health."""
        self._news.set()
        self._news = asyncio.Event()
        is_ready = (
            self._is_started
            and len(self.fronts) == self._num_fronts
            and (bool(self.host) or not self.host_is_wanted.is_set())
            and not any(link.missing for link in self.joined)
            and all(model.answers for model in self.models.values())
        )
        if is_ready != self._is_ready:
            self._is_ready = is_ready
            for link in self.links.values():
                link.send(Health(is_ready))

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._news.wait()
