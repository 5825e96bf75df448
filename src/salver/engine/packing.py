"""Work and results as frames and back. Packing and unpacking stand side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salver.engine.frames import (
    Done,
    Fault,
    Payload,
    Run,
    array_of,
    error_of,
    fault_of,
    tensors_of,
)
from salver.errors import SalverError
from salver.types import Rows, Tensor, Tensors, Work, dtype_of

if TYPE_CHECKING:
    from salver.interfaces import Results
    from salver.types import Array


def pack_work(number: int, work: Work) -> tuple[Run, Payload]:
    payload = Payload()
    is_items = any(type(value) is list for value in work.inputs.values())
    run = Run(
        run=number,
        method=work.method,
        inputs={
            name: [payload.array(array) for array in (value if is_items else (value,))]
            for name, value in work.inputs.items()
        },
        is_items=is_items,
        offsets=work.offsets,
        outputs=work.outputs,
        parameters=[dict(parameters) for parameters in work.parameters],
        deadline=work.deadline,
        context=work.context,
        depth=work.depth,
    )
    return run, payload


def unpack_work(frame: Run, payload: Array) -> Work:
    """The work again; its arrays are read-only views of the payload."""
    inputs: dict[str, Any] = {}
    for name, parts in frame.inputs.items():
        arrays = [array_of(part, payload) for part in parts]
        inputs[name] = arrays if frame.is_items else arrays[0]
    return Work(
        method=frame.method,
        inputs=inputs,
        offsets=frame.offsets,
        outputs=frame.outputs,
        parameters=frame.parameters,
        deadline=frame.deadline,
        context=frame.context,
        depth=frame.depth,
    )


def pack_results(number: int, results: Results, cost_ns: int) -> tuple[Done, Payload]:
    """Raises: whatever a model's results do that are not what they should be."""
    payload = Payload()
    if isinstance(results, Rows):
        return Done(number, cost_ns, rows=payload.tensors(results.tensors)), payload
    items = [
        fault_of(result)
        if isinstance(result, SalverError)
        else payload.tensors(result or Tensors())
        for result in results
    ]
    return Done(number, cost_ns, items=items), payload


def unpack_results(frame: Done, payload: Array) -> Results | Exception:
    if frame.fault is not None:
        return error_of(frame.fault)
    if frame.rows is None:
        return [
            error_of(item) if isinstance(item, Fault) else tensors_of(item, payload)
            for item in frame.items or ()
        ]
    # As arrays, so that BYTES are unpacked once and not for each call that shares the rows.
    return Rows(
        Tensors(
            {
                name: Tensor(dtype_of(part.dtype), part.shape, array_of(part, payload))
                for name, part in frame.rows.items()
            }
        )
    )
