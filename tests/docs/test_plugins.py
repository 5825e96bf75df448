"""The package that the page about plug-ins shows: its own test, and the commands below it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import salver

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The files of the page, as `pip install --editable` leaves them, and a model."""
    files = dict(re.findall(r"^`([\w.]+)`.*?:\n\n```\w+\n(.*?)^```", PAGE.read_text(), re.M | re.S))
    assert list(files) == ["pyproject.toml", "salver_npz.py", "test_salver_npz.py"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    ((group, points),) = project["entry-points"].items()
    info = tmp_path / "salver_npz-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    np.savez(tmp_path / "model.npz", weights=np.ones((3, 2)), bias=np.array([0.5, 0]))
    (tmp_path / "rows.csv").write_text("1,2,3\n4,5,6\n")
    return tmp_path


def run(package: Path, command: str) -> str:
    paths = f"{package}:{Path(salver.__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=package,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_package_works_as_shown(package: Path) -> None:
    shown = re.findall(r"^(pytest .*|salver .*)$", PAGE.read_text(), re.M)
    tested, inspected, _ = [run(package, command) for command in shown]
    assert "1 passed" in tested
    assert "npz" in inspected
    written = (package / "out.csv").read_text()
    assert "6.5" in written
    assert "15.5" in written
