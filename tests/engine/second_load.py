"""Loads a model twice and prints what the second load took and what its unload gave back, in bytes.

A program of its own: what other models left in this process would blur the numbers, and the first
load also imports a framework.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from salver.clock import system_clock
from salver.config import ModelConfig, ServerConfig, parse
from salver.engine.engine import Engine
from salver.interfaces import VersionOnDisk
from salver.observe.memory import resident_bytes
from salver.server.front import tune_process
from salver.types import ModelRef


async def load_and_unload(engine: Engine, version: VersionOnDisk) -> tuple[int, int]:
    before = resident_bytes()
    await engine.load(version)
    loaded = resident_bytes()
    await engine.unload(version.ref)
    await asyncio.gather(*engine._ends)
    return loaded - before, loaded - resident_bytes()


async def main(path: Path, config: str) -> None:
    engine = Engine(ServerConfig(trust=True), system_clock)
    version = VersionOnDisk(ModelRef("m", "1"), path, "s", parse(config, ModelConfig, "config"))
    await load_and_unload(engine, version)
    print(*await load_and_unload(engine, version))
    await engine.stop(1)


tune_process()
asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
