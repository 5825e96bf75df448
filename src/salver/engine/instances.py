"""Instances inside the process: on the loop, or in a thread. `process.py` has the workers."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from salver.engine.frames import STREAM_WINDOW
from salver.errors import Cancelled

if TYPE_CHECKING:
    from salver.interfaces import Done, Emit, Model, Results
    from salver.types import Tensors, Work


log = logging.getLogger("salver.engine")


def run(model: Model, work: Work, emit: Emit) -> tuple[Results | Exception, int]:
    """Runs the model; whatever it raises fails its batch and nothing else. Also what it cost."""
    started = time.monotonic_ns()
    results: Results | Exception
    try:
        results = model.run(work, emit)
    except Exception as error:  # the worker rim
        results = error
    except BaseException as error:
        # `sys.exit()` in a model must end neither its thread nor the loop.
        results = RuntimeError(f"it raised {type(error).__name__}")
    return results, time.monotonic_ns() - started


def drop_item(index: int, item: Any) -> None:
    """Takes stream items that nobody reads."""


class InlineInstance:
    """Runs on the loop. Only for work that is known to be short, and never for streams."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def start(self, work: Work, emit: Emit, done: Done) -> None:
        done(*run(self._model, work, emit))

    def cancel(self, index: int) -> None:
        """Nothing to do: an inline run is over before anybody can ask. Nor is there to pause."""

    def pause(self, index: int) -> None:
        pass

    def resume(self, index: int) -> None:
        pass

    async def stop(self, grace_s: float) -> None:
        pass


class ThreadRun:
    """One run in a thread, and the way of its stream items to the loop."""

    def __init__(self, work: Work, emit: Emit, done: Done, loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.done = done
        self._emit = emit
        self._loop = loop
        self._credit = threading.Semaphore(STREAM_WINDOW)
        self._cancelled: set[int] = set()
        self._paused: set[int] = set()
        self._owed = 0

    def push(self, index: int, item: Tensors) -> None:
        """The model's `emit`, in its thread: waits while too many items are unread.

        Raises: Cancelled when the only call of the run is not wanted any more.
        """
        self._credit.acquire()
        if index in self._cancelled:
            self._credit.release()
            if self.work.num_calls == 1:
                raise Cancelled("nobody waits for this stream any more")
            return
        on_loop(self._loop, self._take, index, item)

    def _take(self, index: int, item: Tensors) -> None:
        self._emit(index, item)
        self._owed += 1
        self._pay()

    def _pay(self) -> None:
        """Gives credit for the items that were taken, unless a reader is behind."""
        if self._owed and not self._paused:
            self._credit.release(self._owed)
            self._owed = 0

    def cancel(self, index: int) -> None:
        self._cancelled.add(index)
        self.resume(index)

    def pause(self, index: int) -> None:
        if index not in self._cancelled:
            self._paused.add(index)

    def resume(self, index: int) -> None:
        self._paused.discard(index)
        self._pay()


class ThreadInstance:
    """Runs in a thread of its own, which is started with the first work."""

    def __init__(self, model: Model, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._model = model
        self._name = name
        self._loop = loop
        self._todo: queue.SimpleQueue[ThreadRun | None] = queue.SimpleQueue()
        self._run: ThreadRun | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Work, emit: Emit, done: Done) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._run = ThreadRun(work, emit, done, self._loop)
        self._todo.put(self._run)

    def cancel(self, index: int) -> None:
        if self._run is None:
            return
        self._run.cancel(index)
        try:
            self._model.cancel(self._run.work, index)
        except Exception:
            log.exception("%s: cancelling a call failed", self._name)

    def pause(self, index: int) -> None:
        if self._run is not None:
            self._run.pause(index)

    def resume(self, index: int) -> None:
        if self._run is not None:
            self._run.resume(index)

    def _serve(self) -> None:
        while (item := self._todo.get()) is not None:
            results, cost_ns = run(self._model, item.work, item.push)
            on_loop(self._loop, self._end, results, cost_ns)
            # Nothing of this run may stay alive while the thread waits for the next.
            del item, results

    def _end(self, results: Results | Exception, cost_ns: int) -> None:
        ended, self._run = self._run, None
        assert ended is not None
        ended.done(results, cost_ns)

    async def stop(self, grace_s: float) -> None:
        """Waits for the present run; a run that outlasts the grace is left behind as a daemon."""
        if self._thread is None:
            return
        self._todo.put(None)
        await asyncio.to_thread(self._thread.join, grace_s)
        self._thread = None


def on_loop(loop: asyncio.AbstractEventLoop, function: Any, *arguments: Any) -> None:
    """Calls a function on the loop, from another thread."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        # The loop is closed: the process is ending and nobody waits any more.
        return
