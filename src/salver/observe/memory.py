"""How much memory a process holds, giving it back, and how much of each graphics card is in use."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_LARGE_BYTES: Final = 16 << 20


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process (Linux, proc(5)); 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def give_back() -> None:
    """Returns to the system what the allocator keeps free (glibc, malloc_trim(3)). Blocking."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def giving_back() -> Iterator[None]:
    """Gives back what was only needed inside. A large file is often in memory twice for a while."""
    size_before = resident_bytes()
    yield
    if resident_bytes() - size_before > _LARGE_BYTES:
        give_back()


def reclaim_memory(goal_bytes: int) -> None:
    """Gives the memory of closed models back to the system, down to `goal_bytes` if possible.

    What was there when the server started is frozen, its cycles with it. To look through that takes
    ten times as long, so it is done only for what is otherwise not given back.
    """
    _collect()
    if resident_bytes() > goal_bytes:
        gc.unfreeze()
        _collect()
        gc.freeze()


def _collect() -> None:
    gc.collect()
    give_back()


class _Memory(ctypes.Structure):
    """`nvmlMemory_t` of NVIDIA's management library."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def device_bytes() -> dict[str, int]:
    """Memory in use by graphics card, as `cuda:0`; empty where there is none. Blocking."""
    library = nvml()
    if library is None:
        return {}
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return {}
    found = {}
    for index in range(count.value):
        device, memory = ctypes.c_void_p(), _Memory()
        failed = library.nvmlDeviceGetHandleByIndex_v2(
            index, ctypes.byref(device)
        ) or library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
        if not failed:
            found[f"cuda:{index}"] = memory.used
    return found


@cache
def nvml() -> Any:
    """NVIDIA's management library, initialised; None where there is no driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library
