from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper

from salver.clock import system_clock
from salver.config import ServerConfig
from salver.engine import engine as module
from salver.sources.folder import FolderSource, Place

if TYPE_CHECKING:
    from collections.abc import Callable


def save(folder: Path, name: str) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], name, [x], [y])
    opset = helper.make_opsetid("", 21)
    onnx.save(
        helper.make_model(graph, opset_imports=[opset], ir_version=10), folder / f"{name}.onnx"
    )


def test_memory_is_given_back_once_for_many_and_not_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reclaimed: list[int] = []
    monkeypatch.setattr(module, "reclaim_memory", reclaimed.append)
    for name in "abc":
        save(tmp_path, name)
    versions = FolderSource([Place(tmp_path)], {}).scan()

    async def run() -> None:
        engine = module.Engine(ServerConfig(), system_clock)
        await asyncio.gather(*map(engine.load, versions.values()))
        await asyncio.gather(*(engine.unload(ref) for ref in list(versions)[:2]))
        await asyncio.gather(*engine._ends)
        assert len(reclaimed) == 1
        await engine.stop(1)

    asyncio.run(run())
    assert len(reclaimed) == 1


def test_the_end_waits_for_memory_that_is_being_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def reclaim(goal_bytes: int) -> None:
        begun.set()
        may_end.wait()

    monkeypatch.setattr(module, "reclaim_memory", reclaim)
    save(tmp_path, "a")
    (version,) = FolderSource([Place(tmp_path)], {}).scan().values()

    async def run() -> None:
        engine = module.Engine(ServerConfig(), system_clock)
        await engine.load(version)
        await engine.unload(version.ref)
        await asyncio.to_thread(begun.wait)
        stopping = asyncio.ensure_future(engine.stop(1))
        done, _ = await asyncio.wait([stopping], timeout=0)
        may_end.set()
        assert not done
        await stopping
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def torch_script(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    layers = torch.nn.Linear(2048, 4096), torch.nn.Linear(4096, 2048)
    torch.jit.script(torch.nn.Sequential(*layers).eval()).save(folder / "model.pt")
    return folder / "model.pt"


def torch_weights(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2048, 8192).state_dict(), folder / "model.pt")
    code = "import torch\n\ndef Net(): return torch.nn.Linear(2048, 8192)\n"
    (folder / "net.py").write_text(code)
    return folder / "model.pt"


def forest(folder: Path) -> Path:
    joblib = pytest.importorskip("joblib")
    ensemble = pytest.importorskip("sklearn.ensemble")
    rows, labels = noise(30_000)
    trees = ensemble.ExtraTreesClassifier(8, max_features=1).fit(rows, labels > 0.5)
    joblib.dump(trees, folder / "model.joblib")
    return folder / "model.joblib"


def xgboost_trees(folder: Path) -> Path:
    """One tree, many times, as training takes long."""
    xgboost = pytest.importorskip("xgboost")
    options = {"max_depth": 14, "lambda": 0, "min_child_weight": 0, "tree_method": "exact"}
    booster = xgboost.train(options, xgboost.DMatrix(*noise(4096)), 1)
    model = json.loads(booster.save_raw("json"))
    num_trees = 900
    trees = model["learner"]["gradient_booster"]["model"]
    trees["trees"] = [trees["trees"][0] | {"id": number} for number in range(num_trees)]
    trees["tree_info"] = [0] * num_trees
    trees["iteration_indptr"] = list(range(num_trees + 1))
    trees["gbtree_model_param"]["num_trees"] = str(num_trees)
    (folder / "model.json").write_text(json.dumps(model))
    return folder / "model.json"


def lightgbm_trees(folder: Path) -> Path:
    """One tree, many times, as training takes long."""
    lightgbm = pytest.importorskip("lightgbm")
    options = {"num_leaves": 4096, "min_data_in_leaf": 1, "min_data_in_bin": 1, "verbose": -1}
    booster = lightgbm.train(options, lightgbm.Dataset(*noise(4096)), 1)
    parts = re.fullmatch(r"(.*?)(Tree=0\n.*?\n\n\n)(.*)", booster.model_to_string(), re.DOTALL)
    assert parts is not None
    trees = [parts[2].replace("Tree=0", f"Tree={number}") for number in range(150)]
    sizes = " ".join(str(len(tree)) for tree in trees)
    head = re.sub(r"tree_sizes=.*", f"tree_sizes={sizes}", parts[1])
    (folder / "model.txt").write_text(head + "".join(trees) + parts[3])
    return folder / "model.txt"


def noise(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.random((num_rows, 8)), random.random(num_rows)


TAKES = "inputs: [{name: x, dtype: FP32, shape: [-1, 2048]}]"


@pytest.mark.parametrize(
    ("make", "config", "at_least"),
    [
        (torch_script, TAKES, 60e6),
        (torch_weights, f"{TAKES}\nclass_name: net:Net", 60e6),
        (forest, "instances: {isolation: thread}", 20e6),
        (xgboost_trees, "", 40e6),
        (lightgbm_trees, "", 20e6),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_unloading_gives_the_memory_back(
    tmp_path: Path, make: Callable[[Path], Path], config: str, at_least: float
) -> None:
    """At least four fifths, in a process that is set up as a server is."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("second_load.py"), make(tmp_path), config],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    taken, given = map(int, done.stdout.split())
    assert taken >= at_least
    assert given >= 0.8 * taken
