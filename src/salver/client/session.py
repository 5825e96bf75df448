"""What a client does, as generators: they yield what to send or how long to wait, and are sent
the replies. Sockets and sleeping are the driver's, so that one text serves threads and loops.
"""

from __future__ import annotations

import random
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from salver.client.values import answer_of, input_tensors, named_inputs, plain
from salver.client.wire import Inference
from salver.clock import NS_PER_S, system_clock
from salver.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    LoadFailed,
    NotFound,
    SalverError,
    Undeliverable,
    Unsupported,
    did_you_mean,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from salver.client.wire import Items, ModelState, Question, Request, Result, Wire
    from salver.clock import Clock
    from salver.types import Parameter

T = TypeVar("T")

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 5.0


class Pause(NamedTuple):
    """Wait before going on."""

    seconds: float


if TYPE_CHECKING:
    Flow = Generator[Request | Pause, Any, T]


class Session:
    """What all calls of one client share. Safe to use from several threads.

    `uniform()` gives numbers between 0 and 1 for the jitter of pauses.
    """

    def __init__(
        self,
        wire: Wire,
        timeout_s: float | None,
        retries: int,
        clock: Clock = system_clock,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._wire = wire
        self._timeout_s = timeout_s
        self._retries = retries
        self._clock = clock
        self._uniform = uniform
        self._metadata: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._is_closed = False

    def close(self) -> None:
        """Refuses all further calls."""
        self._is_closed = True

    def ask(self, question: Question[T], timeout_s: float | None = None) -> Flow[T]:
        """Sends a request, again while that may help and there is time, and reads the reply.

        Raises: SalverError as the server meant it, or why there is no answer.
        """
        return self._until(self._deadline(timeout_s), question)

    def _deadline(self, timeout_s: float | None) -> int | None:
        """When a call that starts now must be over, by our clock; None for never."""
        limit = self._timeout_s if timeout_s is None else timeout_s
        return None if limit is None else self._clock() + int(limit * NS_PER_S)

    def _until(self, deadline: int | None, question: Question[T]) -> Flow[T]:
        for attempt in count():
            if self._is_closed:
                raise Conflict("this client is closed: make another one")
            left_s = self._left_s(deadline)
            if left_s == 0:
                raise DeadlineExceeded("the call's time was over before it was sent")
            try:
                reply = yield question.request.within(left_s)
                return question.read(reply)
            except SalverError as failure:
                error = failure
            pause = self._pause(attempt, error)
            left_s = self._left_s(deadline)
            is_over = left_s is not None and left_s <= pause
            if attempt >= self._retries or is_over or not _may_repeat(question.request, error):
                raise error
            yield Pause(pause)
        raise AssertionError

    def _left_s(self, deadline: int | None) -> float | None:
        return None if deadline is None else max(deadline - self._clock(), 0) / NS_PER_S

    def _pause(self, attempt: int, error: SalverError) -> float:
        """Doubles with each attempt, spread so that clients do not come back all at once."""
        pause = min(FIRST_PAUSE_S * 2.0**attempt, LONGEST_PAUSE_S) * (0.5 + self._uniform() / 2)
        return max(pause, (error.retry_after_ms or 0) / 1000)

    def is_ready(self, name: str) -> Flow[bool]:
        """Whether the server (or one model) answers and is ready. Asks once."""
        if self._is_closed:
            return False
        question = self._wire.ready(name)
        try:
            reply = yield question.request.within(self._timeout_s)
        except SalverError:
            return False
        return question.read(reply)

    def models(self) -> Flow[list[ModelState]]:
        """Every version of every model."""
        return self.ask(self._wire.models())

    def metadata(self, name: str, version: str | int) -> Flow[dict[str, Any]]:
        """Inputs and outputs of a model."""
        self._forget(name)
        return self.ask(self._wire.metadata(name, str(version)))

    def _described(
        self, deadline: int | None, name: str, version: str, method: str
    ) -> Flow[dict[str, Any]]:
        """What a method of a model, or its default one, takes and gives: asked for once.

        Raises: NotFound for a method that the model does not have.
        """
        found = self._metadata.get((name, version, method))
        if found is None:
            try:
                methods = yield from self._until(deadline, self._wire.methods(name, version))
            except Unsupported:
                methods = {}
            if methods or method:
                found = _chosen(methods, method, name)
            else:
                found = yield from self._until(deadline, self._wire.metadata(name, version))
            self._metadata[name, version, method] = found = {**found, "name": name}
        return found

    def statistics(self, name: str) -> Flow[list[dict[str, Any]]]:
        """Counters of each version."""
        return self.ask(self._wire.statistics(name))

    def state(self) -> Flow[dict[str, Any]]:
        """What the server's page shows."""
        return self.ask(self._wire.state())

    def change(self, name: str, what: str) -> Flow[None]:
        """Loads or unloads a model."""
        self._forget(name)
        try:
            yield from self.ask(self._wire.change(name, what))
        except (InvalidInput, Unsupported) as error:
            # The codes for what a request can do wrong, too; here it holds nothing but a name.
            raise LoadFailed(error.message) from None

    def infer(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        version: str | int,
        method: str,
        parameters: Mapping[str, Parameter],
        timeout_s: float | None,
    ) -> Flow[Result]:
        """Runs a model on named inputs."""
        inference = Inference(name, str(version), method, outputs, parameters)
        return self._infer(self._deadline(timeout_s), inputs, inference, self._wire.infer)

    def _infer(
        self,
        deadline: int | None,
        inputs: Mapping[str, Any],
        inference: Inference,
        question: Callable[[Inference], Question[T]],
    ) -> Flow[T]:
        """Sends the inputs as the tensors that the model takes."""
        name = inference.name
        metadata = yield from self._described(deadline, name, inference.version, inference.method)
        try:
            asked = inference._replace(tensors=input_tensors(inputs, metadata))
            return (yield from self._until(deadline, question(asked)))
        except (InvalidInput, NotFound):
            # The model may have been replaced by one that takes other inputs.
            self._forget(name)
            raise

    def predict(
        self, name: str, value: Any, version: str | int, method: str, timeout_s: float | None
    ) -> Flow[Any]:
        """Runs a model on what its only input, or a dict of inputs, says."""
        deadline, version = self._deadline(timeout_s), str(version)
        metadata = yield from self._described(deadline, name, version, method)
        named, is_single = named_inputs(value, metadata)
        inference = Inference(name, version, method)
        result = yield from self._infer(deadline, named, inference, self._wire.infer)
        return answer_of(result, metadata, is_single)

    def answers(
        self, name: str, value: Any, method: str, content_type: str, timeout_s: float | None
    ) -> Flow[Items]:
        """The plain door's answers, which are still to be read."""
        return self.ask(self._wire.open(name, method, value, content_type), timeout_s)

    def stream(self, name: str, value: Any, method: str, timeout_s: float | None) -> Flow[Items]:
        """What a streaming method gives, which is still to be read."""
        deadline = self._deadline(timeout_s)
        if self._wire.has_plain_door:
            items = yield from self._until(deadline, self._wire.open(name, method, value, ""))
            return items._replace(read=lambda piece: items.read(piece)["prediction"])
        metadata = yield from self._described(deadline, name, "", method)
        named, is_single = named_inputs(value, metadata)
        inference = Inference(name, method=method)
        items = yield from self._infer(deadline, named, inference, self._wire.stream)
        return items._replace(
            read=lambda piece: plain(answer_of(items.read(piece), metadata, is_single))
        )

    def _forget(self, name: str) -> None:
        for key in [key for key in list(self._metadata) if key[0] == name]:
            self._metadata.pop(key, None)


def _may_repeat(request: Request, error: SalverError) -> bool:
    if isinstance(error, Undeliverable):
        return request.is_safe
    return error.retryable


def _chosen(methods: Mapping[str, dict[str, Any]], method: str, name: str) -> dict[str, Any]:
    if method and method not in methods:
        raise NotFound(
            f"{name} has no method {method!r}.{did_you_mean(method, methods)} "
            f"There are: {', '.join(filter(None, methods)) or 'none'}"
        )
    return methods[method or next(iter(methods))]
