"""One repository of models that every client drives, behind one server per module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")
import ml_dtypes
import onnx
from onnx import TensorProto, helper

STAGES = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
LABELS = ("ant", "bee", "cat", "dog")

COUNT = '''
from collections.abc import Iterator

import salver


class Count:
    """Counts up to n, then breaks if n is above 9."""

    def predict(self, n: int) -> Iterator[int]:
        for value in range(min(n, 9)):
            yield value
        if n > 9:
            raise ValueError("cannot count that far")
'''
STUCK = '''
import asyncio


class Stuck:
    """Never answers."""

    async def predict(self, n: int) -> int:
        await asyncio.Event().wait()
        return n
'''
ECHO = '''
import json

import salver


class Echo:
    """Gives back the parameters it was called with."""

    def predict(self, n: int) -> str:
        return json.dumps(dict(salver.context().parameters), sort_keys=True)
'''


class Case(NamedTuple):
    """Values of one datatype, its limits among them."""

    datatype: str
    values: Any

    @property
    def model(self) -> str:
        return f"identity_{self.datatype.lower()}"


def _limits(kind: str) -> Any:
    info: Any = np.iinfo(kind)
    return np.array([[info.min, 1, info.max]], kind)


CASES = (
    Case("BOOL", np.array([[True, False, True]])),
    *(Case(kind.upper(), _limits(kind)) for kind in ("uint8", "uint16", "uint32", "uint64")),
    *(Case(kind.upper(), _limits(kind)) for kind in ("int8", "int16", "int32", "int64")),
    Case("FP16", np.array([[0.5, -65504, 6e-8]], np.float16)),
    Case("BF16", np.array([[0.5, -1.0, 3.140625]], ml_dtypes.bfloat16)),
    Case("FP32", np.array([[0.1, -3.4e38, 1e-45]], np.float32)),
    Case("FP64", np.array([[0.1, -1.7e308, 5e-324]], np.float64)),
    Case("BYTES", np.array([["salver", "", "Zürich 🌍"]], np.object_)),
)
_ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


ALL = ("--trust", "--mode", "none", "--access-log", "off")
VERSIONS = sorted(
    [(name, "1") for name in ("count", "echo", "stuck", "two", *(case.model for case in CASES))]
    + [("two", "2")]
)
"""Everything that is served."""


@pytest.fixture(params=CASES, ids=lambda case: case.datatype)
def case(request: pytest.FixtureRequest) -> Case:
    """Each datatype of the protocol in turn."""
    found: Case = request.param
    return found


def save(folder: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> None:
    """Writes a graph as `folder/model.onnx`."""
    folder.mkdir(parents=True)
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    opset = helper.make_opsetid("", 21)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.save(model, folder / "model.onnx")


def value(name: str, element: int, width: int) -> Any:
    return helper.make_tensor_value_info(name, element, ["rows", width])


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identity of every datatype, two inputs and outputs in two versions, and Python classes."""
    root = tmp_path_factory.mktemp("repository")
    for case in CASES:
        name = case.datatype
        element = _ELEMENTS.get(name) or getattr(TensorProto, name)
        nodes = [helper.make_node("Identity", ["x"], ["y"])]
        save(root / case.model / "1", nodes, [value("x", element, 3)], [value("y", element, 3)])
    for version in ("1", "2"):
        save(
            root / "two" / version,
            [
                helper.make_node("Add", ["a", "b"], ["sum"]),
                helper.make_node("Sub", ["a", "b"], ["difference"]),
            ],
            [value(name, TensorProto.FLOAT, 4) for name in ("a", "b")],
            [value(name, TensorProto.FLOAT, 4) for name in ("sum", "difference")],
        )
    (root / "two" / "model.yaml").write_text(f"versions: all\nlabels: [{', '.join(LABELS)}]\n")
    for name, source in (("count", COUNT), ("stuck", STUCK), ("echo", ECHO)):
        (root / name).mkdir()
        (root / name / "model.py").write_text(source)
    (root / "stuck" / "model.yaml").write_text("warmup: {runs: 0}\n")
    return root


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any], repository: Path) -> Any:
    """Serves the whole repository."""
    return serve(repository, *ALL)


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two fronts"])
def any_server(request: pytest.FixtureRequest, serve: Callable[..., Any], repository: Path) -> Any:
    """The same in one process and with several, where Python classes are in a host."""
    if request.param == 1:
        return request.getfixturevalue("server")
    return serve(repository, *ALL, "--processes", str(request.param))


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two fronts"])
def explicit_server(
    request: pytest.FixtureRequest, serve: Callable[..., Any], repository: Path
) -> Any:
    """One that loads nothing by itself."""
    options = ("--mode", "explicit", "--access-log", "off", "--processes", str(request.param))
    return serve(repository, "--trust", *options)


def counts(stats: Any) -> dict[str, int]:
    """The exact part of a version's statistics: what was counted, and runs by batch size."""
    stages, sizes = stats["inference_stats"], stats.get("batch_stats", [])
    return (
        {name: int(stats.get(name, 0)) for name in ("inference_count", "execution_count")}
        | {name: int(stages[name].get("count", 0)) for name in STAGES}
        | {f"rows_{s['batch_size']}": int(s["compute_infer"]["count"]) for s in sizes}
    )


def of_calls(number: int, rows: int) -> dict[str, int]:
    """What so many successful calls add that run alone, each with so many rows."""
    stages = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    counted = {"inference_count": number * rows, "execution_count": number, f"rows_{rows}": number}
    return counted | dict.fromkeys(stages, number)


def added(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What was counted in between."""
    found = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in found.items() if count}
