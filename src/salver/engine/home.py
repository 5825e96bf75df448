"""The target of a generation whose home is another process of this server: calls are sent there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from salver.clock import NS_PER_MS, NS_PER_S
from salver.engine.delivery import being_unloaded, deliver, was_cut_off, was_unloaded
from salver.engine.rerun import judge_lost
from salver.errors import DeadlineExceeded, SalverError
from salver.interfaces import ANY_SLOT
from salver.schedulers.direct import DirectScheduler
from salver.types import Response, Rows, Tensors

if TYPE_CHECKING:
    from salver.clock import Clock
    from salver.config import ModelConfig
    from salver.engine.peers import Peer, Peers
    from salver.observe.statistics import ModelStatistics
    from salver.signature import Signature
    from salver.types import Call, ModelRef

GRACE_NS: Final = 100 * NS_PER_MS
"""A home that runs tells within this time that a call's deadline is over."""


class Place(NamedTuple):
    """Where a call is: with which peer, and by which number."""

    peer: Peer
    number: int


class HomeTarget:
    """Sends calls to the home, and has them wait here while there is none that answers. Lives on
    the loop.

    The home counts what it gets; what never reaches it, or is lost with it, is counted here.
    """

    def __init__(
        self,
        ref: ModelRef,
        generation: int,
        signature: Signature,
        peers: Peers,
        *,
        config: ModelConfig,
        statistics: ModelStatistics,
        is_idempotent: bool,
        clock: Clock,
    ) -> None:
        self.ref = ref
        self.generation = generation
        self.signature = signature
        self.config = config
        self.statistics = statistics
        self.is_idempotent = is_idempotent
        self._peers = peers
        self._waiting = DirectScheduler(config)
        self._sent: dict[Call, Place] = {}
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._is_stopped = False
        peers.join(self)

    @property
    def queue_depth(self) -> int:
        return len(self._waiting)

    @property
    def num_instances(self) -> int:
        """None: they are at home."""
        return 0

    @property
    def memory_bytes(self) -> int:
        """Nothing: the home tells what the model holds."""
        return 0

    @property
    def is_ready(self) -> bool:
        """It takes calls."""
        try:
            self._peers.home_of(self.generation)
        except SalverError:
            return False
        return not self._is_stopped

    async def metrics(self) -> bytes:
        """What user code counts at home; empty while there is none."""
        if not self.is_ready or (peer := self._peers.home_of(self.generation)) is None:
            return b""
        return await peer.metrics(self.generation)

    def submit(self, call: Call, now: int) -> None:
        """Raises: Overloaded, Unavailable, or what the home failed with."""
        if self._is_stopped:
            raise being_unloaded(self.ref)
        peer = self._peers.home_of(self.generation)
        if peer is None:
            self._waiting.add(call, now)
            self._look_at(now, now)
        else:
            self._send(peer, call, now)

    def _send(self, peer: Peer, call: Call, now: int) -> None:
        self._sent[call] = Place(peer, peer.ask(self, call))
        if deadline := call.context.deadline:
            self._look_at(deadline + GRACE_NS, now)

    def found(self) -> None:
        """There is news of homes: sends what waits, or ends it."""
        self._end_late()
        now = self._clock()
        try:
            peer = self._peers.home_of(self.generation)
        except SalverError as error:
            self._end_waiting(error, now)
            return
        while peer is not None and (batch := self._waiting.next(ANY_SLOT, now)) is not None:
            (call,) = batch.calls
            try:
                self._send(peer, call, now)
            except SalverError as error:
                self._count(call, error, now)

    def item(self, call: Call, item: Tensors) -> None:
        deliver(self.ref, call, self._response(call, item), False)

    def answered(self, call: Call, answer: Tensors | SalverError) -> None:
        """The home is done with a call."""
        del self._sent[call]
        result = answer if isinstance(answer, SalverError) else self._response(call, answer)
        self._finish(call, result)

    def lost(self, call: Call, *, has_begun: bool) -> None:
        """The home ended with this call: it waits for the next one, or ends too."""
        del self._sent[call]
        now = self._clock()
        call.losses += 1
        error = judge_lost(
            idempotent=self.is_idempotent,
            had_chunks=has_begun,
            losses=call.losses,
        )
        try:
            if error is not None:
                raise error
            self.submit(call, now)
        except SalverError as refusal:
            self._count(call, refusal, now)

    def _response(self, call: Call, outputs: Tensors) -> Response:
        method = self.signature.methods[call.method]
        return Response(Rows(outputs), self.ref, method, call.outputs if outputs else ())

    def cancel(self, call: Call, why: SalverError) -> None:
        if call.ended:
            return
        place = self._sent.pop(call, None)
        if place is not None:
            place.peer.cancel(place.number)
            self._finish(call, why)
        else:
            self._waiting.remove(call)
            self._count(call, why, self._clock())

    def pause(self, call: Call) -> None:
        """Lets a stream wait, after a few more items, until its reader resumes it."""
        if (place := self._sent.get(call)) is not None:
            place.peer.pause(place.number)

    def resume(self, call: Call) -> None:
        if (place := self._sent.get(call)) is not None:
            place.peer.resume(place.number)

    async def stop(self, grace_s: float) -> None:
        """Ends the calls that are left."""
        self._is_stopped = True
        self._peers.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        cut_off = was_cut_off(self.ref, idempotent=self.is_idempotent)
        for call in tuple(self._sent):
            self.cancel(call, cut_off)
        self._end_waiting(was_unloaded(self.ref), self._clock())

    def _end_waiting(self, why: SalverError, now: int) -> None:
        while (batch := self._waiting.next(ANY_SLOT, now)) is not None:
            for call in batch.calls:
                self._count(call, why, now)

    def _end_late(self) -> None:
        """Ends the calls whose time is over, now and later, wherever they are."""
        now = self._clock()
        expired, again = self._waiting.expire(now)
        for call in expired:
            self._count(call, _too_late(), now)
        self._end_unanswered(now)
        times = [call.context.deadline + GRACE_NS for call in self._sent if call.context.deadline]
        if again is not None:
            times.append(again)
        if times:
            self._look_at(min(times), now)

    def _end_unanswered(self, now: int) -> None:
        """Ends calls that their home should have ended. It hangs, and so will not count them."""
        due = [c for c in self._sent if 0 < c.context.deadline <= now - GRACE_NS]
        for call in due:
            # Whoever hears of one may cancel others.
            if (place := self._sent.pop(call, None)) is not None:
                place.peer.give_up(place.number)
                self._count(call, _too_late(), now)

    def _look_at(self, when: int, now: int) -> None:
        """Looks then for calls whose time is over, unless it does so before."""
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_later(max(when - now, 0) / NS_PER_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._end_late()

    def _count(self, call: Call, error: SalverError, now: int) -> None:
        """Ends a call that the home knows nothing of."""
        if not call.ended:
            self.statistics.call(now - call.queued, now - call.queued, error)
            self._finish(call, error)

    def _finish(self, call: Call, item: Response | SalverError) -> None:
        if call.ended:
            return
        call.ended = True
        call.lease.end()
        deliver(self.ref, call, item, True)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the request's time was over before its model's process answered")
