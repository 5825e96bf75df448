from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from salver.config import Queue
from salver.engine.rerun import WorkerDied
from salver.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    Overloaded,
    Unavailable,
    Undeliverable,
)
from salver.types import Rows, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., Any]


def rows(*values: float) -> Rows:
    return Rows(Tensors(x=Tensor.of([[value] for value in values])))


def sinks(calls: list[Any]) -> list[Any]:
    return [call.sink for call in calls]


def test_calls_of_one_turn_share_a_run_and_get_their_rows(bench: Make) -> None:
    at = bench()
    one, two = at.submit(1.0), at.submit(2.0, 3.0)
    at.run()
    assert at.instance.sizes == [2]
    assert at.instance.works[0].inputs["x"].ravel().tolist() == [1, 2, 3]
    at.instance.finish(rows(10, 20, 30))
    assert one.sink.values == [10]
    assert two.sink.values == [20, 30]
    assert at.lease.ended == 2


def test_one_bad_call_costs_two_runs_for_each_halving(bench: Make, inline_double: Any) -> None:
    at = bench(num_instances=0, inline=inline_double)
    calls = [at.submit(-1.0 if i == 77 else float(i)) for i in range(128)]
    at.run()
    assert len(inline_double.works) - 1 <= 2 * 7
    assert isinstance(calls[77].sink.error, ModelFailed)
    assert "ValueError: negative" in str(calls[77].sink.error)
    assert [call.sink.values for call in calls if call is not calls[77]] == [
        [2.0 * i] for i in range(128) if i != 77
    ]


def test_parts_of_a_failed_batch_take_turns_with_fresh_calls(bench: Make) -> None:
    at = bench()
    for value in range(4):
        at.submit(float(value))
    at.run()
    at.submit(10.0)
    at.instance.finish(ValueError("no"))
    at.run()
    assert at.instance.sizes == [4, 2]
    at.submit(11.0)
    at.instance.finish(rows(0, 1))
    at.run()
    assert at.instance.sizes == [4, 2, 2]
    assert at.instance.works[-1].inputs["x"].ravel().tolist() == [10, 11]
    at.instance.finish(rows(10, 11))
    at.run()
    assert at.instance.works[-1].inputs["x"].ravel().tolist() == [2, 3]


@pytest.mark.parametrize(
    "results",
    [
        None,
        [],
        [None],
        [Tensors()],
        Rows(Tensors(y=Tensor.of([1.0]))),
        Rows(Tensors()),
        ModelFailed("it says so"),
        KeyError("x"),
    ],
)
def test_results_that_are_none_fail_the_call(bench: Make, results: Any) -> None:
    at = bench()
    call = at.submit(1.0)
    at.run()
    at.instance.finish(results)
    assert isinstance(call.sink.error, ModelFailed)
    assert at.statistics.outcomes()["failed"] == 1


def test_a_batch_of_the_wrong_length_is_run_call_by_call(bench: Make) -> None:
    at = bench()
    one, two = at.submit(1.0), at.submit(2.0)
    at.run()
    at.instance.finish(rows(1))
    for value in (10, 20):
        at.run()
        at.instance.finish(rows(value))
    assert [one.sink.values, two.sink.values] == [[10], [20]]


def test_each_call_may_have_its_own_result(bench: Make) -> None:
    at = bench()
    good, bad, lacking = at.submit(1.0), at.submit(2.0), at.submit(3.0)
    at.run()
    at.instance.finish([Tensors(x=Tensor.of([5.0])), InvalidInput("odd"), Tensors()])
    assert good.sink.values == [5]
    assert str(bad.sink.error) == "odd"
    assert "no output 'x'" in str(lacking.sink.error)


def test_inputs_that_cannot_be_joined_fail_only_those_who_sent_them(bench: Make) -> None:
    at = bench()
    good, bad = at.submit(1.0), at.submit(2.0)
    bad.inputs["x"].data = ["no number"]
    bad.inputs["x"].shape = (1, 1)
    at.run()
    at.instance.finish(rows(4))
    at.run()
    assert good.sink.values == [4]
    assert isinstance(bad.sink.error, InvalidInput)
    assert not at.instance.is_busy


def test_a_stream_gives_items_and_then_its_end(bench: Make) -> None:
    at = bench()
    call = at.submit(1.0, method="count")
    at.run()
    for value in (1.0, 2.0):
        at.instance.emit(0, Tensors(x=Tensor.of([value])))
    assert call.sink.finals == 0
    at.instance.finish([None])
    assert [item.names for item in call.sink.items] == [("x",), ("x",), ()]
    assert call.sink.finals == 1


def test_an_item_that_lacks_an_output_ends_the_stream(bench: Make) -> None:
    at = bench()
    call = at.submit(1.0, method="count")
    at.run()
    at.instance.emit(0, Tensors(y=Tensor.of([1.0])))
    assert "no output 'x', only y" in str(call.sink.error)
    assert at.instance.cancelled == [0]
    at.instance.emit(0, Tensors(x=Tensor.of([1.0])))
    at.instance.finish([None])
    assert len(call.sink.items) == 1


def test_a_stream_that_has_begun_is_never_run_again(bench: Make) -> None:
    at = bench()
    begun, other = at.submit(1.0), at.submit(2.0)
    at.run()
    at.instance.emit(0, Tensors(x=Tensor.of([1.0])))
    at.instance.finish(ValueError("broke off"))
    assert isinstance(begun.sink.error, ModelFailed)
    assert isinstance(other.sink.error, ModelFailed)
    assert at.instance.sizes == [2]


def test_readers_hold_up_the_run_of_their_call(bench: Make) -> None:
    at = bench()
    _, call = at.submit(1.0), at.submit(2.0)
    at.target.pause(call)
    at.run()
    at.target.pause(call)
    at.target.resume(call)
    assert at.instance.flow == [("pause", 1), ("resume", 1)]
    at.instance.finish(rows(1, 2))
    at.target.resume(call)
    assert len(at.instance.flow) == 2


def test_late_calls_never_enter_a_batch(bench: Make) -> None:
    at = bench()
    call = at.submit(1.0, deadline_ms=5)
    at.loop.now += 6_000_000
    at.run()
    assert "while waiting for an instance" in str(call.sink.error)
    assert at.instance.works == []


def test_deadlines_end_calls_wherever_they_are(bench: Make) -> None:
    at = bench()
    running = at.submit(1.0, deadline_ms=10)
    patient = at.submit(2.0)
    at.run()
    waiting = at.submit(3.0, deadline_ms=20)
    at.run()
    at.loop.advance_ms(10)
    assert isinstance(running.sink.error, DeadlineExceeded)
    assert at.instance.cancelled == [0]
    at.loop.advance_ms(10)
    assert isinstance(waiting.sink.error, DeadlineExceeded)
    at.instance.finish(rows(1, 2))
    at.run()
    assert patient.sink.values == [2]
    assert running.sink.finals == waiting.sink.finals == 1


def test_a_part_of_a_failed_batch_can_be_late_too(bench: Make) -> None:
    at = bench()
    calls = [at.submit(1.0), at.submit(2.0, deadline_ms=5)]
    at.run()
    at.instance.finish(ValueError("no"))
    at.run()
    at.loop.advance_ms(5)
    assert isinstance(calls[1].sink.error, DeadlineExceeded)
    at.instance.finish(rows(1))
    at.run()
    assert not at.instance.is_busy


def test_cancelling_ends_a_call_once(bench: Make) -> None:
    at = bench()
    running = at.submit(1.0)
    at.run()
    waiting = at.submit(2.0)
    for call in (waiting, running, waiting, running):
        at.target.cancel(call, Cancelled("gone"))
    at.run()
    assert at.instance.cancelled == [0]
    at.instance.finish(rows(1))
    at.run()
    assert [call.sink.finals for call in (running, waiting)] == [1, 1]
    assert at.lease.ended == 2
    assert at.instance.sizes == [1]


def test_who_is_cancelled_by_an_answer_to_a_neighbour_is_counted_once(bench: Make) -> None:
    at = bench()
    one, two, three = at.submit(1.0), at.submit(2.0), at.submit(3.0)
    take = one.sink.push

    def break_off(*answer: Any) -> None:
        take(*answer)
        at.target.cancel(two, Cancelled("gone"))

    one.sink.push = break_off
    at.run()
    at.instance.finish(rows(10, 20, 30))
    assert [one.sink.values, three.sink.values] == [[10], [30]]
    assert isinstance(two.sink.error, Cancelled)
    outcomes = at.statistics.outcomes()
    assert (at.statistics.success.times, outcomes["cancelled"]) == (2, 1)


def test_a_full_queue_refuses(bench: Make) -> None:
    at = bench(queue=Queue(max_calls=1))
    at.submit(1.0)
    with pytest.raises(Overloaded):
        at.submit(2.0)
    assert at.target.queue_depth == 1


def test_a_broken_sink_costs_nobody_else_an_answer(
    bench: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def push(self, *_: Any) -> None:
            raise OSError("a bug")

    at = bench()
    at.submit(1.0, sink=Broken())
    call = at.submit(2.0)
    at.run()
    at.instance.finish(rows(1, 2))
    assert call.sink.values == [2]
    assert at.lease.ended == 2
    assert "an answer was lost" in caplog.text


@pytest.mark.parametrize("idempotent", [True, False])
def test_stopping_ends_what_waits_and_what_runs(bench: Make, idempotent: bool) -> None:
    at = bench(idempotent=idempotent)
    calls = [at.submit(1.0), at.submit(2.0)]
    at.run()
    at.instance.finish(ValueError("no"))
    at.run()
    calls.append(at.submit(3.0))
    asyncio.run(at.target.stop(0))
    begun = Unavailable if idempotent else Undeliverable
    assert [type(call.sink.error) for call in calls] == [begun, begun, Unavailable]
    at.instance.finish(rows(1))
    at.run()
    assert [call.sink.finals for call in calls] == [1, 1, 1]
    with pytest.raises(Unavailable):
        at.submit(4.0)


def test_calls_of_a_dead_worker_are_run_again_alone(bench: Make) -> None:
    at = bench()
    good, bad = at.submit(1.0), at.submit(2.0)
    at.run()
    at.target.instance_down(at.instance)
    at.instance.finish(WorkerDied("died"))
    at.run()
    assert at.instance.sizes == [2]
    at.target.instance_up(at.instance)
    at.run()
    at.instance.finish(rows(1))
    assert good.sink.values == [1]
    for _ in range(2):
        at.run()
        at.instance.finish(WorkerDied("died"))
        at.target.instance_up(at.instance)
    assert isinstance(bad.sink.error, ModelFailed)
    assert at.instance.sizes == [2, 1, 1, 1]


def test_what_may_not_run_twice_does_not(bench: Make) -> None:
    at = bench(idempotent=False)
    call = at.submit(1.0)
    at.run()
    at.instance.finish(WorkerDied("died"))
    assert isinstance(call.sink.error, Undeliverable)


def test_a_model_without_workers_takes_nothing(bench: Make) -> None:
    at = bench()
    call = at.submit(1.0)
    at.target.instance_down(at.instance)
    at.run()
    assert at.target.is_ready
    at.target.instance_failed(at.instance)
    assert "crashed too often" in str(call.sink.error)
    assert not at.target.is_ready
    with pytest.raises(Unavailable):
        at.submit(2.0)


def test_only_what_is_known_to_be_short_runs_inline(bench: Make, inline_double: Any) -> None:
    at = bench(inline=inline_double)
    at.target.learn("double", 1, 10_000)
    at.submit(1.0)
    at.run()
    assert at.instance.sizes == [1], "the other method was never measured"
    at.target.learn("count", 1, 10_000)
    at.submit(2.0)
    at.run()
    assert inline_double.sizes == [1]
    at.instance.finish(rows(1))
    at.target.learn("double", 4, 10_000_000)
    large = at.submit(1.0, 2.0, 3.0, 4.0)
    at.run()
    assert at.instance.sizes == [1, 1]
    at.instance.finish(rows(1, 2, 3, 4))
    assert large.sink.values == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_call_ends_once(bench: Make, seed: int) -> None:
    chance = random.Random(seed)
    at = bench(num_instances=2)
    calls: list[Any] = []

    def submit() -> None:
        calls.append(at.submit(chance.choice([1.0, -1.0]), deadline_ms=chance.choice([0, 3])))

    def finish() -> None:
        for instance in at.instances:
            if instance.is_busy:
                values = instance.works[-1].inputs["x"].ravel().tolist()
                bad = [value for value in values if value < 0]
                instance.finish(ValueError("bad") if bad else rows(*values))

    def cancel() -> None:
        if calls:
            at.target.cancel(chance.choice(calls), Cancelled("gone"))

    def die() -> None:
        instance = chance.choice(at.instances)
        at.target.instance_down(instance)
        if instance.is_busy:
            instance.finish(WorkerDied("died"))
        at.target.instance_up(instance)

    for _ in range(300):
        chance.choice([submit, submit, finish, cancel, die, at.run])()
        at.loop.advance_ms(chance.choice([0, 0, 1]))
    for _ in range(1000):
        at.run()
        finish()
    assert [call.sink.finals for call in calls] == [1] * len(calls)
    assert at.lease.ended == len(calls)
    counted = at.statistics.success.times + at.statistics.failure.times
    assert counted == len(calls)
