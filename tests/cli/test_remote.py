"""The commands that talk to a server, against a real one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from salver.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

TOY = """
from collections.abc import Iterator
import salver

class Toy:
    def predict(self, x: salver.Array["float32", "B", 3]) -> salver.Array["float32", "B"]:
        return x.sum(axis=1)

    def count(self, upto: int) -> Iterator[int]:
        yield from range(upto)

    def shout(self, text: str, times: int = 1) -> str:
        return text.upper() * times

    def size(self, picture: bytes) -> int:
        return len(picture)
"""


@pytest.fixture(scope="module")
def run(
    serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Result]:
    """Runs a command against a server with a classifier and a Python model."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    folder = tmp_path_factory.mktemp("models")
    (folder / "toy.py").write_text(TOY)
    iris = load_iris()
    joblib.dump(LogisticRegression(max_iter=500).fit(iris.data, iris.target), folder / "m.joblib")
    (folder / "model.yaml").write_text(
        "file: m.joblib\nname: iris\nlabels: [setosa, versicolor, virginica]\n"
    )
    server = serve(folder / "m.joblib", folder / "toy.py", "--trust", "--mode", "explicit")
    for name in ("iris", "toy"):
        loaded = CliRunner().invoke(main, ["load", name, "--url", server.url])
        assert loaded.output == f"{name} is ready\n"

    def run(*arguments: str | Path, input: str | bytes | None = None) -> Result:
        env = {"SALVER_URL": server.url, "COLUMNS": "120"}
        return CliRunner(env=env).invoke(main, list(map(str, arguments)), input=input)

    return run


def test_models(run: Callable[..., Result]) -> None:
    lines = run("models").output.splitlines()
    assert lines[0].split() == [
        "model", "version", "state", "runtime", "requests/s", "p50", "p99",
    ]  # fmt: skip
    assert lines[1].split()[:4] == ["iris", "1", "ready", "sklearn"]
    assert lines[2].split()[:4] == ["toy", "1", "ready", "python"]
    assert [model["name"] for model in json.loads(run("models", "--json").output)] == [
        "iris",
        "toy",
    ]


def test_a_classifier_answers_with_label_and_probabilities(run: Callable[..., Result]) -> None:
    result = run("infer", "iris", "[5.1, 3.5, 1.4, 0.2]")
    lines = result.output.splitlines()
    assert lines[0] == "setosa"
    assert lines[1].split()[0] == "setosa"
    assert lines[1].split()[1].endswith("%")
    assert len(lines) == 4


def test_raw_answer(run: Callable[..., Result]) -> None:
    answer = json.loads(run("infer", "iris", "[5.1, 3.5, 1.4, 0.2]", "--json").output)
    assert answer["label"] == "setosa"
    assert answer["model_version"] == "1"


def test_a_table_from_a_file(run: Callable[..., Result], tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("5.1,3.5,1.4,0.2\n6.7,3.0,5.2,2.3\n")
    assert run("infer", "iris", f"@{table}").output == "setosa\nvirginica\n"


def test_json_from_a_file_and_from_standard_input(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "body.json"
    file.write_text('{"inputs": [[1, 2, 3], [4, 5, 6]]}')
    assert run("infer", "toy", f"@{file}").output == "[6.0,15.0]\n"
    assert run("infer", "toy", "-", input="[1, 2, 4]").output == "7.0\n"


def test_pairs_and_methods(run: Callable[..., Result]) -> None:
    assert run("infer", "toy", "text=hi", "times=2", "--method", "shout").output == "HIHI\n"
    assert run("infer", "toy", "hi there", "--method", "shout").output == "HI THERE\n"


def test_a_stream_is_shown_item_by_item(run: Callable[..., Result]) -> None:
    assert run("infer", "toy", "3", "--method", "count").output == "0\n1\n2\n"


def test_a_file_as_it_is(run: Callable[..., Result], tmp_path: Path) -> None:
    picture = tmp_path / "dot.png"
    picture.write_bytes(b"\x89PNG1234")
    result = run("infer", "toy", "--image", picture, "--method", "size")
    assert result.output == "8\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["iriss", "1"], "`salver load NAME` loads it. Did you mean 'iris'? Served: iris, toy"),
        (["iris"], "what is the input?"),
        (["iris", "sepal length (cm)=1", "b=2"], "unexpected input 'sepal length (cm)'"),
        (["iris", "1", "2"], "give one value, or every input as KEY=VALUE"),
        (["iris", "@no.csv"], "there is no file no.csv"),
        (["iris", "[1]"], "expected shape [-1, 4], got [1, 1]"),
        (["toy", "1", "--method", "shoot"], "no method 'shoot'. Did you mean 'shout'?"),
    ],
)
def test_mistakes_are_explained(
    run: Callable[..., Result], arguments: list[str], message: str
) -> None:
    result = run("infer", *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output


def test_no_server() -> None:
    result = CliRunner().invoke(main, ["unload", "m", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "Is the server running? Start it: salver serve PATH" in result.output


def test_unload(run: Callable[..., Result]) -> None:
    assert run("unload", "toy").output == "toy is unloaded\n"
    assert "unavailable: unloaded" in run("models").output
    assert run("load", "toy").output == "toy is ready\n"
