"""How models lie in files: a single file, a folder with a model, or a repository of such folders.

iris.onnx                     model `iris`, version 1
iris/model.onnx               model `iris`, version 1
iris/3/model.onnx             model `iris`, version 3
models/iris/…                 a repository: every folder in it is a model
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Final

from salver.codecs.python_source import may_be_model
from salver.errors import ConfigError, LoadFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.errors import SalverError

CONFIG_FILE: Final = "model.yaml"
SURE_SUFFIXES: Final = (
    ".onnx", ".skops", ".joblib", ".pkl", ".pickle", ".ubj", ".lgb",
    ".pt2", ".pt", ".pth", ".safetensors",
)  # fmt: skip
DATA_SUFFIXES: Final = (*SURE_SUFFIXES, ".json", ".txt", ".bin")
"""Model files may end so, but most files that end like the last ones are none."""
CODE_SUFFIX: Final = ".py"
NOT_TEXT: Final = "its name is not UTF-8"
NOT_REGULAR: Final = "it is neither a regular file nor a folder"


def is_model(folder: Path, *, may_be_code: bool = True) -> bool:
    """Whether a folder is one model: it says so, has versions, or holds exactly one model file and
    no other models. A Python file is one if something in it looks like a model.
    """
    if (folder / CONFIG_FILE).is_file() or version_folders(folder):
        return True
    if any((folder / f"model{suffix}").is_file() for suffix in (*DATA_SUFFIXES, CODE_SUFFIX)):
        return True
    files = model_files(folder)
    if len(files) != 1:
        return False
    is_code = files[0].suffix == CODE_SUFFIX
    if is_code and (not may_be_code or may_be_model(files[0]) is False):
        return False
    # Code below a model's data may well be of its own.
    return not models_below(folder, may_be_code=is_code)


def models_below(folder: Path, *, may_be_code: bool = True) -> list[Path]:
    """The folders in a folder that are models and no versions."""
    return [
        child
        for child in sorted(folder.iterdir())
        if child.is_dir()
        and not child.name.startswith((".", "_"))
        and not child.name.isdecimal()
        and os.access(child, os.R_OK | os.X_OK)
        and is_model(child, may_be_code=may_be_code)
    ]


def models_in(repository: Path) -> tuple[list[Path], dict[Path, str]]:
    """The models in a folder of several, and what else might be meant as one, with why it is none;
    nothing more is known of a folder without any model file.
    """
    models: list[Path] = []
    others: dict[Path, str] = {}
    for child in sorted(repository.iterdir()):
        is_folder = child.is_dir()
        suffixes = (*SURE_SUFFIXES, CODE_SUFFIX)
        if child.name.startswith((".", "_")) or not (is_folder or child.suffix in suffixes):
            continue
        if not is_text(child.name):
            others[child] = NOT_TEXT
        elif is_folder and not is_model(child):
            others[child] = _why_no_model(child)
        elif not (is_folder or child.is_file()):
            others[child] = NOT_REGULAR
        elif is_folder or child.suffix != CODE_SUFFIX:
            models.append(child)
        elif may_be_model(child):
            others[child] = "it is code; put it into a folder of its own, or serve it by its path"
    return models, others


def _why_no_model(folder: Path) -> str:
    if below := models_below(folder):
        return _unnumbered(below)
    files = model_files(folder)
    if len(files) < 2 or not _is_meant(files[0]):
        return ""
    return _several(folder, files)


def _is_meant(file: Path) -> bool:
    is_code = file.suffix == CODE_SUFFIX
    return may_be_model(file) is not False if is_code else file.suffix in SURE_SUFFIXES


def _unnumbered(folders: Sequence[Path]) -> str:
    names = ", ".join(as_text(path.name) for path in folders)
    return f"it holds {names}, but only numbers name versions; serve other models by their paths"


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8: only then does it have a form on the wire."""
    return as_text(name) == name


def as_text(name: str) -> str:
    """A file's name with escapes for the bytes that are not UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def version_folders(folder: Path) -> list[Path]:
    """Folders named by a number, in numeric order."""
    found = [p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def chosen_versions(present: Sequence[str], policy: tuple[str, ...] | str | int) -> list[str]:
    """The versions to serve: the latest so many, `all`, or exactly those listed, there or not."""
    if isinstance(policy, int):
        return list(present[-policy:]) if policy > 0 else []
    return list(present) if isinstance(policy, str) else list(dict.fromkeys(policy))


def model_file(folder: Path, configured: str) -> tuple[Path, SalverError | None]:
    """The file to load: the configured one, `model.*`, or the only one there is."""
    if configured:
        if Path(configured).is_absolute() or ".." in Path(configured).parts:
            return folder, ConfigError(f"file: {configured!r} lies outside the model's folder")
        file = folder / configured
        if not file.exists():
            return folder, LoadFailed(f"there is no file {configured!r} in {folder.name!r}")
        return file, None
    candidates = model_files(folder)
    named = [path for path in candidates if path.stem == "model"]
    chosen = named if len(named) == 1 else candidates
    if len(chosen) == 1:
        return chosen[0], None
    if not chosen:
        return folder, LoadFailed(f"no model file in {folder.name!r}")
    return folder, LoadFailed(_several(folder, chosen))


def unnumbered(folder: Path, versions: Sequence[str]) -> str:
    """Tells of folders beside versions that might be meant as such; empty for none."""
    others = [path for path in models_below(folder) if not path.is_symlink()] if versions else []
    return f"{as_text(folder.name)}: {_unnumbered(others)}" if others else ""


def passed_over(folder: Path, configured: str) -> str:
    """Tells of model files beside the one that is served for its name `model.*`; empty for none."""
    candidates = [] if configured else model_files(folder)
    named = [path for path in candidates if path.stem == "model"]
    if len(named) != 1 or len(candidates) == 1:
        return ""
    return f"{named[0].name} alone is served: {_several(folder, candidates)}"


def _several(folder: Path, files: Sequence[Path]) -> str:
    names = ", ".join(as_text(path.name) for path in files)
    return f"{folder.name!r} holds {names}: name one as `file:` in model.yaml"


def model_files(folder: Path) -> list[Path]:
    """Files that may be the model, of the surest kind that there is."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    data = [path for path in files if path.suffix in DATA_SUFFIXES]
    sure = [path for path in data if path.suffix in SURE_SUFFIXES or path.stem == "model"]
    return sure or data or _code_files([path for path in files if path.suffix == CODE_SUFFIX])


def _code_files(files: list[Path]) -> list[Path]:
    """Those that look like models; without any those that cannot be read, or else all."""
    looks = {file: may_be_model(file) for file in files}
    for wanted in (True, None):
        if found := [file for file in files if looks[file] is wanted]:
            return found
    return files


def stamp(root: Path, paths: Sequence[Path]) -> str:
    """Changes whenever one of some files, or a file below one of some folders, does."""
    digest = blake2b(digest_size=12)
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = file.relative_to(root)
            if any(part.startswith((".", "__pycache__")) for part in name.parts):
                continue
            try:
                status = file.stat()
            except FileNotFoundError:
                continue
            if not S_ISDIR(status.st_mode):
                facts = f"{name} {status.st_ino} {status.st_mtime_ns} {status.st_size}\n"
                digest.update(facts.encode(errors="surrogateescape"))
    return digest.hexdigest()
