from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from salver.config import Instances, Limits, ModelConfig, Queue, ServerConfig
from salver.engine.frames import Fault
from salver.errors import LoadFailed
from salver.interfaces import VersionOnDisk
from salver.observe.slab import Slab
from salver.observe.statistics import Gauges
from salver.server.fronts.fleet import Fleet
from salver.server.fronts.link import Link
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
from salver.server.fronts.shares import share, share_server
from salver.signature import Method, Signature
from salver.types import ModelRef

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

REF = ModelRef("model", "1")
ABOUT = About("onnx", Signature({"predict": Method(inputs=(), outputs=())}), True, True)
VERSION = VersionOnDisk(REF, Path("model.onnx"), "stamp", ModelConfig())


class FakeLink(Link):
    """A front that does as it is told, unless `answer` says otherwise."""

    def __init__(self, fleet: Fleet, index: int) -> None:
        super().__init__(index, None, None)  # type: ignore[arg-type]
        self.fleet = fleet
        self.sent: list[Any] = []
        self.answer: Callable[[Prepare], Prepared | None] = lambda order: Prepared(
            order.wanted.generation, ABOUT
        )

    def send(self, order: Any) -> None:
        self.sent.append(order)
        answer = None
        if isinstance(order, Change):
            answer = Applied(order.number)
        elif isinstance(order, Prepare):
            answer = self.answer(order)
        if answer is not None:
            asyncio.get_running_loop().call_soon(self.fleet.heard, self, answer)

    def close(self) -> None:
        self.is_open = False

    def shown(self) -> list[int]:
        """Generations that were to be served, in order."""
        changes = [order for order in self.sent if isinstance(order, Change)]
        return [w.generation for change in changes for w in change.wanted if w.generation]

    def is_healthy(self) -> bool:
        return [order.is_ready for order in self.sent if isinstance(order, Health)][-1]


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def with_two(
    fd: int, test: Callable[[Fleet, FakeLink, FakeLink], Coroutine[Any, Any, None]]
) -> None:
    async def run() -> None:
        fleet = Fleet(2, Slab(fd, 2))
        one, other = FakeLink(fleet, 0), FakeLink(fleet, 1)
        for link in (one, other):
            fleet.join(link)
        async with asyncio.timeout(10):
            await fleet.all_joined()
            fleet.is_started = True
            await test(fleet, one, other)

    asyncio.run(run())


def test_a_version_is_shown_when_all_have_prepared_it(fd: int) -> None:
    async def test(fleet: Fleet, one: FakeLink, other: FakeLink) -> None:
        await fleet.load(VERSION)
        assert one.shown() == other.shown() == [1]
        assert fleet.models["model"].states == {"1": ("READY", "")}
        assert fleet.models["model"].versions["1"].runtime == "onnx"
        assert one.is_healthy()

    with_two(fd, test)


def test_what_one_cannot_load_none_shows(fd: int) -> None:
    async def test(fleet: Fleet, one: FakeLink, other: FakeLink) -> None:
        await fleet.load(VERSION)
        other.answer = lambda order: Prepared(
            order.wanted.generation, fault=Fault("LoadFailed", "broken")
        )
        with pytest.raises(LoadFailed, match="broken"):
            await fleet.load(VERSION)
        assert Discard(2) in one.sent
        assert 2 not in one.shown() + other.shown()
        assert fleet.models["model"].states == {"1": ("READY", "loading failed: broken")}
        assert one.is_healthy()

    with_two(fd, test)


def test_a_front_that_ends_meanwhile_is_not_waited_for(fd: int) -> None:
    async def test(fleet: Fleet, one: FakeLink, other: FakeLink) -> None:
        other.answer = lambda order: fleet.leave(other)  # type: ignore[func-returns-value]
        await fleet.load(VERSION)
        assert one.shown() == [1]
        assert not one.is_healthy()
        again = FakeLink(fleet, 1)
        fleet.join(again)
        await fleet.all_joined()
        assert again.shown() == [1]
        assert one.is_healthy()

    with_two(fd, test)


def past_of(link: FakeLink) -> dict[str, list[int]]:
    """What the front heard of past generations when it last joined."""
    change = [order for order in link.sent if isinstance(order, Change)][-1]
    return {name: list(numbers) for name, numbers in change.past.items()}


def test_what_lies_in_a_slot_that_is_used_again_is_forgotten(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("salver.server.fronts.fleet.NUM_SLOTS", 4)

    async def test(fleet: Fleet, one: FakeLink, other: FakeLink) -> None:
        for _ in range(6):
            await fleet.load(VERSION)
        fleet.leave(other)
        fleet.join(other)
        assert past_of(other) == {"model": [3, 4, 5]}

    with_two(fd, test)


def test_a_new_front_hears_which_generations_counted_before(fd: int) -> None:
    async def test(fleet: Fleet, one: FakeLink, other: FakeLink) -> None:
        for _ in range(3):
            await fleet.load(VERSION)
        again = FakeLink(fleet, 1)
        fleet.leave(other)
        fleet.join(again)
        assert past_of(again) == {"model": [1, 2]}
        await fleet.unload(REF)
        fleet.leave(again)
        fleet.join(again)
        assert past_of(again) == {"model": [1, 2, 3]}
        fleet.forget(REF)
        fleet.leave(again)
        fleet.join(again)
        assert past_of(again) == {}

    with_two(fd, test)


def test_what_a_front_had_goes_with_it(fd: int) -> None:
    async def test(fleet: Fleet, one: FakeLink, other: FakeLink) -> None:
        await fleet.load(VERSION)
        rows = [Slab(fd, 2).statistics(1, row) for row in range(2)]
        for row in rows:
            row.call(1000, 0, None)
            row.gauges = Gauges(queue_depth=2)
        fleet.leave(other)
        assert rows[0].total().gauges == Gauges(queue_depth=2)
        assert rows[0].total().success.times == 2

    with_two(fd, test)


def test_a_version_that_ends_every_front_is_given_up(fd: int) -> None:
    async def test(fleet: Fleet, one: FakeLink, other: FakeLink) -> None:
        one.answer = lambda order: fleet.leave(one)  # type: ignore[func-returns-value]
        other.answer = lambda order: fleet.leave(other)  # type: ignore[func-returns-value]
        with pytest.raises(LoadFailed, match="every process"):
            await fleet.load(VERSION)
        assert fleet.models["model"].states["1"][0] == "UNAVAILABLE"

    with_two(fd, test)


def test_unloaded_and_forgotten(fd: int) -> None:
    async def test(fleet: Fleet, one: FakeLink, other: FakeLink) -> None:
        await fleet.load(VERSION)
        await fleet.unload(REF)
        assert fleet.models["model"].states == {"1": ("UNAVAILABLE", "unloaded")}
        assert one.is_healthy()
        fleet.forget(REF)
        assert not fleet.models
        assert one.sent[-1].gone == other.sent[-1].gone == (REF,)

    with_two(fd, test)


def test_a_front_loads_from_what_it_is_told_to_what_it_tells() -> None:
    class Writer:
        def write(self, data: bytes) -> None:
            pass

    link = Link(0, Writer(), None)  # type: ignore[arg-type]
    wanted = Wanted(REF, "READY", generation=1)
    link.send(Change(1, (), ()))
    assert link.is_loading
    link.heard(Applied(1))
    assert not link.is_loading
    link.send(Prepare(wanted))
    assert link.is_loading
    link.heard(Prepared(1))
    assert not link.is_loading
    link.send(Change(2, (), (Wanted(REF, "LOADING"),)))
    assert not link.is_loading
    link.send(Change(3, (), (wanted,)))
    assert link.is_loading
    link.heard(Applied(3))
    assert not link.is_loading


@pytest.mark.parametrize(
    ("count", "threads", "expected"), [(0, 0, (0, 4)), (3, 0, (2, 2)), (4, 5, (2, 5))]
)
def test_instances_and_cores_are_divided(
    count: int, threads: int, expected: tuple[int, int]
) -> None:
    config = ModelConfig(instances=Instances(count=count, threads=threads))
    shared = share(config, num_fronts=2, num_cores=8).instances
    assert (shared.count, shared.threads) == expected


@pytest.mark.parametrize(("whole", "part"), [(1, 1), (3, 1), (4, 2), (16384, 5462)])
def test_queues_and_connections_are_divided(whole: int, part: int) -> None:
    model = ModelConfig(queue=Queue(max_calls=whole, timeout_ms=5))
    assert share(model, num_fronts=3, num_cores=1).queue == Queue(max_calls=part, timeout_ms=5)
    server = ServerConfig(processes=3, port=1, limits=Limits(connections=whole, streams=7))
    assert share_server(server) == ServerConfig(
        processes=3, port=1, limits=Limits(connections=part, streams=7)
    )
