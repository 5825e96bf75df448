"""CSV as rows of numbers or columns of text, read some rows at a time.

Like `long_array.py`, because a whole table would keep the interpreter for long.
"""

from __future__ import annotations

import csv
import io
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

import numpy as np

from salver.codecs.values import cells, column_names
from salver.errors import InvalidInput
from salver.types import Object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from salver.types import Array, Buffer

    Rows = list[list[str]]

PART_CELLS: Final = 8192


def decode_csv(body: Buffer) -> Object:
    """Columns of text by name, in parts if there are many rows; or, without a line of names, an
    array of numbers.

    Raises: InvalidInput naming the line that differs in length, or the cell that is no number;
    so do the parts.
    """
    parts = _read(body)
    try:
        (head,) = next(parts)
    except StopIteration:
        raise InvalidInput("the table is empty") from None
    names = column_names(head)
    if names is None:
        return Object("rows", _numbers(chain([[head]], parts)))
    tables = (dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) for rows in parts)
    first, second = next(tables, None), next(tables, None)
    if first is None:
        raise InvalidInput("the table has column names, but no rows")
    return Object("columns", first if second is None else chain([first, second], tables))


def _read(body: Buffer) -> Iterator[Rows]:
    """The rows that are not empty: the first one alone, then some at a time.

    Raises: InvalidInput.
    """
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(body), "utf-8-sig", newline=""))
    width, num_rows = 0, 1
    try:
        while lines := list(islice(reader, num_rows)):
            rows = list(filter(None, lines))
            if not rows:
                continue
            if not width:
                width = len(rows[0])
                num_rows = max(1, PART_CELLS // width)
            elif set(map(len, rows)) != {width}:
                raise _uneven(body, width)
            yield rows
    except UnicodeDecodeError:
        raise InvalidInput("CSV must be UTF-8 text") from None
    except csv.Error as error:
        raise InvalidInput(f"line {reader.line_num} is not valid CSV: {error}") from None


def _uneven(body: Buffer, width: int) -> InvalidInput:
    """The refusal of a table that has a line of another width."""
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(body), "utf-8-sig", newline=""))
    got = next(len(row) for row in reader if len(row) not in (0, width))
    return InvalidInput(f"line {reader.line_num} has {got} cells, the first has {width}")


def _numbers(parts: Iterator[Rows]) -> Array:
    """Raises: InvalidInput naming column and row of a cell that is no number."""
    arrays: list[Array] = []
    num_rows = 0
    for rows in parts:
        try:
            flat = cells(list(chain.from_iterable(rows)), "")
        except InvalidInput:
            for index, column in enumerate(zip(*rows, strict=True), 1):
                cells(column, f"column {index}", num_rows)
            raise
        arrays.append(flat.reshape(len(rows), -1))
        num_rows += len(rows)
    return np.concatenate(arrays)
