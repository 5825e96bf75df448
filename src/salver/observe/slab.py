"""Counters that several processes share: each writes cells of its own, every one reads all."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from salver.observe.statistics import NUM_CELLS, Gauges, ModelStatistics

if TYPE_CHECKING:
    from collections.abc import MutableSequence

    import numpy.typing as npt

NUM_SLOTS: Final = 4096
"""Most generations that can be counted at once; pages are only taken by those that are used."""
_CELL_BYTES: Final = 8
_LAST_RUN: Final = NUM_CELLS
_GAUGES: Final = slice(_LAST_RUN + 1, _LAST_RUN + 1 + len(Gauges._fields))
_ROW_CELLS: Final = _GAUGES.stop


class Slab:
    """A shared memory file with a slot per generation and, in it, a row of cells per process.

    A generation's slot is its number modulo `NUM_SLOTS`; whoever numbers the generations sees to it
    that no two live ones meet. Writers never share a cell, and readers may be a count behind.
    """

    def __init__(self, fd: int, num_rows: int) -> None:
        row_bytes = _ROW_CELLS * _CELL_BYTES
        self._slot_bytes = -(-num_rows * row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._num_rows = num_rows
        if os.fstat(fd).st_size == 0:
            os.ftruncate(fd, NUM_SLOTS * self._slot_bytes)
        self._memory = mmap.mmap(fd, NUM_SLOTS * self._slot_bytes)

    def clear(self, generation: int) -> None:
        """Sets a generation's counters to nothing and gives their pages back."""
        start = generation % NUM_SLOTS * self._slot_bytes
        self._memory.madvise(mmap.MADV_REMOVE, start, self._slot_bytes)

    def statistics(self, generation: int, row: int) -> SharedStatistics:
        """A generation's counters, for the process that writes `row`."""
        rows = np.frombuffer(
            self._memory,
            np.int64,
            self._num_rows * _ROW_CELLS,
            generation % NUM_SLOTS * self._slot_bytes,
        )
        return SharedStatistics(rows.reshape(self._num_rows, _ROW_CELLS), row)


class SharedStatistics(ModelStatistics):
    """Counters of one generation in several processes; what is written stands in one `row`."""

    __slots__ = ("_row", "_rows")

    def __init__(self, rows: npt.NDArray[np.int64], row: int) -> None:
        self._rows = rows
        self._row = rows[row]
        self.cells = cast("MutableSequence[int]", memoryview(self._row))

    @property
    def last_run_ms(self) -> int:
        return self.cells[_LAST_RUN]

    @last_run_ms.setter
    def last_run_ms(self, value: int) -> None:
        self.cells[_LAST_RUN] = value

    @property
    def gauges(self) -> Gauges:
        return Gauges(*self._row[_GAUGES].tolist())

    @gauges.setter
    def gauges(self, value: Gauges) -> None:
        self._row[_GAUGES] = value

    def total(self) -> ModelStatistics:
        total = ModelStatistics(self._rows[:, :NUM_CELLS].sum(axis=0).tolist())
        total.last_run_ms = int(self._rows[:, _LAST_RUN].max())
        total.gauges = Gauges(*self._rows[:, _GAUGES].sum(axis=0).tolist())
        return total
