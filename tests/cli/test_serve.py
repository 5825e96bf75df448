from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

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
