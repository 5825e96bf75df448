"""Every `salver` and `curl` command of the documentation, in its order, against real servers."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import joblib
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable

for name in ("sklearn", "skl2onnx", "xgboost", "lightgbm", "PIL"):
    pytest.importorskip(name)

DOCS = Path(__file__).parents[2] / "docs"
DEMO = DOCS.parent / "examples" / "demo"
KEY = "a-key-of-the-test"
ELSEWHERE = ("pip ",)
"""Commands that are not for this machine."""
MORE = {("quickstart.md", "salver serve model.onnx"): " digits-python diabetes --trust"}
"""The commands after it send files that models of the demo read."""

DIGITS = """
import numpy as np
import salver

class Digits:
    def predict(self, image: salver.Image) -> int:
        return int(np.asarray(image).mean()) % 10
"""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def commands(page: str) -> list[str]:
    lines = "".join(blocks(page, "sh")).splitlines()
    plain = [re.sub(r"\s+#.*", "", line) for line in lines]
    return [line for line in plain if line and not line.startswith(ELSEWHERE)]


def build(folder: Path) -> None:
    """Small models under the names that the documentation uses."""
    import lightgbm
    import xgboost
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    x, y = load_iris(return_X_y=True)
    x = x.astype(np.float32)
    classifier = LogisticRegression(max_iter=1000).fit(x, y)
    onnx = to_onnx(classifier, x[:1], options={"zipmap": False}).SerializeToString()
    header = (DEMO / "patients.csv").read_text().partition("\n")[0].split(",")
    few = {"n_estimators": 3, "verbosity": 0}
    table = np.random.default_rng(0).random((50, len(header)))
    settings = {
        "models/iris/model.yaml": blocks("quickstart.md", "yaml")[0],
        "digits-python/model.py": DIGITS,
        "diabetes/model.yaml": f"columns: [{', '.join(header)}]\n",
    }
    for version in ("1", "2"):
        (folder / "models" / "iris" / version).mkdir(parents=True)
        (folder / "models" / "iris" / version / "model.onnx").write_bytes(onnx)
    for name in ("models/fraud", "digits-python", "diabetes"):
        (folder / name).mkdir()
    for name, text in settings.items():
        (folder / name).write_text(text)
    for name in ("model.onnx", "iris.onnx"):
        (folder / name).write_bytes(onnx)
    fraud = xgboost.XGBClassifier(**few).fit(x, y == 1)
    for name in ("fraud.ubj", "models/fraud/model.ubj"):
        fraud.save_model(folder / name)
    xgboost.XGBRegressor(**few).fit(table, table[:, 0]).save_model(folder / "diabetes/model.ubj")
    price = lightgbm.LGBMRegressor(n_estimators=3, verbose=-1).fit(x, y)
    price.booster_.save_model(folder / "model.txt")
    (folder / "rows.csv").write_text("a,b,c,d\n5.1,3.5,1.4,0.2\n6.7,3.0,5.2,2.3\n")
    for name in ("digit.png", "patients.csv"):
        shutil.copy(DEMO / name, folder)


class Reader:
    """Somebody who types what the page says."""

    def __init__(self, page: str, serve: Callable[..., Any], folder: Path) -> None:
        self._page = page
        self._serve = serve
        self.folder = folder
        self.server: Any = None

    def type(self, command: str) -> None:
        command = (command + MORE.get((self._page, command), "")).replace("$SALVER_API_KEY", KEY)
        if command.startswith("salver serve "):
            if self.server is not None:
                self.server.stop()
            with contextlib.chdir(self.folder):
                self.server = self._serve(*shlex.split(command)[2:])
            assert "ERROR" not in self.server.output
            return
        command = re.sub(r"(127\.0\.0\.1|localhost|my-server):8000", self.server.address, command)
        command = re.sub(r"^curl ", "curl --silent --show-error --fail-with-body ", command)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env=os.environ | {"PATH": path, "SALVER_URL": self.server.url},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    build(folder)
    return folder


@pytest.mark.tool
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("page", ["../README.md", "quickstart.md", "client.md", "operations.md"])
def test_every_command_works(page: str, serve: Callable[..., Any], folder: Path) -> None:
    reader = Reader(page, serve, folder)
    shown = commands(page)
    assert len(shown) > 1
    for command in shown:
        reader.type(command)
    reader.server.stop()


NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3, 2)

    def forward(self, image):
        return self.last(image.mean((2, 3)))
"""


@pytest.fixture
def one_of_each(folder: Path, tmp_path: Path) -> Path:
    """A folder with the files that the README's first table names."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    from sklearn.linear_model import LogisticRegression

    for name in ("model.onnx", "models"):
        (tmp_path / name).symlink_to(folder / name)
    shutil.copy(folder / "fraud.ubj", tmp_path / "model.ubj")
    shutil.copy(folder / "rows.csv", tmp_path / "data.csv")
    joblib.dump(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), tmp_path / "clf.joblib")
    (tmp_path / "model.py").write_text(DIGITS)
    for name in ("script", "weights"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.yaml").write_text(blocks("runtimes.md", "yaml")[1])
    (tmp_path / "weights" / "net.py").write_text(NET)
    scope: dict[str, Any] = {}
    exec(NET, scope)
    net = scope["Net"]()
    traced = torch.jit.trace(net, torch.zeros(1, 3, 224, 224))
    traced.save(tmp_path / "script" / "model.pt")
    safetensors.save_file(net.state_dict(), tmp_path / "weights" / "model.safetensors")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_every_command_of_the_table_works(serve: Callable[..., Any], one_of_each: Path) -> None:
    table = (
        (DOCS.parent / "README.md").read_text().partition("| You have |")[2].partition("\n\n")[0]
    )
    shown = re.findall(r"`(salver [^`]+)`", table)
    assert len(shown) > 8
    reader = Reader("", serve, one_of_each)
    for command in shown:
        file = command.split()[2]
        places = {"model.pt": "script", "model.safetensors": "weights"}
        reader.folder = one_of_each / places.get(file, "")
        reader.type(command)
    reader.server.stop()


def test_the_settings_shown_are_valid() -> None:
    from salver.config import ModelConfig, parse

    for page in ("quickstart.md", "operations.md", "runtimes.md"):
        for text in blocks(page, "yaml"):
            parse(text, ModelConfig, page)


def test_every_metric_is_documented(serve: Callable[..., Any], folder: Path) -> None:
    text = (DOCS / "operations.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", text, re.M)
    documented = {name: set(labels.split(", ")) for name, labels in rows}
    server = serve(folder / "models")
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        name = family.name + ("_total" if family.type == "counter" else "")
        if not name.startswith("process_"):
            found[name] = {label for s in family.samples for label in s.labels} - {"le"}
    documented.pop("gpu_memory_usage_bytes")
    found.pop("gpu_memory_usage_bytes", None)
    assert found == documented


def test_every_reason_and_cause_is_documented() -> None:
    from salver.observe.statistics import OUTCOMES, REASONS

    text = (DOCS / "operations.md").read_text()
    for word in (*OUTCOMES, *REASONS):
        assert f"`{word}`" in text
