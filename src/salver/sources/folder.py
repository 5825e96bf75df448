"""Models in files: a single file, a folder with a model, or a repository of such folders.

iris.onnx                     model `iris`, version 1
iris/model.onnx               model `iris`, version 1
iris/3/model.onnx             model `iris`, version 3
models/iris/…                 a repository: every folder in it is a model
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Final

import msgspec

from salver.codecs.python_source import candidates, declared
from salver.codecs.recent import Recent
from salver.config import ModelConfig, read
from salver.errors import ConfigError, LoadFailed, SalverError
from salver.interfaces import VersionOnDisk
from salver.types import ModelRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

log = logging.getLogger("salver.models")
CONFIG_FILE: Final = "model.yaml"
SURE_SUFFIXES: Final = (
    ".onnx", ".skops", ".joblib", ".pkl", ".pickle", ".ubj", ".lgb",
    ".pt2", ".pt", ".pth", ".safetensors",
)  # fmt: skip
DATA_SUFFIXES: Final = (*SURE_SUFFIXES, ".json", ".txt", ".bin")
"""Model files may end so, but most files that end like the last ones are none."""
CODE_SUFFIX: Final = ".py"
_TRIES: Final = 3
_MOST_READ: Final = 1024
"""Python files of which is remembered what they said: a look at the files reads them but once."""


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
        self._last_good: dict[Path, ModelConfig] = {}
        self._last_names: dict[Path, str] = {}
        self._told: set[str] = set()
        self._read: Recent[tuple[Path, str], ModelConfig] = Recent(_MOST_READ)

    def scan(self) -> Mapping[ModelRef, VersionOnDisk]:
        """Every version to serve, as its model's policy has it.

        Raises: LoadFailed for a path that is not there or cannot be read, ConfigError for two
        models of one name.
        """
        for _ in range(_TRIES):
            try:
                return self._scan()
            except (FileNotFoundError, NotADirectoryError):
                # Something went away in the middle: another look finds the new order.
                continue
            except OSError as error:
                name = Path(error.filename or "").name
                raise LoadFailed(f"{name!r} cannot be read: {error.strerror}") from error
        raise LoadFailed("the models' files change too fast to be listed")

    def _scan(self) -> Mapping[ModelRef, VersionOnDisk]:
        found: dict[ModelRef, VersionOnDisk] = {}
        for place in self._places:
            if not place.path.exists():
                raise LoadFailed(f"there is no file or folder {place.path}")
            for version in self._below(place):
                paths = {found.get(version.ref, version).path, version.path}
                if len(paths) > 1:
                    both = " and ".join(sorted(f"{p.parent.name}/{p.name}" for p in paths))
                    raise ConfigError(
                        f"two models are called {version.ref.name!r}: {both}; "
                        "serve one of them as NAME=PATH"
                    )
                found[version.ref] = version
        return found

    def _below(self, place: Place) -> Iterator[VersionOnDisk]:
        path = place.path
        if path.is_file():
            yield self._single(path, path.parent, place.name, trusted=True)
        elif is_model(path):
            yield from self._model(path, path.resolve().name, place.name)
        else:
            for child in sorted(path.iterdir()):
                if child.name.startswith((".", "_")):
                    continue
                if child.is_dir():
                    if is_model(child):
                        yield from self._model(child, child.name)
                    else:
                        self._tell_of_several(child)
                elif child.suffix in SURE_SUFFIXES:
                    yield self._single(child, path, trusted=False)

    def _tell_of_several(self, folder: Path) -> None:
        """Says once that a folder is no model because it holds several."""
        files = model_files(folder)
        if len(files) < 2 or files[0].suffix not in SURE_SUFFIXES:
            return
        _, problem = model_file(folder, "")
        if problem is not None:
            self._tell(f"{folder.name} is not served: {problem.message}")

    def _tell(self, message: str) -> None:
        """Warns, but not at every look at the files."""
        if message not in self._told:
            self._told.add(message)
            log.warning(message)

    def _single(self, file: Path, root: Path, given: str = "", *, trusted: bool) -> VersionOnDisk:
        """One file as version 1. A `model.yaml` beside it counts if it does not mean another."""
        config, problem = self._config(root)
        if config.file not in ("", file.name):
            config, problem = self._convert(ModelConfig()), None
        # Weights may lie beside the graph that names them, such as `model.onnx.data`.
        files = sorted(path for path in root.iterdir() if path.name.startswith(file.name))
        changed = stamp(root, [*files, root / CONFIG_FILE])
        config = self._declared(file, file, changed, config)
        ref = ModelRef(given or config.name or file.stem, config.version or "1")
        is_code = trusted and file.suffix == CODE_SUFFIX
        return VersionOnDisk(ref, file, changed, config, problem, is_code)

    def _model(self, folder: Path, name: str, given: str = "") -> Iterator[VersionOnDisk]:
        """The versions of a model in a folder. A name that is `given` counts before all others."""
        config, problem = self._config(folder)
        present = [path.name for path in version_folders(folder)]
        versions = chosen_versions(present, config.versions) if present else [config.version or "1"]
        for version in versions:
            inside = folder / version if present else folder
            changed = stamp(folder, [inside, folder / CONFIG_FILE])
            if version in present or not present:
                file, missing = model_file(inside, config.file)
                if told := passed_over(inside, config.file):
                    self._tell(told)
            else:
                there = ", ".join(present)
                missing = LoadFailed(f"there is no version folder {version!r}; there are: {there}")
                file = inside
            own = self._declared(folder, file, changed, config)
            ref = ModelRef(given or own.name or name, version)
            yield VersionOnDisk(ref, file, changed, own, problem or missing)

    def _declared(self, model: Path, file: Path, changed: str, config: ModelConfig) -> ModelConfig:
        """`config` with what a Python file says of itself.

        One with a mistake, which its runtime will tell, leaves `model` the name that it had.
        """
        if file.suffix != CODE_SUFFIX and file.is_file():
            return config
        if (known := self._read.get((file, changed))) is not None:
            return known
        try:
            own = declared(candidates(file), file, config).config
            self._last_names[model] = own.name
        except LoadFailed:
            name = config.name or self._last_names.get(model, "")
            own = msgspec.structs.replace(config, name=name)
        self._read.put((file, changed), own)
        return own

    def _config(self, folder: Path) -> tuple[ModelConfig, SalverError | None]:
        """A folder's `model.yaml`. One with a mistake goes on naming what it named before."""
        try:
            config = self._last_good[folder] = self._convert(
                read(folder / CONFIG_FILE, ModelConfig)
            )
        except ConfigError as error:
            return self._last_good.get(folder, ModelConfig()), error
        self._last_good[folder] = config
        return config, None

    def _convert(self, config: ModelConfig) -> ModelConfig:
        if not self._overrides:
            return config
        value = msgspec.to_builtins(config) | self._overrides
        return msgspec.convert(value, ModelConfig, strict=False)


def is_model(folder: Path) -> bool:
    """Whether a folder is one model: it says so, has versions, or holds exactly one model file and
    no other models.
    """
    if (folder / CONFIG_FILE).is_file() or version_folders(folder):
        return True
    if any((folder / f"model{suffix}").is_file() for suffix in (*DATA_SUFFIXES, CODE_SUFFIX)):
        return True
    files = model_files(folder)
    return (
        len(files) == 1
        and files[0].suffix in DATA_SUFFIXES
        and not any(child.is_dir() and is_model(child) for child in folder.iterdir())
    )


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


def passed_over(folder: Path, configured: str) -> str:
    """Tells of model files beside the one that is served for its name `model.*`; empty for none."""
    candidates = [] if configured else model_files(folder)
    named = [path for path in candidates if path.stem == "model"]
    if len(named) != 1 or len(candidates) == 1:
        return ""
    return f"{named[0].name} alone is served: {_several(folder, candidates)}"


def _several(folder: Path, files: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in files)
    return f"{folder.name!r} holds {names}: name one as `file:` in model.yaml"


def model_files(folder: Path) -> list[Path]:
    """Files that may be the model, of the surest kind that there is."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    data = [path for path in files if path.suffix in DATA_SUFFIXES]
    sure = [path for path in data if path.suffix in SURE_SUFFIXES or path.stem == "model"]
    return sure or data or [path for path in files if path.suffix == CODE_SUFFIX]


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
