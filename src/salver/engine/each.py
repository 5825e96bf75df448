"""Requests with more inputs than a call of their model may have: one call for each part of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec.structs import replace

from salver.codecs.bind import bind, is_list_of_inputs, num_inputs
from salver.codecs.long_array import LongArray, elements, plain
from salver.errors import InvalidInput, SalverError, Unsupported
from salver.types import Call, Object, Response, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from salver.interfaces import Sink
    from salver.signature import Method
    from salver.types import Request

    Payload = Tensors | Object
    Submit = Callable[[Request, Sink], Call]

_AT_ONCE: Final = 256
"""Calls that are submitted in one step and may wait together; each answer makes room for one."""


def parts_of(method: Method, payload: Any) -> Sequence[Payload]:
    """The inputs of a list or table as calls may have them, if it has more than one call may; else
    nothing.

    A method that counts rows takes at most `max_rows` of them, any other one input.
    """
    if not isinstance(payload, Object):
        return ()
    if payload.schema == "calls":
        calls: Sequence[Payload] = payload.value
        return calls
    most = _most_inputs(method)
    if not (most and is_list_of_inputs(method, payload) and num_inputs(payload) > most):
        return ()
    return _divided(method, payload, most)


def bound(method: Method, payload: Object) -> Payload:
    """What takes long of that and of `bind`, for a payload of any length.

    Raises: InvalidInput, UnsupportedMedia.
    """
    most = _most_inputs(method)
    if not (most and is_list_of_inputs(method, payload)):
        return bind(method, payload)
    if not _is_even(method, payload) and num_inputs(payload) <= most:
        return bind(method, payload)
    calls = _divided(method, payload, most)
    return calls[0] if len(calls) == 1 else Object("calls", calls)


def _most_inputs(method: Method) -> int:
    """0 for no limit."""
    return method.max_rows if method.batching == "rows" else 1


def _is_even(method: Method, payload: Object) -> bool:
    """Whether all rows are of one size."""
    return payload.schema == "columns" or method.has_fixed_rows


def _divided(method: Method, payload: Object, most: int) -> Sequence[Payload]:
    """Rows of one size are bound first, so that what is wrong is told by its place in all. Others
    are bound when their call is made, but for those that are long themselves.
    """
    if _is_even(method, payload):
        return _slices(bind(replace(method, max_rows=0), payload), most)
    if method.batching != "rows":
        return [_one(method, Object("row", value)) for value in elements(payload.value)]
    values = elements(payload.value) if most == 1 else plain(payload.value)
    starts = range(0, len(values), most)
    return [_one(method, Object("rows", values[start : start + most])) for start in starts]


def _one(method: Method, payload: Object) -> Payload:
    value = payload.value
    only = value[0] if payload.schema == "rows" else value
    return bind(method, payload) if isinstance(only, LongArray) else payload


def _slices(inputs: Tensors, most: int) -> list[Tensors]:
    num_rows = len(next(iter(inputs.values())).array())
    if num_rows <= most:
        return [inputs]
    return [_rows(inputs, start, start + most) for start in range(0, num_rows, most)]


def _rows(inputs: Tensors, start: int, stop: int) -> Tensors:
    found = Tensors()
    for name, tensor in inputs.items():
        array = tensor.array()[start:stop]
        found[name] = Tensor(tensor.dtype, array.shape, array)
    return found


class Each:
    """The target of a call that stands for several, its lease, and the sink of these. The first
    error ends them all.
    """

    def __init__(
        self, method: Method, parts: Sequence[Payload], submit: Submit, max_calls: int
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
            for _ in self._parts[:_AT_ONCE]:
                self._submit_next()
        except SalverError as error:
            call.ended = True
            self._cancel_all(error)
            raise

    def _submit_next(self) -> None:
        part = self._parts[len(self._calls)]
        self._calls.append(self._submit(replace(self._call.request, payload=part), self))

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
            if len(self._calls) < len(self._parts):
                self._go_on()
            elif len(self._answers) == len(self._calls):
                self._end(self._joined([self._answers[id(each)] for each in self._calls]))

    def _go_on(self) -> None:
        try:
            self._submit_next()
        except SalverError as error:
            self.cancel(self._call, error)

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
