"""Gathers the inputs of a batch into one piece of work."""

from __future__ import annotations

from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np

from salver.errors import ModelFailed
from salver.types import BYTES, Rows, Tensor, Work, numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.interfaces import Results
    from salver.signature import Method, TensorSpec
    from salver.types import Array, Call, Tensors


def gather(method: Method, calls: Sequence[Call]) -> Work:
    """One work for all calls: rows concatenated, items listed, or a single call as it is.

    Raises: InvalidInput for a value that does not fit its type.
    """
    first = calls[0]
    inputs: dict[str, Any] = {}
    is_alone = len(calls) == 1
    offsets = [0, first.rows] if is_alone else list(accumulate([c.rows for c in calls], initial=0))
    for spec in method.inputs:
        name = spec.name
        if name not in first.inputs:
            continue
        if method.batching == "items":
            inputs[name] = [call.inputs[name].array(name) for call in calls]
        elif is_alone:
            inputs[name] = first.inputs[name].array(name)
        else:
            inputs[name] = _concatenate(spec, [call.inputs[name] for call in calls], offsets[-1])
    if is_alone:
        outputs, deadline = first.outputs, first.context.deadline
    else:
        outputs, deadline = _outputs(calls), _last_deadline(calls)
    return Work(
        method=first.method,
        inputs=inputs,
        offsets=offsets,
        outputs=outputs,
        parameters=[call.request.parameters for call in calls],
        deadline=deadline,
        context=first.context,
        depth=first.depth,
    )


def _last_deadline(calls: Sequence[Call]) -> int:
    deadlines = [call.context.deadline for call in calls]
    return max(deadlines) if all(deadlines) else 0


def _outputs(calls: Sequence[Call]) -> tuple[str, ...]:
    wanted = [call.outputs for call in calls]
    if wanted.count(wanted[0]) == len(wanted):
        return wanted[0]
    return tuple(dict.fromkeys(chain.from_iterable(wanted)))


def _concatenate(spec: TensorSpec, tensors: list[Tensor], rows: int) -> Array:
    """Numbers that came as lists become one array in one step, arrays are joined."""
    data = [tensor.data for tensor in tensors]
    if spec.dtype is not BYTES and set(map(type, data)) == {list}:
        flat: list[Any] = list(chain.from_iterable(data))
        return numbers(spec.dtype, flat, spec.name).reshape(rows, *tensors[0].shape[1:])
    return np.concatenate([tensor.array(spec.name) for tensor in tensors])


def check_results(results: Results, work: Work) -> None:
    """Raises: ModelFailed when what a model gave cannot be divided among the calls."""
    if not isinstance(results, Rows):
        if len(results) != work.num_calls:
            raise ModelFailed(f"the model gave {len(results)} results for {work.num_calls} calls")
        return
    check_outputs(results.tensors, work.outputs)
    if work.num_calls == 1:
        return
    for name in work.outputs:
        shape = results.tensors[name].shape
        if not shape or shape[0] != work.rows:
            raise ModelFailed(
                f"output {name!r} has shape {list(shape)} for a batch of {work.rows} rows: "
                "this model cannot be batched; set batching.max_size to 1"
            )


def check_outputs(tensors: Tensors, names: Sequence[str]) -> None:
    """Raises: ModelFailed when an output is missing that a call asked for."""
    for name in names:
        if name not in tensors:
            raise ModelFailed(
                f"the model gave no output {name!r}, only {', '.join(tensors) or 'nothing'}"
            )
