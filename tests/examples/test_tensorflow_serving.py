from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("sklearn")
pytest.importorskip("skl2onnx")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module", params=["", " --sklearn"], ids=["onnx", "sklearn"])
def server(
    request: pytest.FixtureRequest,
    example: Any,
    serve: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """The trained network, as each kind of file."""
    folder: Path = tmp_path_factory.mktemp("models") / "my_model"
    example.run(example.command("python") + request.param, my_model=str(folder))
    return serve(folder)


def expected(example: Any, server: Any) -> Any:
    """scikit-learn's own model gives numbers, its ONNX form rows of one."""
    answer = json.loads((example.folder / "answer.json").read_text())
    kind = httpx.get(f"{server.url}/v2/models/my_model").json()["platform"]
    return answer if kind == "onnx" else {"predictions": answer["predictions"][0]}


@pytest.mark.tool
@needs_curl
def test_the_command_of_the_tutorial_answers(example: Any, server: Any) -> None:
    found = example.run(example.command("curl"), **{"localhost:8501": server.address})
    answer = json.loads(found)
    assert answer.keys() == {"predictions"}
    assert answer["predictions"][0] == pytest.approx(expected(example, server)["predictions"][0])


@pytest.mark.parametrize("path", ["my_model", "my_model/versions/1"])
def test_several_instances_have_as_many_predictions(server: Any, path: str) -> None:
    instances = [[1.0, 2.0, 3.0, 4.0], [0, 0, 0, 0], [2, 0, 0, 0]]
    url = f"{server.url}/v1/models/{path}:predict"
    found = httpx.post(url, json={"instances": instances, "signature_name": "serving_default"})
    assert found.status_code == 200
    flat = [row[0] if isinstance(row, list) else row for row in found.json()["predictions"]]
    assert flat == pytest.approx([8.5, 3.0, 4.0], rel=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("my_model", {"instances": [[1.0, 2.0]]}, 400),
        ("my_model", {"instances": []}, 400),
        ("my_model", {"inputs": 1}, 400),
        ("my_model/versions/9", {"instances": [[1.0, 2.0, 3.0, 4.0]]}, 404),
        ("other", {"instances": [[1.0, 2.0, 3.0, 4.0]]}, 404),
    ],
)
def test_mistakes_are_told_as_an_error(server: Any, path: str, body: Any, status: int) -> None:
    found = httpx.post(f"{server.url}/v1/models/{path}:predict", json=body)
    assert found.status_code == status
    assert found.json()["error"]
