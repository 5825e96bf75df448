"""Two processes of a server as two engines on one loop, joined by a real line."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from salver.clock import NS_PER_S, system_clock
from salver.config import ModelConfig, Queue, ServerConfig
from salver.engine.channel import InSlots, OutSlots, create_arena
from salver.engine.engine import Engine
from salver.engine.generation import Generation, elsewhere
from salver.engine.home import HomeTarget
from salver.engine.peers import Peers
from salver.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    Overloaded,
    SalverError,
    Unavailable,
    Undeliverable,
)
from salver.observe.statistics import ModelStatistics
from salver.signature import Method, Signature, TensorSpec
from salver.types import FP32, Call, CallContext, ModelRef, Request, Response, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from salver.clock import Clock

REF = ModelRef("m", "1")
NUMBER = 7
X = TensorSpec(name="x", dtype=FP32, shape=(-1, 1))
SIGNATURE = Signature(
    {
        "double": Method(inputs=(X,), outputs=(X,), batching="rows"),
        "count": Method(inputs=(X,), outputs=(X,), streams=True),
    }
)


class Model:
    """The target at home: keeps calls until the test answers them."""

    is_ready = True

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.flow: list[str] = []

    def submit(self, call: Call, now: int) -> None:
        self.calls.append(call)

    def answer(self, call: Call, item: SalverError | float, *, final: bool = True) -> None:
        if not call.ended:
            call.ended = final
            answer: SalverError | Response
            if isinstance(item, SalverError):
                answer = item
            else:
                outputs = Tensors(x=Tensor.of(np.full((1, 1), item, np.float32)))
                answer = Response(Rows(outputs), REF, SIGNATURE.methods[call.method], ("x",))
            if final:
                call.lease.end()
            call.sink.push(call, answer, final)

    def cancel(self, call: Call, why: SalverError) -> None:
        self.flow.append("cancel")
        self.answer(call, why)

    def pause(self, call: Call) -> None:
        self.flow.append("pause")

    def resume(self, call: Call) -> None:
        self.flow.append("resume")

    async def stop(self, grace_s: float) -> None:
        for call in self.calls:
            self.cancel(call, Unavailable("stopped"))


class Sink:
    def __init__(self) -> None:
        self.items: list[Any] = []
        self.finals = 0

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        self.finals += final
        if isinstance(item, SalverError):
            self.items.append(item)
        elif item.names:
            self.items.append(float(item.tensor("x").array()[0, 0]))

    @property
    def error(self) -> SalverError:
        (found,) = self.items
        assert isinstance(found, SalverError)
        return found


async def nothing() -> None:
    pass


processes: list[Peers] = []


class Home:
    """A process that has the model."""

    def __init__(self) -> None:
        self.engine = Engine(ServerConfig(), system_clock)
        self.peers = Peers(self.engine)
        processes.append(self.peers)
        self.model = Model()
        self.generation = Generation(
            REF,
            NUMBER,
            config=ModelConfig(),
            runtime="fake",
            signature=SIGNATURE,
            target=cast("Any", self.model),
            statistics=ModelStatistics(),
            batches=True,
            close=nothing,
        )


class Front:
    """A process that has not."""

    def __init__(
        self, *, is_idempotent: bool = True, max_calls: int = 10, clock: Clock = system_clock
    ) -> None:
        self.engine = Engine(ServerConfig(), system_clock)
        self.peers = Peers(self.engine)
        processes.append(self.peers)
        self.statistics = ModelStatistics()
        target = HomeTarget(
            REF,
            NUMBER,
            SIGNATURE,
            self.peers,
            config=ModelConfig(queue=Queue(max_calls=max_calls)),
            statistics=self.statistics,
            is_idempotent=is_idempotent,
            clock=clock,
        )
        self.generation = elsewhere(target, "fake", batches=False)
        self.engine.show(self.generation)

    def ask(
        self, value: float = 1.0, method: str = "double", deadline: int = 0
    ) -> tuple[Call, Sink]:
        sink = Sink()
        request = Request(Tensors(x=Tensor(FP32, (1, 1), [value])), method=method)
        call = self.engine.submit(ModelRef("m"), request, sink, CallContext(deadline=deadline))
        assert not sink.items
        return call, sink


def connect(one: Peers, other: Peers) -> socket.socket:
    """Joins two processes; closing what it returns is the death of `one`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    arenas = create_arena(), create_arena()
    for sock in (ours, theirs):
        sock.setblocking(False)
    one.connect(ours, (OutSlots(arenas[0]), InSlots(arenas[1])))
    other.connect(theirs, (OutSlots(arenas[1]), InSlots(arenas[0])))
    for fd in arenas:
        os.close(fd)
    return ours


async def until(holds: Callable[[], Any]) -> Any:
    """Turns the loop until there is something."""
    while not (found := holds()):  # noqa: ASYNC110 - what sockets bring sets no event
        await asyncio.sleep(0)
    return found


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def guarded() -> None:
        try:
            async with asyncio.timeout(20):
                await test()
        finally:
            while processes:
                processes.pop().close()

    asyncio.run(guarded())


async def joined(**options: Any) -> tuple[Home, Front, socket.socket]:
    home, front = Home(), Front(**options)
    line = connect(home.peers, front.peers)
    home.peers.offer(NUMBER, home.generation)
    await until(lambda: home.generation.holds)
    return home, front, line


def test_a_call_goes_home_and_its_answer_comes_back() -> None:
    async def test() -> None:
        home, front, _ = await joined()
        _, sink = front.ask(21.0)
        (call,) = await until(lambda: home.model.calls)
        assert (call.method, call.outputs, call.rows) == ("double", ("x",), 1)
        assert call.inputs["x"].array().tolist() == [[21.0]]
        home.model.answer(call, 42.0)
        assert await until(lambda: sink.items) == [42.0]
        assert sink.finals == 1
        assert front.generation.leases == home.generation.leases == 0

    run(test)


def test_large_tensors_travel_both_ways() -> None:
    async def test() -> None:
        home, front, _ = await joined()
        rows = np.arange(200_000, dtype=np.float32).reshape(-1, 1)
        got: list[Any] = []

        class Whole(Sink):
            def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
                assert isinstance(item, Response)
                got.append(item.tensor("x").array())

        request = Request(Tensors(x=Tensor.of(rows)))
        for _ in range(10):
            front.engine.submit(ModelRef("m"), request, Whole())
        calls = await until(lambda: len(home.model.calls) == 10 and home.model.calls)
        for call in calls:
            outputs = Rows(Tensors(x=call.inputs["x"]))
            call.lease.end()
            call.sink.push(call, Response(outputs, REF, SIGNATURE.methods["double"], ("x",)), True)
        await until(lambda: len(got) == 10)
        assert all(np.array_equal(each, rows) for each in got)

    run(test)


def test_what_fails_at_home_fails_here() -> None:
    async def test() -> None:
        home, front, _ = await joined()
        _, sink = front.ask()
        (call,) = await until(lambda: home.model.calls)
        home.model.answer(call, ModelFailed("bad rows"))
        await until(lambda: sink.items)
        assert isinstance(sink.error, ModelFailed)
        assert sink.error.message == "bad rows"
        with pytest.raises(InvalidInput):
            front.engine.submit(ModelRef("m"), Request(Tensors()), Sink())

    run(test)


def test_a_stream_comes_item_by_item_and_waits_for_its_reader() -> None:
    async def test() -> None:
        home, front, _ = await joined()
        call, sink = front.ask(method="count")
        (at_home,) = await until(lambda: home.model.calls)
        front.generation.target.pause(call)
        for number in range(20):
            home.model.answer(at_home, float(number), final=False)
        await until(lambda: len(sink.items) == 20)
        assert home.model.flow == ["pause"]
        front.generation.target.resume(call)
        await until(lambda: home.model.flow == ["pause", "resume"])
        end = Response(Rows(Tensors()), REF, SIGNATURE.methods["count"], ())
        at_home.lease.end()
        at_home.sink.push(at_home, end, True)
        await until(lambda: sink.finals)
        assert sink.items == [float(number) for number in range(20)]

    run(test)


def test_who_gives_up_here_is_not_worked_for_at_home() -> None:
    async def test() -> None:
        home, front, _ = await joined()
        call, sink = front.ask()
        await until(lambda: home.model.calls)
        front.generation.target.cancel(call, Cancelled("gone"))
        front.generation.target.cancel(call, Cancelled("gone"))
        await until(lambda: home.model.flow)
        assert (home.model.flow, sink.error.message, sink.finals) == (["cancel"], "gone", 1)
        assert home.generation.leases == 0

    run(test)


def test_a_front_that_dies_takes_its_calls_from_home() -> None:
    async def test() -> None:
        home, front, _ = await joined()
        front.ask()
        await until(lambda: home.model.calls)
        front.peers.close()
        await until(lambda: home.model.flow == ["cancel"])
        assert home.generation.leases == home.generation.holds == 0

    run(test)


def test_calls_wait_for_a_home_and_go_to_the_next_one() -> None:
    async def test() -> None:
        home, front, line = await joined()
        _, lost = front.ask(1.0)
        await until(lambda: home.model.calls)
        line.shutdown(socket.SHUT_RDWR)
        await until(lambda: front.generation.target.queue_depth)
        _, late = front.ask(2.0)
        successor = Home()
        connect(successor.peers, front.peers)
        successor.peers.offer(NUMBER, successor.generation)
        calls = await until(lambda: len(successor.model.calls) == 2 and successor.model.calls)
        for call in calls:
            successor.model.answer(call, 2 * float(call.inputs["x"].array()[0, 0]))
        await until(lambda: lost.finals and late.finals)
        assert (lost.items, late.items) == ([2.0], [4.0])

    run(test)


def test_a_call_that_meets_a_dead_home_goes_to_the_next_one() -> None:
    """The line is broken already, but nobody has noticed yet."""

    async def test() -> None:
        _, front, line = await joined()
        line.shutdown(socket.SHUT_RDWR)
        _, sink = front.ask(1.0)
        successor = Home()
        connect(successor.peers, front.peers)
        successor.peers.offer(NUMBER, successor.generation)
        (call,) = await until(lambda: successor.model.calls)
        successor.model.answer(call, 2.0)
        assert await until(lambda: sink.items) == [2.0]

    run(test)


def test_what_may_not_run_twice_is_undeliverable() -> None:
    async def test() -> None:
        home, front, line = await joined(is_idempotent=False)
        _, sink = front.ask()
        await until(lambda: home.model.calls)
        line.shutdown(socket.SHUT_RDWR)
        await until(lambda: sink.items)
        assert isinstance(sink.error, Undeliverable)
        assert front.statistics.outcomes()["other"] == 1

    run(test)


@pytest.mark.parametrize("is_idempotent", [True, False])
def test_unloading_tells_calls_that_wait_from_those_that_may_have_run(is_idempotent: bool) -> None:
    async def test() -> None:
        home, front, _ = await joined(is_idempotent=is_idempotent)
        _, sent = front.ask()
        await until(lambda: home.model.calls)
        await front.generation.target.stop(0)
        assert isinstance(sent.error, Unavailable if is_idempotent else Undeliverable)
        front = Front(is_idempotent=is_idempotent)
        _, waiting = front.ask()
        await front.generation.target.stop(0)
        assert isinstance(waiting.error, Unavailable)

    run(test)


def test_who_hears_of_a_loss_may_cancel_other_calls() -> None:
    """As a connection does that ends with its first error."""

    async def test() -> None:
        home, front, line = await joined(is_idempotent=False)
        calls: list[Call] = []

        class Connection(Sink):
            def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
                super().push(call, item, final)
                for each in calls:
                    each.lease.target.cancel(each, Cancelled("the connection is closed"))

        sinks = [Connection() for _ in range(3)]
        for sink in sinks:
            request = Request(Tensors(x=Tensor(FP32, (1, 1), [1.0])))
            calls.append(front.engine.submit(ModelRef("m"), request, sink))
        await until(lambda: len(home.model.calls) == 3)
        line.shutdown(socket.SHUT_RDWR)
        await until(lambda: all(sink.finals for sink in sinks))
        assert sorted(type(sink.error).__name__ for sink in sinks) == [
            "Cancelled",
            "Cancelled",
            "Undeliverable",
        ]
        assert front.generation.leases == 0

    run(test)


def test_a_stream_that_has_begun_does_not_begin_again() -> None:
    async def test() -> None:
        home, front, line = await joined()
        _, sink = front.ask(method="count")
        (call,) = await until(lambda: home.model.calls)
        home.model.answer(call, 1.0, final=False)
        await until(lambda: sink.items)
        line.shutdown(socket.SHUT_RDWR)
        await until(lambda: sink.finals)
        assert isinstance(sink.items[1], Undeliverable)

    run(test)


def test_a_call_that_ends_every_home_is_given_up() -> None:
    async def test() -> None:
        home, front, line = await joined()
        _, sink = front.ask()
        await until(lambda: home.model.calls)
        line.shutdown(socket.SHUT_RDWR)
        await until(lambda: front.generation.target.queue_depth)
        successor = Home()
        line = connect(successor.peers, front.peers)
        successor.peers.offer(NUMBER, successor.generation)
        await until(lambda: successor.model.calls)
        line.shutdown(socket.SHUT_RDWR)
        await until(lambda: sink.items)
        assert isinstance(sink.error, Undeliverable)
        assert "ended 2 times" in sink.error.message

    run(test)


def test_not_more_calls_wait_than_may() -> None:
    async def test() -> None:
        front = Front(max_calls=2)
        sinks = [front.ask()[1] for _ in range(2)]
        with pytest.raises(Overloaded):
            front.ask()
        await front.generation.retire(0)
        assert [type(sink.error) for sink in sinks] == [Unavailable, Unavailable]

    run(test)


def test_a_deadline_holds_while_there_is_no_home() -> None:
    async def test() -> None:
        front = Front()
        _, sink = front.ask(deadline=system_clock() + 1_000_000)
        await until(lambda: sink.items)
        assert isinstance(sink.error, DeadlineExceeded)

    run(test)


def test_a_deadline_holds_when_the_home_hangs() -> None:
    """It reads what it is sent and says nothing; others may answer, or it does at last."""

    async def test() -> None:
        home, front, _ = await joined()
        _, late = front.ask(deadline=system_clock() + 1_000_000)
        _, open_end = front.ask()
        hung, _ = await until(lambda: len(home.model.calls) == 2 and home.model.calls)
        hung.ended = True  # so that it does not answer when it is cancelled
        await until(lambda: late.items)
        assert isinstance(late.error, DeadlineExceeded)
        assert (late.finals, front.generation.leases) == (1, 1)
        assert front.statistics.outcomes()["expired"] == 1
        _, waiting = front.ask(2.0)
        assert front.generation.target.queue_depth == 1
        home.model.answer(home.model.calls[1], 1.0)
        await until(lambda: len(home.model.calls) == 3)
        home.model.answer(home.model.calls[2], 4.0)
        await until(lambda: waiting.items)
        assert (open_end.items, waiting.items) == ([1.0], [4.0])
        hung.ended = False
        home.model.answer(hung, 3.0)
        await until(lambda: not home.generation.leases)
        assert (late.finals, front.generation.leases) == (1, 0)

    run(test)


def test_a_home_that_answers_late_is_asked_again() -> None:
    async def test() -> None:
        ahead = 0
        home, front, _ = await joined(clock=lambda: system_clock() + ahead)
        _, first = front.ask(deadline=system_clock() + 1)
        _, second = front.ask(deadline=system_clock() + 100 * NS_PER_S)
        calls = await until(lambda: len(home.model.calls) == 2 and home.model.calls)
        calls[0].ended = True
        await until(lambda: first.items)
        ahead = 200 * NS_PER_S
        home.model.answer(calls[1], 2.0)
        await until(lambda: second.items)
        _, third = front.ask()
        await until(lambda: len(home.model.calls) == 3)
        home.model.answer(calls[2], 3.0)
        assert await until(lambda: third.items) == [3.0]

    run(test)


def test_the_home_is_the_first_to_tell_that_time_is_over() -> None:
    async def test() -> None:
        home, front, _ = await joined()
        deadline = system_clock() + 1_000_000
        _, sink = front.ask(deadline=deadline)
        (call,) = await until(lambda: home.model.calls)
        await until(lambda: system_clock() > deadline)
        home.model.answer(call, DeadlineExceeded("while running"))
        await until(lambda: sink.items)
        assert sink.error.message == "while running"

    run(test)


def test_a_home_that_cannot_load_says_so() -> None:
    async def test() -> None:
        home, front = Home(), Front()
        _, sink = front.ask()
        connect(home.peers, front.peers)
        home.peers.fail(NUMBER, Unavailable("its file is gone"))
        await until(lambda: sink.items)
        assert "its file is gone" in sink.error.message
        assert not front.generation.target.is_ready
        with pytest.raises(Unavailable, match="its file is gone"):
            front.ask()

    run(test)


def test_a_home_that_has_given_up_is_not_asked_again() -> None:
    async def test() -> None:
        home, front, _ = await joined()
        _, sink = front.ask()
        (call,) = await until(lambda: home.model.calls)
        home.model.is_ready = False
        home.model.answer(call, Unavailable("it crashed too often"))
        await until(lambda: sink.items)
        await until(lambda: not front.generation.target.is_ready)
        with pytest.raises(Unavailable, match="crashed too often"):
            front.ask()

    run(test)


def test_home_stays_until_all_have_let_go() -> None:
    async def test() -> None:
        home, front, _ = await joined()
        home.peers.withdraw(NUMBER)
        retiring = asyncio.ensure_future(home.generation.retire(20))
        _, sink = front.ask()
        (call,) = await until(lambda: home.model.calls)
        home.model.answer(call, 1.0)
        await until(lambda: sink.items)
        assert not retiring.done()
        await front.generation.retire(0)
        await retiring
        assert home.generation.holds == 0

    run(test)


def test_a_home_of_several_is_the_one_with_the_fewest_calls() -> None:
    async def test() -> None:
        front, homes = Front(), [Home(), Home()]
        for home in homes:
            connect(home.peers, front.peers)
            home.peers.offer(NUMBER, home.generation)
        await until(lambda: all(home.generation.holds for home in homes))
        for _ in range(4):
            front.ask()
        await until(lambda: all(len(home.model.calls) == 2 for home in homes))

    run(test)
