"""Finds the model in a Python file by its syntax tree alone: nothing of the file is run."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from salver.config import ModelConfig
from salver.errors import ConfigError, LoadFailed

if TYPE_CHECKING:
    from pathlib import Path

_CONFIGURED: Final = ("name", "description", "labels", "example", "device", "idempotent")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Candidate(NamedTuple):
    """A class or function that may be the model; of several the lowest `rank` is meant.

    `declared` are the options of its `@salver.model(...)` that are plain literals.
    """

    name: str
    rank: int
    declared: dict[str, Any]


def model_file(path: Path, config: ModelConfig) -> Path | None:
    """The Python file that `path` stands for: itself, the configured one in it, or `model.py`."""
    if path.is_dir():
        module, colon, _ = config.class_name.partition(":")
        path = path / (config.file or (f"{module}.py" if colon else "model.py"))
    return path if path.suffix == ".py" and path.is_file() else None


def candidates(file: Path) -> list[Candidate]:
    """What looks like a model: decorated, a class with `predict` or a hinted `__call__`, or a
    function `predict` with hints.

    Raises: LoadFailed with the line of a syntax error.
    """
    try:
        tree = ast.parse(file.read_bytes(), file.name)
    except SyntaxError as error:
        raise LoadFailed(f"{file.name}:{error.lineno}: {error.msg}") from None
    except ValueError as error:
        raise LoadFailed(f"{file.name}: not Python source: {error}") from None
    marks = _decorator_names(tree)
    found = (_candidate(node, marks) for node in tree.body)
    return [candidate for candidate in found if candidate is not None]


def choose(found: list[Candidate], file: Path, class_name: str) -> str:
    """The name of the model in `file`: the configured one, or the only one that is meant.

    Raises: LoadFailed if that is ambiguous or there is none.
    """
    if class_name:
        return class_name.rpartition(":")[2]
    best = [c.name for c in found if c.rank == min(c.rank for c in found)]
    if len(best) > 1:
        raise LoadFailed(
            f"{file.name} has several models: {', '.join(best)}; choose one with class_name, or "
            "mark it with @salver.model"
        )
    if not best:
        raise LoadFailed(
            f"{file.name} has no model: write a class with a method `predict` that has type hints"
        )
    return best[0]


def declared_config(path: Path, config: ModelConfig) -> ModelConfig:
    """`config` with what `@salver.model(...)` says in plain literals, where `config` is silent.

    Raises: LoadFailed, ConfigError for a value of the wrong type.
    """
    file = model_file(path, config)
    found = candidates(file) if file else []
    if file is None or not found:
        return config
    name = choose(found, file, config.class_name)
    declared = next((c.declared for c in found if c.name == name), {})
    silent = {
        key: declared[key] for key in _CONFIGURED if key in declared and not getattr(config, key)
    }
    try:
        values = msgspec.to_builtins(config) | silent
        return msgspec.convert(values, ModelConfig, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file.name}: @salver.model: {error}") from None


def _candidate(node: ast.stmt, marks: set[str]) -> Candidate | None:
    if not isinstance(node, ast.ClassDef | _Function):
        return None
    for decorator in node.decorator_list:
        call = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(call) in marks:
            return Candidate(node.name, 0, _literals(decorator))
    rank = _rank(node)
    return Candidate(node.name, rank, {}) if rank else None


def _rank(node: ast.ClassDef | _Function) -> int:
    if not isinstance(node, ast.ClassDef):
        return 3 if node.name == "predict" and _has_hints(node) else 0
    methods = {item.name: item for item in node.body if isinstance(item, _Function)}
    if node.name.startswith("_"):
        return 0
    if "predict" in methods:
        return 1
    return 2 if "__call__" in methods and _has_hints(methods["__call__"]) else 0


def _has_hints(function: _Function) -> bool:
    return function.returns is not None


def _decorator_names(tree: ast.Module) -> set[str]:
    """How the file may spell `salver.model`, by its imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {f"{a.asname or a.name}.model" for a in node.names if a.name == "salver"}
        elif isinstance(node, ast.ImportFrom) and node.module == "salver":
            names |= {a.asname or a.name for a in node.names if a.name == "model"}
    return names


def _literals(decorator: ast.expr) -> dict[str, Any]:
    if not isinstance(decorator, ast.Call):
        return {}
    found = {}
    for keyword in decorator.keywords:
        try:
            found[keyword.arg or ""] = ast.literal_eval(keyword.value)
        except ValueError:
            continue
    return found
