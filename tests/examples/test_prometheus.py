from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WAIT_S = 30


def metrics(server: Any) -> dict[tuple[str, ...], float]:
    """Every sample by name and sorted values of labels; none may be there twice."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            key = sample.name, *(sample.labels[name] for name in sorted(sample.labels))
            assert key not in found
            found[key] = sample.value
    return found


def ask(server: Any, model: str, value: Any = (0.5, 0.25, 1.0)) -> int:
    path = f"{server.url}/v2/models/{model}/infer"
    tensor = {"name": "image", "shape": [3, 1, 1], "datatype": "FP32"}
    return httpx.post(path, json={"inputs": [tensor | {"data": value}]}).status_code


@pytest.fixture(scope="module")
def server(example: Any, serve: Callable[..., Any]) -> Any:
    return serve(example.folder / "resnet50", "--trust")


@pytest.mark.tool
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_documented_commands_answer(example: Any, server: Any) -> None:
    place = {"127.0.0.1:8000": server.address}
    found = example.run(example.command("curl -d"), **place)
    assert json.loads(found) == json.loads((example.folder / "answer.json").read_text())
    text = example.run(example.command("curl http"), **place)
    assert 'inference_requests_total{model="resnet50",status="success"}' in text


def test_what_two_workers_count_is_added_up(server: Any) -> None:
    success = "inference_requests_total", "resnet50", "success"
    error = "inference_requests_total", "resnet50", "error"
    count = "inference_duration_seconds_count", "resnet50"
    before = metrics(server)
    assert [ask(server, "resnet50") for _ in range(20)] == [200] * 20
    assert [ask(server, "resnet50", [-1, 0, 0]) for _ in range(3)] == [500] * 3
    after = metrics(server)
    assert after[success] - before.get(success, 0) == 20
    assert after[error] - before.get(error, 0) == 3
    assert after[count] - before.get(count, 0) == 23


def test_names_of_the_code_stand_in_place_of_the_servers(server: Any) -> None:
    ask(server, "resnet50")
    bounds = [key for key in metrics(server) if key[0] == "inference_duration_seconds_bucket"]
    assert ("inference_duration_seconds_bucket", "0.005", "resnet50") in bounds
    assert not any(key[1] == "8.192e-06" for key in bounds)


@pytest.mark.parametrize("isolation", ["process", "thread", "inline"])
def test_the_same_code_twice_and_reloaded_does_not_clash(
    example: Any, serve: Callable[..., Any], tmp_path: Path, isolation: str
) -> None:
    for name in ("one", "two"):
        shutil.copytree(example.folder / "resnet50", tmp_path / name)
        settings = f"instances: {{isolation: {isolation}}}\nwarmup: {{runs: 0}}\n"
        (tmp_path / name / "model.yaml").write_text(settings)
    server = serve(tmp_path, "--trust", "--mode", "explicit")
    load = "/v2/repository/models/{}/load"
    for name in ("one", "two", "one"):
        loaded = httpx.post(server.url + load.format(name), json={})
        assert loaded.status_code == 200, loaded.text
    assert [ask(server, name) for name in ("one", "two", "two")] == [200] * 3
    found = metrics(server)
    assert found["inference_requests_total", "resnet50", "success"] == 3
    assert found["inference_requests_total", "one", "success"] == 1
    assert found["inference_requests_total", "two", "success"] == 2
    assert "Duplicated" not in server.output


DECORATED = """
import salver

class Halves:
    @salver.monitor_inference("halves")
    def predict(self, x: float) -> float:
        return 1 / x
"""


def test_the_decorator_needs_no_code(serve: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "halves").mkdir()
    (tmp_path / "halves" / "model.py").write_text(DECORATED)
    (tmp_path / "halves" / "model.yaml").write_text("warmup: {runs: 0}\n")
    server = serve(tmp_path, "--trust")
    url = f"{server.url}/predict/halves"
    assert httpx.post(url, json={"input": 2.0}).json()["prediction"] == 0.5
    assert httpx.post(url, json={"input": 0.0}).status_code == 500
    found = metrics(server)
    assert found["inference_requests_total", "halves", "success"] == 1
    assert found["inference_requests_total", "halves", "error"] == 1


def test_a_busy_worker_keeps_no_monitor_waiting(serve: Callable[..., Any], tmp_path: Path) -> None:
    code = "import re\n\nclass Busy:\n    def predict(self, n: int) -> int:\n" + (
        "        re.match('(a+)+$', 'a' * n + 'b')\n        return n\n"
    )
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "model.py").write_text(code)
    server = serve(tmp_path, "--trust", "--drain-timeout", "0")
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{server.url}/predict/busy", json={"input": 40}, timeout=0.5)
    started = time.monotonic()
    assert httpx.get(f"{server.url}/metrics").status_code == 200
    assert time.monotonic() - started < WAIT_S
