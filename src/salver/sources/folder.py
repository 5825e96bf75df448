"""Models in files: a single file, a folder with a model, or a repository of such folders.

iris.onnx                     model `iris`, version 1
iris/model.onnx               model `iris`, version 1
iris/3/model.onnx             model `iris`, version 3
models/iris/…                 a repository: every folder in it is a model
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import msgspec

from salver.config import ModelConfig, read
from salver.errors import ConfigError, LoadFailed, SalverError
from salver.interfaces import VersionOnDisk
from salver.types import ModelRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

CONFIG_FILE: Final = "model.yaml"
DATA_SUFFIXES: Final = (
    ".onnx", ".skops", ".joblib", ".pkl", ".pickle", ".ubj", ".json", ".txt", ".lgb",
    ".pt2", ".pt", ".pth", ".safetensors", ".bin",
)  # fmt: skip
CODE_SUFFIX: Final = ".py"


@dataclass(frozen=True)
class Place:
    """A path to serve, under a name of one's choice or its own."""

    path: Path
    name: str = ""


class FolderSource:
    """The models below some paths. `overrides` apply to every model, above its `model.yaml`."""

    def __init__(self, places: Sequence[Place], overrides: Mapping[str, object]) -> None:
        self._places = tuple(places)
        self._overrides = dict(overrides)

    def scan(self) -> Mapping[ModelRef, VersionOnDisk]:
        """Every version to serve, as its model's policy has it.

        Raises: LoadFailed for a path that is not there.
        """
        found: dict[ModelRef, VersionOnDisk] = {}
        for place in self._places:
            if not place.path.exists():
                raise LoadFailed(f"there is no file or folder {place.path}")
            for version in self._below(place):
                if version.ref in found and found[version.ref].path != version.path:
                    raise ConfigError(
                        f"two models are called {version.ref.name!r}; serve one of them as "
                        "NAME=PATH"
                    )
                found[version.ref] = version
        return found

    def _below(self, place: Place) -> Iterator[VersionOnDisk]:
        path = place.path
        if path.is_file():
            yield self._single(path, place.name or path.stem, path.parent, trusted=True)
        elif is_model(path):
            yield from self._model(path, place.name or path.resolve().name)
        else:
            for child in sorted(path.iterdir()):
                if child.name.startswith((".", "_")):
                    continue
                if child.is_dir() and is_model(child):
                    yield from self._model(child, child.name)
                elif child.suffix in DATA_SUFFIXES:
                    yield self._single(child, child.stem, path, trusted=False)

    def _single(self, file: Path, name: str, root: Path, *, trusted: bool) -> VersionOnDisk:
        """One file as version 1. A `model.yaml` beside it counts if it does not mean another."""
        config, problem = self._config(root)
        if problem is None and config.file not in ("", file.name):
            config = self._convert(ModelConfig())
        ref = ModelRef(config.name or name, config.version or "1")
        is_code = trusted and file.suffix == CODE_SUFFIX
        return VersionOnDisk(ref, file, stamp(file, root), config, problem, is_code)

    def _model(self, folder: Path, name: str) -> Iterator[VersionOnDisk]:
        config, problem = self._config(folder)
        name = config.name or name
        versions = version_folders(folder)
        if not versions:
            ref = ModelRef(name, config.version or "1")
            file, missing = model_file(folder, config.file)
            yield VersionOnDisk(ref, file, stamp(folder), config, problem or missing)
            return
        for version in chosen_versions([path.name for path in versions], config.versions):
            file, missing = model_file(folder / version, config.file)
            changed = stamp(folder / version, folder)
            yield VersionOnDisk(ModelRef(name, version), file, changed, config, problem or missing)

    def _config(self, folder: Path) -> tuple[ModelConfig, SalverError | None]:
        try:
            return self._convert(read(folder / CONFIG_FILE, ModelConfig)), None
        except ConfigError as error:
            return ModelConfig(), error

    def _convert(self, config: ModelConfig) -> ModelConfig:
        if not self._overrides:
            return config
        value = msgspec.to_builtins(config) | self._overrides
        return msgspec.convert(value, ModelConfig, strict=False)


def is_model(folder: Path) -> bool:
    """Whether a folder is one model: it says so, has versions, or holds exactly one model file."""
    if (folder / CONFIG_FILE).is_file() or version_folders(folder):
        return True
    files = [path for path in folder.iterdir() if path.is_file()]
    if any(path.stem == "model" and path.suffix in (*DATA_SUFFIXES, CODE_SUFFIX) for path in files):
        return True
    return sum(path.suffix in DATA_SUFFIXES for path in files) == 1


def version_folders(folder: Path) -> list[Path]:
    """Folders named by a number, in numeric order."""
    found = [p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def chosen_versions(present: Sequence[str], policy: tuple[str, ...] | str | int) -> list[str]:
    """The versions to serve: the latest so many, `all`, or exactly those listed."""
    if isinstance(policy, int):
        return list(present[-policy:]) if policy > 0 else []
    if isinstance(policy, str):
        return list(present)
    return [version for version in present if version in policy]


def model_file(folder: Path, configured: str) -> tuple[Path, SalverError | None]:
    """The file to load: the configured one, `model.*`, or the only one there is."""
    if configured:
        file = (folder / configured).resolve()
        if not file.is_relative_to(folder.resolve()):
            return folder, ConfigError(f"file: {configured!r} lies outside the model's folder")
        if not file.exists():
            return folder, LoadFailed(f"there is no file {configured!r} in {folder.name!r}")
        return file, None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    candidates = [path for path in files if path.suffix in DATA_SUFFIXES]
    if not candidates:
        candidates = [path for path in files if path.suffix == CODE_SUFFIX]
    named = [path for path in candidates if path.stem == "model"]
    chosen = named if len(named) == 1 else candidates
    if len(chosen) == 1:
        return chosen[0], None
    if not chosen:
        return folder, LoadFailed(f"no model file in {folder.name!r}")
    names = ", ".join(path.name for path in chosen)
    return folder, LoadFailed(f"{folder.name!r} holds {names}: name one as `file:` in model.yaml")


def stamp(path: Path, config_folder: Path | None = None) -> str:
    """Changes whenever a file below `path`, or the configuration, does."""
    digest = blake2b(digest_size=12)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if config_folder is not None and (config_folder / CONFIG_FILE).is_file():
        files.append(config_folder / CONFIG_FILE)
    for file in files:
        if "__pycache__" in file.parts:
            continue
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        digest.update(f"{file.name} {status.st_mtime_ns} {status.st_size}\n".encode())
    return digest.hexdigest()
