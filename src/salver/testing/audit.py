"""Sees whether code from a file runs, by the interpreter's audit events (PEP 578)."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_watchers: list[Callable[[str, tuple[Any, ...]], None]] = []


@cache
def _install() -> None:
    """Once per process: an audit hook cannot be taken out again."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        for watcher in _watchers:
            watcher(event, arguments)

    sys.addaudithook(hook)


@contextmanager
def code_run_from(path: Path) -> Iterator[list[str]]:
    """Collects what is run from `path`, or from beside it if it is a file: Python code, libraries,
    and whatever a pickle names.
    """
    root = (path if path.is_dir() else path.parent).resolve()
    seen: list[str] = []

    def lies_below(name: object) -> bool:
        return isinstance(name, str) and Path(name).resolve().is_relative_to(root)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            seen.append(f"unpickled {arguments[0]}.{arguments[1]}")
        elif event == "exec" and isinstance(arguments[0], CodeType):
            if lies_below(arguments[0].co_filename):
                seen.append(f"executed {Path(arguments[0].co_filename).name}")
        elif event == "ctypes.dlopen" and lies_below(arguments[0]):
            seen.append(f"opened the library {Path(arguments[0]).name}")
        elif event == "import" and len(arguments) > 1 and lies_below(arguments[1]):
            seen.append(f"imported {arguments[0]}")

    _install()
    _watchers.append(watch)
    try:
        yield seen
    finally:
        _watchers.remove(watch)
