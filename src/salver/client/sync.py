"""The client for threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from salver.client.connect import connect
from salver.client.session import Pause, Session
from salver.errors import SalverError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from types import TracebackType

    from salver.client.session import Flow
    from salver.client.wire import Items, ModelState, Result
    from salver.types import Parameter

T = TypeVar("T")


class Client:
    """Calls the models of a server, with numpy arrays in and out.

        with salver.Client("http://localhost:8000") as client:
            client.predict("iris", [[5.1, 3.5, 1.4, 0.2]])

    Safe to use from several threads, which share its connections. `timeout_s` bounds each call,
    attempts and pauses together (None: no bound), and is passed on to the server; `retries` is how
    often a call is sent again where that may help: the server is busy, not ready or not there yet.

    Every method raises the errors of `salver.errors`, with the server's own message. `transport`
    (of httpx), `sleep`, `clock` and `uniform` replace sockets, time and chance in tests.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        api_key: str | None = None,
        *,
        timeout_s: float | None = 60.0,
        retries: int = 3,
        transport: Any = None,
        sleep: Callable[[float], None] = time.sleep,
        **session: Any,
    ) -> None:
        wire, self._transport = connect(url, api_key, transport, is_async=False)
        self._session = Session(wire, timeout_s, retries, **session)
        self._sleep = sleep

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections; further calls raise Conflict."""
        self._session.close()
        self._transport.close()

    def predict(
        self,
        model: str,
        x: Any,
        *,
        version: str | int = "",
        method: str = "",
        timeout_s: float | None = None,
    ) -> Any:
        """The model's answer for `x`: an array, or a dict of arrays if it has several outputs.

        `x` is an array or nested lists, a dict of them by input name, or a DataFrame or dict by
        column; numbers are converted to the type that the model takes. One row without its batch
        dimension gives one answer without it. Text comes back as text, JSON as what it says.
        """
        return self._run(self._session.predict(model, x, version, method, timeout_s))

    def infer(
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
        """Outputs by name, all or those asked for, with `model_version` and `parameters`.

        BYTES are arrays of bytes, BF16 comes back as float32.
        """
        return self._run(
            self._session.infer(
                model, inputs, outputs, version, method, parameters or {}, timeout_s
            )
        )

    def stream(
        self, model: str, value: Any, *, method: str = "", timeout_s: float | None = None
    ) -> Generator[Any, None, None]:
        """What a streaming method gives, item by item, as plain Python values.

        `value` is its only input, or a dict of inputs. Closing the iterator ends the call.
        """
        return self._items(self._session.stream(model, value, method, timeout_s))

    def answers(
        self,
        model: str,
        value: Any,
        *,
        method: str = "",
        content_type: str = "",
        timeout_s: float | None = None,
    ) -> Generator[dict[str, Any], None, None]:
        """Answers as the plain door gives them: prediction, label, probabilities, model_version.

        One, or one per item of a stream; over HTTP only. With a content type `value` is a file's
        bytes.
        """
        return self._items(self._session.answers(model, value, method, content_type, timeout_s))

    def is_ready(self, model: str = "") -> bool:
        """Whether the server, or a model, is there and ready. Never raises, never tries again."""
        return self._run(self._session.is_ready(model))

    def models(self) -> list[ModelState]:
        """Every version that the server knows, also those that could not be loaded."""
        return self._run(self._session.models())

    def metadata(self, model: str, version: str | int = "") -> dict[str, Any]:
        """Names, types and shapes of a model's inputs and outputs."""
        return self._run(self._session.metadata(model, version))

    def statistics(self, model: str = "") -> list[dict[str, Any]]:
        """Counters of each version (statistics extension; times in nanoseconds)."""
        return self._run(self._session.statistics(model))

    def state(self) -> dict[str, Any]:
        """What the server's page shows: rates, latencies and methods of every model."""
        return self._run(self._session.state())

    def load(self, model: str) -> None:
        """Loads or reloads a model, on a server started with `--mode explicit`."""
        self._run(self._session.change(model, "load"))

    def unload(self, model: str) -> None:
        """Takes a model out of service, on a server started with `--mode explicit`."""
        self._run(self._session.change(model, "unload"))

    def _items(self, flow: Flow[Items]) -> Generator[Any, None, None]:
        items = self._run(flow)
        for piece in self._transport.pieces(items.reply):
            yield items.read(piece)

    def _run(self, flow: Flow[T]) -> T:
        """Does what a flow asks for until it ends."""
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    self._sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = self._transport.send(step)
                except SalverError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result
