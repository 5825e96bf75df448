"""The worker program: one model in a process of its own. It is executed afresh, never forked.

The main thread takes work from one socket and runs it; a second thread hears on another what the
server has to say meanwhile. So no piece of work has to be handed from thread to thread.
"""

from __future__ import annotations

import importlib
import itertools
import os
import queue
import socket
import sys
import threading
import traceback
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from salver.engine.channel import Channel, InSlots, OutSlots
from salver.engine.frames import (
    STREAM_WINDOW,
    Answer,
    Cancel,
    Credit,
    Done,
    Failed,
    Fault,
    Item,
    Load,
    Loaded,
    Metrics,
    MetricsQuery,
    Payload,
    Ping,
    Pong,
    Run,
    Warned,
    error_of,
    fault_of,
    tensors_of,
)
from salver.engine.instances import run
from salver.engine.lifeline import die_with
from salver.engine.packing import pack_request, pack_results, unpack_work
from salver.errors import Cancelled, ModelFailed, SalverError
from salver.interfaces import LoadSpec
from salver.observe.memory import giving_back
from salver.observe.user_metrics import exposition
from salver.places import hidden_cause, told
from salver.runtimes.table import runtimes
from salver.types import NO_CONTEXT, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from salver.engine.channel import Message
    from salver.interfaces import Model, Results, Runtime
    from salver.types import Array, CallContext, ModelRef, Request, Work

MAX_HOME_CALLS: Final = 64
MAX_WARNING_CHARS: Final = 8 << 10
NICENESS: Final = 5
"""Added to the server's own: its loop must get a core at once, whatever models compute."""


class Turn:
    """One run, as both threads see it."""

    __slots__ = ("credit", "is_over", "number", "work")

    def __init__(self, number: int, work: Work) -> None:
        self.number = number
        self.work = work
        self.credit = STREAM_WINDOW
        self.is_over = False


class Worker:
    """Loads one model and runs it until told to stop."""

    def __init__(self, channel: Channel, control: Channel) -> None:
        self._channel = channel
        self._control = control
        self._inbox: deque[Message] = deque()
        self._turn: Turn | None = None
        self._model: Model | None = None
        self._cancelled: set[tuple[int, int]] = set()
        self._stream_moved = threading.Condition()
        self._home_ids = itertools.count()
        self._home_calls: dict[int, queue.SimpleQueue[tuple[Answer, Array]]] = {}
        self._home_slots = threading.BoundedSemaphore(MAX_HOME_CALLS)

    def serve(self) -> None:
        """Returns when the server said stop, or when the model could not be loaded.

        Raises: EOFError when the server is gone.
        """
        threading.Thread(target=self._hear, name="control", daemon=True).start()
        while self._serve_next():
            pass
        if self._model is not None:
            self._model.close()

    def _serve_next(self) -> bool:
        while not self._inbox:
            self._inbox += self._channel.receive()
        frame, payload = self._inbox.popleft()
        if isinstance(frame, Load):
            return self._load(frame)
        if not isinstance(frame, Run) or self._model is None:
            return False
        turn = self._turn = Turn(frame.run, unpack_work(frame, payload))
        results, cost_ns = run(self._model, turn.work, partial(self._emit, turn))
        self._turn = None
        with self._stream_moved:
            turn.is_over = True
            self._cancelled.clear()
        done, outputs = _pack(frame.run, results, cost_ns, self._warn)
        # The inputs end here, so that `done` takes the news that their slot is free.
        del payload, turn, results
        try:
            self._channel.send(done, outputs)
        except SalverError as error:
            self._channel.send(Done(frame.run, cost_ns, fault=fault_of(error)))
        return True

    def _load(self, order: Load) -> bool:
        spec = LoadSpec(
            path=order.path,
            ref=order.ref,
            config=order.config,
            device=order.device,
            threads=order.threads,
            trusted=order.trusted,
            caller=self._call_home,
            warn=self._warn,
        )
        try:
            with giving_back():
                self._model = _runtime(order.runtime).load(spec)
        except SalverError as error:
            sys.stderr.write(hidden_cause(error))
            self._channel.send(Failed(fault_of(error)))
            return False
        except Exception as error:
            traceback.print_exc()
            self._channel.send(Failed(Fault("LoadFailed", told(error))))
            return False
        self._channel.send(Loaded(self._model.signature, self._model.traits))
        return True

    def _warn(self, message: str) -> None:
        self._channel.send(Warned(message[-MAX_WARNING_CHARS:]))

    def _emit(self, turn: Turn, index: int, item: Tensors) -> None:
        call = (turn.number, index)
        with self._stream_moved:
            while not (turn.credit or turn.is_over or call in self._cancelled):
                self._stream_moved.wait()
            if call in self._cancelled and turn.work.num_calls == 1:
                raise Cancelled("nobody waits for this stream any more")
            if turn.is_over or call in self._cancelled:
                return
            turn.credit -= 1
        payload = Payload()
        self._channel.send(Item(turn.number, index, payload.tensors(item)), payload)

    def _call_home(
        self, ref: ModelRef, request: Request, context: CallContext = NO_CONTEXT, depth: int = 0
    ) -> Tensors:
        """The `Caller` of this process. What a run does for a call goes by that call's deadline."""
        turn = self._turn
        if turn is not None:
            work = turn.work
            depth = max(depth, work.depth + 1)
            if context is NO_CONTEXT:
                context = msgspec.structs.replace(work.context, deadline=work.deadline)
        number = next(self._home_ids)
        call, payload = pack_request(number, ref, request, context, depth)
        with self._home_slots:
            answered = self._home_calls[number] = queue.SimpleQueue()
            try:
                self._channel.send(call, payload)
                answer, received = answered.get()
            finally:
                del self._home_calls[number]
        if answer.fault is not None:
            raise error_of(answer.fault)
        return tensors_of(answer.tensors or {}, received)

    def _hear(self) -> None:
        """Serves the control socket; without its server a worker has nothing to live for."""
        try:
            while True:
                self._handle(self._control.receive())
        except (EOFError, OSError):
            os._exit(os.EX_OK)
        except BaseException:
            traceback.print_exc()
            os._exit(os.EX_SOFTWARE)

    def _handle(self, messages: list[Message]) -> None:
        for frame, payload in messages:
            match frame:
                case Credit():
                    self._grant(frame)
                case Cancel():
                    self._cancel(frame)
                case Answer():
                    self._home_calls[frame.id].put((frame, payload))
                case Ping():
                    self._channel.send(Pong())
                case MetricsQuery():
                    self._channel.send(Metrics(exposition()))

    def _grant(self, frame: Credit) -> None:
        turn = self._turn
        if turn is not None and turn.number == frame.run:
            with self._stream_moved:
                turn.credit += frame.count
                self._stream_moved.notify_all()

    def _cancel(self, frame: Cancel) -> None:
        with self._stream_moved:
            self._cancelled.add((frame.run, frame.index))
            self._stream_moved.notify_all()
        turn, model = self._turn, self._model
        if turn is None or turn.number != frame.run or model is None:
            return
        try:
            model.cancel(turn.work, frame.index)
        except Exception:
            traceback.print_exc()


def _runtime(name: str) -> Runtime:
    """A runtime by its registered name, or by `module:attribute`."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        found: Runtime = getattr(importlib.import_module(module), attribute)()
        return found
    return runtimes.get(name)()


def _pack(
    number: int, results: Results | Exception, cost_ns: int, warn: Callable[[str], None]
) -> tuple[Done, Payload]:
    """What the model gave; what cannot travel is the model's failure."""
    try:
        if isinstance(results, Exception):
            raise results
        return pack_results(number, results, cost_ns)
    except Exception as error:
        failed = error
        if not isinstance(error, SalverError):
            warn(traceback.format_exc().rstrip())
            failed = ModelFailed(f"the model failed: {told(error)}")
        # A traceback holds the frames, which hold the inputs and their slot.
        error.__traceback__ = None
        return Done(number, cost_ns, fault=fault_of(failed)), Payload()


def main() -> None:
    """`python -m salver.engine.worker PARENT WORK CONTROL OUT IN`: process id and descriptors."""
    parent, work_fd, control_fd, out_fd, in_fd = map(int, sys.argv[1:])
    die_with(parent)
    os.nice(NICENESS)
    out_slots, in_slots = OutSlots(out_fd), InSlots(in_fd)
    os.close(out_fd)
    os.close(in_fd)
    channels = []
    for fd in (work_fd, control_fd):
        os.set_inheritable(fd, False)
        channels.append(Channel(socket.socket(fileno=fd), out_slots, in_slots))
    status = os.EX_OK
    try:
        Worker(*channels).serve()
    except (EOFError, BrokenPipeError):
        status = os.EX_OK
    except BaseException:
        traceback.print_exc()
        status = os.EX_SOFTWARE
    # Not by the interpreter's own end, which waits for whatever threads user code has left.
    os._exit(status)


if __name__ == "__main__":
    main()
