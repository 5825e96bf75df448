"""`salver check`: every mistake at once, with place and remedy."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from salver.cli.main import main
from salver.cli.yaml_mistakes import Finding, mistakes
from salver.config import ModelConfig, parse
from salver.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

GOOD = """
import salver

class Toy:
    def predict(self, x: salver.Array["float32", "B", 2]) -> salver.Array["float32", "B", 3]:
        return x[:, :1].repeat(3, axis=1)
"""


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["check", *map(str, arguments)])


def findings(*arguments: str | Path) -> list[Finding]:
    result = run(*arguments, "--json")
    found = [Finding(**entry) for entry in json.loads(result.output)]
    assert result.exit_code == (1 if found else 0)
    return found


def model(folder: Path, config: str = "", code: str = GOOD) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(code)
    if config:
        (folder / "model.yaml").write_text(config)
    return folder


def test_nothing_wrong(tmp_path: Path) -> None:
    model(tmp_path / "a", "labels: [x, y, z]\nexample: [1, 2]\n")
    model(tmp_path / "b" / "1")
    (tmp_path / "salver.yaml").write_text("trust: true\n")
    (tmp_path / ".git").mkdir()
    result = run(tmp_path, "--load")
    assert result.exit_code == 0
    assert result.output == "No mistakes found in 2 models.\n"


def test_a_model_beside_the_one_that_is_served(tmp_path: Path) -> None:
    folder = model(tmp_path / "a")
    for name in ("model.joblib", "old.joblib"):
        (folder / name).write_bytes(b"")
    problem = "model.joblib alone is served: 'a' holds model.joblib, old.joblib"
    expected = Finding("a", 0, "file", problem, "name one as `file:` in model.yaml")
    assert expected in findings(tmp_path)
    (folder / "model.yaml").write_text("file: model.py")
    assert findings(tmp_path, "--trust") == []


def test_every_mistake_of_a_file_with_its_line() -> None:
    text = """\
name: b
batching:
  max_sise: 3
  delay_ms: fast
runtim: sklearn
queue:
  max_calls: -1
inputs:
  - name: x
    dtype: FP32
instances: {count: many, threads: no}
labels: [a, b]
"""
    found, config = mistakes(text, ModelConfig, "model.yaml")
    assert [(f.line, f.key) for f in sorted(found, key=lambda f: f.line)] == [
        (3, "max_sise"),
        (4, "batching.delay_ms"),
        (5, "runtim"),
        (7, "queue.max_calls"),
        (9, "inputs[0]"),
        (11, "instances.count"),
    ]
    problems = {f.key: (f.problem, f.remedy) for f in found}
    assert problems["max_sise"] == ("unknown key 'max_sise'", "did you mean 'max_size'?")
    assert problems["batching.delay_ms"][0] == "expected a number, got text"
    assert "Default: 0.0" in problems["batching.delay_ms"][1]
    assert problems["queue.max_calls"][0] == "expected a whole number >= 1"
    assert "shape" in problems["inputs[0]"][0]
    assert (config.name, config.labels) == ("b", ("a", "b"))


def test_a_file_that_is_not_yaml() -> None:
    found, config = mistakes("name: [a\nlabels: b", ModelConfig, "model.yaml")
    assert len(found) == 1
    assert found[0].line == 2
    assert config == ModelConfig()


def test_the_servers_file(tmp_path: Path) -> None:
    model(tmp_path / "a")
    text = "portt: 1\ntrust: maybe\ntls_cert: no.pem\napi_key: schl\xfcssel\n"
    (tmp_path / "salver.yaml").write_text(text, encoding="utf-8")
    found = findings(tmp_path, "--trust")
    assert {(f.file, f.line, f.key) for f in found} == {
        ("salver.yaml", 1, "portt"),
        ("salver.yaml", 2, "trust"),
        ("salver.yaml", 0, "tls_cert"),
        ("salver.yaml", 4, "api_key"),
    }


def test_mistakes_of_several_models_at_once(tmp_path: Path) -> None:
    model(tmp_path / "a", "name: b\n")
    model(tmp_path / "b", "runtime: pythn\n")
    (tmp_path / "c").mkdir()
    model(tmp_path / "d", "file: modell.py\n")
    model(tmp_path / "e" / "2")
    (tmp_path / "e" / "model.yaml").write_text("versions: ['1', '2']\nversion_labels: {new: '3'}\n")
    model(tmp_path / "f", code="import no_such_module\n" + GOOD)
    model(tmp_path / "g", code="def predict(x: int) -> int\n")
    found = findings(tmp_path, "--trust")
    assert found == [
        Finding("b", 0, "name", "is called 'b', as is a", "set another `name` in b/model.yaml"),
        Finding(
            "b/model.yaml", 1, "runtime", "no runtime is called 'pythn'", "did you mean 'python'?"
        ),
        Finding(
            "c", 0, "", "there is no model in it", "add one, or let the folder's name start with _"
        ),
        Finding(
            "d/model.yaml", 1, "file", "there is no file 'modell.py' in 'd'", "correct the name"
        ),
        Finding("e/model.yaml", 1, "versions", "there is no version '1'", "there are: 2"),
        Finding(
            "e/model.yaml", 2, "version_labels", "'new' means version '3', which is not there",
            "there are: 2",
        ),
        Finding(
            "f/model.py", 1, "", "imports 'no_such_module', which is not installed",
            "pip install it",
        ),
        Finding("g/model.py", 1, "", "expected ':'", ""),
    ]  # fmt: skip


def test_what_the_model_says_against_its_file(tmp_path: Path) -> None:
    config = "labels: [a, b]\ncolumns: [x]\nexample: [1, 2, 3]\ndefault_method: predikt\n"
    model(tmp_path / "a", config)
    assert findings(tmp_path, "--trust") == []  # only known after loading
    opened = findings(tmp_path, "--trust", "--load")
    assert [(f.line, f.key) for f in opened] == [(4, "default_method")]
    (tmp_path / "a" / "model.yaml").write_text(config.replace("predikt", "predict"))
    opened = findings(tmp_path, "--trust", "--load")
    assert [(f.line, f.key) for f in opened] == [(3, "example")]


def test_labels_and_columns_of_a_file_that_tells(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(proto, tmp_path / "model.onnx")
    (tmp_path / "model.yaml").write_text(
        "labels: [a, b]\ncolumns: [x, y]\nexample: [1, 2]\ndefault_method: run\n"
    )
    found = findings(tmp_path)
    assert [(f.line, f.key) for f in found] == [
        (4, "default_method"),
        (1, "labels"),
        (2, "columns"),
        (3, "example"),
    ]
    assert found[1].problem == "names 2 classes, the model gives 3"
    assert found[2].remedy == "name 3 columns, in order"


def test_weights_without_their_class(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "net").mkdir()
    torch.save({"w": torch.zeros(2)}, tmp_path / "net" / "model.pt")
    (found,) = findings(tmp_path)
    assert (found.file, found.problem) == ("net/model.pt", "holds weights only")
    assert found.remedy == "name their class in model.yaml: `class_name: module:Class`"


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08not a model")
    (found,) = findings(tmp_path)
    assert found.file == "model.onnx"
    assert found.problem


def test_trust_is_a_mistake_until_it_is_given(tmp_path: Path) -> None:
    model(tmp_path / "a")
    (found,) = findings(tmp_path)
    assert found.problem == "model.py is Python code, which runs with all rights of the server"
    assert "`trust: true` to salver.yaml" in found.remedy
    assert findings(tmp_path / "a" / "model.py") == []


def test_the_line_of_a_file_that_ends_too_soon_is_the_servers(tmp_path: Path) -> None:
    text = 'batching: {max_size: "x"\n'
    (tmp_path / "model.yaml").write_text(text)
    (found,) = (each for each in findings(tmp_path) if each.file == "model.yaml")
    with pytest.raises(ConfigError, match=f"model.yaml:{found.line}: expected ',' or '}}'"):
        parse(text, ModelConfig, "model.yaml")


def test_the_configuration_of_triton_is_no_mistake_but_told_of(tmp_path: Path) -> None:
    model(tmp_path / "a")
    (tmp_path / "a" / "config.pbtxt").write_text("max_batch_size: 8")
    result = CliRunner().invoke(main, ["check", str(tmp_path), "--trust"])
    assert result.exit_code == 0
    assert "a/config.pbtxt is Triton's and is not read" in result.stderr
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "a"), "--json"])
    assert "a/config.pbtxt is Triton's" in json.loads(result.stdout)[0]["detail"]


def test_an_empty_folder(tmp_path: Path) -> None:
    (found,) = findings(tmp_path)
    assert found.problem == "there is no model in it"


def test_what_is_not_served(tmp_path: Path) -> None:
    model(tmp_path / "a" / "1")
    model(tmp_path / "a" / "new")
    model(tmp_path / "b" / "latest")
    (tmp_path / "m.py").write_text(GOOD)
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "up.py").write_text(GOOD)
    result = run(tmp_path, "--trust", "--json")
    assert [(found["file"], found["problem"]) for found in json.loads(result.output)] == [
        ("a", "a: it holds new, but only numbers name versions"),
        ("b", "it holds latest, but only numbers name versions"),
        ("m.py", "it is code"),
    ]
    assert "3 mistakes in 2 models." in run(tmp_path, "--trust").output


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    model(tmp_path / "a")
    model(tmp_path / os.fsdecode(b"caf\xe9"))
    expected = Finding("caf\\udce9", 0, "", "its name is not UTF-8")
    assert findings(tmp_path, "--trust") == [expected]
    (found,) = findings(tmp_path / os.fsdecode(b"caf\xe9"), "--trust")
    assert (found.problem, found.key) == ("its name is not UTF-8", "name")


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.onnx")
    problem = "it is neither a regular file nor a folder"
    for path in (tmp_path, tmp_path / "a.onnx"):
        assert Finding("a.onnx", 0, "", problem) in findings(path)


def test_the_table(tmp_path: Path) -> None:
    model(tmp_path / "a", "labells: [x]\n")
    lines = run(tmp_path, "--trust").output.splitlines()
    assert lines[0].split() == ["where", "key", "problem", "remedy"]
    assert lines[1].split()[:2] == ["a/model.yaml:1", "labells"]
    assert lines[2] == "1 mistake in 1 model."


def test_what_code_says_of_itself(tmp_path: Path) -> None:
    def mark(options: str) -> str:
        return GOOD.replace("class Toy", f"@salver.model({options})\nclass Toy")

    model(tmp_path / "a", "name: d\n")
    model(tmp_path / "b", code=mark("nme='x'"))
    model(tmp_path / "c", "labels: [x, y, z]\n", mark("example=[1, 2, 3],\ndescription=2 * 'a'"))
    model(tmp_path / "e", code=mark("name='d'"))
    found = findings(tmp_path, "--trust", "--load")
    assert [(f.file, f.line, f.key) for f in found] == [
        ("b/model.py", 4, ""),
        ("c/model.py", 5, ""),
        ("c/model.py", 4, "example"),
        ("e", 0, "name"),
    ]
    assert found[0].remedy == "did you mean 'name'?"
    assert found[1].problem == "@salver.model: description is no plain literal and is not read"
    assert (
        found[2].problem
        == "the example does not fit: input 'x': expected shape [-1, 2], got [1, 3]"
    )
