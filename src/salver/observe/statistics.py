"""What happened to the calls of one version: counts, times, batches. Integers only, read by others.

All cells lie in one flat sequence, so that processes can share them; nothing is computed until
somebody asks.
"""

from __future__ import annotations

import time
from operator import add
from typing import TYPE_CHECKING, Final, NamedTuple

from salver.clock import NS_PER_MS
from salver.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    Overloaded,
    SalverError,
)

if TYPE_CHECKING:
    from collections.abc import MutableSequence, Sequence

REASONS: Final = ("direct", "idle", "full", "delay", "preferred", "slo", "single", "retry")
_OUTCOME_OF: Final[dict[type[SalverError], str]] = {
    Overloaded: "rejected",
    DeadlineExceeded: "expired",
    Cancelled: "cancelled",
    InvalidInput: "invalid",
    ModelFailed: "failed",
}
OUTCOMES: Final = (*_OUTCOME_OF.values(), "other")
MAX_EXACT_BATCH: Final = 128
_LOWEST_BIT: Final = 13
STEPS_PER_POWER: Final = 4
_SHORTEST_STEP_BIT: Final = _LOWEST_BIT - 2
_SHORT_NS: Final = 1 << 23  # 8 ms, which few calls take
NUM_STEPS: Final = (37 - _LOWEST_BIT) * STEPS_PER_POWER

(
    _SUCCESS, _SUCCESS_NS, _FAIL_NS, _QUEUE_NS, _FAIL_QUEUE_NS, _COMPUTE_NS, _ROWS, _RUNS,
) = range(8)  # fmt: skip
_OUTCOMES = 8
_REASONS = _OUTCOMES + len(OUTCOMES)
_BATCHES = _REASONS + len(REASONS)
_BATCH_NS = _BATCHES + MAX_EXACT_BATCH + 1
_DURATION = _BATCH_NS + MAX_EXACT_BATCH + 1
_QUEUE = _DURATION + NUM_STEPS
_COMPUTE = _QUEUE + NUM_STEPS
NUM_CELLS: Final = _COMPUTE + NUM_STEPS

_REASON_CELL = {reason: _REASONS + index for index, reason in enumerate(REASONS)}


def _work_out_step(ns: int) -> int:
    bits = ns.bit_length()
    if bits <= _LOWEST_BIT:
        return 0
    step = ((bits - _LOWEST_BIT) << 2) | ((ns >> (bits - 3)) & 3)
    return step if step < NUM_STEPS else NUM_STEPS - 1


_SHORT_STEPS: Final = tuple(map(_work_out_step, range(0, _SHORT_NS, 1 << _SHORTEST_STEP_BIT)))
"""By multiples of the shortest step."""


def step_of(ns: int) -> int:
    """Histogram step of a time: four per power of two, 8 µs to a minute and whatever is longer."""
    return _SHORT_STEPS[ns >> _SHORTEST_STEP_BIT] if ns < _SHORT_NS else _work_out_step(ns)


def step_end_ns(step: int) -> int:
    """The time at which a histogram step ends."""
    power, quarter = divmod(step, STEPS_PER_POWER)
    if power == 0:
        return 1 << _LOWEST_BIT
    low = 1 << (power + _LOWEST_BIT - 1)
    return low + (low >> 2) * (quarter + 1)


def quantile_ns(steps: Sequence[int], quantile: float) -> int | None:
    """The time that this share of the counted times stays under; None if none were counted.

    Times are taken to be spread evenly within their step.
    """
    wanted, seen = quantile * sum(steps), 0
    found = None
    for step, count in enumerate(steps):
        if not count:
            continue
        start, end = step_end_ns(step - 1) if step else 0, step_end_ns(step)
        if seen + count >= wanted:
            return start + int((end - start) * (wanted - seen) / count)
        seen += count
        found = end
    return found


class Duration(NamedTuple):
    """How often something happened, and the time it took in all."""

    times: int
    ns: int


class Histogram(NamedTuple):
    """Counts by step of time, and the sum of the times."""

    steps: list[int]
    total_ns: int


class Gauges(NamedTuple):
    """How a version stands, as far as it was last noted."""

    queue_depth: int = 0
    num_instances: int = 0
    memory_bytes: int = 0


class ModelStatistics:
    """Counters of one version. Writing costs a few additions; reading sums them up."""

    __slots__ = ("cells", "gauges", "last_run_ms")

    def __init__(self, cells: MutableSequence[int] | None = None) -> None:
        self.cells = [0] * NUM_CELLS if cells is None else cells
        self.gauges = Gauges()
        self.last_run_ms = 0  # since the epoch

    def total(self) -> ModelStatistics:
        """The counters and gauges of all processes together; for reading."""
        return self

    def call(self, total_ns: int, queue_ns: int, error: SalverError | None) -> None:
        """Counts a call that ended."""
        cells = self.cells
        if error is None:
            cells[_SUCCESS] += 1
            cells[_SUCCESS_NS] += total_ns
        else:
            cells[_OUTCOMES + _outcome(error)] += 1
            cells[_FAIL_NS] += total_ns
            cells[_FAIL_QUEUE_NS] += queue_ns
        cells[_QUEUE_NS] += queue_ns
        cells[_DURATION + step_of(total_ns)] += 1
        cells[_QUEUE + step_of(queue_ns)] += 1

    def answered(self, queued: Sequence[int], started: int, now: int) -> None:
        """Counts calls, queued at these times, that a batch answered, as `call` would each one."""
        cells, times, total_queued = self.cells, len(queued), sum(queued)
        cells[_SUCCESS] += times
        cells[_SUCCESS_NS] += times * now - total_queued
        cells[_QUEUE_NS] += times * started - total_queued
        for since in queued:
            cells[_DURATION + step_of(now - since)] += 1
            cells[_QUEUE + step_of(started - since)] += 1

    def refused(self, error: SalverError) -> None:
        """Counts a call that was not accepted."""
        self.cells[_OUTCOMES + _outcome(error)] += 1

    def batch(self, rows: int, reason: str, compute_ns: int) -> None:
        """Counts a run of the model."""
        cells = self.cells
        size = min(rows, MAX_EXACT_BATCH)
        cells[_RUNS] += 1
        cells[_ROWS] += rows
        cells[_COMPUTE_NS] += compute_ns
        cells[_REASON_CELL[reason]] += 1
        cells[_BATCHES + size] += 1
        cells[_BATCH_NS + size] += compute_ns
        cells[_COMPUTE + step_of(compute_ns)] += 1
        self.last_run_ms = time.time_ns() // NS_PER_MS

    def add(self, other: ModelStatistics) -> None:
        """Takes over what another counted."""
        self.cells[:] = list(map(add, self.cells, other.cells))
        self.last_run_ms = max(self.last_run_ms, other.last_run_ms)

    @property
    def success(self) -> Duration:
        return Duration(self.cells[_SUCCESS], self.cells[_SUCCESS_NS])

    @property
    def failure(self) -> Duration:
        return Duration(sum(self.outcomes().values()), self.cells[_FAIL_NS])

    @property
    def num_rows(self) -> int:
        return self.cells[_ROWS]

    @property
    def num_runs(self) -> int:
        return self.cells[_RUNS]

    @property
    def waited(self) -> Duration:
        """What successful calls waited."""
        times, ns = self.success
        return Duration(times, min(self.cells[_QUEUE_NS] - self.cells[_FAIL_QUEUE_NS], ns))

    @property
    def ran(self) -> Duration:
        """What successful calls ran after that: the time of their run counts for each of them."""
        times, ns = self.success
        return Duration(times, ns - self.waited.ns)

    def outcomes(self) -> dict[str, int]:
        """Failed calls by kind."""
        return {name: self.cells[_OUTCOMES + index] for index, name in enumerate(OUTCOMES)}

    def reasons(self) -> dict[str, int]:
        """Batches by why they were released."""
        return {name: self.cells[cell] for name, cell in _REASON_CELL.items()}

    def batches(self) -> dict[int, Duration]:
        """Runs by number of rows; the last size stands for all that are larger."""
        return {
            size: Duration(count, self.cells[_BATCH_NS + size])
            for size in range(MAX_EXACT_BATCH + 1)
            if (count := self.cells[_BATCHES + size])
        }

    def durations(self) -> Histogram:
        total = self.cells[_SUCCESS_NS] + self.cells[_FAIL_NS]
        return Histogram(self._steps(_DURATION), total)

    def queue_times(self) -> Histogram:
        return Histogram(self._steps(_QUEUE), self.cells[_QUEUE_NS])

    def compute_times(self) -> Histogram:
        return Histogram(self._steps(_COMPUTE), self.cells[_COMPUTE_NS])

    def _steps(self, start: int) -> list[int]:
        return list(self.cells[start : start + NUM_STEPS])


def merged(counters: Sequence[ModelStatistics]) -> ModelStatistics:
    """The sum of several; itself if there is only one."""
    if len(counters) == 1:
        return counters[0]
    total = ModelStatistics()
    for each in counters:
        total.add(each)
    return total


def _outcome(error: SalverError) -> int:
    for index, kind in enumerate(_OUTCOME_OF):
        if isinstance(error, kind):
            return index
    return len(_OUTCOME_OF)
