"""Work and results as frames and back. Packing and unpacking stand side by side."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from salver.engine.frames import (
    Done,
    Fault,
    HomeCall,
    Payload,
    Run,
    array_of,
    error_of,
    fault_of,
    tensors_of,
)
from salver.errors import SalverError, Unsupported
from salver.types import (
    BYTES,
    Loose,
    Request,
    Rows,
    Tensor,
    Tensors,
    Work,
    dtype_of,
    len_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from salver.interfaces import Results
    from salver.types import Array, CallContext, ModelRef


_MANY_TEXTS: Final = 4096
"""BYTES that are packed or unpacked in about a millisecond."""


def packs_long(work: Work) -> bool:
    """Whether `pack_work` takes long, because it has many BYTES to pack one by one."""
    lists = [value if type(value) is list else (value,) for value in work.inputs.values()]
    arrays: Iterable[Array] = chain.from_iterable(lists)
    return sum([array.size for array in arrays if array.dtype.hasobject]) > _MANY_TEXTS


def unpacks_long(frame: Done) -> bool:
    """Whether `unpack_results` takes long, for the same reason."""
    found = (frame.rows,) if frame.rows is not None else frame.items or ()
    parts = [item.values() for item in found if isinstance(item, dict)]
    sizes = [len_of(part.shape) for part in chain.from_iterable(parts) if part.dtype == BYTES.name]
    return sum(sizes) > _MANY_TEXTS


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


def pack_request(
    number: int,
    ref: ModelRef,
    request: Request,
    context: CallContext,
    depth: int,
    generation: int = 0,
) -> tuple[HomeCall, Payload]:
    """Raises: Unsupported for what is not tensors."""
    if not isinstance(request.payload, Tensors):
        raise Unsupported("a model in a process can send only tensors to another model")
    payload = Payload()
    call = HomeCall(
        id=number,
        ref=ref,
        tensors=payload.tensors(request.payload),
        is_loose=isinstance(request.payload, Loose),
        method=request.method,
        outputs=request.outputs,
        with_roles=request.with_roles,
        parameters=dict(request.parameters),
        request_id=request.id,
        context=context,
        depth=depth,
        generation=generation,
    )
    return call, payload


def unpack_request(frame: HomeCall, payload: Array) -> Request:
    tensors = tensors_of(frame.tensors, payload)
    return Request(
        payload=Loose(tensors) if frame.is_loose else tensors,
        method=frame.method,
        outputs=frame.outputs,
        with_roles=frame.with_roles,
        parameters=frame.parameters,
        id=frame.request_id,
    )
