"""The classification extension of the Open Inference Protocol: the best classes as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from salver.errors import InvalidInput, TooLarge
from salver.types import BF16, BOOL, BYTES, FP16, Packed, Tensor, pack_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ELEMENTS: Final = 1_000_000
_UNSUITABLE: Final = (BOOL, BYTES, FP16, BF16)


def classify(name: str, tensor: Tensor, num_classes: int, labels: Sequence[str] = ()) -> Tensor:
    """The `num_classes` largest values as BYTES `value:index[:label]`, largest first.

    Shape [d0, d1, ...] gives [d0, k], shape [d] gives [k]; all but dimension 0 count as classes.

    Raises: InvalidInput for a datatype without classes, TooLarge.
    """
    if tensor.dtype in _UNSUITABLE:
        raise InvalidInput(
            f"output {name!r}: classification is not available for {tensor.dtype.name}"
        )
    values = tensor.array(name)
    if values.size > MAX_ELEMENTS:
        raise TooLarge(
            f"output {name!r}: classification takes at most {MAX_ELEMENTS} elements, "
            f"got {values.size}"
        )
    lead = tensor.shape[:1] if len(tensor.shape) > 1 else ()
    rows = values.reshape(*lead, -1) if values.size else values.reshape(*lead, 0)
    best = np.flip(np.argsort(np.flip(rows, -1), axis=-1, kind="stable"), -1)[..., :num_classes]
    best = rows.shape[-1] - 1 - best
    spell = "{:.6f}" if tensor.dtype.is_float else "{}"
    texts = [
        f"{spell.format(value)}:{index}" + (f":{labels[index]}" if index < len(labels) else "")
        for value, index in zip(
            np.take_along_axis(rows, best, -1).ravel().tolist(), best.ravel().tolist(), strict=True
        )
    ]
    return Tensor(BYTES, best.shape, Packed(pack_bytes(texts)))
