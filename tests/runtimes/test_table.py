from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from salver.config import ModelConfig
from salver.errors import ConfigError, LoadFailed
from salver.interfaces import Probe
from salver.runtimes import table
from salver.runtimes.table import detect, runtimes

if TYPE_CHECKING:
    from pathlib import Path

PREDICT = "class A:\n def predict(self, x: int) -> int: ..."
asked: list[str] = []


class Suffix:
    """Claims files by their suffix, and folders that hold one."""

    suffix = ""

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        asked.append(self.suffix)
        files = [path] if path.is_file() else sorted(path.iterdir())
        found = next((file for file in files if file.suffix == self.suffix), None)
        return Probe(runtime=self.suffix, file=found.name) if found else None


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Own runtimes for all frameworks; Python's is the real one."""
    asked.clear()
    suffixes = {"onnx": ".onnx", "sklearn": ".pkl", "xgboost": ".ubj", "lightgbm": ".txt"}
    fakes: dict[str, Any] = {
        name: type(name, (Suffix,), {"suffix": suffix}) for name, suffix in suffixes.items()
    }
    fakes["torch"] = type("torch", (Suffix,), {"suffix": ".pkl"})
    monkeypatch.setattr(table.runtimes, "_loaded", fakes)


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text(PREDICT)
    return folder / names[0]


def test_the_table_names_every_framework() -> None:
    assert {"onnx", "sklearn", "xgboost", "lightgbm", "torch", "python"} <= set(runtimes)


def test_a_suffix_asks_one_runtime_only(tmp_path: Path) -> None:
    _, probe = detect(put(tmp_path, "a.ubj"), ModelConfig())
    assert probe.runtime == ".ubj"
    assert asked == [".ubj"]


def test_other_suffixes_ask_all(tmp_path: Path) -> None:
    runtime, probe = detect(put(tmp_path, "model.py"), ModelConfig())
    assert (runtime.name, probe.runtime, asked) == ("python", "python", [])
    with pytest.raises(LoadFailed):
        detect(put(tmp_path, "a.dat"), ModelConfig())
    assert sorted(asked) == [".onnx", ".pkl", ".pkl", ".txt", ".ubj"]


def test_the_configured_runtime_is_the_only_one_asked(tmp_path: Path) -> None:
    path = put(tmp_path, "a.pkl")
    detect(path, ModelConfig(runtime="torch"))
    assert asked == [".pkl"]
    with pytest.raises(LoadFailed, match=r"a.pkl: not a model for the runtime 'onnx'"):
        detect(path, ModelConfig(runtime="onnx"))
    with pytest.raises(ConfigError, match="Did you mean 'torch'"):
        detect(path, ModelConfig(runtime="troch"))


def test_two_models_in_a_folder_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a.onnx", "b.ubj")
    with pytest.raises(LoadFailed, match=r"several models: a.onnx \(.onnx\), b.ubj \(.ubj\)"):
        detect(tmp_path, ModelConfig())


def test_one_file_that_two_runtimes_know_goes_to_the_first(tmp_path: Path) -> None:
    put(tmp_path, "a.pkl")
    runtime, _ = detect(tmp_path, ModelConfig())
    assert type(runtime).__name__ == "sklearn"


def test_a_models_code_wins_over_its_weights(tmp_path: Path) -> None:
    put(tmp_path, "model.py", "weights.onnx")
    assert detect(tmp_path, ModelConfig())[1].runtime == "python"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.h5"], "a.h5: no runtime recognises it.*Remedy: export it to ONNX"),
        (["a.xyz"], r"looked for \.onnx, .*Remedy: export the model to one of these"),
        (["a.json"], "Remedy: an XGBoost model is written by `save_model`"),
        (["a.pth"], "Remedy: for weights, name their class"),
    ],
)
def test_a_file_that_nobody_knows_gets_a_remedy(
    tmp_path: Path, names: list[str], message: str
) -> None:
    with pytest.raises(LoadFailed, match=message):
        detect(put(tmp_path, *names), ModelConfig())


def test_code_without_a_model_gets_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("x = 1")
    with pytest.raises(LoadFailed, match="Remedy: a Python model is a class"):
        detect(tmp_path / "utils.py", ModelConfig())


def test_a_folder_says_what_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "iris"
    folder.mkdir()
    with pytest.raises(LoadFailed, match=r"iris \(it has no files\): no runtime"):
        detect(folder, ModelConfig())


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    put(tmp_path, "model.onnx")
    with pytest.raises(LoadFailed, match=r"^modle.onnx: there is no .* Did you mean 'model.onnx'"):
        detect(tmp_path / "modle.onnx", ModelConfig())
