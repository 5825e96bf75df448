"""Arrays of every data type, for hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salver.types import BF16, BYTES, DTYPES, bf16_floats

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
TEXT = st.binary(max_size=5).filter(lambda raw: not raw.endswith(b"\0"))


def arrays(dtype):
    if dtype is BYTES:
        return hnp.arrays(np.object_, SHAPES, elements=TEXT)
    if dtype is BF16:
        floats = hnp.arrays(np.uint16, SHAPES).map(bf16_floats)
        return floats.map(lambda array: np.where(np.isnan(array), np.float32(0), array))
    return hnp.arrays(dtype.numpy, SHAPES)


NAMED = st.sampled_from(sorted(DTYPES.values(), key=lambda dtype: dtype.name)).flatmap(
    lambda dtype: st.tuples(st.just(dtype), arrays(dtype))
)
