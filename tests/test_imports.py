"""The layers of the package: imports only go down, also those inside functions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import salver

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(salver.__file__).parent
# Modules beside the folders are the vocabulary, layer 0.
LAYERS = {
    "observe": 1,
    "codecs": 1,
    "runtimes": 2,
    "schedulers": 2,
    "protocols": 2,
    "sources": 2,
    "engine": 3,
    "control": 4,
    "server": 5,
    "client": 6,
    "testing": 6,
    "cli": 7,
}
FRAMEWORKS = {
    "PIL",
    "grpc",
    "httpx",
    "joblib",
    "lightgbm",
    "onnx",
    "onnxruntime",
    "pandas",
    "pyarrow",
    "safetensors",
    "scipy",
    "skl2onnx",
    "sklearn",
    "skops",
    "torch",
    "xgboost",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): ast.parse(path.read_bytes()) for path in sorted(ROOT.rglob("*.py"))}


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers see."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield from run_time_nodes(child)


def imports(module: str) -> set[str]:
    """Modules of this package that `module` imports anywhere, without packages' own names."""
    found = set()
    for node in run_time_nodes(SOURCES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in SOURCES else node.module or "")
    return {name for name in found if name.split(".")[0] == "salver"}


IMPORTS = {module: imports(module) for module in SOURCES}


def folder(module: str) -> str:
    """The folder of a module, empty for those beside the folders."""
    inner = module.split(".")[1:]
    if inner == ["__main__"]:
        return "cli"
    is_folder = len(inner) > 1 or (ROOT / "/".join(inner)).is_dir()
    return inner[0] if inner and is_folder else ""


def plug_ins() -> set[str]:
    """Modules that a registry names as `"module:attribute"`."""
    return {
        node.value.partition(":")[0]
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"salver(\.\w+)+:\w+", node.value)
    }


def test_every_folder_has_a_layer() -> None:
    assert {folder(module) for module in SOURCES} - {""} <= set(LAYERS)


def test_imports_only_go_down() -> None:
    upward = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        for target in targets
        if folder(module) != folder(target)
        and LAYERS.get(folder(target), 0) >= LAYERS.get(folder(module), 0)
        and folder(target)
    ]
    assert upward == []


def test_plug_ins_do_not_know_each_other() -> None:
    known = plug_ins()
    assert "salver.runtimes.python" in known
    siblings = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        for target in targets & known
        if folder(module) == folder(target)
    ]
    assert siblings == []


def test_there_are_no_cycles() -> None:
    TopologicalSorter(IMPORTS).prepare()


def test_the_collector_sees_hidden_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "if TYPE_CHECKING:\n import salver.clock\n"
        "def f():\n  from salver import errors\n  from salver.types import Tensor\n"
    )
    monkeypatch.setitem(SOURCES, "salver.example", ast.parse(code))
    assert imports("salver.example") == {"salver.errors", "salver.types"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules that an interpreter has loaded after running `code`."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT.parent)},
    )
    return set(result.stdout.split())


def test_import_salver_is_light() -> None:
    assert loaded_by("import salver") & ({"asyncio", "numpy", "msgspec"} | FRAMEWORKS) == set()


def test_authors_need_no_event_loop() -> None:
    names = ", ".join(name for name in salver.__all__ if not name.startswith("_"))
    assert loaded_by(f"from salver import {names}") & ({"asyncio"} | FRAMEWORKS) == set()


def test_the_checks_of_plug_ins_bring_nothing_along() -> None:
    tools = {"asyncio", "hypothesis", "pytest", "_pytest"}
    assert loaded_by("import salver.testing") & (tools | FRAMEWORKS) == set()


def test_nothing_that_serves_knows_the_checks() -> None:
    users = {m for m, targets in IMPORTS.items() for t in targets if folder(t) == "testing"}
    assert {folder(module) for module in users} == {"testing"}


def test_the_parent_of_fronts_loads_nothing_that_only_they_need() -> None:
    loaded = loaded_by("import salver.cli.serve, salver.server.serve, salver.server.fronts.parent")
    assert "uvloop" in loaded
    assert loaded & ({"google", "prometheus_client", "simdjson"} | FRAMEWORKS) == set()


@pytest.mark.parametrize("name", ["runtimes", "protocols", "schedulers", "sources"])
def test_plug_ins_import_their_framework_only_when_used(name: str) -> None:
    modules = [module for module in SOURCES if module.startswith(f"salver.{name}")]
    assert loaded_by(f"import {', '.join(modules)}") & FRAMEWORKS == set()
