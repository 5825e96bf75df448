from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from salver.config import ModelConfig, Queue
from salver.errors import Overloaded
from salver.schedulers.queue import QueueScheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from salver.types import Call

MS = 1_000_000


def drain(queue: QueueScheduler) -> list[Call]:
    taken = []
    while lanes := queue.lanes():
        taken.append(queue.take(lanes[0]))
    return taken


def test_calls_leave_in_the_order_of_arrival(call: Callable[..., Call]) -> None:
    queue = QueueScheduler(ModelConfig(queue=Queue()))
    calls = [call(now) for now in range(5)]
    for one in calls:
        queue.add(one, 0)
    assert len(queue) == 5
    assert drain(queue) == calls
    assert len(queue) == 0


def test_a_full_queue_refuses_and_says_when_to_come_again(call: Callable[..., Call]) -> None:
    queue = QueueScheduler(ModelConfig(queue=Queue(max_calls=2)))
    queue.add(call(), 0)
    queue.add(call(), 0)
    with pytest.raises(Overloaded, match="2 calls already wait") as caught:
        queue.add(call(), 0)
    assert caught.value.retry_after_ms
    assert len(queue) == 2


def test_a_call_that_waited_long_rises(call: Callable[..., Call]) -> None:
    queue = QueueScheduler(ModelConfig(queue=Queue(priority_levels=2, ageing_ms=10)))
    old, young = call(0, priority=2), call(11 * MS, priority=1)
    queue.add(old, 0)
    queue.add(young, 0)
    assert drain(queue) == [old, young]


def test_priorities_beyond_the_last_count_as_the_last(call: Callable[..., Call]) -> None:
    queue = QueueScheduler(ModelConfig(queue=Queue(priority_levels=2)))
    far, last = call(0, priority=9), call(1, priority=2)
    queue.add(far, 0)
    queue.add(last, 0)
    assert len(queue.lanes()) == 1
    assert queue.remove(far)
    assert drain(queue) == [last]


def test_calls_without_a_priority_have_the_models_default(call: Callable[..., Call]) -> None:
    limits = Queue(priority_levels=3, default_priority=2)
    queue = QueueScheduler(ModelConfig(queue=limits))
    calls = [call(priority=priority) for priority in (3, 0, 2, 1)]
    for one in calls:
        queue.add(one, 0)
    low, unnamed, middle, urgent = calls
    assert queue.remove(middle)
    assert drain(queue) == [urgent, unnamed, low]


def test_without_a_default_they_are_the_most_urgent(call: Callable[..., Call]) -> None:
    queue = QueueScheduler(ModelConfig(queue=Queue(priority_levels=2)))
    low, unnamed = call(priority=2), call()
    queue.add(low, 0)
    queue.add(unnamed, 0)
    assert drain(queue) == [unnamed, low]


def test_deadlines_and_the_queue_timeout_both_end_a_wait(call: Callable[..., Call]) -> None:
    queue = QueueScheduler(ModelConfig(queue=Queue(timeout_ms=5)))
    patient, hurried = call(0), call(0, deadline=2 * MS)
    queue.add(patient, 0)
    queue.add(hurried, 0)
    assert queue.expire(MS) == ([], 2 * MS)
    expired, again = queue.expire(2 * MS)
    assert expired == [hurried]
    assert again == 5 * MS
    assert queue.expire(5 * MS) == ([patient], None)
    assert len(queue) == 0


def test_without_time_limits_nobody_has_to_look(call: Callable[..., Call]) -> None:
    queue = QueueScheduler(ModelConfig(queue=Queue()))
    queue.add(call(), 0)
    assert queue.expire(1 << 60) == ([], None)
