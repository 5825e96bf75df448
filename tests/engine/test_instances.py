from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from salver.engine.frames import STREAM_WINDOW
from salver.engine.instances import InlineInstance, ThreadInstance, run
from salver.types import Tensor, Tensors, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from salver.interfaces import Emit

GUARD_S = 20


def work(num_calls: int = 1) -> Work:
    return Work("m", {}, list(range(num_calls + 1)), (), [{}] * num_calls)


class Model:
    """Streams `num_items` items; `emitted` counts those that `emit` let through."""

    def __init__(self, num_items: int = 0, error: BaseException | None = None) -> None:
        self.num_items = num_items
        self.error = error
        self.emitted = 0
        self.is_cancelled = threading.Event()

    def run(self, work: Work, emit: Emit) -> Any:
        if self.error is not None:
            raise self.error
        for number in range(self.num_items):
            emit(0, Tensors(n=Tensor.of([number])))
            self.emitted += 1
        return [None] * work.num_calls

    def cancel(self, work: Work, index: int) -> None:
        self.is_cancelled.set()


class Reader:
    """Takes items on the loop; `on_item` may pause the instance."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.results: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.on_item: Callable[[], None] = lambda: None

    def emit(self, index: int, item: Tensors) -> None:
        self.items.append(int(item["n"].array()[0]))
        self.on_item()

    def done(self, results: Any, cost_ns: int) -> None:
        self.results.set_result(results)


def test_whatever_a_model_raises_is_its_result() -> None:
    error = ValueError("no")
    results, cost_ns = run(Model(error=error), work(), lambda *_: None)  # type: ignore[arg-type]
    assert results is error
    assert cost_ns >= 0
    results, _ = run(Model(error=SystemExit(3)), work(), lambda *_: None)  # type: ignore[arg-type]
    assert isinstance(results, RuntimeError)
    assert "SystemExit" in str(results)


def test_an_inline_run_is_over_when_start_returns() -> None:
    ended: list[Any] = []
    instance = InlineInstance(Model())  # type: ignore[arg-type]
    instance.start(work(), lambda *_: None, lambda results, ns: ended.append(results))
    assert ended == [[None]]


async def with_thread(model: Model, test: Callable[..., Any]) -> None:
    async with asyncio.timeout(GUARD_S):
        loop = asyncio.get_running_loop()
        instance = ThreadInstance(model, "test", loop)  # type: ignore[arg-type]
        reader = Reader()
        try:
            await test(instance, reader)
        finally:
            await instance.stop(GUARD_S)


def test_a_thread_streams_in_order_and_serves_again() -> None:
    model = Model(num_items=5 * STREAM_WINDOW)

    async def test(instance: ThreadInstance, reader: Reader) -> None:
        instance.start(work(), reader.emit, reader.done)
        assert await reader.results == [None]
        assert reader.items == list(range(5 * STREAM_WINDOW))
        again = Reader()
        instance.start(work(), again.emit, again.done)
        assert await again.results == [None]

    asyncio.run(with_thread(model, test))


def test_a_thread_waits_for_a_slow_reader() -> None:
    model = Model(num_items=5 * STREAM_WINDOW)

    async def test(instance: ThreadInstance, reader: Reader) -> None:
        paused = asyncio.Event()

        def pause() -> None:
            instance.pause(0)
            if len(reader.items) == STREAM_WINDOW:
                paused.set()

        reader.on_item = pause
        instance.start(work(), reader.emit, reader.done)
        await paused.wait()
        assert model.emitted <= STREAM_WINDOW
        assert not reader.results.done()
        reader.on_item = lambda: None
        instance.resume(0)
        await reader.results
        assert len(reader.items) == 5 * STREAM_WINDOW

    asyncio.run(with_thread(model, test))


def test_cancelling_ends_a_stream_that_waits() -> None:
    model = Model(num_items=5 * STREAM_WINDOW)

    async def test(instance: ThreadInstance, reader: Reader) -> None:
        paused = asyncio.Event()
        reader.on_item = lambda: (instance.pause(0), paused.set())[0]
        instance.start(work(), reader.emit, reader.done)
        await paused.wait()
        instance.cancel(0)
        assert "nobody waits" in str(await reader.results)
        assert model.is_cancelled.is_set()
        assert model.emitted < model.num_items

    asyncio.run(with_thread(model, test))


def test_a_model_whose_cancel_fails_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Rude(Model):
        def cancel(self, work: Work, index: int) -> None:
            raise ValueError("never")

    async def test(instance: ThreadInstance, reader: Reader) -> None:
        instance.start(work(), reader.emit, reader.done)
        instance.cancel(0)
        await reader.results

    asyncio.run(with_thread(Rude(), test))
    assert "cancelling a call failed" in caplog.text
