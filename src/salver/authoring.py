"""What a model's author writes: type hints, the decorator, and calls to other served models.

    import salver

    class Iris:
        def __init__(self): ...

        def predict(self, x: salver.Array["float32", "B", 4]) -> salver.Array["int64", "B"]: ...

The hints are the signature: "B" first means rows, `list[T]` means one item per call, anything else
means one call at a time. `runtimes/python.py` reads and runs it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeVar, overload

import msgspec
import numpy as np

from salver.clock import NS_PER_S
from salver.errors import InvalidInput, Unavailable
from salver.signature import ANY
from salver.types import (
    BF16,
    BYTES,
    DTYPES,
    NO_CONTEXT,
    CallContext,
    DType,
    Loose,
    ModelRef,
    Request,
    Tensor,
    bf16_floats,
    dtype_of_array,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from salver.interfaces import Caller
    from salver.signature import Content
    from salver.types import Parameter, Work

T = TypeVar("T")
ROWS: Final = "B"


class ArrayHint(msgspec.Struct, frozen=True):
    """What `Array[...]` stands for: `dims` has -1 for any length, also for rows."""

    dtype: DType
    dims: tuple[int, ...]
    is_rows: bool = False
    content: Content = "tensor"

    def __or__(self, other: None) -> ArrayHint:
        """`Array[...] | None`: what makes an input optional is its default, not its type."""
        return self


class Array:
    """A numpy array: `Array["float32", "B", 4]` has rows of four numbers each.

    First comes the dtype, as numpy or as the Open Inference Protocol names it; "str" and "bytes"
    are object arrays of such; "bfloat16" is float32 to the model. Then the dimensions: a length, or
    a word or None for any length. "B" as the first one counts rows, and rows of several calls are
    run together. For type checkers write `Annotated[np.ndarray, Array["float32", "B", 4]]`.
    """

    def __class_getitem__(cls, item: Any) -> ArrayHint:
        dtype, *dims = item if isinstance(item, tuple) else (item,)
        if ROWS in dims[1:]:
            raise TypeError(f'Array: "{ROWS}" counts rows and must be the first dimension')
        found, content = _dtype(dtype)
        return ArrayHint(found, tuple(map(_dim, dims)), dims[:1] == [ROWS], content)


def _dtype(name: Any) -> tuple[DType, Content]:
    if isinstance(name, str):
        if name == "bfloat16":
            return BF16, "tensor"
        if name in DTYPES:
            return DTYPES[name], "bytes" if name == "BYTES" else "tensor"
    try:
        if isinstance(name, str) and len(name) < 2:
            raise TypeError
        plain = np.dtype(name)
        found = dtype_of_array(np.empty(0, plain))
    except (TypeError, InvalidInput):
        raise TypeError(
            f'Array: {name!r} is no dtype; write it first, as in Array["float32", "{ROWS}", 4]'
        ) from None
    if found is BYTES:
        return BYTES, "text" if plain.kind == "U" else "bytes"
    return found, "tensor"


def _dim(dim: Any) -> int:
    if dim is None or isinstance(dim, str):
        return ANY
    if isinstance(dim, int) and dim >= ANY:
        return dim
    raise TypeError(f"Array: {dim!r} is no dimension; write a length, a word or None")


class Image:
    """A picture: the client sends a PNG, JPEG or other file, the model gets a `PIL.Image.Image`.

    It is decoded, upright and in RGB, so `np.asarray(x)` is [height, width, 3] uint8. A model may
    give back a PIL image or such an array, which clients receive as PNG.
    """


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """What `@salver.model(...)` says; `model.yaml` has the last word where both speak."""

    name: str = ""
    description: str = ""
    example: Any = None
    labels: tuple[str, ...] = ()
    max_batch: Annotated[int, msgspec.Meta(ge=0)] = 0
    idempotent: bool = False
    thread_safe: bool = False
    device: str = ""


@overload
def model(target: T, /) -> T: ...
@overload
def model(
    *,
    name: str = ...,
    description: str = ...,
    example: Any = ...,
    labels: Sequence[str] = ...,
    max_batch: int = ...,
    idempotent: bool = ...,
    thread_safe: bool = ...,
    device: str = ...,
) -> Callable[[T], T]: ...
def model(target: Any = None, /, *, labels: Sequence[str] = (), **options: Any) -> Any:
    """Marks a class or function as the model of its file and says what hints cannot.

    `labels` are class names in order; `max_batch` is the most rows or items in one run;
    `idempotent`: a call may be run again after a crash; `thread_safe`: several calls may run at
    once in threads; `device` (`cpu`, `cuda`, `cuda:1`) is given to an `__init__` that takes it.
    `name`, `description` and `example` are read without running the file, so write them out.
    """
    declaration = Declaration(labels=tuple(labels), **options)

    def mark(target: T) -> T:
        target.__salver__ = declaration  # type: ignore[attr-defined]
        return target

    return mark if target is None else mark(target)


class Scope(NamedTuple):
    """Where user code runs: how it reaches other models, and the work that it was called for."""

    caller: Caller | None
    work: Work | None = None


NO_SCOPE: Final = Scope(None)
CURRENT: Final[ContextVar[Scope]] = ContextVar("salver_scope", default=NO_SCOPE)


class Context:
    """The call that is being run; of a batch, its first call."""

    __slots__ = ("_work",)

    def __init__(self, work: Work) -> None:
        self._work = work

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The request's parameters."""
        return self._work.parameters[0]

    @property
    def all_parameters(self) -> Sequence[Mapping[str, Parameter]]:
        """The parameters of every call in the batch, in the order of their rows or items."""
        return self._work.parameters

    @property
    def remaining_s(self) -> float | None:
        """Seconds until nobody waits for the answer any more; None without a deadline."""
        deadline = self._work.deadline
        return (deadline - time.monotonic_ns()) / NS_PER_S if deadline else None


def context() -> Context:
    """The call that the running method was called for.

    Raises: Unavailable outside a call.
    """
    work = CURRENT.get().work
    if work is None:
        raise Unavailable("salver.context() has an answer only while a served method runs")
    return Context(work)


class Handle:
    """Another served model. Its calls inherit deadline, priority and depth of the running call."""

    def __init__(self, ref: ModelRef, caller: Caller) -> None:
        self._ref = ref
        self._caller = caller

    def __repr__(self) -> str:
        return f"salver.use({str(self._ref)!r})"

    def predict(self, *value: Any, **inputs: Any) -> Any:
        """Runs the model's default method and waits.

        Takes its only input as it is, or inputs by name. Returns the output as an array, or a dict
        of arrays if there are several.
        Raises: SalverError as a client of that model would see it.
        """
        return self.call(*value, inputs=inputs)

    def call(
        self,
        *value: Any,
        inputs: Mapping[str, Any] | None = None,
        method: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
    ) -> Any:
        """Like `predict`, for a chosen method and outputs and with parameters."""
        named = dict(inputs or {})
        if value:
            if len(value) > 1 or named:
                raise InvalidInput(f"{self!r}: several inputs must be given by name")
            named[""] = value[0]
        request = Request(
            payload=Loose({name: _tensor(item) for name, item in named.items()}),
            method=method,
            outputs=tuple(outputs),
            parameters=parameters or {},
        )
        found = self._caller(self._ref, request, *_inherited())
        arrays = {name: _array(tensor, name) for name, tensor in found.items()}
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _inherited() -> tuple[CallContext, int]:
    work = CURRENT.get().work
    if work is None:
        return NO_CONTEXT, 1
    context = work.context
    if context.deadline != work.deadline:
        context = msgspec.structs.replace(context, deadline=work.deadline)
    return context, work.depth + 1


def _tensor(value: Any) -> Tensor:
    if isinstance(value, dict):
        value = msgspec.json.encode(value)
    if isinstance(value, str | bytes):
        return Tensor(BYTES, (1,), [value])
    return Tensor.of(value)


def _array(tensor: Tensor, name: str) -> npt.NDArray[Any]:
    array = tensor.array(name)
    return bf16_floats(array) if tensor.dtype is BF16 else array


def use(name: str, version: str = "") -> Handle:
    """A handle to another model of the same server.

    Raises: Unavailable outside a server.
    """
    caller = CURRENT.get().caller
    if caller is None:
        raise Unavailable(
            f"salver.use({name!r}) works only in a model that Salver serves, "
            "while it is loaded or runs"
        )
    return Handle(ModelRef(name, version), caller)
