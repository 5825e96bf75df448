"""What the client's wire formats share: questions and results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from salver.codecs.v2 import tensor_of_bytes
from salver.types import BF16, Tensor, bf16_floats, dtype_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from salver.types import Array, Parameter

T = TypeVar("T")


class Request(Protocol):
    """What a transport sends. A safe one may be sent again even if it may have arrived."""

    @property
    def is_safe(self) -> bool: ...

    def within(self, timeout_s: float | None) -> Request:
        """The same with a bound on the whole exchange; None for no bound."""
        ...


class Question(NamedTuple, Generic[T]):
    """A request, and what its reply means."""

    request: Request
    read: Callable[[Any], T]


class Inference(NamedTuple):
    """What to run: a model's method on tensors, for all outputs unless some are named."""

    name: str
    version: str = ""
    method: str = ""
    outputs: Sequence[str] = ()
    parameters: Mapping[str, Parameter] = {}
    tensors: Mapping[str, Tensor] = {}

    def all_parameters(self) -> dict[str, Parameter]:
        """The model's, and the protocol's that chooses the method."""
        return {**self.parameters, "method": self.method} if self.method else {**self.parameters}


class Items(NamedTuple):
    """A reply whose pieces are still to come, and what one of them means."""

    reply: Any
    read: Callable[[Any], Any]


class Result(dict[str, Any]):
    """Outputs by name, as arrays, and what the server says of the answer."""

    def __init__(
        self, outputs: Mapping[str, Array], version: str, parameters: Mapping[str, Any]
    ) -> None:
        super().__init__(outputs)
        self.model_version = version
        self.parameters = dict(parameters)


class ModelState(NamedTuple):
    """One version of a model on the server. `reason` says why it is not READY."""

    name: str
    version: str = ""
    state: str = "UNAVAILABLE"
    reason: str = ""


class Wire(Protocol):
    """A protocol as the client speaks it: every question that there is, as bytes."""

    has_plain_door: bool

    def ready(self, name: str) -> Question[bool]: ...

    def models(self) -> Question[list[ModelState]]: ...

    def metadata(self, name: str, version: str) -> Question[dict[str, Any]]: ...

    def methods(self, name: str, version: str) -> Question[dict[str, dict[str, Any]]]:
        """Inputs and outputs of every method by name, the default one first; none where servers
        do not tell of methods. Raises: Unsupported.
        """
        ...

    def statistics(self, name: str) -> Question[list[dict[str, Any]]]: ...

    def state(self) -> Question[dict[str, Any]]: ...

    def change(self, name: str, what: str) -> Question[None]:
        """`load` or `unload`; doing it twice leaves what doing it once does."""
        ...

    def infer(self, inference: Inference) -> Question[Result]: ...

    def open(self, name: str, method: str, value: Any, content_type: str) -> Question[Items]:
        """One input for the plain door, which finds out itself what it is; answers as dicts."""
        ...

    def stream(self, inference: Inference) -> Question[Items]:
        """The same by tensors, where there is no plain door; answers as results."""
        ...


def array_of(name: str, datatype: str, shape: Sequence[int], data: Any) -> Array:
    """An output as an array of its own, from bytes or a list of values; BF16 as float32.

    Raises: InvalidInput when its length does not fit.
    """
    dtype = dtype_of(datatype)
    if isinstance(data, list):
        tensor = Tensor(dtype, tuple(shape), data)
    else:
        tensor = tensor_of_bytes(dtype, tuple(shape), memoryview(data), name)
    array = tensor.array(name)
    return bf16_floats(array) if dtype is BF16 else array.copy()
