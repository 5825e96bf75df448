"""What the runtimes of model files share: finding the file, importing the framework."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from salver.errors import LoadFailed, MissingExtra, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from salver.config import ModelConfig


def find_file(path: Path, config: ModelConfig, suffixes: Sequence[str]) -> Path | None:
    """The model file that `path` is, or that the folder holds: the configured, `model.*`, the only.

    Earlier suffixes win.
    """
    if path.is_dir() and config.file:
        path = path / config.file
    if not path.is_dir():
        return path if path.suffix.lower() in suffixes and path.is_file() else None
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in suffixes]
    named = [file for file in files if file.stem == "model"]
    if named:
        return min(named, key=lambda file: suffixes.index(file.suffix.lower()))
    return files[0] if len(files) == 1 else None


def require(module: str, extra: str) -> Any:
    """Imports a framework.

    Raises: MissingExtra naming what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtra(
            f"{error.name} is missing: needs `pip install 'salver[{extra}]'`"
        ) from None


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises: LoadFailed for the first key that does not exist, naming the nearest that does."""
    known = sorted(known)
    for key in given:
        if key not in known:
            raise LoadFailed(
                f"unknown {where} {key!r}.{did_you_mean(str(key), known)} "
                f"There are: {', '.join(known)}"
            )
