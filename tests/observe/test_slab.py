from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from salver.errors import Overloaded
from salver.observe.slab import NUM_SLOTS, Slab
from salver.observe.statistics import Gauges

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def test_each_process_reads_what_all_counted(fd: int) -> None:
    one, other = (Slab(fd, 2).statistics(7, row) for row in range(2))
    one.call(1000, 10, None)
    one.batch(3, "full", 500)
    other.call(3000, 30, None)
    other.refused(Overloaded("full"))
    assert one.success == (1, 1000)
    for total in (one.total(), other.total()):
        assert total.success == (2, 4000)
        assert total.failure.times == 1
        assert total.last_run_ms == one.last_run_ms > 0
        assert (total.num_rows, total.num_runs, sum(total.durations().steps)) == (3, 1, 2)


def test_each_process_reads_how_all_stand(fd: int) -> None:
    one, other = (Slab(fd, 2).statistics(7, row) for row in range(2))
    one.gauges, other.gauges = Gauges(3, 1, 1 << 40), Gauges(4, 2, 5)
    assert one.gauges == (3, 1, 1 << 40)
    assert one.total().gauges == other.total().gauges == (7, 3, (1 << 40) + 5)
    other.gauges = Gauges()
    assert one.total().gauges == one.gauges
    assert one.total().success.times == 0


def test_a_process_that_is_started_again_counts_on(fd: int) -> None:
    Slab(fd, 2).statistics(1, 1).call(1000, 0, None)
    again = Slab(fd, 2).statistics(1, 1)
    again.call(1000, 0, None)
    assert again.total().success.times == 2


def test_generations_do_not_meet_until_their_slot_is_cleared(fd: int) -> None:
    slab = Slab(fd, 3)
    for generation in (1, 2, NUM_SLOTS - 1):
        slab.statistics(generation, 2).call(generation, 0, None)
    assert slab.statistics(NUM_SLOTS - 1, 0).total().success == (1, NUM_SLOTS - 1)
    slab.clear(NUM_SLOTS + 1)
    assert slab.statistics(NUM_SLOTS + 1, 0).total().success.times == 0
    assert slab.statistics(2, 0).total().success == (1, 2)


def test_unused_slots_take_no_memory(fd: int) -> None:
    slab = Slab(fd, 2)
    assert os.fstat(fd).st_blocks == 0
    slab.statistics(5, 0).call(1, 1, None)
    assert 0 < os.fstat(fd).st_blocks * 512 < 1 << 20
    slab.clear(5)
    assert os.fstat(fd).st_blocks == 0
