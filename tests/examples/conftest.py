"""The commands that the READMEs of examples show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FROM = ROOT / "examples" / "from"


class Example:
    """A folder `examples/from/NAME`."""

    def __init__(self, name: str) -> None:
        self.folder = FROM / name

    def command(self, start: str) -> str:
        """The command of the README that begins so."""
        commands = re.findall(r"`([^`]+)`", (self.folder / "README.md").read_text())
        return next(command for command in commands if command.startswith(start))

    def run(self, command: str, **replaced: str) -> str:
        """What a command prints; `replaced` are its words that differ in a test."""
        for old, new in replaced.items():
            command = command.replace(old, new)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-ec", command],
            cwd=ROOT,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def example(request: pytest.FixtureRequest) -> Example:
    """The example that the test module is named after."""
    return Example(Path(request.node.path).stem.removeprefix("test_"))
