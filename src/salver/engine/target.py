"""The batched target: a scheduler in front of instances.

A batch is formed only when an instance asks; a batch that fails is split until only the bad calls
fail (binary search: about 2 log2 n extra runs for one bad call of n); calls of a worker that died
are run again if that is allowed; every accepted call gets exactly one final answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from salver.clock import NS_PER_S
from salver.engine.delivery import being_unloaded, deliver, was_cut_off, was_unloaded
from salver.engine.gather import check_outputs, check_results, gather
from salver.engine.inline import InlineCosts
from salver.engine.rerun import WorkerDied, judge
from salver.errors import DeadlineExceeded, ModelFailed, SalverError, Unavailable
from salver.interfaces import ANY_SLOT, Slot
from salver.places import told
from salver.types import Batch, Response, Rows, Tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from salver.clock import Clock
    from salver.engine.inline import LoopBudget
    from salver.engine.instances import InlineInstance
    from salver.interfaces import Instance, Results, Scheduler
    from salver.observe.statistics import ModelStatistics
    from salver.signature import Signature
    from salver.types import Call, ModelRef, Work

log = logging.getLogger("salver.engine")
GIVEN_UP: Final = (
    "crashed too often and was given up; with --mode explicit load it again, otherwise change its "
    "files or restart the server"
)


class Running:
    """A batch in an instance. `begun` are the calls whose stream has items; `deadline` is the first
    of its calls' (0: none).
    """

    __slots__ = ("batch", "begun", "deadline", "instance", "work")

    def __init__(self, batch: Batch, work: Work, instance: Instance) -> None:
        self.batch = batch
        self.work = work
        self.instance = instance
        self.begun: set[int] = set()
        self.deadline = 0


def first_deadline(calls: Iterable[Call]) -> int:
    """The first deadline of calls that still wait for an answer; 0 for none."""
    deadlines = [call.context.deadline for call in calls if not call.ended]
    return min(filter(None, deadlines), default=0)


class BatchedTarget:
    """Queues calls, feeds instances, splits failures. Lives on the loop."""

    def __init__(
        self,
        ref: ModelRef,
        signature: Signature,
        scheduler: Scheduler,
        *,
        inline: InlineInstance | None,
        instances: Sequence[Instance],
        statistics: ModelStatistics,
        budget: LoopBudget,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        is_idempotent: bool = False,
    ) -> None:
        self._ref = ref
        self._signature = signature
        self._scheduler = scheduler
        self._inline = inline
        self._idle = list(instances)
        self._instances = tuple(instances)
        self._statistics = statistics
        self._budget = budget
        self._clock = clock
        self._loop = loop
        self.is_idempotent = is_idempotent
        self._failed: set[Instance] = set()
        self._is_given_up = False
        self._costs = {name: InlineCosts() for name in signature.methods}
        self._short_size = 0
        self._running: set[Running] = set()
        self._retries: deque[list[Call]] = deque()
        self._is_retry_turn = False
        self._is_pump_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._is_stopped = False

    @property
    def queue_depth(self) -> int:
        return len(self._scheduler)

    @property
    def num_instances(self) -> int:
        """Runs that are possible at once; short ones on the loop take the place of one."""
        return len(self._instances) or 1

    @property
    def is_ready(self) -> bool:
        """It takes calls."""
        return not (self._is_stopped or self._is_given_up)

    def learn(self, method: str, size: int, cost_ns: int) -> None:
        """Tells what a run of that size cost in a warm-up, at best."""
        if self._costs[method].start(size, cost_ns):
            self._judge_sizes()

    def _judge_sizes(self) -> None:
        """The smallest over the methods is safe for whichever method stands first."""
        self._short_size = min([costs.size or 0 for costs in self._costs.values()])

    def submit(self, call: Call, now: int) -> None:
        """Accepts the call: from here on its sink gets exactly one final.

        Raises: Overloaded, Unavailable; then the call was not accepted.
        """
        if self._is_stopped:
            raise being_unloaded(self._ref)
        if self._is_given_up:
            raise self._crashed()
        self._scheduler.add(call, now)
        self._schedule_pump()

    def _schedule_pump(self) -> None:
        if not self._is_pump_scheduled:
            self._is_pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Gives every free instance what is ready. Runs at most once per turn of the loop."""
        self._is_pump_scheduled = False
        now = self._clock()
        self._end_late(now)
        while self._waits and (chosen := self._next(now)) is not None:
            self._start(*chosen, now)
        if self._waits or self._running:
            self._arm(now)

    @property
    def _waits(self) -> bool:
        return bool(len(self._scheduler) or self._retries)

    def _next(self, now: int) -> tuple[Batch, Instance] | None:
        """What to run next, and where. Parts of failed batches and fresh calls take turns, so that
        neither keeps the other waiting: that is the budget of retries.
        """
        if not self._retries:
            return self._next_fresh(now)
        if self._is_retry_turn:
            return self._next_retry(now) or self._next_fresh(now)
        return self._next_fresh(now) or self._next_retry(now)

    def _next_fresh(self, now: int) -> tuple[Batch, Instance] | None:
        inline = self._inline
        size = self._inline_size(now) if inline is not None else None
        # Cutting what waits into pieces that are short enough would cost more than one large run,
        # but now and then it tells whether larger ones are short enough too.
        if size is not None and (
            not size or len(self._scheduler) <= size or self._costs_want_trial
        ):
            batch = self._scheduler.next(Slot(size), now)
            if batch is not None:
                return batch, inline  # type: ignore[return-value]
        if self._idle:
            batch = self._scheduler.next(ANY_SLOT, now)
            if batch is not None:
                return batch, self._idle.pop()
        return None

    def _next_retry(self, now: int) -> tuple[Batch, Instance] | None:
        while self._retries:
            calls = [call for call in self._retries[0] if not call.ended]
            instance = self._instance_for(sum(call.size for call in calls), now) if calls else None
            if calls and instance is None:
                return None
            self._retries.popleft()
            if instance is not None:
                return Batch(calls, sum(call.rows for call in calls), "retry"), instance
        return None

    def _instance_for(self, size: int, now: int) -> Instance | None:
        """A free instance for a run of that size, the loop itself if it is short."""
        if self._inline is not None:
            allowed = self._inline_size(now)
            if allowed is not None and (not allowed or size <= allowed):
                return self._inline
        return self._idle.pop() if self._idle else None

    @property
    def _costs_want_trial(self) -> bool:
        return any(costs.wants_trial for costs in self._costs.values())

    def _inline_size(self, now: int) -> int | None:
        """The largest size to run inline now; 0 for any, None for nothing at all."""
        if not self._instances:
            return 0
        return self._short_size if self._short_size and self._budget.allows(now) else None

    def _start(self, batch: Batch, instance: Instance, now: int) -> None:
        calls = batch.calls
        self._is_retry_turn = batch.reason != "retry"
        for call in calls:
            call.started = now
        try:
            work = gather(self._signature.methods[calls[0].method], calls)
        except Exception as error:
            self._give_back(instance)
            self._fail(calls, error)
            self._scheduler.finished(batch, 0, now)
            return
        running = Running(batch, work, instance)
        if instance is not self._inline:
            running.deadline = first_deadline(calls)
        self._running.add(running)
        instance.start(work, partial(self._emit, running), partial(self._done, running))

    def _give_back(self, instance: Instance) -> None:
        if instance is not self._inline:
            self._idle.append(instance)

    def instance_up(self, instance: Instance) -> None:
        """A worker was started again and takes work."""
        if instance not in self._idle:
            self._idle.append(instance)
        self._schedule_pump()

    def instance_down(self, instance: Instance) -> None:
        """A worker died; if it was at work, its run ends with `WorkerDied` besides."""
        if instance in self._idle:
            self._idle.remove(instance)

    def instance_failed(self, instance: Instance) -> None:
        """A worker died too often. Without any that is left, nothing that waits can be run."""
        self._failed.add(instance)
        if len(self._failed) == len(self._instances):
            self._is_given_up = True
            self._end_waiting(self._crashed())

    def _crashed(self) -> Unavailable:
        return Unavailable(f"{self._ref} {GIVEN_UP}")

    def _emit(self, running: Running, index: int, item: Tensors) -> None:
        call = running.batch.calls[index]
        if call.ended:
            return
        try:
            check_outputs(item, call.outputs)
        except ModelFailed as error:
            self.cancel(call, error)
            return
        running.begun.add(index)
        deliver(self._ref, call, self._respond(call, Rows(item)), False)

    def _done(self, running: Running, results: Results | Exception, cost: int) -> None:
        self._running.discard(running)
        now = self._clock()
        batch = running.batch
        if running.instance is self._inline:
            self._budget.spend(cost, now)
        if isinstance(results, WorkerDied):
            self._rerun(running, results, now)
        else:
            self._give_back(running.instance)
            self._end_run(running, results, cost, now)
        self._scheduler.finished(batch, cost, now)
        if self._waits:
            self._schedule_pump()

    def _end_run(self, running: Running, results: Results | Exception, cost: int, now: int) -> None:
        batch, work = running.batch, running.work
        if not isinstance(results, Exception):
            try:
                check_results(results, work)
            except Exception as error:
                results = error
        if isinstance(results, Exception):
            self._fail(self._end_begun(running, results), results)
        else:
            size = sum([call.size for call in batch.calls])
            if running.instance is self._inline:
                is_changed = self._costs[work.method].learn(size, cost)
            else:
                is_changed = self._inline is not None and self._costs[work.method].pass_over()
            if is_changed:
                self._judge_sizes()
            self._statistics.batch(batch.rows, batch.reason, cost)
            self._answer(running, results, now)

    def _end_begun(self, running: Running, error: Exception) -> list[Call]:
        """Ends the streams that have items, which cannot begin again; returns the other calls."""
        calls = running.batch.calls
        for index in running.begun:
            self._fail([calls[index]], error)
        return [call for call in calls if not call.ended]

    def _rerun(self, running: Running, died: WorkerDied, now: int) -> None:
        """Each call of a lost run is run again alone, or ended. The instance reports by itself."""
        calls = running.batch.calls
        for index, call in enumerate(calls):
            call.losses += len(calls) == 1
            error = judge(
                died,
                idempotent=self.is_idempotent,
                had_chunks=index in running.begun,
                batch_size=len(calls),
                crashes_alone=call.losses,
            )
            if error is not None:
                self._finish(call, error, now)
            elif not call.ended:
                self._retries.append([call])

    def _respond(self, call: Call, rows: Rows, start: int = 0, stop: int = -1) -> Response:
        method = self._signature.methods[call.method]
        names = call.outputs if rows.tensors else ()
        return Response(rows, self._ref, method, names, start, stop)

    def _answer(self, running: Running, results: Any, now: int) -> None:
        calls, work = running.batch.calls, running.work
        if isinstance(results, Rows):
            self._answer_rows(calls, work, results, now)
            return
        for index, (call, result) in enumerate(zip(calls, results, strict=True)):
            if not isinstance(result, SalverError):
                result = self._own_result(call, result, index in running.begun)
            self._finish(call, result, now)

    def _answer_rows(self, calls: list[Call], work: Work, rows: Rows, now: int) -> None:
        """Gives each call its rows; `_finish` for a whole batch, which is most of what happens."""
        ref, method = self._ref, self._signature.methods[work.method]
        offsets = work.offsets if len(calls) > 1 else (0, -1)
        queued: list[int] = []
        for call, (start, stop) in zip(calls, pairwise(offsets), strict=True):
            # Whoever gets an answer may cancel those behind it.
            if not call.ended:
                call.ended = True
                queued.append(call.queued)
                call.lease.end()
                response = Response(rows, ref, method, call.outputs, start, stop)
                deliver(ref, call, response, True)
        self._statistics.answered(queued, calls[0].started, now)

    def _own_result(
        self, call: Call, result: Tensors | None, has_begun: bool
    ) -> Response | SalverError:
        """What a call gets that has outputs of its own, or, after a stream, none."""
        outputs = result or Tensors()
        if outputs or not (has_begun or self._signature.methods[call.method].streams):
            try:
                check_outputs(outputs, call.outputs)
            except ModelFailed as error:
                return error
        return self._respond(call, Rows(outputs))

    def _fail(self, calls: list[Call], error: Exception) -> None:
        """Splits a failed batch; a call that fails alone gets the error."""
        if not calls:
            return
        if len(calls) > 1:
            middle = len(calls) // 2
            self._retries += [calls[:middle], calls[middle:]]
            self._schedule_pump()
            return
        if not isinstance(error, SalverError):
            log.error("%s failed", self._ref, exc_info=error)
            error = ModelFailed(f"{self._ref} failed: {told(error)}")
        self._finish(calls[0], error, self._clock())

    def _finish(self, call: Call, item: Response | SalverError, now: int) -> None:
        if call.ended:
            return
        call.ended = True
        self._statistics.call(
            now - call.queued,
            (call.started or now) - call.queued,
            item if isinstance(item, SalverError) else None,
        )
        call.lease.end()
        deliver(self._ref, call, item, True)

    def pause(self, call: Call) -> None:
        """Lets a stream wait, after a few more items, until its reader resumes it.

        The calls that share its run wait with it.
        """
        for running, index in self._runs_of(call):
            running.instance.pause(index)

    def resume(self, call: Call) -> None:
        """Ends a pause. Harmless without one."""
        for running, index in self._runs_of(call):
            running.instance.resume(index)

    def cancel(self, call: Call, why: SalverError) -> None:
        if call.ended:
            return
        if not self._scheduler.remove(call):
            for running, index in self._runs_of(call):
                running.instance.cancel(index)
        self._finish(call, why, self._clock())

    def _runs_of(self, call: Call) -> list[tuple[Running, int]]:
        """The run that a call is in, with its index there; nothing while it waits."""
        return [
            (running, running.batch.calls.index(call))
            for running in self._running
            if call in running.batch.calls
        ]

    def _end_late(self, now: int) -> None:
        """Ends the calls whose time is over, wherever they are."""
        expired, _ = self._scheduler.expire(now)
        for call in expired:
            self._finish(call, _too_late(call), now)
        for running in tuple(self._running):
            if running.deadline and running.deadline <= now:
                self._end_late_of(running.batch.calls, now)
                running.deadline = first_deadline(running.batch.calls)
        for calls in self._retries:
            self._end_late_of(calls, now)

    def _end_late_of(self, calls: Sequence[Call], now: int) -> None:
        for call in calls:
            if 0 < call.context.deadline <= now:
                self.cancel(call, _too_late(call))

    def _arm(self, now: int) -> None:
        """One timer for everything that waits: queue timeouts, deadlines, batch delays."""
        again = self._scheduler.expire(now)[1] or 0
        if self._running or self._retries:
            times = [again, *(running.deadline for running in self._running)]
            times += [first_deadline(calls) for calls in self._retries]
            again = min([time for time in times if time], default=0)
        if not again or self._is_stopped or (self._timer is not None and self._timer_at <= again):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = again
        self._timer = self._loop.call_later(max(again - now, 0) / NS_PER_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._schedule_pump()

    async def stop(self, grace_s: float) -> None:
        """Ends accepted calls that are left, then the instances. No call is lost silently."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        cut_off = was_cut_off(self._ref, idempotent=self.is_idempotent)
        # What waits for a retry has run before.
        for calls in [*(running.batch.calls for running in self._running), *self._retries]:
            for call in calls:
                self.cancel(call, cut_off)
        self._end_waiting(was_unloaded(self._ref))
        await asyncio.gather(*(instance.stop(grace_s) for instance in self._instances))

    def _end_waiting(self, why: SalverError) -> None:
        now = self._clock()
        while self._retries:
            for call in self._retries.pop():
                self._finish(call, why, now)
        while (batch := self._scheduler.next(ANY_SLOT, 1 << 62)) is not None:
            for call in batch.calls:
                self._finish(call, why, now)


def _too_late(call: Call) -> DeadlineExceeded:
    where = "while running" if call.started else "while waiting for an instance"
    return DeadlineExceeded(f"the request's time was over {where}")
