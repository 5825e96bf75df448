"""The client for event loops: `sync.py` with `await`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from salver.client.connect import connect
from salver.client.session import Pause, Session
from salver.errors import SalverError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from salver.client.session import Flow
    from salver.client.wire import Items, ModelState, Result
    from salver.types import Parameter

T = TypeVar("T")


class AsyncClient:
    """Calls the models of a server, with numpy arrays in and out.

        async with salver.AsyncClient("http://localhost:8000") as client:
            await client.predict("iris", [[5.1, 3.5, 1.4, 0.2]])

    The methods are those of `Client`, to be awaited; `stream` and `answers` are asynchronous
    iterators.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        api_key: str | None = None,
        *,
        timeout_s: float | None = 60.0,
        retries: int = 3,
        transport: Any = None,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        **session: Any,
    ) -> None:
        wire, self._transport = connect(url, api_key, transport, is_async=True)
        self._session = Session(wire, timeout_s, retries, **session)
        self._sleep = sleep or _sleep

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Client.close`."""
        self._session.close()
        await self._transport.close()

    async def predict(
        self,
        model: str,
        x: Any,
        *,
        version: str | int = "",
        method: str = "",
        timeout_s: float | None = None,
    ) -> Any:
        """As `Client.predict`."""
        return await self._run(self._session.predict(model, x, version, method, timeout_s))

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] = (),
        *,
        version: str | int = "",
        method: str = "",
        parameters: Mapping[str, Parameter] | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """As `Client.infer`."""
        return await self._run(
            self._session.infer(
                model, inputs, outputs, version, method, parameters or {}, timeout_s
            )
        )

    def stream(
        self, model: str, value: Any, *, method: str = "", timeout_s: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """As `Client.stream`."""
        return self._items(self._session.stream(model, value, method, timeout_s))

    def answers(
        self,
        model: str,
        value: Any,
        *,
        method: str = "",
        content_type: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """As `Client.answers`."""
        return self._items(self._session.answers(model, value, method, content_type, timeout_s))

    async def is_ready(self, model: str = "") -> bool:
        """As `Client.is_ready`."""
        return await self._run(self._session.is_ready(model))

    async def models(self) -> list[ModelState]:
        """As `Client.models`."""
        return await self._run(self._session.models())

    async def metadata(self, model: str, version: str | int = "") -> dict[str, Any]:
        """As `Client.metadata`."""
        return await self._run(self._session.metadata(model, version))

    async def statistics(self, model: str = "") -> list[dict[str, Any]]:
        """As `Client.statistics`."""
        return await self._run(self._session.statistics(model))

    async def state(self) -> dict[str, Any]:
        """As `Client.state`."""
        return await self._run(self._session.state())

    async def load(self, model: str) -> None:
        """As `Client.load`."""
        await self._run(self._session.change(model, "load"))

    async def unload(self, model: str) -> None:
        """As `Client.unload`."""
        await self._run(self._session.change(model, "unload"))

    async def _items(self, flow: Flow[Items]) -> AsyncGenerator[Any, None]:
        items = await self._run(flow)
        pieces = self._transport.pieces(items.reply)
        async with aclosing(pieces):
            async for piece in pieces:
                yield items.read(piece)

    async def _run(self, flow: Flow[T]) -> T:
        """Does what a flow asks for until it ends."""
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    await self._sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = await self._transport.send(step)
                except SalverError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result


async def _sleep(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)
