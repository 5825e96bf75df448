"""`salver predict`: a whole file of rows through a model, without a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from salver.codecs.bind import bind
from salver.codecs.values import spelled
from salver.errors import ConfigError, InvalidInput, ModelFailed, SalverError, Unsupported, listed
from salver.types import Object, Request, Response

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from salver.cli.local import Opened
    from salver.cli.tables import Chunk

Answer = dict[str, Any]
_ANSWERS: Final = ("line", "prediction", "label", "probabilities")
"""What a row of the output may hold besides copied columns."""


@click.command()
@click.argument("model", type=click.Path(exists=True))
@click.argument(
    "data", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option(
    "-o", "--output", default="-", type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write: .csv, .jsonl, .npy or .parquet; CSV to standard output if not given.",
)  # fmt: skip
@click.option("--method", default="", help="Method to run; the default one if not given.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1024, show_default=True,
    help="Rows in one run.",
)  # fmt: skip
@click.option(
    "--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
    help="What to do with a bad row. Skipping adds a column with each row's line.",
)  # fmt: skip
@click.option("--trust", is_flag=True, help="Run code from the model's files.")
@click.option("--class", "class_name", help="module:Class of weights or of a Python file.")
@click.option("--runtime", help="Runtime to load with, where the file does not tell.")
def predict(
    model: str,
    data: Path,
    output: Path,
    method: str,
    batch_size: int,
    on_error: str,
    trust: bool,
    **overrides: Any,
) -> None:
    """Predicts every row of DATA: .csv, .jsonl, .npy or .parquet, of any length.

    DATA may be -, for CSV or JSON lines from standard input. Columns of a table that the model
    does not know, such as an id, are copied to the output.

    \b
    salver predict iris.onnx rows.csv -o answers.csv
    cat rows.csv | salver predict iris.onnx - | head
    """
    from salver.cli.local import only_version, open_model
    from salver.cli.tables import PIPE, known_suffix, read_chunks, writer

    console = Console(stderr=True, highlight=False)
    if data != PIPE and output.exists() and output.samefile(data):
        raise ConfigError(f"{output} holds the rows themselves: name another file to write")
    known_suffix(data)
    version = only_version(model, overrides)
    skipped: list[str] = []
    num_rows = 0
    with writer(output) as write:
        opened = open_model(version, trust=trust, warn=lambda text: console.print(text))
        try:
            file = "stdin" if data == PIPE else data.name
            predictor = Predictor(opened, method, file, skipped, skip=on_error == "skip")
            chunks = read_chunks(data, min(batch_size, predictor.max_rows or batch_size))
            shown = console.is_terminal and output != PIPE
            for answers in _with_progress(console, chunks, predictor, shown=shown):
                write(answers)
                num_rows += len(answers)
        finally:
            opened.model.close()
    if predictor.copied:
        names = listed(predictor.copied)
        console.print(f"copied, as the model does not know them: {names}", markup=False)
    for line in skipped[:10]:
        console.print(f"skipped {line}", markup=False)
    left_out = f", {len(skipped)} skipped" if skipped else ""
    rows = "1 row" if num_rows == 1 else f"{num_rows} rows"
    where = "standard output" if output == PIPE else output
    console.print(f"{rows} written to {where}{left_out}", markup=False)


def _with_progress(
    console: Console, chunks: Iterator[Chunk], predictor: Predictor, *, shown: bool
) -> Iterator[list[Answer]]:
    columns = (TextColumn("{task.fields[rows]} rows"), BarColumn(), TaskProgressColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task("", total=1.0, rows=0)
        rows = 0
        for chunk in chunks:
            answers = predictor(chunk)
            rows += len(answers)
            yield answers
            progress.update(task, completed=chunk.progress, rows=rows)


class Predictor:
    """Turns chunks into answers. `skipped` gets a line for every bad row, if those are skipped;
    `copied` are the columns that answers have from their rows.
    """

    def __init__(
        self, opened: Opened, method: str, file: str, skipped: list[str], *, skip: bool
    ) -> None:
        self._opened = opened
        self._file = file
        self._skip = skip
        self._skipped = skipped
        self.copied: Sequence[str] = ()
        self._name, self._method = opened.signature.method(method)
        if self._method.streams:
            raise Unsupported(f"method {self._name!r} streams; choose one that answers at once")
        self._outputs = tuple(
            spec.name for spec in self._method.outputs if spec.role or not spec.on_request
        )

    @property
    def max_rows(self) -> int:
        """Most rows that the model takes at once; 0 for any number."""
        return self._method.max_rows

    def __call__(self, chunk: Chunk) -> list[Answer]:
        """The answers to all good rows, in order.

        Raises: InvalidInput with file and line for a bad row, unless those are skipped.
        """
        for line, problem in chunk.problems:
            self._bad(line, problem)
        chunk, copies = self._without_unknown(chunk)
        answers: Sequence[Answer | None] | None
        answers = self._all(chunk) if len(chunk.lines) > 1 else None
        if answers is None:
            answers = [self._one(chunk, index) for index in range(len(chunk.lines))]
        found = zip(chunk.lines, copies, answers, strict=True)
        return [
            {**({"line": line} if self._skip else {}), **copy, **answer}
            for line, copy, answer in found
            if answer is not None
        ]

    def _without_unknown(self, chunk: Chunk) -> tuple[Chunk, Iterable[Answer]]:
        """A table's columns that the model knows, and the others as rows. One that knows none of
        them goes by their places, or by a name of its own for them all.
        """
        none: list[Answer] = [{}] * len(chunk.lines)
        table = chunk.payload.value
        known = {name for spec in self._method.inputs for name in (spec.name, *spec.columns)}
        if chunk.payload.schema != "columns" or known.isdisjoint(spelled(table, known)):
            return chunk, none
        names = zip(table, spelled(table, known), strict=True)
        self.copied = [name for name, meant in names if meant not in known]
        if not self.copied:
            return chunk, none
        kept = {name: column for name, column in table.items() if name not in self.copied}
        titles = [f"input_{name}" if name in _ANSWERS else name for name in self.copied]
        rows = zip(*(table[name] for name in self.copied), strict=True)
        copies = [dict(zip(titles, row, strict=True)) for row in rows]
        return chunk._replace(payload=Object("columns", kept)), copies

    def _all(self, chunk: Chunk) -> list[Answer] | None:
        """All rows in one run; None if they must be run singly, or one of them is bad."""
        if self._method.batching != "rows":
            return None
        try:
            return self._run(chunk.payload)
        except SalverError:
            return None

    def _one(self, chunk: Chunk, index: int) -> Answer | None:
        line = chunk.lines[index]
        try:
            (answer,) = self._run(self._single(chunk.row(index)))
        except (InvalidInput, ModelFailed) as error:
            # The row is told by its line; its place in the chunk means nothing to anybody.
            self._bad(line, re.sub(r"(, row \d+|row \d+: )", "", error.message))
            return None
        return answer

    def _single(self, row: Object) -> Object:
        """A row for a method that takes one input per call; empty cells are left out of it."""
        if self._method.batching == "rows" or row.schema != "columns":
            return row
        texts = {s.name for s in self._method.inputs if s.content == "text" and not s.optional}
        cells = ((name, column[0]) for name, column in row.value.items())
        given = {name: cell for name, cell in cells if name in texts or cell not in ("", None)}
        return Object("row", {name: _value(cell) for name, cell in given.items()})

    def _bad(self, line: int, problem: str) -> None:
        if not self._skip:
            raise InvalidInput(f"{self._file}:{line}: {problem}")
        self._skipped.append(f"{self._file}:{line}: {problem}")

    def _run(self, payload: Object) -> list[Answer]:
        from salver.cli.local import run_once

        inputs = bind(self._method, payload)
        self._method.check(inputs)
        results = run_once(self._opened, self._name, inputs, self._outputs)
        response = Response(
            results, self._opened.version.ref, self._method, self._outputs, parameters={}
        )
        return answers_of(response, payload)


def _value(cell: Any) -> Any:
    """A cell of a table as JSON would have it: CSV knows text only."""
    try:
        return orjson.loads(cell) if isinstance(cell, str) else cell
    except orjson.JSONDecodeError:
        return cell


def answers_of(response: Response, payload: Object) -> list[Answer]:
    """One answer per row, as `/predict` gives them: prediction, label, probabilities."""
    from salver.interfaces import Infer
    from salver.protocols.plain import encode_answer

    shown = Object("rows", payload.value)
    operation = Infer(ref=response.ref, request=Request(shown))
    found = orjson.loads(b"".join(encode_answer(operation, response).body))
    columns: dict[str, Sequence[Any]] = {
        one: found[several]
        for one, several in (
            ("prediction", "predictions"), ("label", "labels"), ("probabilities", "probabilities"),
        )
        if several in found
    }  # fmt: skip
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
