"""An event loop of a model's own, in a thread, for authors who write `async def`."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Final

from salver.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Generator
    from concurrent.futures import Future

_END: Final = object()


class PrivateLoop:
    """Runs until closed. Background tasks that the author starts live on between calls."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def close(self, grace_s: float = 5.0) -> None:
        """Cancels what still runs; code that does not end by then is left behind as a daemon."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(grace_s)


class Run:
    """One run of a method, which any thread may cancel."""

    __slots__ = ("_is_cancelled", "_private", "_task")

    def __init__(self, private: PrivateLoop | None) -> None:
        self._private = private
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._private is not None:
            self._private.loop.call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def check(self) -> None:
        """Raises: Cancelled once somebody has asked for it."""
        if self._is_cancelled:
            raise Cancelled("the call was cancelled while it ran")

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine on the private loop, in the context of this thread, to its very end.

        Raises: Cancelled, or what the coroutine raises.
        """
        try:
            return self._submit(self._tracked(coroutine)).result()
        except CancelledError:
            raise Cancelled("the call was cancelled while it ran") from None

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        assert self._private is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._private.loop)

    async def _tracked(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        self._task = asyncio.current_task()
        if self._is_cancelled:
            self._cancel_task()
        return await coroutine

    def each(self, items: Any) -> Generator[Any, None, None]:
        """Items of an iterator, or of an asynchronous one, which is closed with this generator."""
        if not hasattr(items, "__aiter__"):
            yield from items
            return
        source: AsyncIterator[Any] = aiter(items)
        try:
            while (item := self.wait(_next(source))) is not _END:
                yield item
        finally:
            # Not through `wait`: a cancelled run still has to clean up.
            self._submit(_close(source)).result()


async def _next(source: AsyncIterator[Any]) -> Any:
    return await anext(source, _END)


async def _close(source: Any) -> None:
    if hasattr(source, "aclose"):
        await source.aclose()
