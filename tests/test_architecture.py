"""ARCHITECTURE.md names every module, and only those that exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "ARCHITECTURE.md"


def test_the_list_of_modules_is_current() -> None:
    with_modules = runpy.run_path(str(ROOT / "docs" / "modules.py"))["with_modules"]
    text = PAGE.read_text(encoding="utf-8")
    assert with_modules(text) == text, "run `make docs`"


def test_every_module_says_what_it_is() -> None:
    first_line = runpy.run_path(str(ROOT / "docs" / "modules.py"))["first_line"]
    silent = [
        path.name
        for path in (ROOT / "src" / "salver").rglob("*.py")
        if path.name != "version.py" and not first_line(path)
    ]
    assert silent == []


def test_files_that_the_text_names_exist() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Modules")[0]
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", text)
    assert named
    for name in named:
        places = (ROOT / "src" / "salver" / name, ROOT / name)
        assert any(place.exists() for place in places), name
