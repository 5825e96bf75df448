"""What a client does, as generators: they yield what to send or how long to wait, and are sent
the replies. Sockets and sleeping are the driver's, so that one text serves threads and loops.
"""

from __future__ import annotations

import random
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np
import orjson

from salver.client.wire import Inference, input_tensors
from salver.clock import NS_PER_S, system_clock
from salver.errors import (
    InvalidInput,
    LoadFailed,
    NotFound,
    SalverError,
    Undeliverable,
    Unsupported,
    did_you_mean,
)
from salver.types import len_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence, Set

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
            try:
                reply = yield question.request.within(self._left_s(deadline))
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
        question = self._wire.ready(name)
        try:
            reply = yield question.request.within(self._timeout_s)
        except SalverError:
            return False
        return question.read(reply)

    def models(self) -> Flow[list[ModelState]]:
        """Every version of every model."""
        return self.ask(self._wire.models())

    def metadata(self, name: str, version: str) -> Flow[dict[str, Any]]:
        """Inputs and outputs of a model."""
        self._forget(name)
        return self._described(self._deadline(None), name, version, "")

    def _described(
        self, deadline: int | None, name: str, version: str, method: str
    ) -> Flow[dict[str, Any]]:
        """What a model, or a method of it, takes and gives: asked for once.

        Raises: NotFound for a method that the model does not have.
        """
        found = self._metadata.get((name, version, method))
        if found is None:
            if method:
                methods = yield from self._until(deadline, self._wire.methods(name, version))
                found = {"name": name, **_chosen(methods, method, name)}
            else:
                found = yield from self._until(deadline, self._wire.metadata(name, version))
            self._metadata[name, version, method] = found
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
        version: str,
        method: str,
        parameters: Mapping[str, Parameter],
        timeout_s: float | None,
    ) -> Flow[Result]:
        """Runs a model on named inputs."""
        inference = Inference(name, version, method, outputs, parameters)
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
        self, name: str, value: Any, version: str, method: str, timeout_s: float | None
    ) -> Flow[Any]:
        """Runs a model on what its only input, or a dict of inputs, says."""
        deadline = self._deadline(timeout_s)
        metadata = yield from self._described(deadline, name, version, method)
        named, is_single = _named(value, metadata)
        inference = Inference(name, version, method)
        result = yield from self._infer(deadline, named, inference, self._wire.infer)
        place = 0 if is_single else ()
        return _bare({key: readable(array)[place] for key, array in result.items()})

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
        named, is_single = _named(value, metadata)
        inference = Inference(name, method=method)
        items = yield from self._infer(deadline, named, inference, self._wire.stream)
        texts = {spec["name"] for spec in metadata["outputs"] if spec.get("content") == "json"}
        return items._replace(read=lambda piece: _item(items.read(piece), texts, is_single))

    def _forget(self, name: str) -> None:
        for key in [key for key in list(self._metadata) if key[0] == name]:
            self._metadata.pop(key, None)


def _may_repeat(request: Request, error: SalverError) -> bool:
    if isinstance(error, Undeliverable):
        return request.is_safe
    return error.retryable


def _chosen(methods: Mapping[str, dict[str, Any]], method: str, name: str) -> dict[str, Any]:
    if method not in methods:
        raise NotFound(
            f"{name} has no method {method!r}.{did_you_mean(method, methods)} "
            f"There are: {', '.join(methods) or 'none'}"
        )
    return methods[method]


def _named(value: Any, metadata: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The inputs by name; a single row gets its batch dimension, which the flag tells."""
    if isinstance(value, dict):
        named = value
    elif hasattr(value, "columns") and len(metadata["inputs"]) > 1:  # a DataFrame
        named = {str(name): value[name].to_numpy() for name in value.columns}
    else:
        named = {_only_input(metadata): value}
    is_single = _is_single_row(named, metadata)
    if is_single:
        named = {key: _as_row(item) for key, item in named.items()}
    return named, is_single


def _item(result: Result, texts: Set[str], is_single: bool) -> Any:
    """One item of a stream as plain Python values; the outputs `texts` hold JSON."""
    values = {}
    for key, array in result.items():
        value = readable(array).tolist()
        value = value[0] if is_single else value
        values[key] = orjson.loads(value) if key in texts else value
    return _bare(values)


def _bare(answers: dict[str, Any]) -> Any:
    return next(iter(answers.values())) if len(answers) == 1 else answers


def _only_input(metadata: Mapping[str, Any]) -> str:
    names = [spec["name"] for spec in metadata["inputs"]]
    if len(names) != 1:
        raise InvalidInput(
            f"{metadata['name']} takes several inputs; give them by name: "
            f"{{{', '.join(f'{name!r}: ...' for name in names)}}}"
        )
    return str(names[0])


def _is_single_row(named: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Every input lacks exactly the dimension that counts rows."""
    shapes = {spec["name"]: spec["shape"] for spec in metadata["inputs"]}
    return (
        bool(named)
        and all(
            name in shapes and _counts_rows(shapes[name]) and _ndim(value) + 1 == len(shapes[name])
            for name, value in named.items()
        )
        and all(_counts_rows(spec["shape"]) for spec in metadata["outputs"])
    )


def _counts_rows(shape: list[int]) -> bool:
    """Any number of rows, or one: many models are exported for one row only."""
    return shape[:1] in ([-1], [1])


def _ndim(value: Any) -> int:
    try:
        return int(np.ndim(value))
    except ValueError:
        return -1


def _as_row(value: Any) -> Any:
    return [value] if isinstance(value, str | bytes) else np.asarray(value)[None]


def readable(array: Any) -> Any:
    """BYTES as text if all of them are text; everything else as it is."""
    if array.dtype != np.object_:
        return array
    try:
        texts = [item.decode() if isinstance(item, bytes) else item for item in array.ravel()]
    except UnicodeDecodeError:
        return array
    out = np.empty(len_of(array.shape), np.object_)
    out[:] = texts
    return out.reshape(array.shape)
