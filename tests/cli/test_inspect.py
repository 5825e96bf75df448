"""`salver inspect`: facts about files, with and without loading them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from salver.cli.inspect import size_text
from salver.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

PYTHON = """
from collections.abc import Iterator
import salver

open(__file__ + ".ran", "w").close()

class Toy:
    def predict(self, x: salver.Array["float32", "B", 2]) -> salver.Array["float32", "B"]:
        return x.sum(axis=1)

    def count(self, upto: int) -> Iterator[int]:
        yield from range(upto)
"""


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["inspect", *map(str, arguments)])


def facts(*arguments: str | Path) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(PYTHON)
    return tmp_path / "toy.py"


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adds the columns of a row."""
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0, noop_with_empty_axes=0)],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path_factory.mktemp("onnx") / "sum.onnx"
    save(model, path)
    return path


def test_a_python_file_is_not_run(toy: Path) -> None:
    (found,) = facts(toy)
    assert (found["name"], found["version"], found["runtime"]) == ("toy", "1", "python")
    assert found["size_bytes"] == toy.stat().st_size
    assert found["methods"] is None
    assert found["runs"] == "in a worker process, as it is code"
    assert not toy.with_name("toy.py.ran").exists()
    assert "only known after loading: add --load" in run(toy).output


def test_a_python_file_says_what_it_is(tmp_path: Path) -> None:
    code = PYTHON.replace("class", '@salver.model(name="tagger", description="Tags.")\nclass', 1)
    (tmp_path / "toy.py").write_text(code)
    (found,) = facts(tmp_path / "toy.py")
    assert (found["name"], found["description"], found["problem"]) == ("tagger", "Tags.", "")
    assert "Tags." in run(tmp_path / "toy.py").output
    (tmp_path / "toy.py").write_text(code.replace("name=", "nam="))
    (found,) = facts(tmp_path / "toy.py")
    assert (found["name"], found["problem"].partition(". ")[0]) == (
        "toy",
        "toy.py:7: @salver.model takes no 'nam'",
    )


def test_loading_tells_the_signature(toy: Path) -> None:
    (found,) = facts(toy, "--load")
    predict, count = found["methods"]
    assert (predict["name"], predict["batching"], predict["streams"]) == ("predict", "rows", False)
    assert predict["inputs"][0]["shape"] == [-1, 2]
    assert count["streams"]
    assert toy.with_name("toy.py.ran").exists()
    text = run(toy, "--load").output
    assert "x FP32 [-1, 2]" in text
    assert "one call per run, streams" in text


def test_a_signature_that_the_file_tells(onnx: Path) -> None:
    (found,) = facts(onnx)
    assert found["runtime"] == "onnx"
    assert found["trust"] == ""
    assert found["methods"][0]["inputs"][0]["name"] == "x"
    assert found["runs"].startswith("on the server's loop, in threads or in workers")


def test_where_it_would_run_is_measured(onnx: Path) -> None:
    (found,) = facts(onnx, "--load")
    assert found["runs"] in (
        "on the server's loop, large batches in threads of the server",
        "in threads of the server",
    )


def test_a_folder_without_trust(toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "toy" / "3"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(PYTHON)
    (folder.parent / "model.yaml").write_text("instances: {count: 2}\n")
    (found,) = facts(tmp_path / "models")
    assert (found["name"], found["version"]) == ("toy", "3")
    assert found["trust"].startswith("model.py is Python code")
    assert found["runs"] == "in 2 worker processes, as it is code"
    result = run(tmp_path / "models", "--load")
    assert result.exit_code == 1
    assert "If you trust it: add --trust to the command" in result.output


def test_mistakes_are_told(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"x")
    result = run(tmp_path / "m.h5")
    assert result.exit_code == 1
    assert "m.h5: no runtime recognises it" in result.output
    assert "export it to ONNX" in result.output
    (tmp_path / "empty").mkdir()
    assert "there is no model in this folder" in run(tmp_path / "empty").output


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (25_000_000, "25 MB"), (3 * 10**9, "3 GB")],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text
