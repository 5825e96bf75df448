"""The runtimes by name, and which of them a file is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from salver.errors import LoadFailed, did_you_mean
from salver.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from salver.config import ModelConfig
    from salver.interfaces import Probe, Runtime

runtimes: Final[Registry[type[Runtime]]] = Registry(
    "runtimes",
    {
        "onnx": "salver.runtimes.onnx:OnnxRuntime",
        "sklearn": "salver.runtimes.sklearn:SklearnRuntime",
        "xgboost": "salver.runtimes.xgboost:XgboostRuntime",
        "lightgbm": "salver.runtimes.lightgbm:LightgbmRuntime",
        "torch": "salver.runtimes.torch:TorchRuntime",
        "python": "salver.runtimes.python:PythonRuntime",
    },
)

# What to ask first, so that most files need one runtime only; and what a file should have been.
_SUFFIXES: Final = {
    ".onnx": "onnx",
    ".joblib": "sklearn",
    ".pkl": "sklearn",
    ".skops": "sklearn",
    ".ubj": "xgboost",
    ".json": "xgboost",
    ".txt": "lightgbm",
    ".pt": "torch",
    ".pt2": "torch",
    ".safetensors": "torch",
    ".py": "python",
}
_HINTS: Final = {
    "": "put the model's file into the folder, or set `file` and `runtime` in model.yaml",
    ".bin": "for weights, name their class: `class_name: module:Class` in model.yaml",
    ".h5": "export it to ONNX",
    ".json": "an XGBoost model is written by `save_model`",
    ".keras": "export it to ONNX",
    ".pb": "export it to ONNX",
    ".pth": "for weights, name their class: `class_name: module:Class` in model.yaml",
    ".py": "a Python model is a class with a method `predict` that has type hints",
    ".txt": "a LightGBM model is written by `save_model`",
}


def detect(path: Path, config: ModelConfig) -> tuple[Runtime, Probe]:
    """The runtime for a file or folder: the configured one, or the one that recognises it.

    Author's code that says it is a model wins over data files beside it.
    Raises: LoadFailed if none or several recognise it, ConfigError for an unknown runtime.
    """
    if not path.exists():
        near = did_you_mean(path.name, _names(path.parent))
        raise LoadFailed(f"{path.name}: there is no such file or folder.{near}")
    if config.runtime:
        found = _ask(config.runtime, path, config)
        if found is None:
            raise LoadFailed(f"{path.name}: not a model for the runtime {config.runtime!r}")
        return found
    first = _SUFFIXES.get(path.suffix) if path.is_file() else "python"
    if first is not None and (found := _ask(first, path, config)) is not None:
        return found
    others = [_ask(name, path, config) for name in runtimes if name != first]
    return _only([found for found in others if found is not None], path)


def _ask(name: str, path: Path, config: ModelConfig) -> tuple[Runtime, Probe] | None:
    runtime = runtimes.get(name)()
    probe = runtime.probe(path, config)
    return None if probe is None else (runtime, probe)


def _only(found: list[tuple[Runtime, Probe]], path: Path) -> tuple[Runtime, Probe]:
    if not found:
        raise LoadFailed(_nothing(path))
    if len({probe.file for _, probe in found}) > 1:
        claims = ", ".join(f"{probe.file} ({probe.runtime})" for _, probe in found)
        raise LoadFailed(
            f"{path.name}: holds several models: {claims}; choose with `file` or `runtime` in "
            "model.yaml"
        )
    return found[0]


def _nothing(path: Path) -> str:
    names = _names(path) if path.is_dir() else [path.name]
    suffixes = [name[name.rindex(".") :] for name in names if "." in name]
    otherwise = _HINTS[""] if path.is_dir() else "export the model to one of these"
    hint = next((_HINTS[suffix] for suffix in suffixes if suffix in _HINTS), otherwise)
    inside = f" (it has {', '.join(names[:5]) or 'no files'})" if path.is_dir() else ""
    return (
        f"{path.name}{inside}: no runtime recognises it; looked for {', '.join(_SUFFIXES)}. "
        f"Remedy: {hint}"
    )


def _names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
