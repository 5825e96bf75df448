from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from salver.config import ModelConfig, ServerConfig
from salver.control.reload import (
    Interruption,
    Repository,
    to_fall_back,
    to_load,
    to_retry,
    to_unload,
    without_service,
)
from salver.errors import Conflict, LoadFailed, LoadInterrupted, NotFound
from salver.interfaces import VersionOnDisk
from salver.types import ModelRef

V1, V2, V3 = (ModelRef("m", str(number)) for number in (1, 2, 3))
OTHER = ModelRef("n", "1")
SECOND = 1_000_000_000


def offered(**stamps: str) -> dict[ModelRef, VersionOnDisk]:
    """`m1="a"` is version 1 of `m` with stamp `a`."""
    refs = {name: ModelRef(name[0], name[1:]) for name in stamps}
    return {
        refs[name]: VersionOnDisk(refs[name], Path(name), stamp, ModelConfig())
        for name, stamp in stamps.items()
    }


def test_what_is_new_or_changed_is_loaded_when_at_rest() -> None:
    now = offered(m1="a", m2="b")
    assert to_load(now, now, {}) == [V1, V2]
    assert to_load(now, now, {V1: "a"}) == [V2]
    assert to_load(now, now, {V1: "a", V2: "old"}) == [V2]
    assert to_load(now, offered(m1="a", m2="still growing"), {V1: "a"}) == []
    assert to_load(now, offered(m1="a"), {V1: "a"}) == []


def test_what_failed_is_not_tried_again_as_it_is() -> None:
    now = offered(m1="a")
    assert to_load(now, now, {V1: "a"}) == []


def test_what_was_interrupted_is_tried_again_ever_later_and_not_for_ever() -> None:
    now = offered(m1="a")

    def retries(times: int, seconds: float, stamp: str = "a") -> list[ModelRef]:
        last = Interruption(stamp, times, 5 * SECOND)
        return to_retry(now, {V1: last, V2: last}, round((5 + seconds) * SECOND))

    assert retries(1, 0.9) == []
    assert retries(1, 1) == [V1]
    assert retries(4, 7.9) == []
    assert retries(4, 8) == [V1]
    assert retries(4, 8, "older files") == []
    assert retries(6, 32) == [V1]
    assert retries(7, 1e6) == []


def test_old_versions_stay_until_all_new_ones_serve() -> None:
    tried = {V1: "a", V2: "b"}
    assert to_unload(offered(m2="b"), tried, {V1}) == []
    assert to_unload(offered(m2="b"), tried, {V1, V2}) == [V1]
    assert to_unload(offered(m2="b", m3="c"), tried, {V1, V2}) == []


def test_what_is_gone_is_unloaded() -> None:
    assert to_unload({}, {V1: "a"}, {V1}) == [V1]
    assert to_unload(offered(n1="a"), {V1: "a", OTHER: "a"}, {V1}) == [V1]


def test_what_failed_and_is_gone_is_forgotten() -> None:
    assert to_unload(offered(m2="b"), {V1: "a", V2: "b"}, set()) == [V1]


def test_a_name_is_without_service_when_nothing_of_it_runs_or_is_to_be_tried() -> None:
    wanted = offered(m2="b", m3="c", n1="a")
    tried = {V2: "b", V3: "c", OTHER: "a"}
    assert without_service(wanted, tried, []) == {"m", "n"}
    assert without_service(wanted, tried, [V1]) == {"n"}
    assert without_service(wanted, tried | {V3: "before"}, []) == {"n"}
    assert without_service(wanted, {V2: "b"}, [OTHER]) == set()


def test_the_newest_older_version_that_was_not_tried_is_next() -> None:
    older = list(offered(m2="b", m1="a").values())
    assert to_fall_back(older, {}) == older[0]
    assert to_fall_back(older, {V2: "b"}) == older[1]
    assert to_fall_back(older, {V2: "before", V1: "a"}) == older[0]
    assert to_fall_back(older, {V2: "b", V1: "a"}) is None


def test_older_versions_that_failed_are_not_forgotten_before_a_newer_one_serves() -> None:
    wanted, tried = offered(m3="c"), {V1: "a", V2: "b", V3: "c"}
    assert to_unload(wanted, tried, {V1}, {V1, V2}) == []
    assert to_unload(wanted, tried, {V1}) == [V2]
    assert to_unload(wanted, tried, {V1, V3}, {V1, V2}) == [V1, V2]


class Source:
    def __init__(self, **stamps: str) -> None:
        self.found: Any = offered(**stamps)
        self.past: Any = {}

    def offer(self, **stamps: str) -> None:
        self.found = offered(**stamps)

    def older(self, name: str) -> Any:
        if isinstance(self.past, Exception):
            raise self.past
        return [version for ref, version in self.past.items() if ref.name == name]

    def scan(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Engine:
    """Keeps what is served; a load waits while its version is in `held`, fails if in `broken`."""

    def __init__(self) -> None:
        self.in_service: set[ModelRef] = set()
        self.loads: list[ModelRef] = []
        self.forgotten: list[ModelRef] = []
        self.broken: set[ModelRef] = set()
        self.killed: set[ModelRef] = set()
        self.held: dict[ModelRef, asyncio.Event] = {}
        self.is_started = False

    def served(self) -> list[ModelRef]:
        return list(self.in_service)

    async def load(self, *versions: VersionOnDisk) -> None:
        for version in versions:
            ref = version.ref
            self.loads.append(ref)
            if ref in self.held:
                await self.held[ref].wait()
            if ref in self.broken:
                raise LoadFailed("broken")
            if ref in self.killed:
                raise LoadInterrupted("killed")
        self.in_service.update(version.ref for version in versions)

    async def unload(self, ref: ModelRef, why: str = "") -> None:
        if ref.version:
            self.in_service.discard(ref)
            return
        gone = {served for served in self.in_service if served.name == ref.name}
        if not gone:
            raise NotFound("not served")
        self.in_service -= gone

    def forget(self, ref: ModelRef) -> None:
        self.forgotten.append(ref)


class Bench:
    def __init__(self, mode: str = "poll", **stamps: str) -> None:
        self.source = Source(**stamps)
        self.engine = Engine()
        config = ServerConfig(mode=cast("Any", mode))
        self.now = 0
        self.repository = Repository(
            self.source, cast("Any", self.engine), config, lambda: self.now
        )

    async def look(self, times: int = 2) -> None:
        """Looks, and lets begun loads go as far as they can."""
        for _ in range(times):
            await self.repository.look()
            for _ in range(5):
                await asyncio.sleep(0)


def test_start_loads_everything_and_survives_failures() -> None:
    async def test() -> None:
        at = Bench(m1="a", n1="a")
        at.engine.broken = {V1}
        await at.repository.start()
        assert at.engine.in_service == {OTHER}
        assert at.engine.is_started
        assert at.repository.names() == ["m", "n"]

    asyncio.run(test())


def test_a_load_that_was_interrupted_is_tried_again_until_it_is_not() -> None:
    async def test() -> None:
        at = Bench(m1="a", n1="a")
        at.engine.killed, at.engine.broken = {V1}, {OTHER}
        await at.repository.start()
        at.engine.loads.clear()
        numbers = []
        for at.now in range(0, 200 * SECOND, SECOND):
            await at.look(1)
            numbers.append(len(at.engine.loads))
        assert at.engine.loads == [V1] * 6
        assert [numbers.index(number) for number in range(1, 7)] == [1, 3, 7, 15, 31, 63]
        at.source.offer(m1="b", n1="a")
        await at.look()
        assert at.engine.loads == [V1] * 7
        at.engine.killed.clear()
        at.now += SECOND
        await at.look(5)
        assert at.engine.loads == [V1] * 8
        assert at.engine.in_service == {V1}

    asyncio.run(test())


def test_what_was_interrupted_and_is_gone_is_not_tried_again() -> None:
    async def test() -> None:
        at = Bench(m1="a")
        at.engine.killed = {V1}
        await at.repository.start()
        at.source.offer()
        await at.look()
        assert not at.repository._interrupted
        assert at.engine.forgotten == [V1]

    asyncio.run(test())


def test_explicit_mode_loads_nothing_by_itself() -> None:
    async def test() -> None:
        at = Bench(mode="explicit", m1="a")
        await at.repository.start()
        assert at.engine.loads == []
        assert at.engine.is_started

    asyncio.run(test())


def test_a_new_version_takes_over_when_it_serves() -> None:
    async def test() -> None:
        at = Bench(m1="a")
        await at.repository.start()
        at.engine.held[V2] = asyncio.Event()
        at.source.offer(m2="a")
        await at.look(3)
        assert at.engine.in_service == {V1}
        at.engine.held[V2].set()
        await at.look(1)
        assert at.engine.in_service == {V2}
        assert at.engine.forgotten == [V1]

    asyncio.run(test())


def test_a_version_that_is_being_swapped_stays_until_a_newer_one_serves() -> None:
    async def test() -> None:
        at = Bench(m1="a")
        await at.repository.start()
        at.engine.held = {V1: asyncio.Event(), V2: asyncio.Event()}
        at.source.offer(m1="b")
        await at.look()
        at.source.offer(m2="a")
        await at.look(3)
        assert at.engine.loads == [V1, V1, V2]
        assert at.engine.in_service == {V1}
        at.engine.held[V2].set()
        await at.look(1)
        assert at.engine.in_service == {V2}

    asyncio.run(test())


def test_a_failed_version_leaves_the_old_one_until_it_is_mended() -> None:
    async def test() -> None:
        at = Bench(m1="a")
        await at.repository.start()
        at.engine.broken = {V2}
        at.source.offer(m2="half")
        await at.look(4)
        assert at.engine.in_service == {V1}
        assert at.engine.loads == [V1, V2]
        at.engine.broken = set()
        at.source.offer(m2="whole")
        await at.look()
        assert at.engine.in_service == {V2}

    asyncio.run(test())


def test_at_start_an_older_version_serves_until_the_newest_can_be_loaded() -> None:
    async def test() -> None:
        at = Bench(m3="half", n1="a")
        at.source.past = offered(m2="half", m1="a")
        at.engine.broken = {V2, V3}
        await at.repository.start()
        assert at.engine.loads == [V3, OTHER, V2, V1]
        assert at.engine.in_service == {V1, OTHER}
        await at.look(4)
        assert at.engine.loads == [V3, OTHER, V2, V1]
        at.source.offer(m3="other half", n1="a")
        await at.look(4)
        assert at.engine.loads[4:] == [V3]
        assert at.engine.in_service == {V1, OTHER}
        at.engine.broken = set()
        at.source.offer(m3="whole", n1="a")
        await at.look(4)
        assert at.engine.loads[5:] == [V3]
        assert at.engine.in_service == {V3, OTHER}
        assert at.engine.forgotten == [V2, V1]

    asyncio.run(test())


def test_without_any_version_that_loads_each_is_tried_again_when_it_changes() -> None:
    async def test() -> None:
        at = Bench(m2="half")
        at.source.past = offered(m1="half")
        at.engine.broken = {V1, V2}
        await at.repository.start()
        await at.look(4)
        assert at.engine.loads == [V2, V1]
        at.engine.broken = {V2}
        at.source.past = offered(m1="whole")
        await at.look()
        assert at.engine.loads == [V2, V1, V1]
        assert at.engine.in_service == {V1}
        at.source.offer()
        await at.look()
        assert at.engine.in_service == set()

    asyncio.run(test())


def test_older_versions_that_cannot_be_listed_change_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        at = Bench(m2="half", n1="a")
        at.source.past = LoadFailed("away")
        at.engine.broken = {V2}
        await at.repository.start()
        assert at.engine.in_service == {OTHER}

    asyncio.run(test())
    assert "the older versions of 'm' cannot be listed: away" in caplog.text


def test_what_changes_while_it_loads_is_loaded_again() -> None:
    async def test() -> None:
        at = Bench(m1="a", n1="a")
        await at.repository.start()
        at.engine.held[V1] = asyncio.Event()
        at.source.offer(m1="b", n1="b")
        await at.look()
        at.source.offer(m1="c", n1="c")
        await at.look()
        assert at.engine.loads == [V1, OTHER, V1, OTHER, OTHER]
        at.engine.held[V1].set()
        await at.look()
        assert at.engine.loads[5:] == [V1]

    asyncio.run(test())


def test_a_load_whose_files_vanish_is_given_up() -> None:
    async def test() -> None:
        at = Bench()
        await at.repository.start()
        at.engine.held[V1] = asyncio.Event()
        at.source.offer(m1="a")
        await at.look()
        at.source.offer()
        await at.look(1)
        at.engine.held[V1].set()
        await at.look(1)
        assert at.engine.in_service == set()
        assert at.engine.forgotten == [V1]
        at.source.offer(m1="a")
        await at.look()
        assert at.engine.in_service == {V1}

    asyncio.run(test())


@pytest.mark.parametrize("error", [LoadFailed("away"), OSError("away"), ValueError("a bug")])
def test_an_unreadable_source_changes_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        at = Bench(m1="a")
        await at.repository.start()
        at.source.found = error
        await at.look(3)
        assert at.engine.in_service == {V1}
        at.source.offer(m1="b")
        await at.look()
        assert at.engine.loads == [V1, V1]

    asyncio.run(test())
    assert len([r for r in caplog.records if "cannot be listed" in r.message]) == 1


def test_commands_load_and_unload_in_explicit_mode() -> None:
    async def test() -> None:
        at = Bench(mode="explicit", m1="a", m2="a", n1="a")
        await at.repository.start()
        await at.repository.load("m")
        assert at.engine.in_service == {V1, V2}
        at.source.offer(m3="a", n1="a")
        await at.repository.load("m")
        assert at.engine.in_service == {V3}
        with pytest.raises(NotFound, match=r"Did you mean 'n'|There are: m, n"):
            await at.repository.load("nn")
        await at.repository.unload("m")
        assert at.engine.in_service == set()
        with pytest.raises(NotFound):
            await at.repository.unload("m")

    asyncio.run(test())


async def settle() -> None:
    """Lets everything go as far as it can, scans in threads as well."""
    await asyncio.to_thread(int)
    for _ in range(10):
        await asyncio.sleep(0)


async def begin_load(at: Bench) -> asyncio.Task[None]:
    """A load of `m` that has begun and is held."""
    at.engine.held[V1] = asyncio.Event()
    first = asyncio.create_task(at.repository.load("m"))
    while not at.engine.loads:
        await settle()
    return first


def test_commands_that_wait_for_a_load_share_the_next() -> None:
    async def test() -> None:
        at = Bench(mode="explicit", m1="a")
        first = await begin_load(at)
        others = [asyncio.create_task(at.repository.load("m")) for _ in range(40)]
        await settle()
        assert at.engine.loads == [V1]
        others[0].cancel()
        at.source.offer(m2="new")
        at.engine.held[V1].set()
        await asyncio.gather(first, *others[1:])
        assert at.engine.loads == [V1, V2]
        assert at.engine.in_service == {V2}
        await at.repository.load("m")
        assert at.engine.loads == [V1, V2, V2]
        assert not at.repository._next_loads
        assert not at.repository._turns

    asyncio.run(test())


def test_a_failed_load_is_told_to_all_that_share_it_and_to_no_other() -> None:
    async def test() -> None:
        at = Bench(mode="explicit", m1="a")
        first = await begin_load(at)
        others = [asyncio.create_task(at.repository.load("m")) for _ in range(3)]
        await settle()
        at.source.offer()
        at.engine.held[V1].set()
        await first
        found = await asyncio.gather(*others, return_exceptions=True)
        assert [type(error) for error in found] == [NotFound] * 3

    asyncio.run(test())


@pytest.mark.parametrize("last", ["load", "unload"])
def test_commands_take_effect_in_the_order_they_came(last: str) -> None:
    async def test() -> None:
        at = Bench(mode="explicit", m1="a")
        tasks = [await begin_load(at)]
        for command in ("load", "unload", "load", last):
            tasks.append(asyncio.create_task(getattr(at.repository, command)("m")))
            await settle()
        at.engine.held[V1].set()
        await asyncio.gather(*tasks)
        assert at.engine.loads == [V1] * 3
        assert at.engine.in_service == ({V1} if last == "load" else set())

    asyncio.run(test())


def test_a_command_that_fails_for_one_version_changes_none() -> None:
    async def test() -> None:
        at = Bench(mode="explicit", m1="a", m2="a")
        await at.repository.start()
        at.engine.broken = {V2}
        with pytest.raises(LoadFailed, match="broken"):
            await at.repository.load("m")
        assert at.engine.in_service == set()
        at.engine.broken = set()
        await at.repository.load("m")
        at.source.offer(m2="b", m3="a")
        at.engine.broken = {V3}
        with pytest.raises(LoadFailed, match="broken"):
            await at.repository.load("m")
        assert at.engine.in_service == {V1, V2}

    asyncio.run(test())


@pytest.mark.parametrize("mode", ["poll", "none"])
def test_commands_are_refused_where_files_decide(mode: str) -> None:
    at = Bench(mode=mode, m1="a")
    with pytest.raises(Conflict, match="--mode explicit"):
        asyncio.run(at.repository.load("m"))
    with pytest.raises(Conflict):
        asyncio.run(at.repository.unload("m"))
