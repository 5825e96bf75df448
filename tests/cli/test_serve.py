from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
from click.testing import CliRunner

from salver.cli.main import main

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
    assert "clf version 1 could not be loaded" in done.stderr
    assert "none of the files could be loaded" in done.stderr
    assert "Serving on" not in done.stderr


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
