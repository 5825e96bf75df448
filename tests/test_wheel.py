from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def test_the_wheel_holds_every_file_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(REPOSITORY)
    built = backend.build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / built) as wheel:
        names = {name for name in wheel.namelist() if name.startswith("salver/")}
        wheel.extractall(tmp_path / "installed")
    source = REPOSITORY / "src"
    files = (path for path in (source / "salver").rglob("*") if path.is_file())
    assert names == {
        str(path.relative_to(source)) for path in files if "__pycache__" not in path.parts
    }
