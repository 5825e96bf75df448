from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from salver.errors import LoadFailed
from salver.sources.layout import chosen_versions, model_file, passed_over, version_folders

if TYPE_CHECKING:
    from pathlib import Path


def test_version_policies() -> None:
    present = ["1", "2", "10"]
    assert chosen_versions(present, 1) == ["10"]
    assert chosen_versions(present, 2) == ["2", "10"]
    assert chosen_versions(present, "all") == present
    assert chosen_versions(present, ("1", "10")) == ["1", "10"]
    assert chosen_versions(present, ("7",)) == ["7"]


def test_versions_are_folders_in_numeric_order(tmp_path: Path) -> None:
    for name in ("10", "2", "1", "latest"):
        (tmp_path / name).mkdir()
    (tmp_path / "3").touch()
    assert [path.name for path in version_folders(tmp_path)] == ["1", "2", "10"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.onnx", "other.onnx"], "model.onnx"),
        (["net.onnx", "labels.txt", "config.json"], "net.onnx"),
        (["booster.txt"], "booster.txt"),
        (["serve.py", "net.onnx"], "net.onnx"),
        (["serve.py"], "serve.py"),
        (["model.json", "other.txt"], "model.json"),
        (["a.onnx", "b.onnx"], None),
        (["a.md"], None),
    ],
)
def test_the_model_among_files(tmp_path: Path, names: list[str], chosen: str | None) -> None:
    for name in names:
        (tmp_path / name).touch()
    file, problem = model_file(tmp_path, "")
    assert isinstance(problem, LoadFailed) == (chosen is None)
    assert file == (tmp_path / chosen if chosen else tmp_path)
    is_one_of_several = names == ["model.onnx", "other.onnx"]
    assert bool(passed_over(tmp_path, "")) == is_one_of_several
