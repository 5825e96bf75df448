from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

onnx = pytest.importorskip("onnx")
lightgbm = pytest.importorskip("lightgbm")

pytestmark = pytest.mark.tool

COLUMN = [[0.0], [0.25], [0.75], [1.0]]


def save_doubler(folder: Path) -> None:
    """An ONNX model of y = x + x."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, kind, ["rows", 1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    opset = helper.make_opsetid("", 21)
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), folder / "model.onnx")


def save_step(folder: Path) -> None:
    """LightGBM in a process of its own: it needs a system library, and a worker to start."""
    rows = np.linspace(0, 1, 100)[:, None]
    data = lightgbm.Dataset(rows, (rows[:, 0] > 0.5).astype(float))
    booster = lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, 5)
    folder.mkdir()
    booster.save_model(folder / "model.txt")
    (folder / "model.yaml").write_text("instances: {isolation: process}\n")


def infer(port: int, model: str) -> np.ndarray:
    """The first output for `COLUMN` over the Open Inference Protocol."""
    base = f"http://127.0.0.1:{port}/v2/models/{model}"
    with urllib.request.urlopen(base) as answer:
        wanted = json.load(answer)["inputs"][0]
    tensor = {
        "name": wanted["name"],
        "datatype": wanted["datatype"],
        "shape": [len(COLUMN), 1],
        "data": COLUMN,
    }
    body = json.dumps({"inputs": [tensor]}).encode()
    with urllib.request.urlopen(f"{base}/infer", body) as answer:
        return np.array(json.load(answer)["outputs"][0]["data"])


def test_serves_as_an_ordinary_user_and_ends_when_told(
    run: Callable[..., Any], image: Any, tmp_path: Path
) -> None:
    save_doubler(tmp_path / "double")
    save_step(tmp_path / "step")
    tmp_path.chmod(0o755)
    container = run(tmp_path)
    assert image.healthy(container.port)
    np.testing.assert_array_equal(infer(container.port, "double"), [0, 0.5, 1.5, 2])
    np.testing.assert_array_equal(infer(container.port, "step"), [0, 0, 1, 1])
    status = Path(f"/proc/{container.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert set(fields["Uid"].split()) == set(fields["Gid"].split()) == {"1000"}
    assert fields["NSpid"].split()[-1] == "1"
    assert container.stop() == 0
    assert not image.healthy(container.port)


def test_an_empty_folder_waits_for_models(
    run: Callable[..., Any], image: Any, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    container = run(tmp_path)
    assert image.healthy(container.port)
    save_doubler(tmp_path / "double")
    container.wait_for("double version 1 is ready")
    np.testing.assert_array_equal(infer(container.port, "double"), [0, 0.5, 1.5, 2])


def test_holds_what_serving_needs(image: Any) -> None:
    environment = image.root / "opt" / "salver"
    files = [path for path in environment.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 500e6
    names = {path.name for path in (environment / "bin").iterdir()}
    assert "salver" in names
    assert not any(name.startswith("pip") for name in names)
