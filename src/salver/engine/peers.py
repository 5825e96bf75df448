"""The other processes of this server, and calls to generations that have their home in another than
the one that accepted them.

Every process offers its peers the generations that it has itself. A peer that may have calls for
one holds it, and it is not unloaded before it is let go.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakValueDictionary

import msgspec

from salver.engine.channel import LoopChannel
from salver.engine.frames import (
    CREDIT_STEP,
    STREAM_WINDOW,
    Answer,
    Cancel,
    Credit,
    Hold,
    HomeCall,
    Item,
    LetGo,
    Metrics,
    MetricsQuery,
    Offer,
    Payload,
    error_of,
    fault_of,
    tensors_of,
)
from salver.engine.packing import pack_request, unpack_request
from salver.errors import Cancelled, SalverError, Unavailable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from salver.engine.channel import InSlots, OutSlots
    from salver.engine.engine import Engine
    from salver.engine.frames import AnyFrame, Fault
    from salver.engine.generation import Generation
    from salver.types import Array, Call, ModelRef, Response, Tensors

    Slots = tuple[OutSlots, InSlots]

log = logging.getLogger("salver.engine")
METRICS_TIMEOUT_S: Final = 0.3
"""Less than what asks waits."""
_GONE: Final = Cancelled("the process that took this call is gone")


class Asker(Protocol):
    """Who sends calls to peers and hears what becomes of them."""

    ref: ModelRef
    generation: int

    def item(self, call: Call, item: Tensors) -> None:
        """One item of its stream."""
        ...

    def answered(self, call: Call, answer: Tensors | SalverError) -> None: ...

    def lost(self, call: Call, *, has_begun: bool) -> None:
        """The peer that had it is gone; its answer may have begun to come."""
        ...

    def found(self) -> None:
        """There is news of homes of its generation: whoever waits for one looks again."""
        ...


class Sent:
    """A call that a peer has. `taken` are the items since it last heard that some were."""

    __slots__ = ("asker", "call", "has_begun", "is_paused", "taken")

    def __init__(self, asker: Asker, call: Call) -> None:
        self.asker = asker
        self.call = call
        self.taken = 0
        self.has_begun = False
        self.is_paused = False


class PeerSink:
    """Sends the answer of a peer's call back to it."""

    __slots__ = ("_number", "_peer", "call", "generation", "unread")

    def __init__(self, peer: Peer, number: int, generation: int) -> None:
        self._peer = peer
        self._number = number
        self.generation = generation
        self.call: Call
        self.unread = 0

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        if final:
            self._peer.answer(self._number, item)
            return
        assert not isinstance(item, SalverError)
        payload = Payload()
        try:
            self._peer.send(Item(self._number, 0, payload.tensors(item.tensors())), payload)
        except SalverError as error:
            call.lease.target.cancel(call, error)
            return
        self.unread += 1
        if self.unread == STREAM_WINDOW:
            call.lease.target.pause(call)

    def credit(self, count: int) -> None:
        """So many items were taken."""
        was_full = self.unread >= STREAM_WINDOW
        self.unread -= count
        if was_full and self.unread < STREAM_WINDOW:
            self.call.lease.target.resume(self.call)


class Peer:
    """One other process. Lives on the loop.

    `sock`, and memory to write and to read, connect it; the descriptors are taken over. It is
    silent from when it left a call without an answer until it says anything.
    """

    def __init__(self, peers: Peers, engine: Engine, sock: socket.socket, slots: Slots) -> None:
        self.offers: dict[int, SalverError | None] = {}
        self.sent: dict[int, Sent] = {}
        self.is_silent = False
        self._peers = peers
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._channel = LoopChannel(sock, *slots, self._loop, self.close)
        self._numbers = itertools.count(1)
        self._sinks: dict[int, PeerSink] = {}
        self._metrics: dict[int, asyncio.Future[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: dict[int, Generation] = {}
        self._is_open = True
        self._handlers: dict[type[AnyFrame], Callable[[Any, Array], None]] = {
            HomeCall: self._on_call,
            Item: self._on_item,
            Answer: self._on_answer,
            Cancel: self._on_cancel,
            Credit: self._on_credit,
            Offer: self._on_offer,
            Hold: self._on_hold,
            LetGo: self._on_let_go,
            MetricsQuery: self._on_metrics_query,
            Metrics: self._on_metrics,
        }
        self._loop.add_reader(sock, self._on_readable)

    def send(self, frame: AnyFrame, payload: Payload | None = None) -> None:
        """Never waits; to a peer that is gone it does nothing. Raises: TooLarge."""
        if not self._is_open:
            return
        try:
            self._channel.send(frame, payload)
        except OSError:
            # Not at once: what was sent is noted first, so that it counts as lost.
            self._loop.call_soon(self.close)

    def close(self) -> None:
        """The other process is gone: nobody waits for what it asked, and what it was asked is
        given back.
        """
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._socket)
        self._channel.close()
        self._peers.forget(self)
        for sink in tuple(self._sinks.values()):
            sink.call.lease.target.cancel(sink.call, _GONE)
        self.drop_holds()
        for answer in self._metrics.values():
            if not answer.done():
                answer.set_result(b"")
        for number in tuple(self.sent):
            # Whoever hears of a loss may cancel other calls.
            if (sent := self.sent.pop(number, None)) is not None:
                sent.asker.lost(sent.call, has_begun=sent.has_begun)

    def _on_readable(self) -> None:
        try:
            for frame, payload in self._channel.receive():
                self._handlers[type(frame)](frame, payload)
            if self.is_silent:
                self._end_silence()
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self.close()
        except Exception:
            log.exception("what another process of this server sent cannot be handled")
            self.close()

    # Calls that it is asked

    def ask(self, asker: Asker, call: Call) -> int:
        """Sends a call; returns its number. Raises: SalverError for what cannot travel."""
        number = next(self._numbers)
        request = msgspec.structs.replace(
            call.request,
            payload=call.inputs,
            method=call.method,
            outputs=call.outputs,
            with_roles=False,
        )
        self.send(
            *pack_request(number, asker.ref, request, call.context, call.depth, asker.generation)
        )
        self.sent[number] = Sent(asker, call)
        return number

    def cancel(self, number: int) -> None:
        """Nobody waits for this call any more."""
        del self.sent[number]
        self.send(Cancel(number, 0))

    def give_up(self, number: int) -> None:
        """Nobody waits for this call any more, which should long have had its answer. It gets no
        others meanwhile: what it does not read would pile up here.
        """
        self.is_silent = True
        self.cancel(number)

    def _end_silence(self) -> None:
        """It has said something. If that makes another call late, its answer is still to come."""
        self.is_silent = False
        for number in tuple(self.offers):
            if (asker := self._peers.asker(number)) is not None:
                asker.found()

    def pause(self, number: int) -> None:
        """Lets a stream wait, after a few more items."""
        self.sent[number].is_paused = True

    def resume(self, number: int) -> None:
        sent = self.sent[number]
        sent.is_paused = False
        self._give_credit(number, sent)

    def _on_item(self, frame: Item, payload: Array) -> None:
        sent = self.sent.get(frame.run)
        if sent is not None:
            sent.has_begun = True
            sent.taken += 1
            sent.asker.item(sent.call, tensors_of(frame.tensors, payload))
            self._give_credit(frame.run, sent)

    def _give_credit(self, number: int, sent: Sent) -> None:
        if sent.taken >= CREDIT_STEP and not sent.is_paused and number in self.sent:
            self.send(Credit(number, sent.taken))
            sent.taken = 0

    def _on_answer(self, frame: Answer, payload: Array) -> None:
        sent = self.sent.pop(frame.id, None)
        if sent is None:
            return
        if frame.fault is not None:
            sent.asker.answered(sent.call, error_of(frame.fault))
        else:
            sent.asker.answered(sent.call, tensors_of(frame.tensors or {}, payload))

    # Calls that it asks

    def _on_call(self, frame: HomeCall, payload: Array) -> None:
        sink = PeerSink(self, frame.id, frame.generation)
        try:
            home = self._peers.home(frame.generation)
            if home is None:
                raise Unavailable(f"{frame.ref} was unloaded; try again")
            request = unpack_request(frame, payload)
            sink.call = self._engine.submit(
                frame.ref, request, sink, frame.context, frame.depth, home
            )
            self._sinks[frame.id] = sink
        except SalverError as error:
            self._peers.review(frame.generation, error)
            self.send(Answer(frame.id, fault=fault_of(error)))

    def answer(self, number: int, item: Response | SalverError) -> None:
        """Ends a call that it asked."""
        sink = self._sinks.pop(number)
        if isinstance(item, SalverError):
            self._peers.review(sink.generation, item)
        try:
            if isinstance(item, SalverError):
                raise item
            payload = Payload()
            self.send(Answer(number, payload.tensors(item.tensors())), payload)
        except SalverError as error:
            self.send(Answer(number, fault=fault_of(error)))

    def _on_cancel(self, frame: Cancel, _: Array) -> None:
        sink = self._sinks.get(frame.run)
        if sink is not None:
            sink.call.lease.target.cancel(sink.call, _GONE)

    def _on_credit(self, frame: Credit, _: Array) -> None:
        sink = self._sinks.get(frame.run)
        if sink is not None:
            sink.credit(frame.count)

    # What both have

    def _on_offer(self, frame: Offer, _: Array) -> None:
        self.offers[frame.generation] = None if frame.fault is None else error_of(frame.fault)
        asker = self._peers.asker(frame.generation)
        if asker is not None:
            self.send(Hold(frame.generation))
            asker.found()

    def _on_hold(self, frame: Hold, _: Array) -> None:
        home = self._peers.home(frame.generation)
        if home is not None and frame.generation not in self._held:
            home.holds += 1
            self._held[frame.generation] = home

    def _on_let_go(self, frame: LetGo, _: Array) -> None:
        home = self._held.pop(frame.generation, None)
        if home is not None:
            home.let_go()

    def drop_holds(self) -> None:
        """What it holds here need not be kept for it."""
        while self._held:
            self._held.popitem()[1].let_go()

    # What user code counts

    async def metrics(self, generation: int) -> bytes:
        """User code's own metrics of a generation, as Prometheus text."""
        number = next(self._numbers)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._metrics[number] = answer
        self.send(MetricsQuery(number, generation))
        try:
            return await answer
        finally:
            del self._metrics[number]

    def _on_metrics_query(self, frame: MetricsQuery, _: Array) -> None:
        task = self._loop.create_task(self._tell_metrics(frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_metrics(self, frame: MetricsQuery) -> None:
        home = self._peers.home(frame.generation)
        texts = [] if home is None else await home.user_metrics(METRICS_TIMEOUT_S)
        self.send(Metrics(b"".join(texts), frame.id))

    def _on_metrics(self, frame: Metrics, _: Array) -> None:
        answer = self._metrics.get(frame.id)
        if answer is not None and not answer.done():
            answer.set_result(frame.text)


class Peers:
    """All other processes that this one exchanges calls with. Lives on the loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._peers: list[Peer] = []
        self._askers: dict[int, Asker] = {}
        self._homes: WeakValueDictionary[int, Generation] = WeakValueDictionary()
        self._offers: dict[int, Fault | None] = {}

    def connect(self, sock: socket.socket, slots: Slots) -> None:
        """A process is there."""
        peer = Peer(self, self._engine, sock, slots)
        self._peers.append(peer)
        for number, fault in self._offers.items():
            peer.send(Offer(number, fault))

    def forget(self, peer: Peer) -> None:
        """A process is gone."""
        self._peers.remove(peer)

    def close(self) -> None:
        """Leaves all others."""
        for peer in tuple(self._peers):
            peer.close()

    def drop_holds(self) -> None:
        """Others need not be waited for any more."""
        for peer in self._peers:
            peer.drop_holds()

    # What has its home here

    def offer(self, number: int, generation: Generation) -> None:
        """Tells that a generation has its home here."""
        self._homes[number] = generation
        self._tell(number, None)

    def fail(self, number: int, error: SalverError) -> None:
        """Tells that a generation should have its home here, but cannot be loaded."""
        self._tell(number, fault_of(error))

    def review(self, number: int, error: SalverError) -> None:
        """After a call that failed: a home that takes no more calls is offered no more."""
        home = self._homes.get(number)
        is_offered = number in self._offers and self._offers[number] is None
        if is_offered and (home is None or not home.target.is_ready):
            self.fail(number, error)

    def _tell(self, number: int, fault: Fault | None) -> None:
        self._offers[number] = fault
        for peer in self._peers:
            peer.send(Offer(number, fault))

    def withdraw(self, number: int) -> None:
        """Offers a generation no more. Those who hold it may go on until they let go."""
        self._offers.pop(number, None)

    def home(self, number: int) -> Generation | None:
        return self._homes.get(number)

    # What has its home elsewhere

    def join(self, asker: Asker) -> None:
        """There will be calls for a generation."""
        self._askers[asker.generation] = asker
        for peer in self._peers:
            if asker.generation in peer.offers:
                peer.send(Hold(asker.generation))

    def leave(self, asker: Asker) -> None:
        """There will be no more."""
        del self._askers[asker.generation]
        for peer in self._peers:
            if asker.generation in peer.offers:
                del peer.offers[asker.generation]
                peer.send(LetGo(asker.generation))

    def asker(self, number: int) -> Asker | None:
        return self._askers.get(number)

    def home_of(self, number: int) -> Peer | None:
        """The peer that has a generation and the fewest calls; None while there is none that
        answers.

        Raises: SalverError when its home could not load it.
        """
        failed: SalverError | None = None
        able: list[Peer] = []
        for peer in self._peers:
            if number in peer.offers:
                error = peer.offers[number]
                if error is None and not peer.is_silent:
                    able.append(peer)
                failed = failed or error
        if able:
            return min(able, key=lambda peer: len(peer.sent))
        if failed is not None:
            raise failed
        return None
