"""Finds the model in a Python file by its syntax tree alone: nothing of the file is run."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from salver.authoring import Declaration
from salver.config import ModelConfig
from salver.errors import LoadFailed, did_you_mean, listed
from salver.places import text_of

if TYPE_CHECKING:
    from pathlib import Path

_MARKED: Final = 0
"""The rank of what has the decorator."""
_MOST_KNOWN: Final = 4096
"""Python files of which is remembered whether they may be models."""
_SILENT: Final = ModelConfig()
_ONLY_LITERAL: Final = ("name", "description", "example")
"""What counts before a model is loaded; the rest is also known from the object afterwards."""
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Candidate(NamedTuple):
    """A class or function that may be the model; of several the lowest `rank` is meant.

    `declared` are the options of its `@salver.model(...)` that are plain literals, `lines` the
    lines of all of them.
    """

    name: str
    rank: int
    declared: dict[str, Any]
    lines: dict[str, int]


class Declared(NamedTuple):
    """What a file says of its model: the name of the class or function, the configuration that
    results, the lines of the decorator's options, and which of them are said in vain, and why.
    """

    target: str
    config: ModelConfig
    lines: dict[str, int]
    unread: list[str]


def model_file(path: Path, config: ModelConfig) -> Path | None:
    """The Python file that `path` stands for: itself, the configured one in it, or `model.py`."""
    if path.is_dir():
        module, colon, _ = config.class_name.partition(":")
        path = path / (config.file or (f"{module}.py" if colon else "model.py"))
    return path if path.suffix == ".py" and path.is_file() else None


def may_be_model(file: Path) -> bool | None:
    """Whether something in a Python file looks like a model; None if the file cannot be read, so
    that a mistake which is on its way out does not take a model out of service.
    """
    status = file.stat()
    return _may_be_model(file, status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=_MOST_KNOWN)
def _may_be_model(file: Path, *stamp: int) -> bool | None:
    try:
        return bool(candidates(file))
    except LoadFailed:
        return None


def candidates(file: Path) -> list[Candidate]:
    """What looks like a model: decorated, a class with `predict` or a hinted `__call__`, or a
    function `predict` with hints.

    Raises: LoadFailed with the line of a syntax error.
    """
    try:
        tree = ast.parse(file.read_bytes(), file.name)
        marks = _decorator_names(tree)
        found = [_candidate(node, marks) for node in tree.body]
    except SyntaxError as error:
        raise LoadFailed(f"{file.name}:{error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise LoadFailed(f"{file.name}: not Python source: {text_of(error)}") from None
    except OSError as error:
        raise LoadFailed(f"{file.name} cannot be read: {error.strerror}") from None
    return [candidate for candidate in found if candidate is not None]


def declared(found: list[Candidate], file: Path, config: ModelConfig) -> Declared:
    """What `@salver.model(...)` in `file` says in literals, where `config` is silent.

    Raises: LoadFailed if no model is meant, or with the line of a mistake in the decorator.
    """
    target = _choose(found, file, config.class_name)
    candidate = next((c for c in found if c.name == target), None)
    if candidate is None:
        return Declared(target, config, {}, [])
    said = _checked(candidate, file)
    options = ModelConfig.__struct_fields__
    given = {k: value for k, value in said.items() if k in options and _is_silent(config, k)}
    if "max_batch" in said and not config.batching.max_size:
        given["batching"] = msgspec.structs.replace(config.batching, max_size=said["max_batch"])
    unread = [
        f"{file.name}:{line}: @salver.model: {key} is no plain literal and is not read; write it "
        "out, or set it in model.yaml"
        for key, line in candidate.lines.items()
        if key in _ONLY_LITERAL and key not in said and _is_silent(config, key)
    ]
    return Declared(target, msgspec.structs.replace(config, **given), candidate.lines, unread)


def _choose(found: list[Candidate], file: Path, class_name: str) -> str:
    """The name of the model in `file`: the configured one, or the only one that is meant.

    Raises: LoadFailed if that is ambiguous or there is none.
    """
    if class_name:
        return class_name.rpartition(":")[2]
    lowest = min((c.rank for c in found), default=0)
    best = [c.name for c in found if c.rank == lowest]
    if len(best) > 1:
        marked = "" if lowest == _MARKED else ", or mark it with @salver.model"
        raise LoadFailed(
            f"{file.name} has several models: {', '.join(best)}; choose one with --class or "
            f"class_name{marked}"
        )
    if not best:
        raise LoadFailed(
            f"{file.name} has no model: write a class with a method `predict` that has type hints"
        )
    return best[0]


def _is_silent(config: ModelConfig, key: str) -> bool:
    return bool(getattr(config, key) == getattr(_SILENT, key))


def _checked(candidate: Candidate, file: Path) -> dict[str, Any]:
    """The declared options in their types; an example as JSON has it, like every client's input.

    Raises: LoadFailed with the line of an unknown option or a wrong value.
    """
    known = Declaration.__struct_fields__
    for key, line in candidate.lines.items():
        if key not in known:
            raise LoadFailed(
                f"{file.name}:{line}: @salver.model takes no {key!r}.{did_you_mean(key, known)} "
                f"There are: {listed(known)}"
            )
    checked = {}
    for key, value in candidate.declared.items():
        try:
            plain = msgspec.json.decode(msgspec.json.encode(value))
            typed = msgspec.convert({key: value}, Declaration)
            checked[key] = plain if key == "example" else getattr(typed, key)
        except (TypeError, ValueError, OverflowError) as error:
            why = text_of(error).partition(" - at ")[0]
            where = f"{file.name}:{candidate.lines[key]}"
            raise LoadFailed(f"{where}: @salver.model: {key}: {why}") from None
    return checked


def _candidate(node: ast.stmt, marks: set[str]) -> Candidate | None:
    if not isinstance(node, ast.ClassDef | _Function):
        return None
    for decorator in node.decorator_list:
        call = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(call) in marks:
            return Candidate(node.name, _MARKED, *_options(decorator))
    rank = _rank(node)
    return Candidate(node.name, rank, {}, {}) if rank else None


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


def _options(decorator: ast.expr) -> tuple[dict[str, Any], dict[str, int]]:
    """The decorator's options that are literals, and the lines of all."""
    literals, lines = {}, {}
    for keyword in decorator.keywords if isinstance(decorator, ast.Call) else ():
        if keyword.arg is None:
            continue
        lines[keyword.arg] = keyword.value.lineno
        try:
            literals[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            continue
    return literals, lines
