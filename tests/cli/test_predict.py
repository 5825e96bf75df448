"""`salver predict`: files of every format through models, without a server."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from salver.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

PYTHON = """
from collections.abc import Iterator
import salver

class Toy:
    def predict(self, x: salver.Array["float32", "B", 2]) -> salver.Array["float32", "B", 2]:
        if (x == 13).any():
            raise ValueError("unlucky")
        return x * 2

    def mean(self, x: salver.Array["float32", "B", 2]) -> salver.Array["float32", "B"]:
        return x.mean(axis=1)

    def greet(self, name: str, times: int) -> str:
        return " ".join([name] * times)

    def cheer(self, name: str, times: int = 2) -> str:
        return name + "!" * times

    def initials(self, names: list[str]) -> list[str]:
        return [name[0] for name in names]

    def count(self, upto: int) -> Iterator[int]:
        yield from range(upto)
"""

SIZES = """
import numpy as np
import salver

@salver.model(max_batch=3)
class Sizes:
    def predict(self, x: salver.Array["float32", "B", 2]) -> salver.Array["float32", "B"]:
        return np.full(len(x), len(x), np.float32)
"""


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    folder = tmp_path_factory.mktemp("models") / "iris"
    folder.mkdir()
    data = load_iris()
    joblib.dump(LogisticRegression(max_iter=500).fit(data.data, data.target), folder / "m.joblib")
    (folder / "model.yaml").write_text(
        "labels: [setosa, versicolor, virginica]\ncolumns: [sl, sw, pl, pw]\n"
    )
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(PYTHON)
    return tmp_path / "toy.py"


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)], input=stdin)


ROWS = "sl,sw,pl,pw\n5.1,3.5,1.4,0.2\n6.7,3.0,5.2,2.3\n5.0,3.6,1.4,0.2\n"


@pytest.mark.parametrize("size", ["1", "2", "100"])
def test_csv_to_csv(iris: Path, tmp_path: Path, size: str) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    out = tmp_path / "out.csv"
    result = run(iris, tmp_path / "rows.csv", "-o", out, "--trust", "--batch-size", size)
    assert result.exit_code == 0, result.output
    assert "3 rows written" in result.output
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert lines[0] == [
        "prediction", "label", "probability_setosa", "probability_versicolor",
        "probability_virginica",
    ]  # fmt: skip
    assert [line[:2] for line in lines[1:]] == [
        ["0", "setosa"],
        ["2", "virginica"],
        ["0", "setosa"],
    ]
    assert sum(map(float, lines[1][2:])) == pytest.approx(1)


def test_columns_may_come_in_any_order(iris: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("pw,pl,sw,sl\n0.2,1.4,3.5,5.1\n")
    run(iris, tmp_path / "rows.csv", "-o", tmp_path / "out.jsonl", "--trust")
    assert json.loads((tmp_path / "out.jsonl").read_text())["label"] == "setosa"


def test_columns_that_the_model_does_not_know_are_copied(iris: Path, tmp_path: Path) -> None:
    rows = "id,sl,sw,pl,pw,label\na7,5.1,3.5,1.4,0.2,setosa\nb8,6.7,3.0,5.2,2.3,virginica\n"
    (tmp_path / "rows.csv").write_text(rows)
    result = run(iris, tmp_path / "rows.csv", "--trust")
    header, first, second = result.stdout.splitlines()
    assert header.startswith("id,input_label,prediction,label,probability_setosa")
    assert first.startswith("a7,setosa,0,setosa,")
    assert second.startswith("b8,virginica,2,virginica,")
    assert "copied, as the model does not know them: id, label" in result.stderr


def test_copies_stay_with_their_rows(toy: Path) -> None:
    rows = "id,name,times\n1,ab,2\n2,cd,no\n3,ef,1\n"
    flags = ("--method", "greet", "--trust", "--on-error", "skip")
    result = run(toy, "-", *flags, stdin=rows)
    assert result.stdout.splitlines() == ["line,id,prediction", "2,1,ab ab", "4,3,ef"]


def test_a_misspelt_column_is_missed(iris: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("sl,sw,pl,width\n5.1,3.5,1.4,0.2\n")
    result = run(iris, tmp_path / "rows.csv", "--trust")
    assert result.exit_code == 1
    assert "the table lacks column 'pw'" in result.output


def test_another_separator_is_named(iris: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("sl;sw;pl;pw\n5,1;3,5;1,4;0,2\n")
    result = run(iris, tmp_path / "rows.csv", "--trust")
    assert "rows.csv:1: the separator seems to be ';'" in result.output


def test_a_signal_leaves_nothing_behind(toy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "salver", "predict", str(toy), "-"]
    command += ["-o", str(tmp_path / "out.csv"), "--trust", "--batch-size", "1"]
    predicting = subprocess.Popen(command, stdin=subprocess.PIPE)
    part = tmp_path / ".out.csv.part"
    with predicting:
        while not part.exists():
            assert predicting.poll() is None
        predicting.terminate()
        assert predicting.wait() == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("*out.csv*"))
    assert not part.exists()


def test_json_lines(iris: Path, tmp_path: Path) -> None:
    rows = "[5.1, 3.5, 1.4, 0.2]\n\n[6.7, 3.0, 5.2, 2.3]\n"
    (tmp_path / "rows.jsonl").write_text(rows)
    run(iris, tmp_path / "rows.jsonl", "-o", tmp_path / "out.jsonl", "--trust")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["label"] for answer in answers] == ["setosa", "virginica"]
    assert set(answers[0]["probabilities"]) == {"setosa", "versicolor", "virginica"}


def test_npy_to_npy(toy: Path, tmp_path: Path) -> None:
    rows = np.arange(14, dtype=np.float32).reshape(7, 2) / 2
    np.save(tmp_path / "rows.npy", rows)
    result = run(toy, tmp_path / "rows.npy", "-o", tmp_path / "out.npy", "--batch-size", "3")
    assert result.exit_code == 0, result.output
    assert np.array_equal(np.load(tmp_path / "out.npy"), rows * 2)


def test_runs_are_no_larger_than_the_model_takes(tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text(SIZES)
    np.save(tmp_path / "rows.npy", np.zeros((7, 2), np.float32))
    result = run(tmp_path / "sizes.py", tmp_path / "rows.npy", "-o", tmp_path / "out.npy")
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "out.npy").ravel().tolist() == [3] * 6 + [1]


def test_numbers_that_json_has_no_word_for(toy: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([[1, np.nan], [np.inf, 2]], np.float32))
    run(toy, tmp_path / "rows.npy", "-o", tmp_path / "out.npy")
    found = np.load(tmp_path / "out.npy")
    assert np.array_equal(found, [[2, np.nan], [np.inf, 4]], equal_nan=True)


def test_a_list_becomes_numbered_columns(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n3,4\n")
    run(toy, tmp_path / "rows.csv", "-o", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "prediction_0,prediction_1\n2.0,4.0\n6.0,8.0\n"


@pytest.mark.parametrize("rows", ["1,2\n3,4\n", "[1, 2]\n[3, 4]\n"])
@pytest.mark.parametrize("output", [(), ("-o", "-")])
def test_standard_input_and_output(toy: Path, rows: str, output: tuple[str, ...]) -> None:
    result = run(toy, "-", *output, stdin=rows)
    assert result.stdout == "prediction_0,prediction_1\n2.0,4.0\n6.0,8.0\n"
    assert result.stderr == "2 rows written to standard output\n"


def test_mistakes_in_standard_input_are_named_by_line(toy: Path) -> None:
    result = run(toy, "-", stdin="1,2\n3,x\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: stdin:2: 'x' is not a number\n"


def test_methods_for_one_input_run_row_by_row(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("name,times\nAda,2\nBob,1\n")
    run(toy, tmp_path / "rows.csv", "-o", tmp_path / "out.csv", "--method", "greet")
    assert (tmp_path / "out.csv").read_text() == "prediction\nAda Ada\nBob\n"
    (tmp_path / "names.jsonl").write_text('"Ada"\n"Bob"\n')
    run(toy, tmp_path / "names.jsonl", "-o", tmp_path / "out.csv", "--method", "initials")
    assert (tmp_path / "out.csv").read_text() == "prediction\nA\nB\n"


def test_empty_cells_are_left_to_the_defaults_of_a_method_for_one_input(
    toy: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("name,times\nAda,\n,3\n")
    run(toy, tmp_path / "rows.csv", "-o", tmp_path / "out.csv", "--method", "cheer")
    assert (tmp_path / "out.csv").read_text() == "prediction\nAda!!\n!!!\n"


def test_where_nothing_can_be_written(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n")
    result = run(toy, tmp_path / "rows.csv", "-o", tmp_path / "missing" / "out.csv")
    assert "out.csv cannot be written: no such file or directory" in result.output
    result = run(toy, tmp_path / "rows.csv", "-o", toy.parent / "." / "rows.csv")
    assert "rows.csv holds the rows themselves" in result.output
    assert (tmp_path / "rows.csv").read_text() == "1,2\n"


def test_a_bad_row_is_named_by_its_line(iris: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS + "5.0,wide,1.4,0.2\n")
    result = run(iris, tmp_path / "rows.csv", "-o", tmp_path / "out.csv", "--trust")
    assert result.exit_code == 1
    assert result.output == "Error: rows.csv:5: column 'sw': 'wide' is not a number\n"
    assert not (tmp_path / "out.csv").exists()


def test_a_failure_leaves_an_older_file_alone(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n2,x\n")
    (tmp_path / "out.csv").write_text("older")
    assert run(toy, tmp_path / "rows.csv", "-o", tmp_path / "out.csv").exit_code == 1
    assert (tmp_path / "out.csv").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "rows.csv", "toy.py"]


def test_bad_rows_may_be_skipped(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n3\n13,4\n5,x\n5,6\n")
    result = run(toy, tmp_path / "rows.csv", "-o", tmp_path / "out.csv", "--on-error", "skip")
    assert result.exit_code == 0
    assert (tmp_path / "out.csv").read_text() == (
        "line,prediction_0,prediction_1\n1,2.0,4.0\n5,10.0,12.0\n"
    )
    assert "skipped rows.csv:2: has 1 cells, the first line has 2" in result.output
    assert "skipped rows.csv:4: 'x' is not a number" in result.output
    assert "rows.csv:3: " in result.output
    assert "unlucky" in result.output
    assert "2 rows written" in result.output
    assert "3 skipped" in result.output


def test_json_that_is_none(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("[1, 2]\n[1,\n")
    result = run(toy, tmp_path / "rows.jsonl", "-o", tmp_path / "out.csv")
    assert "rows.jsonl:2: not valid JSON" in result.output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.xlsx", "", "rows.xlsx: the format is told by the suffix: .csv, .jsonl"),
        ("rows.csv", "", "rows.csv: the table is empty"),
        ("rows.csv", "a,b,a\n1,2,3\n", "rows.csv:1: two columns are called 'a'"),
        ("rows.npy", "no", "rows.npy: not an array of numbers"),
    ],
)
def test_files_that_cannot_be_read(
    toy: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    result = run(toy, tmp_path / name, "-o", tmp_path / "out.csv")
    assert result.exit_code == 1
    assert message in result.output


def test_trust_is_asked_for(iris: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    result = run(iris, tmp_path / "rows.csv", "-o", tmp_path / "out.csv")
    assert "m.joblib is a pickle" in result.output
    assert "add --trust to the command" in result.output


def test_streaming_methods_are_refused(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1\n")
    result = run(toy, tmp_path / "rows.csv", "-o", tmp_path / "out.csv", "--method", "count")
    assert "method 'count' streams; choose one that answers at once" in result.output


def test_a_folder_of_several_models(toy: Path, iris: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1\n")
    for name in ("a", "b"):
        (tmp_path / "many" / name).mkdir(parents=True)
        (tmp_path / "many" / name / "model.py").write_text(PYTHON)
    result = run(tmp_path / "many", tmp_path / "rows.csv", "-o", tmp_path / "out.csv")
    assert "holds several models: a, b; give the path of one" in result.output


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
def test_parquet(toy: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as parquet
    from pyarrow import table

    parquet.write_table(table({"a": [1.0, 3.0], "b": [2.0, 5.0]}), tmp_path / "rows.parquet")
    out = tmp_path / "out.parquet"
    assert run(toy, tmp_path / "rows.parquet", "-o", out, "--method", "mean").exit_code == 0
    assert parquet.read_table(out).to_pydict() == {"prediction": [1.5, 4.0]}


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is there")
def test_parquet_needs_its_extra(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    result = run(toy, tmp_path / "rows.parquet", "-o", tmp_path / "out.csv")
    assert "Parquet files need `pip install 'salver[parquet]'`" in result.output
