"""What the client's wire formats share: questions, results, and arrays as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from salver.codecs.json_request import tensor_of_bytes
from salver.codecs.values import narrowed
from salver.errors import InvalidInput, did_you_mean
from salver.types import BF16, BOOL, BYTES, Tensor, Tensors, bf16_bits, bf16_floats, dtype_of

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
        """Inputs and outputs of every method by name, the default one first."""
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


def input_tensors(inputs: Mapping[str, Any], metadata: Mapping[str, Any]) -> Tensors:
    """Inputs in the types that the model's metadata tell.

    Raises: InvalidInput for an input that the model does not know or that does not fit its type.
    """
    known = {spec["name"]: spec["datatype"] for spec in metadata["inputs"]}
    tensors = Tensors()
    for name, value in inputs.items():
        if name not in known:
            raise InvalidInput(
                f"unexpected input {name!r}.{did_you_mean(name, known)} "
                f"Expected: {', '.join(known)}"
            )
        tensors[name] = to_tensor(value, known[name], name)
    return tensors


def to_tensor(value: Any, datatype: str, name: str) -> Tensor:
    """What a caller gave as the tensor that the model takes.

    Numbers are converted when nothing is lost but precision: any number to a float, integers to
    integers that hold them.

    Raises: InvalidInput.
    """
    dtype = dtype_of(datatype)
    if dtype is BYTES:
        texts = np.array(value, np.object_)
        if not all(isinstance(item, str | bytes) for item in texts.ravel().tolist()):
            raise InvalidInput(f"input {name!r}: expected text or bytes, got {_kind(value)}")
        return Tensor(BYTES, texts.shape, texts)
    try:
        array = np.asarray(value)
    except ValueError:
        raise InvalidInput(f"input {name!r}: the rows differ in length") from None
    kind = array.dtype.kind
    if dtype.is_float and kind in "fiu":
        if dtype is BF16:
            return Tensor(BF16, array.shape, bf16_bits(array.astype(np.float32)))
        return Tensor(dtype, array.shape, array.astype(dtype.numpy, copy=False))
    if (dtype.is_integer and kind in "iu") or (dtype is BOOL and kind == "b"):
        return Tensor(dtype, array.shape, narrowed(array, dtype, name))
    raise InvalidInput(f"input {name!r}: expected {datatype}, got {_kind(value)}")


def _kind(value: Any) -> str:
    array = np.asarray(value)
    what = "text" if array.dtype.kind in "US" else str(array.dtype)
    return f"{what} of shape {list(array.shape)}"


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
