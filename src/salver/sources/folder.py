"""The source of models in files: every version below some paths, with its `model.yaml`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from salver.codecs.python_source import candidates, declared
from salver.codecs.recent import Recent
from salver.config import ModelConfig, read
from salver.errors import ConfigError, LoadFailed, SalverError, listed
from salver.interfaces import VersionOnDisk
from salver.sources.layout import (
    CODE_SUFFIX,
    CONFIG_FILE,
    NOT_REGULAR,
    NOT_TEXT,
    as_text,
    chosen_versions,
    is_model,
    is_text,
    model_file,
    models_in,
    passed_over,
    stamp,
    unnumbered,
    version_folders,
)
from salver.types import ModelRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

log = logging.getLogger("salver.models")
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
        self._folders: dict[str, Path] = {}
        self._told: set[str] = set()
        self._read: Recent[tuple[Path, str], ModelConfig] = Recent(_MOST_READ)

    def scan(self) -> Mapping[ModelRef, VersionOnDisk]:
        """Every version to serve, as its model's policy has it.

        Raises: LoadFailed for a path that is not there or cannot be read, ConfigError for two
        models of one name.
        """
        return self._looked(self._scan)

    def older(self, name: str) -> Sequence[VersionOnDisk]:
        """Versions below the latest so many that are wanted, the newest first.

        Raises: LoadFailed for what cannot be read.
        """
        return self._looked(lambda: self._older(name))

    def _looked(self, look: Callable[[], T]) -> T:
        for _ in range(_TRIES):
            try:
                return look()
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
            if not (place.path.is_file() or place.path.is_dir()):
                raise LoadFailed(f"{place.path} cannot be served: {NOT_REGULAR}")
            for version in self._below(place):
                if not is_text(version.ref.name):
                    self._tell(
                        f"{as_text(version.ref.name)} is not served: {NOT_TEXT}; "
                        "serve it as NAME=PATH"
                    )
                    continue
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
            models, others = models_in(path)
            for model in models:
                if model.is_dir():
                    yield from self._model(model, model.name)
                else:
                    yield self._single(model, path, trusted=False)
            for other, why in others.items():
                if why:
                    self._tell(f"{as_text(other.name)} is not served: {why}")
            if empty := [as_text(other.name) for other, why in others.items() if not why]:
                self._tell(f"there is no model in {listed(empty)}")

    def _tell(self, message: str) -> None:
        """Warns, but not at every look at the files."""
        if message not in self._told:
            self._told.add(message)
            log.warning(message)

    def _single(self, file: Path, root: Path, given: str = "", *, trusted: bool) -> VersionOnDisk:
        """One file as version 1. A `model.yaml` beside it counts if it does not mean another, or
        may mean several.
        """
        config, problem = self._config(root)
        if config.file not in ("", file.name):
            config, problem = self._convert(ModelConfig()), None
        elif not config.file and (root / CONFIG_FILE).is_file() and (many := self._beside(root)):
            config = self._convert(ModelConfig())
            problem = ConfigError(
                f"{CONFIG_FILE} does not tell which of {listed(many)} it is for: say it there, as "
                f"in `file: {many[0]}`; the others go without it"
            )
        # Weights may lie beside the graph that names them, such as `model.onnx.data`.
        files = sorted(path for path in root.iterdir() if path.name.startswith(file.name))
        changed = stamp(root, [*files, root / CONFIG_FILE])
        config = self._declared(file, file, changed, config)
        ref = ModelRef(given or config.name or file.stem, config.version or "1")
        is_code = trusted and file.suffix == CODE_SUFFIX
        return VersionOnDisk(ref, file, changed, config, problem, is_code)

    def _beside(self, root: Path) -> list[str]:
        """The files of one folder that are served singly, if there are several."""
        paths = [place.path for place in self._places if place.path.is_file()]
        names = sorted({path.name for path in paths if path.parent.resolve() == root.resolve()})
        return names if len(names) > 1 else []

    def _model(self, folder: Path, name: str, given: str = "") -> Iterator[VersionOnDisk]:
        """The versions of a model in a folder. A name that is `given` counts before all others."""
        config, problem = self._config(folder)
        present = [path.name for path in version_folders(folder)]
        if told := unnumbered(folder, present):
            self._tell(told)
        versions = chosen_versions(present, config.versions) if present else [config.version or "1"]
        for version in versions:
            found = self._version(folder, version, present, config)
            ref = ModelRef(given or found.ref.name or name, version)
            self._folders[ref.name] = folder
            yield found._replace(ref=ref, problem=problem or found.problem)

    def _older(self, name: str) -> list[VersionOnDisk]:
        folder = self._folders.get(name)
        config, problem = self._config(folder) if folder else (ModelConfig(), None)
        if folder is None or problem is not None or not isinstance(config.versions, int):
            return []
        present = [path.name for path in version_folders(folder)]
        wanted = chosen_versions(present, config.versions)
        return [
            self._version(folder, version, present, config)._replace(ref=ModelRef(name, version))
            for version in reversed(present)
            if version not in wanted
        ]

    def _version(
        self, folder: Path, version: str, present: Sequence[str], config: ModelConfig
    ) -> VersionOnDisk:
        """A version of a model in a folder, under the name that it says itself, or none."""
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
        return VersionOnDisk(ModelRef(own.name, version), file, changed, own, missing)

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
