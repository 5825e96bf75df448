from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("onnx")
import onnxruntime as ort


@pytest.fixture(scope="module")
def model(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flask")
    shutil.copy(example.folder / "model.yaml", folder)
    file: Path = folder / "optimized_model.onnx"
    command = example.command("python").split(".onnx")[0].rpartition(" ")[0]
    example.run(f"{command} {file}")
    return file


@pytest.fixture(scope="module")
def server(model: Path, serve: Callable[..., Any]) -> Any:
    return serve(model)


@pytest.fixture(scope="module")
def request_body(example: Any) -> str:
    text: str = example.run(f"python {example.folder / 'picture.py'}")
    return text


def flask_answer(model: Path, body: str) -> dict[str, Any]:
    """What the program's handler returns."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.intra_op_num_threads = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    tensor = np.array(json.loads(body)["input"], dtype=np.float32)
    result = session.run(None, {session.get_inputs()[0].name: tensor})
    return {"prediction": result[0].tolist(), "model_version": "v1.0"}


def test_answers_as_the_program_does(
    example: Any, model: Path, server: Any, request_body: str
) -> None:
    found = httpx.post(f"{server.url}/predict", content=request_body).json()
    wanted = flask_answer(model, request_body)
    assert found.keys() == wanted.keys() == {"prediction", "model_version"}
    assert found["model_version"] == "v1.0"
    assert np.float32(found["prediction"]).tolist() == wanted["prediction"]
    documented = json.loads((example.folder / "answer.json").read_text())
    np.testing.assert_allclose(found["prediction"], documented["prediction"], rtol=1e-4)


def test_several_pictures_come_back_in_order(model: Path, server: Any) -> None:
    pictures = np.random.default_rng(3).random((3, 3, 224, 224)).astype(np.float32)
    body = json.dumps({"input": pictures.tolist()})
    found = httpx.post(f"{server.url}/predict", content=body).json()["prediction"]
    np.testing.assert_allclose(found, flask_answer(model, body)["prediction"], rtol=1e-5)


@pytest.mark.tool
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_documented_command_answers(example: Any, server: Any) -> None:
    command = example.command("python examples/from/flask_onnx/picture.py")
    found = example.run(command, **{"127.0.0.1:8000": server.address})
    assert json.loads(found)["model_version"] == "v1.0"


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="has the provider"
)
def test_one_warning_says_that_there_is_no_graphics_card(server: Any) -> None:
    warnings = [line for line in server.output.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "without CUDAExecutionProvider, on CPUExecutionProvider" in warnings[0]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("execution_mode", "execution_mod", "execution_mode"),
        ("ORT_ENABLE_ALL", "ORT_ENABLE_AL", "ORT_ENABLE_ALL"),
        ("CUDAExecutionProvider", "CUDAExecutionProvide", "CUDAExecutionProvider"),
        ("warmup", "warmupp", "warmup"),
    ],
)
def test_a_misspelt_option_is_refused_with_the_right_one(
    model: Path, tmp_path: Path, old: str, new: str, told: str
) -> None:
    shutil.copy(model, tmp_path)
    settings = (model.parent / "model.yaml").read_text()
    (tmp_path / "model.yaml").write_text(settings.replace(old, new))
    command = [sys.executable, "-m", "salver", "serve", str(tmp_path / model.name), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert f"Did you mean '{told}'?" in ended.stderr


def test_every_option_of_the_program_is_a_key(example: Any) -> None:
    settings = yaml.safe_load((example.folder / "model.yaml").read_text())
    assert settings["options"]["session"].keys() == {
        "graph_optimization_level", "execution_mode", "intra_op_num_threads",
    }  # fmt: skip
    cuda, cpu = settings["options"]["providers"]
    assert cuda["CUDAExecutionProvider"].keys() == {
        "device_id", "arena_extend_strategy", "gpu_mem_limit", "cudnn_conv_algo_search",
    }  # fmt: skip
    assert cpu == "CPUExecutionProvider"
    assert settings["warmup"] == {"runs": 10}
