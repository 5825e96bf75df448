from __future__ import annotations

import ctypes
import gc

import numpy as np

from salver.observe.memory import give_back, giving_back, reclaim_memory, resident_bytes

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


def test_what_was_frozen_at_the_start_is_given_back_too() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self
            self.data = np.ones(100 << 20, np.uint8)

    made = Cycle()
    full = resident_bytes()
    gc.freeze()
    try:
        del made
        reclaim_memory(full - 80_000_000)
        assert full - resident_bytes() > 80_000_000
    finally:
        gc.unfreeze()
