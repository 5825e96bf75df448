"""The checks of `salver check` that concern models and their files."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from salver.cli.local import open_model, placement, told_of_triton
from salver.cli.yaml_mistakes import Finding, finding_of, line_of, mistakes
from salver.codecs.python_source import candidates, declared
from salver.config import ModelConfig
from salver.engine.configured import chosen
from salver.engine.warmup import example
from salver.errors import ConfigError, LoadFailed, SalverError
from salver.interfaces import Traits, VersionOnDisk
from salver.runtimes.files import TRUST_REMEDY
from salver.runtimes.table import detect
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
    unnumbered,
    version_folders,
)
from salver.types import ModelRef, dtype_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from salver.interfaces import Probe
    from salver.signature import Signature

FRAMEWORKS = {
    "onnx": ("onnxruntime", ""),
    "sklearn": ("sklearn", "sklearn"),
    "xgboost": ("xgboost", "xgboost"),
    "lightgbm": ("lightgbm", "lightgbm"),
    "torch": ("torch", "torch"),
}
"""What each runtime imports, and the extra that brings it."""


class ConfigFile(NamedTuple):
    """A `model.yaml`: how findings call it, its text, and its options without the wrong ones; and
    the lines of those that the model's own `code` adds.
    """

    name: str
    text: str
    config: ModelConfig
    code: str = ""
    lines: Mapping[str, int] = {}

    def finding(self, key: str, problem: str, remedy: str = "") -> Finding:
        line = line_of(self.text, key)
        if not line and key in self.lines:
            return Finding(self.code, self.lines[key], key, problem, remedy)
        return Finding(self.name, line, key, problem, remedy)


class Checker:
    """Goes through a path as the server does, but on after each mistake."""

    def __init__(self, path: Path, *, trust: bool, load: bool) -> None:
        self._root = path
        self._trust = trust
        self._load = load
        self._names: dict[str, str] = {}
        self.num_models = 0
        self.notes: list[str] = []
        """What is no mistake, but may not be what somebody expects."""

    def run(self) -> list[Finding]:
        """Every mistake, once."""
        found: dict[Finding, None] = {}
        places, others = self._places()
        for path in sorted([*places, *others]):
            is_other = path in others
            findings = [self._other(path, others[path])] if is_other else self._place(path)
            found |= dict.fromkeys(findings)
        if not self.num_models:
            found[Finding(self._shown(self._root), 0, "", "there is no model in it")] = None
        return list(found)

    def _shown(self, path: Path) -> str:
        if path == self._root:
            return as_text(path.resolve().name)
        root = self._root if self._root.is_dir() else self._root.parent
        return as_text(str(path.relative_to(root)))

    def _places(self) -> tuple[list[Path], dict[Path, str]]:
        """The models, and what else might be meant as one, with why it is none."""
        if self._root.is_dir() and not is_model(self._root):
            return models_in(self._root)
        is_there = self._root.is_dir() or self._root.is_file()
        return ([self._root], {}) if is_there else ([], {self._root: NOT_REGULAR})

    def _other(self, path: Path, why: str) -> Finding:
        """What is not served."""
        found = finding_of(why or "there is no model in it", self._shown(path))
        remedy = "" if found.remedy or why else "add one, or let the folder's name start with _"
        return found._replace(remedy=found.remedy or remedy)

    def _place(self, place: Path) -> Iterator[Finding]:
        self.num_models += 1
        if note := told_of_triton(place):
            self.notes.append(note)
        file, found = self._config(place)
        yield from found
        yield from check_tensors(file)
        if place.is_file():
            yield from self._version(place, "1", place, file)
            return
        versions = [folder.name for folder in version_folders(place)]
        if told := unnumbered(place, versions):
            yield finding_of(told, self._shown(place))
        yield from check_versions(file, versions)
        for version in chosen_versions(versions, file.config.versions):
            if version in versions:
                yield from self._folder(place / version, version, place, file)
        if not versions:
            yield from self._folder(place, file.config.version or "1", place, file)

    def _config(self, place: Path) -> tuple[ConfigFile, list[Finding]]:
        path = (place if place.is_dir() else place.parent) / CONFIG_FILE
        name = self._shown(path) if self._root.is_dir() else CONFIG_FILE
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found, config = mistakes(text, ModelConfig, name)
        if place.is_file() and config.file not in ("", place.name):
            config = ModelConfig()
        return ConfigFile(name, text if not any(f.line == 0 for f in found) else "", config), found

    def _name(self, place: Path, file: ConfigFile) -> Iterator[Finding]:
        name = file.config.name or (place.stem if place.is_file() else place.resolve().name)
        shown = self._shown(place)
        if not is_text(name):
            yield Finding(shown, 0, "name", NOT_TEXT, f"set `name` in {file.name}")
        if self._names.setdefault(name, shown) != shown:
            yield Finding(
                shown,
                0,
                "name",
                f"is called {name!r}, as is {self._names[name]}",
                f"set another `name` in {file.name}",
            )

    def _folder(
        self, folder: Path, version: str, place: Path, file: ConfigFile
    ) -> Iterator[Finding]:
        path, problem = model_file(folder, file.config.file)
        if problem is None:
            if told := passed_over(folder, file.config.file):
                yield finding_of(told, self._shown(folder), 0, "file")
            yield from self._version(path, version, place, file)
            return
        yield from self._name(place, file)
        if file.config.file:
            yield file.finding("file", problem.message, "correct the name")
        else:
            found = finding_of(problem.message, self._shown(folder), 0, "file")
            remedy = found.remedy or "add one, or let the folder's name start with _"
            yield found._replace(remedy=remedy)

    def _version(
        self, path: Path, version: str, place: Path, file: ConfigFile
    ) -> Iterator[Finding]:
        shown = self._shown(path)
        file, found = with_code(file, path, shown)
        config = file.config
        yield from found
        yield from self._name(place, file)
        try:
            _, probe = detect(path, config)
        except ConfigError as error:
            yield finding_of(error.message, file.name, line_of(file.text, "runtime"), "runtime")
            return
        except LoadFailed as error:
            yield _located(error.message, path.name, shown)
            return
        if probe.problem:
            yield _located(probe.problem, path.name, shown)
        missing = [*check_framework(probe, shown), *check_imports(path, shown)]
        yield from missing
        trusted = path == self._root and path.suffix == CODE_SUFFIX
        needs_trust = probe.trust and not (self._trust or trusted)
        if needs_trust:
            yield Finding(shown, 0, "", probe.trust, TRUST_REMEDY)
        signature = probe.signature
        if self._load and not (missing or probe.problem or needs_trust):
            on_disk = VersionOnDisk(ModelRef("m", version), path, "", config, None, trusted)
            try:
                signature = self._loaded(on_disk)
            except LoadFailed as error:
                yield _of_loading(error.message, path.name, shown, file)
        if signature is not None:
            yield from check_signature(signature, file)

    def _loaded(self, version: VersionOnDisk) -> Signature:
        opened = open_model(version, trust=self._trust, warn=lambda message: None)
        try:
            if version.config.example is not None:
                placement(opened)
        finally:
            opened.model.close()
        return opened.signature


def with_code(file: ConfigFile, path: Path, shown: str) -> tuple[ConfigFile, list[Finding]]:
    """`file` with what a Python file says of its model, as the server reads it."""
    if path.suffix != CODE_SUFFIX:
        return file, []
    try:
        found = declared(candidates(path), path, file.config)
    except LoadFailed:
        return file, []  # the probe tells
    own = file._replace(config=found.config, code=shown, lines=found.lines)
    return own, [_located(message, path.name, shown) for message in found.unread]


def _of_loading(message: str, name: str, shown: str, file: ConfigFile) -> Finding:
    """Why a model does not load: an option of `model.yaml` that does not fit, or its own file."""
    named = re.match(r"`?(\w+)(?:`|:) (.*)", message, re.DOTALL)
    if named and named[1] in ModelConfig.__struct_fields__:
        return finding_of(named[2], file.name, line_of(file.text, named[1]), named[1])
    if "example" in message.partition(":")[0]:
        return file.finding("example", message)
    return _located(message, name, shown)


def _located(message: str, name: str, shown: str) -> Finding:
    """An error that starts with its file, and perhaps line, as a finding there."""
    found = re.match(re.escape(name) + r"(?::(\d+))?(?: \(.*?\))?: (.*)", message, re.DOTALL)
    if found is None:
        return finding_of(message, shown)
    return finding_of(found[2], shown, int(found[1] or 0))


def check_versions(file: ConfigFile, present: list[str]) -> Iterator[Finding]:
    """Versions that are named and not there."""
    there = f"there are: {', '.join(present) or 'no version folders'}"
    config = file.config
    if isinstance(config.versions, tuple):
        for version in config.versions:
            if version not in present:
                yield file.finding("versions", f"there is no version {version!r}", there)
    for label, version in config.version_labels.items():
        if version not in (present or [config.version or "1"]):
            problem = f"{label!r} means version {version!r}, which is not there"
            yield file.finding("version_labels", problem, there)


def check_tensors(file: ConfigFile) -> Iterator[Finding]:
    """Datatypes that do not exist."""
    for key in ("inputs", "outputs"):
        for tensor in getattr(file.config, key):
            try:
                dtype_of(tensor.dtype)
            except SalverError as error:
                found = finding_of(f"{tensor.name}: {error.message}", file.name)
                yield found._replace(line=line_of(file.text, key), key=key)


def check_framework(probe: Probe, shown: str) -> Iterator[Finding]:
    """A framework that is not installed."""
    module, extra = FRAMEWORKS.get(probe.runtime, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        package = f"salver[{extra}]" if extra else module
        yield Finding(shown, 0, "", f"{module} is not installed", f"pip install '{package}'")


def check_imports(path: Path, shown: str) -> Iterator[Finding]:
    """Modules that a Python file imports and that are neither installed nor beside it."""
    if path.suffix != CODE_SUFFIX:
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # the probe tells
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in sorted({name.partition(".")[0] for name in names}):
            beside = path.parent / name
            if name in sys.modules or beside.is_dir() or beside.with_suffix(".py").is_file():
                continue
            if importlib.util.find_spec(name) is None:
                problem = f"imports {name!r}, which is not installed"
                yield Finding(shown, getattr(node, "lineno", 0), "", problem, "pip install it")


def check_signature(signature: Signature, file: ConfigFile) -> Iterator[Finding]:
    """What `model.yaml` says against what the model takes and gives."""
    config = file.config
    try:
        signature = chosen(signature, config, Traits())
    except LoadFailed as error:
        message = error.message.removeprefix("default_method: ")
        line = line_of(file.text, "default_method")
        yield finding_of(message, file.name, line, "default_method")
    method = signature.methods[signature.default]
    widths = {
        spec.shape[-1]
        for spec in method.outputs
        if spec.role == "probabilities" or (spec.dtype.is_float and len(spec.shape) > 1)
    }
    if config.labels and widths and not widths & {-1, len(config.labels)}:
        classes = " or ".join(map(str, sorted(widths)))
        problem = f"names {len(config.labels)} classes, the model gives {classes}"
        yield file.finding("labels", problem, f"name {classes} classes, in order")
    if config.columns and len(method.inputs) == 1 and len(method.inputs[0].shape) == 2:
        width = method.inputs[0].shape[1]
        if width not in (-1, len(config.columns)):
            problem = f"names {len(config.columns)} columns, the model takes {width}"
            yield file.finding("columns", problem, f"name {width} columns, in order")
    if config.example is not None:
        try:
            example(method, config)
        except LoadFailed as error:
            problem = error.message.removeprefix("the example does not fit: ")
            yield file.finding("example", problem, "give one input as a client would send it")
