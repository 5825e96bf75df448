from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from salver.engine import frames
from salver.engine.frames import Payload
from salver.types import Tensor


@pytest.mark.parametrize(
    ("num_texts", "sizes"), [(4096, []), (4097, [4096, 1]), (9000, [4096, 4096, 808])]
)
def test_no_step_packs_more_than_some_texts(num_texts: int, sizes: list[int]) -> None:
    texts = np.array([b"%d" % index for index in range(num_texts)], np.object_).reshape(1, -1)
    expected = bytes(Tensor.of(texts).to_bytes())
    payload = Payload()
    with mock.patch.object(frames, "pack_bytes", side_effect=frames.pack_bytes) as packed:
        part = payload.array(texts)
    assert [len(call.args[0]) for call in packed.call_args_list] == sizes
    assert (part.shape, part.size) == ((1, num_texts), len(expected))
    assert [(offset, bytes(data)) for offset, data in payload.buffers] == [(0, expected)]
