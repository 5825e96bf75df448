"""Requests with more inputs than a call of their model may have: one call for each part of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from salver.codecs.bind import is_list_of_inputs
from salver.codecs.long_array import plain
from salver.errors import InvalidInput, SalverError, Unsupported
from salver.types import Call, Object, Response, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from salver.interfaces import Sink
    from salver.signature import Method
    from salver.types import Request

    Submit = Callable[[Request, Sink], Call]


def parts_of(method: Method, payload: Any) -> Sequence[Object]:
    """The inputs of a list as calls may have them, if it has more than one call may; else nothing.

    A method that counts rows takes at most `max_rows` of them, any other one input.
    """
    by_rows = method.batching == "rows"
    size = method.max_rows if by_rows else 1
    if not (size and isinstance(payload, Object) and is_list_of_inputs(method, payload)):
        return ()
    values = payload.value = plain(payload.value)
    if len(values) <= size:
        return ()
    if by_rows:
        starts = range(0, len(values), size)
        return [Object("rows", values[start : start + size]) for start in starts]
    return [Object("row", value) for value in values]


class Each:
    """The target of a call that stands for several, its lease, and the sink of these. The first
    error ends them all.
    """

    def __init__(
        self, method: Method, parts: Sequence[Object], submit: Submit, max_calls: int
    ) -> None:
        self._method = method
        self._parts = parts
        self._submit = submit
        self._max_calls = max_calls
        self._call: Call
        self._calls: list[Call] = []
        self._answers: dict[int, Response] = {}

    @property
    def target(self) -> Each:
        return self

    def end(self) -> None:
        """Nothing to do: each of the calls has a lease of its own."""

    def submit(self, call: Call, now: int) -> None:
        """Raises: InvalidInput for more parts than may wait, SalverError if one is refused; then
        none is left.
        """
        if len(self._parts) > self._max_calls:
            raise InvalidInput(
                f"one request asks for {len(self._parts)} runs, but only {self._max_calls} calls "
                "may wait: send the inputs in several"
            )
        self._call = call
        try:
            for part in self._parts:
                self._calls.append(self._submit(replace(call.request, payload=part), self))
        except SalverError as error:
            call.ended = True
            self._cancel_all(error)
            raise

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        """Takes the answer of one of the calls."""
        if self._call.ended:
            return
        if isinstance(item, SalverError):
            self.cancel(self._call, item)
        elif not final:
            error = Unsupported("a method that streams takes one input per request")
            self.cancel(self._call, error)
        else:
            self._answers[id(call)] = item
            if len(self._answers) == len(self._calls):
                self._end(self._joined([self._answers[id(each)] for each in self._calls]))

    def cancel(self, call: Call, why: SalverError) -> None:
        if not call.ended:
            self._end(why)
            self._cancel_all(why)

    def pause(self, call: Call) -> None:
        """Nothing to do: these are no streams. Nor is there to resume."""

    def resume(self, call: Call) -> None:
        pass

    async def stop(self, grace_s: float) -> None:
        pass

    def _cancel_all(self, why: SalverError) -> None:
        for call in self._calls:
            call.lease.target.cancel(call, why)

    def _end(self, item: Response | SalverError) -> None:
        self._call.ended = True
        self._call.sink.push(self._call, item, True)

    def _joined(self, answers: Sequence[Response]) -> Response | SalverError:
        """All answers as one, with a row for each input."""
        first = answers[0]
        join: Any = np.concatenate if self._method.batching == "rows" else np.stack
        tensors = Tensors()
        for name in first.names:
            found = [answer.tensor(name) for answer in answers]
            try:
                array = join([tensor.array(name) for tensor in found])
            except ValueError:
                return Unsupported(
                    f"the answers differ in the shape of {name!r}; send the inputs singly"
                )
            tensors[name] = Tensor(found[0].dtype, array.shape, array)
        method = replace(self._method, batching="rows")
        return Response(Rows(tensors), first.ref, method, first.names)
