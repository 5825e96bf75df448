"""Typed inputs and outputs of a model's methods, and the check of a request against them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec.structs import replace

from salver.errors import InvalidInput, NotFound, did_you_mean
from salver.types import DType, Tensor, Tensors, len_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Content = Literal["tensor", "text", "bytes", "image", "json"]
Role = Literal["", "label", "probabilities"]
Batching = Literal["rows", "items", "single"]

ANY: Final = -1


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output. A dimension of -1 takes any length.

    `content` says what BYTES hold; `on_request` outputs are computed only when asked for;
    `role` marks a classifier's outputs; `labels` are its class names, in order. `example` is a
    value of the form that an input of `json` must have.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    content: Content = "tensor"
    role: Role = ""
    on_request: bool = False
    optional: bool = False
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    example: Any = None

    def check(self, tensor: Tensor) -> None:
        """Raises: InvalidInput with the field, what was expected and what came."""
        if tensor.dtype is not self.dtype:
            raise InvalidInput(
                f"input {self.name!r}: expected datatype {self.dtype.name}, got {tensor.dtype.name}"
            )
        expected, got = self.shape, tensor.shape
        # Clients write a single value as one element as often as without any dimension.
        if expected == got or (not expected and got == (1,)):
            return
        if not expected:
            raise InvalidInput(
                f"input {self.name!r}: expected one value, got shape {list(got)}; send one request "
                "for each value"
            )
        if len(expected) != len(got):
            raise InvalidInput(
                f"input {self.name!r}: expected {len(expected)} dimensions {list(expected)}, "
                f"got {len(got)}: {list(got)}"
            )
        # Most often only the number of rows is free, which two comparisons tell.
        if expected[0] == ANY and expected[1:] == got[1:]:
            return
        if any(want not in (ANY, have) for want, have in zip(expected, got, strict=True)):
            raise InvalidInput(
                f"input {self.name!r}: expected shape {list(expected)}, got {list(got)}"
            )


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """What one method takes and gives.

    `rows`: dimension 0 of every input and output counts rows, and rows of several calls may share
    a run. `items`: each call is one item. `single`: each call runs alone.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: Batching = "single"
    streams: bool = False
    max_rows: int = 0
    doc: str = ""

    def default_outputs(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.outputs if not spec.on_request)

    def output(self, role: Role) -> TensorSpec | None:
        """The output with that role, if there is one."""
        return next((spec for spec in self.outputs if spec.role == role), None)

    def check(self, tensors: Tensors) -> int:
        """Checks names, types and shapes; returns the number of rows (1 unless batched by rows).

        Raises: InvalidInput.
        """
        inputs = self.inputs
        if len(tensors) == len(inputs) == 1:
            spec = inputs[0]
            tensor = tensors.get(spec.name)
            if tensor is None:
                self._check_names(tensors)
            else:
                spec.check(tensor)
                if self.batching != "rows":
                    return 1
                rows = tensor.shape[0]
                return self.check_rows(rows) if self.max_rows else rows
        self._check_names(tensors)
        rows = -1
        for spec in inputs:
            tensor = tensors.get(spec.name)
            if tensor is None:
                continue
            spec.check(tensor)
            if self.batching == "rows":
                if rows not in (-1, tensor.shape[0]):
                    raise InvalidInput(
                        f"input {spec.name!r}: has {tensor.shape[0]} rows, the inputs before it "
                        f"have {rows}"
                    )
                rows = tensor.shape[0]
        return self.check_rows(rows) if rows >= 0 else 1

    @property
    def has_fixed_rows(self) -> bool:
        """Every row is of one size, so that the number of rows tells what a run costs."""
        return self.batching == "rows" and all(
            ANY not in spec.shape[1:] and not spec.optional for spec in self.inputs
        )

    def size(self, tensors: Tensors) -> int:
        """What a run on these inputs costs, in rows, or in elements where rows vary in size."""
        if self.has_fixed_rows:
            return next(iter(tensors.values())).shape[0]
        return sum(len_of(tensor.shape) for tensor in tensors.values())

    def check_rows(self, rows: int) -> int:
        """Returns `rows`. Raises: InvalidInput if they are too many for one request."""
        if self.max_rows and rows > self.max_rows:
            raise InvalidInput(
                f"{rows} rows in one request; this model takes at most {self.max_rows}: "
                "send them in several"
            )
        return rows

    def _check_names(self, tensors: Tensors) -> None:
        known = [spec.name for spec in self.inputs]
        for name in tensors:
            if name not in known:
                raise unexpected_input(name, known)
        for spec in self.inputs:
            if spec.name not in tensors and not spec.optional:
                raise InvalidInput(
                    f"missing input {spec.name!r}: expected {', '.join(known)}, "
                    f"got {', '.join(tensors) or 'none'}"
                )

    def check_outputs(self, names: Sequence[str]) -> None:
        """Raises: InvalidInput for an output that this method does not give, or named twice."""
        known = [spec.name for spec in self.outputs]
        for name in names:
            if name not in known:
                raise InvalidInput(
                    f"unexpected output {name!r}.{did_you_mean(name, known)} "
                    f"There are: {', '.join(known)}"
                )
        if len(set(names)) != len(names):
            raise InvalidInput(f"an output is named twice: {', '.join(names)}")


class Signature(msgspec.Struct, frozen=True):
    """A model's methods. The first one is used when a request names none."""

    methods: dict[str, Method]

    @property
    def default(self) -> str:
        return next(iter(self.methods))

    def method(self, name: str) -> tuple[str, Method]:
        """The method of that name, or the default one for an empty name.

        Raises: NotFound naming those that exist.
        """
        name = name or self.default
        found = self.methods.get(name)
        if found is None:
            raise NotFound(
                f"no method {name!r}.{did_you_mean(name, self.methods)} "
                f"There are: {', '.join(self.methods)}"
            )
        return name, found


def unexpected_input(name: object, known: Iterable[str]) -> InvalidInput:
    """The error of an input that a method does not know."""
    known = list(known)
    return InvalidInput(
        f"unexpected input {name!r}.{did_you_mean(str(name), known)} Expected: {', '.join(known)}"
    )


def one_row(method: Method) -> Method:
    """`method` by rows, one in each run, where every tensor is fixed to one row, as exporters
    write it that are not told of a batch dimension; any other method as it is.
    """
    specs = (*method.inputs, *method.outputs)
    if not method.inputs or any(spec.shape[:1] != (1,) for spec in specs):
        return method
    return replace(method, batching="rows", max_rows=1)


def num_bytes(spec: TensorSpec, rows: int) -> int:
    """Bytes that `rows` rows of `spec` take, variable dimensions counted once."""
    return rows * len_of(max(dim, 1) for dim in spec.shape[1:]) * max(spec.dtype.itemsize, 1)
