"""How models call other models: from a worker over the loop, from a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Protocol

from salver.errors import Cancelled, Internal, SalverError, Unsupported
from salver.types import NO_CONTEXT, Call, CallContext, ModelRef, Request, Response, Tensors

if TYPE_CHECKING:
    from concurrent.futures import Future

    from salver.interfaces import Sink


class Submits(Protocol):
    """The engine, as far as a caller needs it."""

    def submit(
        self,
        ref: ModelRef,
        request: Request,
        sink: Sink,
        context: CallContext = NO_CONTEXT,
        depth: int = 0,
    ) -> Call: ...


class FutureSink:
    """Turns the one answer of a call into a future; items of a stream are refused."""

    def __init__(self, future: asyncio.Future[Tensors]) -> None:
        self._future = future

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        if self._future.done():
            return
        if isinstance(item, SalverError):
            self._future.set_exception(item)
        elif final:
            self._future.set_result(item.tensors())
        else:
            error = Unsupported("a streaming method cannot be used by a model")
            self._future.set_exception(error)
            call.lease.target.cancel(call, error)


class LoopCaller:
    """Calls into the engine of the loop on which it was made."""

    def __init__(self, engine: Submits) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    async def ask(
        self, ref: ModelRef, request: Request, context: CallContext = NO_CONTEXT, depth: int = 0
    ) -> Tensors:
        """The outputs of a call; cancelling the wait cancels the call.

        Raises: SalverError.
        """
        future: asyncio.Future[Tensors] = self._loop.create_future()
        call = self._engine.submit(ref, request, FutureSink(future), context, depth)
        try:
            return await future
        except asyncio.CancelledError:
            call.lease.target.cancel(
                call, Cancelled("the model that asked is gone, or nobody waits for it")
            )
            raise

    def __call__(
        self, ref: ModelRef, request: Request, context: CallContext = NO_CONTEXT, depth: int = 0
    ) -> Tensors:
        """The same from another thread, which waits."""
        if threading.get_ident() == self._thread:
            raise Internal(
                "a model that runs on the loop cannot wait for another one: set "
                "instances.isolation to thread or process"
            )
        asked: Future[Tensors] = asyncio.run_coroutine_threadsafe(
            self.ask(ref, request, context, depth), self._loop
        )
        return asked.result()
