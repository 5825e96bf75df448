"""Writes the list of modules into ARCHITECTURE.md from their own first lines: `make docs`."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
MARK = "<!-- modules, made by `make docs` -->\n"


def first_line(path: Path) -> str:
    """The first paragraph of a module's docstring, as one line."""
    text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def modules() -> str:
    """Every folder of the package with a line per module."""
    package = ROOT / "src" / "salver"
    lines = []
    for folder in sorted(path.parent for path in package.rglob("__init__.py")):
        name = folder.relative_to(package).as_posix()
        if folder != package:
            lines += ["", f"### {name}/", "", first_line(folder / "__init__.py"), ""]
        lines += [
            f"- `{path.name}` {first_line(path)}"
            for path in sorted(folder.glob("*.py"))
            if path.name not in ("__init__.py", "version.py")
        ]
    return "\n".join(lines) + "\n"


def with_modules(text: str) -> str:
    """The document with a fresh list behind the mark."""
    head, mark, _ = text.partition(MARK)
    assert mark, "ARCHITECTURE.md has lost its mark"
    return head + mark + "\n" + modules()


if __name__ == "__main__":
    ARCHITECTURE.write_text(
        with_modules(ARCHITECTURE.read_text(encoding="utf-8")), encoding="utf-8"
    )
