"""The signature of a PyTorch model: from an exported program, or by configuration and two runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from salver import types
from salver.errors import LoadFailed, SalverError
from salver.runtimes.files import refuse_unknown
from salver.signature import ANY, Method, TensorSpec
from salver.types import BF16, BYTES, Tensor, dtype_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from salver.config import ModelConfig, TensorOptions
    from salver.types import Array, DType

    Arrays = dict[str, Array]

DTYPES: Final = {
    f"torch.{dtype.numpy}": dtype for dtype in types.DTYPES.values() if dtype not in (BF16, BYTES)
} | {"torch.bfloat16": BF16}
"""By PyTorch's names, which are numpy's but for bfloat16."""
_LENGTHS: Final = (32, 64)


class Argument(NamedTuple):
    """One argument of `forward`."""

    name: str
    is_optional: bool


def named(outputs: Any, names: Sequence[str] = ()) -> dict[str, Any]:
    """What `forward` returned as named tensors: `names`, else keys or fields, else `output_0`...

    Raises: LoadFailed for something that is no tensor.
    """
    if isinstance(outputs, dict):
        found = {str(key): value for key, value in outputs.items() if value is not None}
    elif isinstance(outputs, tuple | list):
        fields = getattr(outputs, "_fields", [f"output_{n}" for n in range(len(outputs))])
        found = dict(zip(fields, outputs, strict=True))
    else:
        found = {"output": outputs}
    if names and not isinstance(outputs, dict):
        if len(names) != len(found):
            raise LoadFailed(f"the model gives {len(found)} outputs, `outputs:` names {len(names)}")
        found = dict(zip(names, found.values(), strict=True))
    _check_types(found, "output")
    return found


def _check_types(values: Mapping[str, Any], what: str) -> None:
    for name, value in values.items():
        found = getattr(value, "dtype", type(value).__name__)
        if str(found) not in DTYPES:
            raise LoadFailed(f"{what} {name!r} is {found}: only tensors of plain types are served")


def configured_inputs(arguments: Sequence[Argument], config: ModelConfig) -> tuple[TensorSpec, ...]:
    """The inputs that `inputs:` or `example:` describe, else an error with a snippet to paste."""
    optional = {argument.name for argument in arguments if argument.is_optional}
    if config.inputs:
        return tuple(_configured(option, option.name in optional) for option in config.inputs)
    if config.example is not None:
        return tuple(
            TensorSpec(name=name, dtype=_dtype(array), shape=(ANY, *array.shape[1:]))
            if array.ndim
            else TensorSpec(name=name, dtype=_dtype(array), shape=())
            for name, array in example_arrays(arguments, config).items()
        )
    required = [argument.name for argument in arguments if not argument.is_optional]
    lines = "\n".join(
        f"  - {{name: {name}, dtype: FP32, shape: [-1, 3, 224, 224]}}" for name in required
    )
    raise LoadFailed(
        f"the file does not tell type and shape of {', '.join(required) or 'the inputs'}. Say them "
        f"in model.yaml beside it, for example:\ninputs:\n{lines}"
    )


def _configured(option: TensorOptions, is_optional: bool) -> TensorSpec:
    dtype = dtype_of(option.dtype)
    if dtype is BYTES:
        raise LoadFailed(f"input {option.name!r}: PyTorch has no tensors of BYTES")
    return TensorSpec(name=option.name, dtype=dtype, shape=option.shape, optional=is_optional)


def _dtype(array: Array) -> DType:
    return Tensor.of(array).dtype


def example_arrays(arguments: Sequence[Argument], config: ModelConfig) -> Arrays:
    """`example:` as arrays: keys are arguments, else it is the value of the first one."""
    given = config.example
    if not isinstance(given, dict):
        given = {arguments[0].name if arguments else "input": given}
    found = {name: np.asarray(value) for name, value in given.items()}
    return {
        name: array.astype(np.float32) if array.dtype == np.float64 else array
        for name, array in found.items()
    }


def trial_inputs(
    inputs: Sequence[TensorSpec], arguments: Sequence[Argument], config: ModelConfig
) -> tuple[Arrays, Arrays]:
    """Two sets of inputs for trial runs; whatever may vary differs between them."""
    if not config.inputs:
        once = example_arrays(arguments, config)
        twice = {name: np.concatenate([a, a]) if a.ndim else a for name, a in once.items()}
        return once, twice
    return _zeros(inputs, 1, _LENGTHS[0]), _zeros(inputs, 2, _LENGTHS[1])


def _zeros(inputs: Sequence[TensorSpec], rows: int, length: int) -> Arrays:
    return {
        spec.name: np.zeros(
            [
                dim if dim != ANY else length if axis else rows
                for axis, dim in enumerate(spec.shape)
            ],
            spec.dtype.numpy,
        )
        for spec in inputs
        if not spec.optional
    }


def method_by_trial(
    call: Callable[[Arrays], Mapping[str, Any]],
    inputs: tuple[TensorSpec, ...],
    arguments: Sequence[Argument],
    config: ModelConfig,
) -> Method:
    """Learns the outputs from two runs: what changed is -1, and rows that follow are batchable.

    Raises: LoadFailed if the first run fails.
    """
    once, twice = trial_inputs(inputs, arguments, config)
    try:
        first = call(once)
    except SalverError as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in once.items())
        raise LoadFailed(
            f"a trial run with {shapes} failed: {error.message}. Correct `inputs:` in model.yaml, "
            "or give an `example:`"
        ) from None
    try:
        second = call(twice)
    except SalverError:
        second = {}
    outputs = tuple(_learned(name, value, second.get(name)) for name, value in first.items())
    follows = bool(second) and all(spec.shape[:1] == (ANY,) for spec in inputs)
    for name, value in first.items():
        follows = (
            follows and _rows(value) == _rows_of(once) and _rows(second[name]) == _rows_of(twice)
        )
    if not follows and not config.inputs:
        inputs = tuple(replace(spec, shape=once[spec.name].shape) for spec in inputs)
    return Method(inputs=inputs, outputs=outputs, batching="rows" if follows else "single")


def _rows(value: Any) -> int:
    return int(value.shape[0]) if value.ndim else ANY


def _rows_of(arrays: Arrays) -> int:
    return next((len(array) for array in arrays.values() if array.ndim), ANY)


def _learned(name: str, first: Any, second: Any) -> TensorSpec:
    shape = tuple(first.shape)
    if second is not None and second.ndim == len(shape):
        shape = tuple(a if a == b else ANY for a, b in zip(shape, second.shape, strict=True))
    return TensorSpec(name=name, dtype=DTYPES[str(first.dtype)], shape=shape)


def exported_method(program: Any, config: ModelConfig) -> Method:
    """The method of an exported program: all of it is written there.

    Raises: LoadFailed.
    """
    from torch.utils import _pytree

    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    wanted = program.graph_signature
    inputs = {str(name): values.get(str(name)) for name in wanted.user_inputs}
    found = [values.get(str(name)) for name in wanted.user_outputs]
    outputs = _pytree.tree_unflatten(found, program.call_spec.out_spec)
    outputs = named(outputs, [option.name for option in config.outputs])
    _check_types(inputs, "input")
    inputs = _renamed(inputs, [option.name for option in config.inputs])
    firsts = [
        value.shape[0] if value.ndim else 0 for value in (*inputs.values(), *outputs.values())
    ]
    symbols = {dim if isinstance(dim, int) else str(dim) for dim in firsts}
    is_rows = len(symbols) == 1 and not any(isinstance(dim, int) for dim in symbols)
    bounds = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
    limits = bounds.get(str(firsts[0])) if is_rows else None
    return Method(
        inputs=tuple(_exported(name, value) for name, value in inputs.items()),
        outputs=tuple(_exported(name, value) for name, value in outputs.items()),
        batching="rows" if is_rows else "single",
        max_rows=int(limits.upper) if limits is not None and limits.upper.is_Integer else 0,
    )


def _renamed(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Names from the configuration, by their order, where they are all new and as many."""
    if len(names) == len(values) and not any(name in values for name in names):
        return dict(zip(names, values.values(), strict=True))
    refuse_unknown(names, values, "input")
    return values


def _exported(name: str, value: Any) -> TensorSpec:
    return TensorSpec(
        name=name,
        dtype=DTYPES[str(value.dtype)],
        shape=tuple(dim if isinstance(dim, int) else ANY for dim in value.shape),
    )


def configured(method: Method, config: ModelConfig) -> Method:
    """`method` with the shapes of `outputs:` and the class names of `labels:`."""
    shapes = {option.name: option.shape for option in config.outputs}
    outputs = tuple(
        replace(
            spec,
            shape=shapes.get(spec.name, spec.shape),
            labels=config.labels if spec.shape[1:] == (len(config.labels),) else (),
        )
        for spec in method.outputs
    )
    return replace(method, outputs=outputs)
