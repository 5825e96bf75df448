"""Files of rows: CSV, JSON lines, .npy and Parquet, read and written piece by piece."""

from __future__ import annotations

import csv
import io
import signal
import sys
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, Protocol

import numpy as np
import orjson

from salver.codecs.json_numbers import dumps
from salver.codecs.values import column_names, is_number
from salver.errors import ConfigError, InvalidInput, MissingExtra
from salver.types import Object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from salver.types import Array

    Row = Mapping[str, Any]

SUFFIXES: Final = (".csv", ".jsonl", ".ndjson", ".npy", ".parquet")
PIPE: Final = Path("-")
"""Standard input or output, in place of a file."""


class Chunk(NamedTuple):
    """Some rows of a file: what they say, and in which line (or row) each stands, from 1 on.

    `problems` are the lines that could not be read. `progress` is the part of the file that is
    read, 0 to 1.
    """

    payload: Object
    lines: Sequence[int]
    problems: Sequence[tuple[int, str]]
    progress: float

    def row(self, index: int) -> Object:
        """One row alone."""
        schema, value = self.payload.schema, self.payload.value
        if schema == "columns":
            value = {name: column[index : index + 1] for name, column in value.items()}
            return Object(schema, value)
        return Object(schema, value[index : index + 1])


class _Text(NamedTuple):
    """What is read line by line, and how much of it is: a part of 0 to 1."""

    file: BinaryIO
    name: str
    progress: Callable[[], float]


def read_chunks(path: Path, size: int) -> Iterator[Chunk]:
    """The rows of a file, `size` at a time; those of `PIPE` are CSV or JSON lines by their start.

    Raises: ConfigError for a format that is not read, InvalidInput for a file that is not of its
    format, MissingExtra.
    """
    if path == PIPE:
        standard_input: Any = sys.stdin.buffer
        file = io.BufferedReader(standard_input)
        read = _read_json_lines if file.peek(1)[:1] in (b"[", b"{") else _read_csv
        return read(_Text(file, "stdin", lambda: 0.0), size)
    suffix = known_suffix(path)
    if suffix in (".npy", ".parquet"):
        return (_read_npy if suffix == ".npy" else _read_parquet)(path, size)
    return _read_text(_read_csv if suffix == ".csv" else _read_json_lines, path, size)


def known_suffix(path: Path) -> str:
    """The suffix that tells the format; that of `PIPE` is CSV's. Raises: ConfigError."""
    suffix = path.suffix.lower() if path != PIPE else ".csv"
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path.name}: the format is told by the suffix: {', '.join(SUFFIXES)}")
    return suffix


def _read_text(
    read: Callable[[_Text, int], Iterator[Chunk]], path: Path, size: int
) -> Iterator[Chunk]:
    with path.open("rb") as file:
        num_bytes = path.stat().st_size
        yield from read(_Text(file, path.name, lambda: file.tell() / num_bytes), size)


def _read_csv(text: _Text, size: int) -> Iterator[Chunk]:
    with io.TextIOWrapper(text.file, "utf-8-sig", newline="") as decoded:
        lines = csv.reader(decoded)
        try:
            first = next((line for line in lines if line), None)
            if first is None:
                raise InvalidInput(f"{text.name}: the table is empty")
            names = _names(first, f"{text.name}:{lines.line_num}")
            start = [(lines.line_num, first)] if names is None else []
            rest = ((lines.line_num, line) for line in lines if line)
            while rows := start + list(islice(rest, size - len(start))):
                yield _csv_chunk(rows, names, len(first), text.progress())
                start = []
        except UnicodeDecodeError:
            raise InvalidInput(f"{text.name}: CSV must be UTF-8 text") from None
        except csv.Error as error:
            raise InvalidInput(f"{text.name}:{lines.line_num}: {error}") from None


def _names(first: Sequence[str], where: str) -> list[str] | None:
    """The columns' names; None where the first line is one of numbers."""
    try:
        return column_names(first)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error.message}") from None


def _csv_chunk(
    rows: Sequence[tuple[int, list[str]]], names: list[str] | None, width: int, progress: float
) -> Chunk:
    good, problems = [], []
    for number, line in rows:
        if len(line) != width:
            problems.append((number, f"has {len(line)} cells, the first line has {width}"))
        elif names is None and not all(not cell or is_number(cell) for cell in line):
            odd = next(cell for cell in line if cell and not is_number(cell))
            problems.append((number, f"{odd[:40]!r} is not a number"))
        else:
            good.append((number, line))
    lines = [number for number, _ in good]
    if names is None:
        table = [[float(cell) if cell else None for cell in line] for _, line in good]
        return Chunk(Object("rows", table), lines, problems, progress)
    columns = {name: [line[index] for _, line in good] for index, name in enumerate(names)}
    return Chunk(Object("columns", columns), lines, problems, progress)


def _read_json_lines(text: _Text, size: int) -> Iterator[Chunk]:
    numbered = ((number, line) for number, line in enumerate(text.file, 1) if line.strip())
    while rows := list(islice(numbered, size)):
        lines, values, problems = [], [], []
        for number, line in rows:
            try:
                values.append(orjson.loads(line))
                lines.append(number)
            except orjson.JSONDecodeError as error:
                problems.append((number, f"not valid JSON (column {error.colno}): {error.msg}"))
        yield Chunk(Object("rows", values), lines, problems, text.progress())


def _read_npy(path: Path, size: int) -> Iterator[Chunk]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InvalidInput(f"{path.name}: not an array of numbers: {error}") from None
    if not array.ndim:
        raise InvalidInput(f"{path.name}: expected an array with one row per input, got one number")
    for start in range(0, len(array), size):
        rows = np.asarray(array[start : start + size])
        numbers = range(start + 1, start + 1 + len(rows))
        yield Chunk(Object("rows", rows), numbers, (), (start + len(rows)) / len(array))


def _read_parquet(path: Path, size: int) -> Iterator[Chunk]:
    pyarrow = _pyarrow()
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise InvalidInput(f"{path.name}: not a Parquet file: {error}") from None
    done = 0
    for batch in file.iter_batches(batch_size=size):
        numbers = range(done + 1, done + 1 + batch.num_rows)
        done += batch.num_rows
        columns = batch.to_pydict()
        yield Chunk(Object("columns", columns), numbers, (), done / file.metadata.num_rows)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingExtra("Parquet files need `pip install 'salver[parquet]'`") from None
    return pyarrow


class Write(Protocol):
    """Writes some answers."""

    def __call__(self, answers: Iterable[Row]) -> None: ...


@contextmanager
def writer(path: Path) -> Iterator[Write]:
    """Writes answers in the format of the suffix, to `PIPE` as CSV. A file appears when it is
    complete.

    Raises: ConfigError, MissingExtra; InvalidInput for answers that the format cannot hold.
    """
    if path == PIPE:
        yield _CsvWriter(sys.stdout.buffer)
        sys.stdout.flush()
        return
    kind = _WRITERS[known_suffix(path)]
    part = path.with_name(f".{path.name}.part")
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        with _opened(part, path) as file, kind(file) as write:
            yield write
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, before)


def _opened(part: Path, path: Path) -> BinaryIO:
    try:
        return part.open("wb")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path} cannot be written: {reason}") from None


def _exit(number: int, _: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _csv_writer(file: BinaryIO) -> Iterator[Write]:
    yield _CsvWriter(file)


@contextmanager
def _json_lines_writer(file: BinaryIO) -> Iterator[Write]:
    yield lambda answers: file.writelines(dumps(row) + b"\n" for row in answers)


@contextmanager
def _npy_writer(file: BinaryIO) -> Iterator[Write]:
    array = _NpyWriter(file)
    yield array
    array.finish()


def flat(answer: Row) -> dict[str, Any]:
    """One answer as columns: `probability_<class>` each, lists numbered, deeper ones as JSON."""
    columns: dict[str, Any] = {}
    for key, value in answer.items():
        if isinstance(value, dict):
            prefix = "probability_" if key == "probabilities" else ""
            columns |= {f"{prefix}{name}": _cell(item) for name, item in value.items()}
        elif isinstance(value, list) and not any(isinstance(x, list | dict) for x in value):
            columns |= {f"{key}_{index}": item for index, item in enumerate(value)}
        else:
            columns[key] = _cell(value)
    return columns


def _cell(value: Any) -> Any:
    return dumps(value).decode() if isinstance(value, list | dict) else value


class _CsvWriter:
    """The first answer names the columns."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._names: list[str] = []

    def __call__(self, answers: Iterable[Row]) -> None:
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        for answer in answers:
            columns = flat(answer)
            if not self._names:
                self._names = list(columns)
                lines.writerow(self._names)
            if list(columns) != self._names:
                raise InvalidInput("the answers differ in length; write them to a .jsonl file")
            lines.writerow(columns.values())
        self._file.write(text.getvalue().encode())


class _NpyWriter:
    """Rows are appended; the header, which has the number of rows, is written again at the end.

    Format: numpy.lib.format, whose header leaves room for the first dimension to grow.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rows = 0
        self._like: Array | None = None

    def __call__(self, answers: Iterable[Row]) -> None:
        try:
            array = np.asarray([answer["prediction"] for answer in answers])
            # Numbers among which there are NaN and infinities, which JSON spells out.
            array = array.astype(np.float64) if array.dtype.kind == "U" else array
        except ValueError:
            array = np.empty(1, np.object_)
        if not len(array):
            return
        if array.dtype.kind not in "biuf":
            raise InvalidInput("an .npy file holds numbers of one shape; write to .csv or .jsonl")
        if self._like is None:
            self._like = array[:0]
            self._header()
        like = self._like
        if like.shape[1:] != array.shape[1:] or not np.can_cast(array.dtype, like.dtype):
            raise InvalidInput("the answers differ in shape or type; write them to a .jsonl file")
        self._file.write(array.astype(like.dtype, copy=False).tobytes())
        self._rows += len(array)

    def _header(self) -> None:
        like: Any = self._like
        header = {
            "descr": np.lib.format.dtype_to_descr(like.dtype),
            "fortran_order": False,
            "shape": (self._rows, *like.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def finish(self) -> None:
        if self._like is None:
            self._like = np.empty(0)
        self._file.seek(0)
        self._header()


@contextmanager
def _parquet_writer(file: BinaryIO) -> Iterator[Write]:
    pyarrow = _pyarrow()
    opened: list[Any] = []

    def write(answers: Iterable[Row]) -> None:
        rows = [flat(answer) for answer in answers]
        if not rows:
            return
        if not opened:
            table = pyarrow.Table.from_pylist(rows)
            opened.append(pyarrow.parquet.ParquetWriter(file, table.schema))
        opened[0].write_table(pyarrow.Table.from_pylist(rows, schema=opened[0].schema))

    try:
        yield write
    finally:
        for table in opened:
            table.close()


_WRITERS: Final[dict[str, Callable[[BinaryIO], AbstractContextManager[Write]]]] = {
    ".csv": _csv_writer,
    ".jsonl": _json_lines_writer,
    ".ndjson": _json_lines_writer,
    ".npy": _npy_writer,
    ".parquet": _parquet_writer,
}
