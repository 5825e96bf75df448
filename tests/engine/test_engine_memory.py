from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper

from salver.clock import system_clock
from salver.config import ServerConfig
from salver.engine import engine as module
from salver.sources.folder import FolderSource, Place

if TYPE_CHECKING:
    from pathlib import Path


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
        await asyncio.gather(*engine._retiring.values())
        assert len(reclaimed) == 1
        await engine.stop(1)

    asyncio.run(run())
    assert len(reclaimed) == 1
