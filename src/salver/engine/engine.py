"""The engine: the one entry for calls and commands. Names, versions, leases, hot swap."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from salver.clock import NS_PER_S
from salver.codecs.bind import bind
from salver.engine.caller import LoopCaller
from salver.engine.each import Each, parts_of
from salver.engine.inline import LoopBudget
from salver.engine.loader import Loader
from salver.engine.served import UNLOADED, ServedModel, State, version_key, why_unavailable
from salver.errors import (
    InvalidInput,
    NotFound,
    SalverError,
    Unavailable,
    did_you_mean,
    listed,
)
from salver.observe.memory import reclaim_memory, resident_bytes
from salver.observe.statistics import ModelStatistics
from salver.types import NO_CONTEXT, Call, CallContext, ModelRef, Request, Tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from salver.clock import Clock
    from salver.config import ServerConfig
    from salver.engine.generation import Generation
    from salver.interfaces import Sink, VersionOnDisk

log = logging.getLogger("salver.engine")
MAX_DEPTH: Final = 8
LONG_LOAD_S: Final = 10.0
_SLACK_BYTES: Final = 16 << 20


class Engine:
    """Owns every model. All methods are for the loop, unless they say otherwise."""

    def __init__(self, config: ServerConfig, clock: Clock) -> None:
        self.config = config
        self.models: dict[str, ServedModel] = {}
        self.is_draining = False
        self.is_started = False
        """Every model that was there at the start has been tried."""
        self._clock = clock
        self._budget = LoopBudget()
        self._loader = Loader(config, clock, self._budget, LoopCaller(self))
        self._generations = 0
        self._changing: dict[str, asyncio.Lock] = {}
        self._retiring: set[Generation] = set()
        self._ends: set[asyncio.Task[None]] = set()
        self._closed_bytes = 0
        self._bytes_before = 0

    def find(self, ref: ModelRef) -> Generation:
        """The generation that a call to `ref` would use now.

        Raises: NotFound naming what is served, Unavailable.
        """
        model = self.models.get(ref.name)
        if model is None:
            model = self._only_model(ref)
        if not ref.version and model.latest is not None:
            return model.latest
        return model.find(ref.version)

    @property
    def is_busy(self) -> bool:
        """A call has no final answer yet."""
        return any(
            generation.leases
            for model in self.models.values()
            for generation in model.versions.values()
        )

    def _only_model(self, ref: ModelRef) -> ServedModel:
        """An empty name means the only model that is served."""
        served = listed(sorted(self.models), "nothing yet")
        if ref.name:
            load = "; if the models' folder has it, `salver load NAME` loads it"
            raise NotFound(
                f"{ref.name!r} is not served here{load if self.config.mode == 'explicit' else ''}."
                f"{did_you_mean(ref.name, self.models)} Served: {served}"
            )
        if len(self.models) != 1:
            raise NotFound(f"name the model in the path; served: {served}")
        return next(iter(self.models.values()))

    def submit(
        self,
        ref: ModelRef,
        request: Request,
        sink: Sink,
        context: CallContext = NO_CONTEXT,
        depth: int = 0,
        generation: Generation | None = None,
    ) -> Call:
        """Accepts a call: on return its sink will get exactly one final. It is for `generation` if
        another process has already chosen that.

        Raises: SalverError if the call is not accepted; then the sink gets nothing.
        """
        # What an accepted call asks of other models belongs to it, and is still answered.
        if self.is_draining and not depth:
            raise Unavailable("the server is shutting down; send the request elsewhere")
        if depth > MAX_DEPTH:
            raise InvalidInput(f"models call each other more than {MAX_DEPTH} deep")
        if generation is None:
            generation = self.find(ref)
        try:
            plan = generation.plan(request.method)
            payload = request.payload
            parts: Sequence[Any] = ()
            if type(payload) is Tensors:
                inputs = payload
            elif not (parts := parts_of(plan.method, payload)):
                inputs = bind(plan.method, payload)
            if not parts:
                now = self._clock()
                rows = plan.method.check(inputs)
                size, group = plan.place(inputs, rows)
                outputs = request.outputs
                if outputs:
                    plan.method.check_outputs(outputs)
                else:
                    outputs = plan.outputs_with_roles if request.with_roles else plan.outputs
                call = Call(
                    request,
                    sink,
                    context,
                    generation,
                    now,
                    plan.name,
                    inputs,
                    outputs,
                    rows,
                    size,
                    group,
                    depth,
                )
                generation.leases += 1
                try:
                    generation.target.submit(call, now)
                except SalverError:
                    generation.leases -= 1
                    raise
                return call
        except SalverError as error:
            generation.statistics.refused(error)
            raise
        # The parts of a request are calls that count for themselves.
        submit = partial(self.submit, ref, context=context, depth=depth, generation=generation)
        target, max_calls = generation.target, generation.config.queue.max_calls
        each = Each(plan.method, parts, submit, max_calls, is_idempotent=target.is_idempotent)
        call = Call(request, sink, context, each, self._clock(), plan.name)
        each.submit(call, call.queued)
        return call

    def count_refused(self, ref: ModelRef, error: SalverError) -> None:
        """Counts a request for a model that could not be read."""
        with suppress(SalverError):
            self.find(ref).statistics.refused(error)

    async def load(self, *versions: VersionOnDisk) -> None:
        """Loads versions of one name and makes them visible together; if one fails, nothing changes
        but their states.

        Raises: LoadFailed and its kinds, Unavailable when the server stops meanwhile.
        """
        refs = [version.ref for version in versions]
        async with self._changing.setdefault(refs[0].name, asyncio.Lock()):
            prepared: list[Generation] = []
            for ref in refs:
                self.note(ref, "LOADING")
            try:
                for version in versions:
                    prepared.append(await self.prepare(version))
                    if self.is_draining:
                        raise Unavailable("the server is shutting down")
            except BaseException as error:
                self._drop(refs, prepared, version.ref, error)
                raise
            for generation in prepared:
                self.show(generation)

    def _drop(
        self,
        refs: Sequence[ModelRef],
        prepared: Sequence[Generation],
        failed: ModelRef,
        error: BaseException,
    ) -> None:
        """Ends a load of several versions, of which one has `failed`."""
        model = self._named(failed.name)
        for generation in prepared:
            self._retire(model, generation, f"unseen, as {failed} could not be loaded")
        for ref in refs:
            self.note(ref, "UNAVAILABLE", why_unavailable(ref, failed, error))
            model.settle(ref.version)
        self._sum_up_later(model)

    def remember(self, name: str, counters: ModelStatistics) -> None:
        """Has a name go on counting from what a generation of before, elsewhere, left."""
        model = self._named(name)
        model.remember(counters)
        self._sum_up_later(model)

    def _sum_up_later(self, model: ServedModel) -> None:
        """When calls in other processes have had their time to end."""
        loop, ended = asyncio.get_running_loop(), tuple(model.ending)
        loop.call_later(self.config.drain_timeout_s, model.sum_up, ended)

    def note(self, ref: ModelRef, state: str, reason: str = "") -> None:
        """Says what becomes of a version. One that is in service goes on, whatever is tried; then
        the reason tells that it is not the newest.
        """
        model = self._named(ref.name)
        model.states[ref.version] = State(
            "READY" if ref.version in model.versions else state, reason
        )

    def _named(self, name: str) -> ServedModel:
        model = self.models.get(name)
        if model is None:
            model = self.models[name] = ServedModel(name)
        return model

    async def prepare(
        self,
        version: VersionOnDisk,
        counters: ModelStatistics | None = None,
        *,
        has_host: bool = False,
    ) -> Generation:
        """Loads a version that no call reaches yet: `show` it, or retire it. It counts in
        `counters`, or goes on where the version's last generation left off.

        Raises: LoadFailed and its kinds; with `has_host` NeedsHost for what belongs there.
        """
        ref = version.ref
        model = self._named(ref.name)
        if counters is None:
            counters = model.counters.setdefault(ref.version, ModelStatistics())
        started = self._clock()
        self._generations += 1
        loop = asyncio.get_running_loop()
        reminder = loop.call_later(LONG_LOAD_S, log.warning, "%s is still loading", ref)
        try:
            generation = await self._loader.load(
                version, self._generations, counters, has_host=has_host
            )
        finally:
            reminder.cancel()
        generation.load_s = (self._clock() - started) / NS_PER_S
        return generation

    def show(self, generation: Generation) -> None:
        """Makes a prepared generation visible, in place of the version's present one."""
        ref = generation.ref
        model = self._named(ref.name)
        old = model.put(generation)
        log.info(
            "%s %s: %s, %s",
            ref,
            "is ready" if old is None else "is swapped",
            generation.runtime,
            f"instances {generation.target.num_instances}, {generation.memory_bytes / 1e6:.0f} MB, "
            f"loaded in {generation.load_s:.2f} s"
            if generation.target.num_instances
            else "in another process",
        )
        if old is not None:
            self._retire(model, old, "its successor is ready")

    async def unload(self, ref: ModelRef, why: str = "as it was told") -> None:
        """Takes a version out of service, all of them without one; calls that use it may finish.
        `why` is for the log.

        Raises: NotFound if the name is not served.
        """
        async with self._changing.setdefault(ref.name, asyncio.Lock()):
            model = self.models.get(ref.name)
            if model is None:
                near = did_you_mean(ref.name, self.models)
                raise NotFound(f"{ref.name!r} is not served here.{near}")
            for version in [ref.version] if ref.version else list(model.states):
                model.states[version] = UNLOADED
                generation = model.take(version)
                if generation is not None:
                    self._retire(model, generation, why)

    def forget(self, ref: ModelRef) -> None:
        """Drops a version that is not in service, so that it counts as unknown; with the last one
        its name.
        """
        model = self.models.get(ref.name)
        if model is None or ref.version in model.versions:
            return
        model.states.pop(ref.version, None)
        if not model.states:
            del self.models[ref.name]

    def _retire(self, model: ServedModel, generation: Generation, why: str) -> None:
        self._retiring.add(generation)
        end = asyncio.ensure_future(self._end(model, generation, why))
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)

    async def _end(self, model: ServedModel, generation: Generation, why: str) -> None:
        started, ref, size = self._clock(), generation.ref, generation.memory_bytes
        await generation.drain(self.config.drain_timeout_s)
        if not self._closed_bytes:
            self._bytes_before = resident_bytes()
        self._closed_bytes += generation.loaded_bytes
        await generation.retire(0)
        model.settle(ref.version)
        self._sum_up_later(model)
        self._retiring.remove(generation)
        del generation  # it holds the models, whose memory is to be given back now
        if not self._retiring and not self.is_draining:
            # Once for many, because it stops everything for tens of milliseconds.
            goal_bytes = self._bytes_before - int(0.8 * self._closed_bytes) + _SLACK_BYTES
            self._closed_bytes = 0
            await asyncio.to_thread(reclaim_memory, goal_bytes)
        seconds = (self._clock() - started) / NS_PER_S
        log.info("%s is unloaded, %s: %.0f MB, in %.2f s", ref, why, size / 1e6, seconds)

    def served(self) -> Iterable[ModelRef]:
        """Every version in service."""
        return [generation.ref for generation in self.generations()]

    def generations(self) -> Iterable[Generation]:
        """Every ready generation, by name and version."""
        for _, model in sorted(self.models.items()):
            for version in sorted(model.versions, key=version_key):
                yield model.versions[version]

    @property
    def is_ready(self) -> bool:
        """Every model that is wanted answers. A new version that fails takes nothing from that."""
        return (
            self.is_started
            and not self.is_draining
            and all(model.answers for model in self.models.values())
        )

    @property
    def num_calls(self) -> int:
        """Calls without a final answer."""
        return sum(generation.leases for generation in (*self.generations(), *self._retiring))

    async def stop(self, drain_s: float) -> None:
        """Accepts nothing more, lets accepted calls finish for at most `drain_s`, unloads all.

        Nothing is unloaded before the last call has ended, for calls may need several models.
        """
        await self.drain(drain_s)
        for generation in self._retiring:
            generation.give_up()
        retiring = [generation.retire(0) for generation in self.generations()]
        await asyncio.gather(*retiring, *self._ends)

    async def drain(self, drain_s: float) -> None:
        """Accepts nothing more, and waits until the last call has ended, at most `drain_s`."""
        self.is_draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + drain_s
        while (used := self._used()) is not None and loop.time() < end:
            await used.drain(end - loop.time())

    def _used(self) -> Generation | None:
        """A generation that calls still use."""
        alive = (*self.generations(), *self._retiring)
        return next((generation for generation in alive if generation.leases), None)
