"""Where the server keeps its files is its own affair: its log tells, its answers do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import ServerProcess

httpx = pytest.importorskip("httpx")

BODY = "        open(f'/nowhere/secret/{type(self).__name__}/weights.bin')\n"
FILES = {
    "running": f"class Running:\n    def predict(self, x: float) -> float:\n{BODY}",
    "loading": (
        f"class Loading:\n    def __init__(self) -> None:\n{BODY}"
        "    def predict(self, x: float) -> float:\n        return x\n"
    ),
}
TOLD = "FileNotFoundError: No such file or directory: 'weights.bin'"


@pytest.fixture(scope="module")
def server(
    serve: Callable[..., ServerProcess], tmp_path_factory: pytest.TempPathFactory
) -> ServerProcess:
    folder: Path = tmp_path_factory.mktemp("models")
    for name, source in FILES.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(source)
    server = serve(folder, "--trust", "--mode", "explicit")
    for name in FILES:
        httpx.post(f"{server.url}/v2/repository/models/{name}/load", timeout=30)
    return server


def test_a_failed_run_does_not_tell_where_a_file_should_be(server: ServerProcess) -> None:
    answer = httpx.post(f"{server.url}/v1/models/running:predict", json={"instances": [1]})
    assert answer.status_code == 500
    assert TOLD in answer.json()["error"]
    assert "secret" not in answer.text
    assert "/nowhere/secret/Running/weights.bin" in server.output


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/loading/load"),
        ("GET", "/v2/models/loading/ready"),
        ("POST", "/v1/models/loading:predict"),
    ],
)
def test_a_failed_load_does_not_tell_where_a_file_should_be(
    server: ServerProcess, method: str, path: str
) -> None:
    answer = httpx.request(method, server.url + path, content=b'{"instances": [1]}', timeout=30)
    assert "model.py:3" in answer.text
    assert TOLD in answer.text
    assert "secret" not in answer.text
    assert "/nowhere/secret/Loading/weights.bin" in server.output
