from __future__ import annotations

import ctypes

from salver.observe.memory import give_back, giving_back, resident_bytes

BLOCK_BYTES = 64 << 10
NUM_BLOCKS = 1024


def test_what_was_freed_inside_is_given_back() -> None:
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    give_back()  # or the blocks would fill what earlier tests left
    before = resident_bytes()
    with giving_back():
        blocks = [libc.malloc(BLOCK_BYTES) for _ in range(NUM_BLOCKS)]
        kept = libc.malloc(BLOCK_BYTES)
        for block in blocks:
            ctypes.memset(block, 1, BLOCK_BYTES)
            libc.free(block)
        full = resident_bytes()
        assert full - before > 0.8 * NUM_BLOCKS * BLOCK_BYTES
    assert full - resident_bytes() > 0.8 * NUM_BLOCKS * BLOCK_BYTES
    libc.free(kept)
