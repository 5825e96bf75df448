from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from salver.cli.main import main

if TYPE_CHECKING:
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
    assert "clf version 1 could not be loaded" in done.stderr
    assert "none of the files could be loaded" in done.stderr
    assert "Serving on" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--port", "70000"], "port: Expected `int` <= 65535, got '70000'"),
        (["--port", "abc"], "port: Expected `int`, got 'abc'"),
        (["--mode", "pol"], "mode: expected one of poll, explicit, none, got 'pol'"),
        (["--config", "nowhere.yaml"], "File 'nowhere.yaml' does not exist"),
        (["--tls-cert", "nowhere.pem", "--port", "0"], "tls_cert: there is no file nowhere.pem"),
        ([""], "'' names no file or folder"),
        (["iris="], "'iris=' names no file or folder"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, arguments: list[str], problem: str) -> None:
    found = CliRunner().invoke(main, ["serve", str(tmp_path), *arguments])
    assert found.exit_code
    assert problem in found.output
