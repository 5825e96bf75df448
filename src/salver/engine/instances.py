"""Instances inside the process: on the loop, or in a thread. `process.py` has the workers."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salver.interfaces import Done, Emit, Model, Results
    from salver.types import Tensors, Work


def run(model: Model, work: Work, emit: Emit) -> tuple[Results | Exception, int]:
    """Runs the model; whatever it raises fails its batch and nothing else. Also what it cost."""
    started = time.monotonic_ns()
    results: Results | Exception
    try:
        results = model.run(work, emit)
    except Exception as error:  # the worker rim
        results = error
    return results, time.monotonic_ns() - started


class InlineInstance:
    """Runs on the loop. Only for work that is known to be short."""

    is_inline = True

    def __init__(self, model: Model) -> None:
        self._model = model

    def start(self, work: Work, emit: Emit, done: Done) -> None:
        done(*run(self._model, work, emit))

    def cancel(self, index: int) -> None:
        """Nothing to do: an inline run is over before anybody can ask."""

    async def stop(self, grace_s: float) -> None:
        pass


class ThreadInstance:
    """Runs in a thread of its own, which is started with the first work."""

    is_inline = False

    def __init__(self, model: Model, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._model = model
        self._name = name
        self._loop = loop
        self._todo: queue.SimpleQueue[tuple[Work, Emit, Done] | None] = queue.SimpleQueue()
        self._work: Work | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Work, emit: Emit, done: Done) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._work = work
        self._todo.put((work, emit, done))

    def cancel(self, index: int) -> None:
        if self._work is not None:
            self._model.cancel(self._work, index)

    def _serve(self) -> None:
        while (item := self._todo.get()) is not None:
            work, emit, done = item
            results, cost_ns = run(self._model, work, self._carry(emit))
            self._on_loop(done, results, cost_ns)
            # Nothing of this run may stay alive while the thread waits for the next.
            del item, work, emit, done, results

    def _carry(self, emit: Emit) -> Emit:
        def push(index: int, item: Tensors) -> None:
            self._on_loop(emit, index, item)

        return push

    def _on_loop(self, function: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop is closed: the process is ending and nobody waits any more.
            return

    async def stop(self, grace_s: float) -> None:
        """Waits for the present run; a run that outlasts the grace is left behind as a daemon."""
        if self._thread is None:
            return
        self._todo.put(None)
        await asyncio.to_thread(self._thread.join, grace_s)
        self._thread = None
