"""How user code in a thread of this process calls other models."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from salver.errors import Internal, SalverError
from salver.types import NO_CONTEXT, Call, CallContext, ModelRef, Request, Response, Tensors

if TYPE_CHECKING:
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

    def __init__(self, future: Future[Tensors]) -> None:
        self._future = future

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        if self._future.done():
            return
        if isinstance(item, SalverError):
            self._future.set_exception(item)
        elif final:
            self._future.set_result(item.tensors())
        else:
            self._future.set_exception(Internal("a streaming method cannot be used by a model"))


class LoopCaller:
    """Carries calls from other threads to the engine's loop and waits for the answer."""

    def __init__(self, engine: Submits) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def __call__(
        self, ref: ModelRef, request: Request, context: CallContext = NO_CONTEXT, depth: int = 0
    ) -> Tensors:
        if threading.get_ident() == self._thread:
            raise Internal(
                "a model that runs on the loop cannot wait for another one: set "
                "instances.isolation to thread or process"
            )
        future: Future[Tensors] = Future()
        self._loop.call_soon_threadsafe(self._submit, future, ref, request, context, depth)
        return future.result()

    def _submit(
        self,
        future: Future[Tensors],
        ref: ModelRef,
        request: Request,
        context: CallContext,
        depth: int,
    ) -> None:
        try:
            self._engine.submit(ref, request, FutureSink(future), context, depth)
        except SalverError as error:
            future.set_exception(error)
