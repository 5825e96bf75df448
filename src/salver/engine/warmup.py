"""Runs a model before it becomes visible: first-run costs are paid, later ones measured."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from salver.codecs.bind import bind
from salver.engine.gather import check_outputs, check_results
from salver.errors import LoadFailed, SalverError
from salver.places import text_of, told
from salver.types import BYTES, ModelRef, Object, Rows, Tensor, Tensors, Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from salver.config import ModelConfig
    from salver.interfaces import Results
    from salver.signature import Method, Signature

    Run = Callable[[Work], Awaitable[tuple[Results | Exception, int]]]

log = logging.getLogger("salver.engine")


class Cost(NamedTuple):
    """What one run of a method took, and the size of its input as the cost model counts it."""

    method: str
    size: int
    ns: int


async def warm_up(run: Run, signature: Signature, config: ModelConfig, ref: ModelRef) -> list[Cost]:
    """Runs every method `config.warmup.runs` times on one input and tells the best times.

    Raises: LoadFailed if the default method fails on the configured example. Made-up
    inputs prove nothing, so a method that fails on them is only left unmeasured.
    """
    costs = []
    for name, method in signature.methods.items():
        has_example = name == signature.default and config.example is not None
        inputs = example(method, config) if has_example else made_up(method)
        if inputs is None or method.streams:
            continue
        best = 0
        for _ in range(config.warmup.runs):
            work = work_of(name, method, inputs)
            work.is_trial = not has_example
            results, ns = await run(work)
            if (error := error_in(results, work)) is not None:
                if has_example:
                    raise LoadFailed(
                        f"the model fails on its own example: {text_of(error)}"
                    ) from error
                log.info(
                    "%s: %s does not take the made-up input of the warm-up (%s). That is "
                    "harmless; an `example` in model.yaml warms it up",
                    ref,
                    name,
                    told(error),
                )
                best = 0
                break
            best = min(best, ns) if best else ns
        if best:
            costs.append(Cost(name, method.size(inputs), best))
    return costs


def error_in(results: Results | Exception, work: Work) -> Exception | None:
    """What is wrong with a run of one call, if anything is."""
    if isinstance(results, Exception):
        return results
    try:
        check_results(results, work)
        if isinstance(results, Rows):
            return None
        (result,) = results
        if not isinstance(result, Exception):
            check_outputs(result or Tensors(), work.outputs)
            return None
        return result
    except Exception as error:
        return error


def example(method: Method, config: ModelConfig) -> Tensors:
    """The configured example as the method's inputs.

    Raises: LoadFailed if it does not fit the signature.
    """
    try:
        inputs = bind(method, Object("row", config.example))
        method.check(inputs)
    except SalverError as error:
        raise LoadFailed(f"the example does not fit: {error.message}") from None
    return inputs


def made_up(method: Method) -> Tensors | None:
    """Zeros of the smallest size; None for contents that zeros cannot stand for."""
    inputs = Tensors()
    for spec in method.inputs:
        if spec.content in ("image", "json", "bytes"):
            return None
        shape = tuple(max(dim, 1) for dim in spec.shape)
        data = np.zeros(shape, spec.dtype.numpy)
        if spec.dtype is BYTES:
            data[...] = b"a"
        inputs[spec.name] = Tensor(spec.dtype, shape, data)
    return inputs


def work_of(name: str, method: Method, inputs: Tensors, outputs: tuple[str, ...] = ()) -> Work:
    """A run of one call, for the default outputs unless some are named."""
    arrays = {key: tensor.array(key) for key, tensor in inputs.items()}
    rows = next(iter(inputs.values())).shape[0] if method.batching == "rows" and inputs else 1
    if method.batching == "items":
        arrays = {key: [array] for key, array in arrays.items()}  # type: ignore[misc]
    return Work(
        method=name,
        inputs=arrays,
        offsets=[0, rows],
        outputs=outputs or method.default_outputs(),
        parameters=[{}],
    )
