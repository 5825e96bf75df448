from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from click.testing import CliRunner
from tests.server.fronts.client import all_fronts, until, write_scaling

from salver.cli.main import main
from salver.config import from_environment, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_file_that_cannot_be_loaded_ends_the_command_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "clf.onnx").write_bytes(b"no model")
    done = subprocess.run(
        [sys.executable, "-m", "salver", "serve", "clf.onnx", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "ERROR clf version 1 could not be loaded: clf.onnx: not an ONNX model",
        "Error: none of the files could be loaded",
    ]


def test_what_fails_beside_others_is_explained_once(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "class Broken:\n"
        "    def __init__(self) -> None:\n"
        "        raise ValueError('no weights here')\n"
        "    def predict(self, x: float) -> float:\n"
        "        return x\n"
    )
    (tmp_path / "good.py").write_text(
        "class Good:\n    def predict(self, x: float) -> float:\n        return x\n"
    )
    server = serve(tmp_path / "broken.py", tmp_path / "good.py")
    told = [line.split() for line in server.output.splitlines() if "broken" in line]
    assert len(told) == 2
    assert told[0][-3:] == ["no", "weights", "here"]
    assert told[1] == ["broken", "1", "-", "unavailable"]
    assert server.output.count("no weights here") == 1


def test_what_kubernetes_says_of_a_service_is_not_taken_for_options() -> None:
    links = {
        "SALVER_SERVICE_HOST": "10.0.0.1",
        "SALVER_SERVICE_PORT": "80",
        "SALVER_PORT": "tcp://10.0.0.1:80",
        "SALVER_PORT_80_TCP": "tcp://10.0.0.1:80",
        "SALVER_PORT_80_TCP_PROTO": "tcp",
        "SALVER_PORT_80_TCP_PORT": "80",
        "SALVER_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert from_environment(links) == {}
    assert from_environment(links | {"SALVER_PORT": "udp://10.0.0.1:80"}) == {}
    ours = {"SALVER_PORT": "80", "SALVER_HOST": "::", "SALVER_LIMITS__STREAMS": "7"}
    expected = {"port": "80", "host": "::", "limits.streams": "7"}
    assert from_environment(links | ours) == expected


def test_variables_that_are_no_options_are_told_of() -> None:
    others = {"SALVER_URL": "http://a", "SALVER_TEST_IMAGE": "x", "PATH": "/bin"}
    links = {
        "SALVER_SERVICE_HOST": "10.0.0.1",
        "SALVER_SERVICE_PORT_HTTP": "80",
        "SALVER_PORT_80_TCP_ADDR": "10.0.0.1",
        "SALVER_WEB_SERVICE_PORT": "80",
        "SALVER_WEB_PORT": "tcp://10.0.0.1:80",
        "SALVER_WEB_PORT_80_TCP": "tcp://10.0.0.1:80",
    }
    options = {"SALVER_PORT": "3", "SALVER_LIMITS__STREAMS": "7"}
    assert unknown_variables(others | links | options) == []
    assert unknown_variables({"SALVER_PROT": "3", "SALVER_WEB_PORT": "80"}) == [
        "SALVER_PROT is no option and is ignored. Did you mean 'SALVER_PORT'?",
        "SALVER_WEB_PORT is no option and is ignored. Did you mean 'SALVER_PORT'?",
    ]


def test_a_link_to_a_service_is_told_of_and_does_not_keep_the_server_down(
    serve: Any, tmp_path: Path
) -> None:
    server = serve(tmp_path, env={"SALVER_PORT": "tcp://10.0.0.1:80"})
    (line,) = (line for line in server.output.splitlines() if "SALVER_PORT" in line)
    assert line.startswith("WARNING SALVER_PORT=tcp://10.0.0.1:80 is ignored")
    assert "enableServiceLinks: false" in line


def test_a_python_file_says_what_is_served(serve: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mymodel.py").write_text("""
import salver

@salver.model(name="tagger", description="Tags words.", labels=["noun", "verb"], max_batch=16,
              example=[1, 0])
class Tagger:
    def predict(self, x: salver.Array["float32", "B", 2]) -> salver.Array["float32", "B", 2]:
        return x
""")
    server = serve(tmp_path / "mymodel.py")
    told = json.loads(CliRunner().invoke(main, ["models", "--url", server.url, "--json"]).output)
    assert [(m["name"], m["description"], m["labels"], m["example"]) for m in told] == [
        ("tagger", "Tags words.", ["noun", "verb"], [1, 0])
    ]
    config = httpx.get(f"{server.url}/v2/models/tagger/config").json()
    assert config["max_batch_size"] == 16
    answer = httpx.post(f"{server.url}/predict", json={"input": [0, 1]}).json()
    assert answer["label"] == "verb"


def test_the_help_tells_units_and_choices() -> None:
    words = CliRunner().invoke(main, ["serve", "--help"]).output
    assert "--drain-timeout SECONDS" in words
    assert "--mode poll|explicit|none" in words
    assert "SALVER_API_KEY" in words


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--port", "70000"], "port: expected a whole number <= 65535, got '70000'"),
        (["--port", "abc"], "port: expected a whole number, got 'abc'"),
        (
            ["--drain-timeout", "5s"],
            "drain_timeout_s: expected a number of seconds, got '5s'",
        ),
        (["--mode", "pol"], "mode: expected one of poll, explicit, none, got 'pol'"),
        (["--config", "nowhere.yaml"], "File 'nowhere.yaml' does not exist"),
        (["--tls-cert", "nowhere.pem", "--port", "0"], "tls_cert: there is no file nowhere.pem"),
        (["--api-key", "schl\xfcssel"], "api_key: only visible ASCII characters"),
        (["--api-key", "two words"], "api_key: only visible ASCII characters"),
        ([""], "'' names no file or folder"),
        (["iris="], "'iris=' names no file or folder"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, arguments: list[str], problem: str) -> None:
    found = CliRunner().invoke(main, ["serve", str(tmp_path), *arguments])
    assert found.exit_code
    assert problem in found.output


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_running_server_follows_its_file(serve: Any, tmp_path: Path, processes: str) -> None:
    file, folder = tmp_path / "salver.yaml", tmp_path / "models"
    folder.mkdir()
    write_scaling(folder / "scaling" / "model.onnx", 2.0)

    def write(text: str) -> None:
        file.with_suffix(".new").write_text(text)
        file.with_suffix(".new").replace(file)

    write("{poll_interval_s: 0.02, limits: {body_bytes: 100}}")
    server = serve(folder, "--config", file, "--processes", processes, "--access-log", "off")
    with all_fronts(server, int(processes)) as clients:
        body = {"input": [1.0], "padding": "x" * 200}

        def statuses() -> set[int]:
            return {client.ask("POST", "/predict/scaling", body)[0] for client in clients}

        assert statuses() == {413}
        write("{poll_interval_s: 0.02, limits: {body_bytes: 100000}, trust: true}")
        until(lambda: statuses() == {400}, "the new limit")
        write("{poll_interval_s: 0.02, limits: {body_bytes: 1000000}, limit: {}}")
        until(lambda: "the options stay as they are" in server.output, "the log")
        assert statuses() == {400}
    told = [line for line in server.output.splitlines() if "salver.yaml" in line]
    assert told[:2] == [
        "INFO salver.yaml: limits.body_bytes: 100 -> 100000",
        "WARNING salver.yaml: needs a restart: trust",
    ]
    assert "salver.yaml:1: unknown key 'limit'" in told[2]
    assert len(told) == 3
