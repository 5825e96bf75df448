"""What the runtimes of model files share: finding the file, trust, importing the framework."""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any, Final

from salver.errors import LoadFailed, MissingExtra, TrustRequired, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from salver.config import ModelConfig
    from salver.interfaces import LoadSpec


TRUST_REMEDY: Final = "If you trust it: add --trust to the command, or `trust: true` to salver.yaml"
"""What to do about a file that runs code when it is opened."""
IMPORTING: Final = threading.RLock()
"""Held while a framework is imported, or a pickle is read, which imports parts of one. Models load
beside each other, and modules that import each other must not be begun from two sides at once.
"""


def find_file(
    path: Path,
    config: ModelConfig,
    suffixes: Sequence[str],
    recognises: Callable[[Path], bool] = lambda file: True,
) -> Path | None:
    """The model file that `path` is, or that the folder holds: the configured, `model.*`, the only.

    Earlier suffixes win. `recognises` looks into a file of an ambiguous suffix.
    """
    if path.is_dir() and config.file:
        path = path / config.file
    files = [
        file
        for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        if file.suffix.lower() in suffixes and file.is_file() and recognises(file)
    ]
    named = [file for file in files if file.stem == "model"]
    if named:
        return min(named, key=lambda file: suffixes.index(file.suffix.lower()))
    return files[0] if len(files) == 1 else None


def must_exist(file: Path | None, what: str) -> Path:
    """Raises: LoadFailed when there is no such file."""
    if file is None:
        raise LoadFailed(f"there is no {what} here")
    return file


def must_be_trusted(spec: LoadSpec, reason: str) -> None:
    """Raises: TrustRequired for a reason that is not empty, unless somebody trusts the file."""
    if reason and not spec.trusted:
        raise TrustRequired(f"{reason}. {TRUST_REMEDY}")


def stays_on_cpu(spec: LoadSpec, what: str) -> None:
    """Warns when another device was asked for, and this runtime has none."""
    if spec.device != "cpu":
        spec.warn(f"{what} runs on the processor, not on {spec.device}")


def require(module: str, extra: str) -> Any:
    """Imports a framework.

    Raises: MissingExtra naming what to install.
    """
    try:
        with IMPORTING:
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
