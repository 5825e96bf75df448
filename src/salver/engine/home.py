"""The target of a generation whose home is another process of this server: calls are sent there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from salver.clock import NS_PER_S
from salver.engine.delivery import deliver
from salver.engine.generation import Generation
from salver.engine.rerun import judge_lost
from salver.errors import DeadlineExceeded, SalverError, Unavailable
from salver.interfaces import Slot
from salver.schedulers.direct import DirectScheduler
from salver.types import Response, Rows, Tensors

if TYPE_CHECKING:
    import asyncio

    from salver.clock import Clock
    from salver.config import ModelConfig
    from salver.engine.peers import Peer, Peers
    from salver.observe.statistics import ModelStatistics
    from salver.signature import Signature
    from salver.types import Call, ModelRef

_ANY = Slot()


class Place(NamedTuple):
    """Where a call is: with which peer, and by which number."""

    peer: Peer
    number: int


class HomeTarget:
    """Sends calls to the home, and has them wait here while there is none. Lives on the loop.

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
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.ref = ref
        self.generation = generation
        self._signature = signature
        self._peers = peers
        self._waiting = DirectScheduler(config)
        self._sent: dict[Call, Place] = {}
        self._statistics = statistics
        self.is_idempotent = is_idempotent
        self._clock = clock
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
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
            raise Unavailable(f"{self.ref} is being unloaded; try again")
        peer = self._peers.home_of(self.generation)
        if peer is None:
            self._waiting.add(call, now)
            self._look_in(0)
        else:
            self._sent[call] = Place(peer, peer.ask(self, call))

    def found(self) -> None:
        """There is news of homes: sends what waits, or ends it."""
        self._end_late()
        now = self._clock()
        try:
            peer = self._peers.home_of(self.generation)
        except SalverError as error:
            self._end_waiting(error, now)
            return
        while peer is not None and (batch := self._waiting.next(_ANY, now)) is not None:
            (call,) = batch.calls
            try:
                self._sent[call] = Place(peer, peer.ask(self, call))
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
        call.attempt += 1
        error = judge_lost(
            idempotent=self.is_idempotent,
            had_chunks=has_begun,
            losses=call.attempt,
        )
        try:
            if error is not None:
                raise error
            self.submit(call, now)
        except SalverError as refusal:
            self._count(call, refusal, now)

    def _response(self, call: Call, outputs: Tensors) -> Response:
        method = self._signature.methods[call.method]
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
        gone = Unavailable(f"{self.ref} was unloaded before this call ran; try again")
        self._end_waiting(gone, self._clock())
        for call in tuple(self._sent):
            self.cancel(call, gone)

    def _end_waiting(self, why: SalverError, now: int) -> None:
        while (batch := self._waiting.next(_ANY, now)) is not None:
            for call in batch.calls:
                self._count(call, why, now)

    def _end_late(self) -> None:
        """Ends the calls whose time was over while they waited, now and later."""
        now = self._clock()
        late, again = self._waiting.expire(now)
        for call in late:
            error = DeadlineExceeded("the request's time was over while its model was restarted")
            self._count(call, error, now)
        if again is not None:
            self._look_in(max(again - now, 0) / NS_PER_S)

    def _look_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._end_late)

    def _count(self, call: Call, error: SalverError, now: int) -> None:
        """Ends a call that the home knows nothing of."""
        if not call.ended:
            self._statistics.call(now - call.queued, now - call.queued, error)
            self._finish(call, error)

    def _finish(self, call: Call, item: Response | SalverError) -> None:
        if call.ended:
            return
        call.ended = True
        call.lease.end()
        deliver(self.ref, call, item, True)


def generation_elsewhere(
    ref: ModelRef,
    number: int,
    peers: Peers,
    *,
    config: ModelConfig,
    runtime: str,
    signature: Signature,
    is_idempotent: bool,
    batches: bool,
    statistics: ModelStatistics,
    clock: Clock,
    loop: asyncio.AbstractEventLoop,
) -> Generation:
    """A generation that other processes of this server run."""
    target = HomeTarget(
        ref,
        number,
        signature,
        peers,
        config=config,
        statistics=statistics,
        is_idempotent=is_idempotent,
        clock=clock,
        loop=loop,
    )
    return Generation(
        ref,
        number,
        config=config,
        runtime=runtime,
        signature=signature,
        target=target,
        statistics=statistics,
        batches=batches,
        close=_nothing,
        workers=(target,),
    )


async def _nothing() -> None:
    """There is nothing to close here."""
