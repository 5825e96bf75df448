from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from salver.errors import SalverError
from salver.server.bodies import BufferPool, ChunkedBody


def test_a_buffer_is_used_again_when_nobody_looks_at_it():
    pool = BufferPool()
    first = pool.take(100_000)
    array = np.frombuffer(first, np.uint8)
    address = array.ctypes.data
    first.release()
    second = pool.take(100_000)
    assert np.frombuffer(second, np.uint8).ctypes.data != address
    del array
    third = pool.take(100_000)
    assert np.frombuffer(third, np.uint8).ctypes.data == address


def test_views_have_the_size_that_was_asked_for():
    pool = BufferPool()
    for size in (1, 100, 65_535, 65_536, 65_537, 1_000_003):
        view = pool.take(size)
        assert len(view) == size
        view[size - 1] = 7


def test_the_pool_is_bounded():
    pool = BufferPool(max_bytes=1 << 20)
    held = [pool.take(200_000) for _ in range(10)]
    assert pool._num_bytes <= 1 << 20
    del held
    assert len(pool.take(1_000_000)) == 1_000_000
    assert pool._num_bytes == 1 << 20


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=50), max_size=8),
    rest=st.binary(max_size=10),
    cuts=st.lists(st.integers(0, 500), max_size=8),
)
def test_chunks_in_any_pieces(chunks, rest, cuts):
    parts = [b'%X ;a="b"\r\n%b\r\n' % (len(chunk), chunk) for chunk in chunks]
    stream = b"".join([*parts, b"0\r\nA: b\r\n\r\n", rest])
    body = ChunkedBody(1000)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    left = None
    for start, end in pairwise(edges):
        piece = stream[start:end]
        left = left + piece if left is not None else body.feed(piece)
    assert body.body == b"".join(chunks)
    assert left == rest


@given(pieces=st.lists(st.binary(max_size=60), max_size=20))
def test_any_bytes_end_in_a_body_or_an_error(pieces):
    body = ChunkedBody(100)
    try:
        for piece in pieces:
            if body.feed(piece) is not None:
                break
    except SalverError:
        return
    assert len(body.body) <= 100
