"""Every runtime keeps the contract of runtimes, with each kind of file that it loads."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import joblib
import lightgbm
import numpy as np
import onnx
import pandas
import pytest
import skops.io
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from salver.config import ModelConfig, TensorOptions
from salver.runtimes.table import runtimes
from salver.testing import check_runtime
from salver.types import Raw

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import xgboost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FLOWERS, SPECIES = load_iris(return_X_y=True)
FLOWERS = FLOWERS.astype(np.float32)
FOUR_NUMBERS = FLOWERS[::40].tolist()
NAN = float("nan")
NOT_UTF8 = {"b64": "/w=="}
NET = """
import torch

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
"""


class Case(NamedTuple):
    """A model file, inputs that it takes, and inputs that it refuses."""

    runtime: str
    path: Path
    rows: list[Any]
    failing: tuple[Any, ...] = ()
    config: ModelConfig = ModelConfig()


def onnx_classifier(folder: Path) -> Case:
    model = LogisticRegression(max_iter=500).fit(FLOWERS, SPECIES)
    content = to_onnx(model, FLOWERS[:1], target_opset=18).SerializeToString()
    (folder / "iris.onnx").write_bytes(content)
    return Case("onnx", folder / "iris.onnx", FOUR_NUMBERS)


def onnx_identity(folder: Path, element: int, shape: list[Any]) -> Path:
    tensors = [helper.make_tensor_value_info(name, element, shape) for name in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "graph", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder


def onnx_text(folder: Path) -> Case:
    path = onnx_identity(folder, TensorProto.STRING, ["n", 2])
    return Case("onnx", path, [["a", "ü"], ["", "b"]], (["a", NOT_UTF8],))


def onnx_of_one_row(folder: Path) -> Case:
    path = onnx_identity(folder, TensorProto.FLOAT, [1, 2])
    return Case("onnx", path, [[1.0, 2.0], [3.0, 4.0]])


def sklearn_pickle(folder: Path) -> Case:
    path = folder / "iris.joblib"
    joblib.dump(LogisticRegression(max_iter=500).fit(FLOWERS, SPECIES), path)
    return Case("sklearn", path, FOUR_NUMBERS, ([NAN, 1.0, 1.0, 1.0],))


def sklearn_text(folder: Path) -> Case:
    texts = ["good tea", "bad tea", "good cake", "bad service"]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["+", "-", "+", "-"])
    skops.io.dump(model, folder / "model.skops")
    return Case("sklearn", folder, ["good", "bad cake"], (NOT_UTF8,))


def xgboost_classifier(folder: Path) -> Case:
    path = folder / "iris.ubj"
    xgboost.XGBClassifier(n_estimators=4).fit(FLOWERS, SPECIES).save_model(path)
    return Case("xgboost", path, [*FOUR_NUMBERS, [NAN] * 4])


def xgboost_regressor(folder: Path) -> Case:
    path = folder / "model.json"
    xgboost.XGBRegressor(n_estimators=4, booster="gblinear").fit(FLOWERS, SPECIES).save_model(path)
    return Case("xgboost", folder, FOUR_NUMBERS)


def lightgbm_classifier(folder: Path) -> Case:
    model = lightgbm.LGBMClassifier(n_estimators=4, verbose=-1).fit(FLOWERS, SPECIES)
    model.booster_.save_model(folder / "model.txt")
    return Case("lightgbm", folder, FOUR_NUMBERS)


def lightgbm_table(folder: Path) -> Case:
    cities = pandas.Categorical(["Bonn", "Ulm"] * 30)
    table = pandas.DataFrame({"age": np.arange(60.0), "city": cities})
    model = lightgbm.LGBMRegressor(n_estimators=4, verbose=-1).fit(table, np.arange(60.0))
    model.booster_.save_model(folder / "rent.txt")
    rows = [{"age": 40.0, "city": "Ulm"}, {"age": None, "city": "Bonn"}]
    return Case("lightgbm", folder / "rent.txt", rows, ({"age": 4.0, "city": NOT_UTF8},))


def torch_exported(folder: Path) -> Case:
    rows = torch.export.Dim("rows", min=1, max=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs, shapes = (torch.zeros(2, 4),), ({0: rows},)
        program = torch.export.export(torch.nn.Linear(4, 3).eval(), inputs, dynamic_shapes=shapes)
        torch.export.save(program, folder / "model.pt2")
    return Case("torch", folder, FOUR_NUMBERS)


def torch_script(folder: Path) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(4, 3)), str(folder / "net.pt"))
    config = ModelConfig(inputs=(TensorOptions(name="x", dtype="FP32", shape=(-1, 4)),))
    return Case("torch", folder / "net.pt", FOUR_NUMBERS, config=config)


def torch_weights(folder: Path) -> Case:
    (folder / "network.py").write_text(NET)
    save_file(torch.nn.Linear(4, 3).state_dict(), folder / "model.safetensors")
    shape = TensorOptions(name="x", dtype="FP32", shape=(-1, 4))
    config = ModelConfig(class_name="network:Net", inputs=(shape,))
    return Case("torch", folder, FOUR_NUMBERS, config=config)


def python(folder: Path, method: str) -> Path:
    lines = [
        "import asyncio, collections.abc, salver",
        "@salver.model(idempotent=True)",
        "class Model:",
        *(f"    {line}" for line in method.splitlines()),
    ]
    (folder / "model.py").write_text("\n".join(lines))
    return folder


def python_rows(folder: Path) -> Case:
    hint = 'salver.Array["float32", "B", 2]'
    path = python(folder, f"def predict(self, x: {hint}) -> {hint}:\n    return x * 2")
    return Case("python", path, [[1, 2], [3, 4], [5, 6]])


def python_items(folder: Path) -> Case:
    method = "def predict(self, x: list[int]) -> list[float]:\n    return [1 / n for n in x]"
    return Case("python", python(folder, method), [1, 2, 3], (0,))


def python_async(folder: Path) -> Case:
    method = """
async def predict(self, body: bytes, times: int = 2) -> dict:
    await asyncio.sleep(0)
    return {"length": len(body) // times}
"""
    return Case("python", python(folder, method), [Raw(b"abc", "application/x-thing")])


def python_stream(folder: Path) -> Case:
    method = """
def predict(self, text: str) -> collections.abc.Iterator[str]:
    yield from text.split()
    assert text != "stop"
"""
    return Case("python", python(folder, method), ["one two", ""], ("stop",))


CASES = (
    onnx_classifier, onnx_text, onnx_of_one_row, sklearn_pickle, sklearn_text, xgboost_classifier,
    xgboost_regressor, lightgbm_classifier, lightgbm_table, torch_exported, torch_script,
    torch_weights, python_rows, python_items, python_async, python_stream,
)  # fmt: skip


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_runtime_keeps_its_contract(tmp_path: Path, make: Callable[[Path], Case]) -> None:
    case = make(tmp_path)
    runtime = runtimes.get(case.runtime)()
    check_runtime(runtime, case.path, rows=case.rows, failing=case.failing, config=case.config)


def test_no_runtime_is_left_out() -> None:
    assert {case.__name__.partition("_")[0] for case in CASES} == set(runtimes)
