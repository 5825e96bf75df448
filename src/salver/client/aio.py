"""The client for event loops: `sync.py` with `await`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from salver.client.session import Pause, Session
from salver.client.transport import build, library, meaning, options, reply_of
from salver.client.wire import plain_answer
from salver.errors import SalverError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from salver.client.session import Flow
    from salver.client.wire import HttpReply, HttpRequest, ModelState, Result
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
        self._session = Session(url, api_key, timeout_s, retries, **session)
        self._http = library().AsyncClient(**options(self._session, transport))
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
        await self._http.aclose()

    async def predict(
        self,
        model: str,
        x: Any,
        *,
        version: str = "",
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
        version: str = "",
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

    async def stream(
        self, model: str, value: Any, *, method: str = "", timeout_s: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """As `Client.stream`."""
        answers = self.answers(model, value, method=method, timeout_s=timeout_s)
        async with aclosing(answers):
            async for answer in answers:
                yield answer["prediction"]

    async def answers(
        self,
        model: str,
        value: Any,
        *,
        method: str = "",
        content_type: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """As `Client.answers`."""
        reply = await self._run(self._session.open(model, value, method, content_type, timeout_s))
        try:
            async for line in reply.source.aiter_lines():
                yield plain_answer(line)
        except library().HTTPError as error:
            raise meaning(error, self._session.url) from error
        finally:
            await reply.source.aclose()

    async def is_ready(self, model: str = "") -> bool:
        """As `Client.is_ready`."""
        return await self._run(self._session.is_ready(model))

    async def models(self) -> list[ModelState]:
        """As `Client.models`."""
        return await self._run(self._session.models())

    async def metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """As `Client.metadata`."""
        return await self._run(self._session.metadata(model, version))

    async def statistics(self, model: str = "") -> list[dict[str, Any]]:
        """As `Client.statistics`."""
        return await self._run(self._session.statistics(model))

    async def state(self) -> dict[str, Any]:
        """As `Client.state`."""
        found: dict[str, Any] = await self._run(self._session.read("/page/state"))
        return found

    async def load(self, model: str) -> None:
        """As `Client.load`."""
        await self._run(self._session.change(model, "load"))

    async def unload(self, model: str) -> None:
        """As `Client.unload`."""
        await self._run(self._session.change(model, "unload"))

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
                    reply = await self._send(step)
                except SalverError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _send(self, request: HttpRequest) -> HttpReply:
        try:
            response = await self._http.send(build(self._http, request), stream=request.streams)
            if request.streams and response.is_success:
                return reply_of(response, b"", response)
            return reply_of(response, await response.aread())
        except library().HTTPError as error:
            raise meaning(error, self._session.url) from error


async def _sleep(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)
