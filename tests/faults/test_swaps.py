"""Models change while clients call them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUICK = ("--poll-interval", "0.05", "--access-log", "off")
POST_INDEX = b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
SUCCESSES = 'inference_requests_total{model="m",status="success"} '
SWAPS = 100
SETTLED = 20


def test_a_hundred_swaps_lose_no_request_and_no_memory(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    """New version folders and overwritten files in turn, under load."""
    model = tmp_path / "m"
    tools.write_model(model / "1", tools.onnx_times(1))
    server = serve(tmp_path, *QUICK)

    async def test() -> None:
        memory = files = None
        version = 1
        async with tools.load(server.port) as load:
            for swap in range(2, SWAPS + 2):
                if swap % 2:
                    version += 1
                tools.write_model(model / str(version), tools.onnx_times(swap))
                await load.until(lambda answer, swap=swap: answer.factor == swap)
                if version > 2 and swap % 2:
                    shutil.rmtree(model / str(version - 2))
                if swap == SETTLED:
                    memory, files = tools.resident_mb(server.pid), tools.descriptors(server.pid)
        assert load.broken == []
        assert load.failures == []
        assert load.factors <= set(range(1, SWAPS + 2))
        assert memory is not None
        assert tools.resident_mb(server.pid) <= memory * 1.05
        connection = await tools.Connection.open(server.port)
        assert (await connection.ask(tools.request(1))).value == SWAPS + 1
        await connection.close()
        now = tools.descriptors(server.pid)
        assert {kind: now[kind] for kind in files if kind != "socket:"} == {
            kind: files[kind] for kind in files if kind != "socket:"
        }
        metrics = await ask(tools, server.port, tools.get("/metrics"))
        assert float(metrics.partition(SUCCESSES)[2].split()[0]) == len(load.answers) + 1

    tools.on_loop(test())
    assert server.stop() == 0


async def ask(tools: Any, port: int, request: bytes) -> str:
    connection = await tools.Connection.open(port)
    answer = await connection.ask(request)
    await connection.close()
    return answer.body.decode()


def test_workers_are_swapped_without_a_gap(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    model = tmp_path / "m"
    tools.write_model(model / "1", tools.python_model(factor=1))
    server = serve(tmp_path, "--trust", *QUICK)

    async def test() -> None:
        async with tools.load(server.port) as load:
            for swap in range(2, 6):
                tools.write_model(model / str(swap // 2), tools.python_model(factor=swap))
                await load.until(lambda answer, swap=swap: answer.factor == swap)
        assert load.failures == []
        assert load.broken == []
        assert load.factors == {1, 2, 3, 4, 5}

    tools.on_loop(test())
    assert server.stop() == 0


@pytest.mark.parametrize("kind", ["half", "garbage", "empty"])
def test_a_broken_new_version_changes_nothing(
    serve: Callable[..., Any], tools: Any, tmp_path: Path, kind: str
) -> None:
    """What is written slowly or wrongly is not served before it is right."""
    model = tmp_path / "m"
    tools.write_model(model / "1", tools.onnx_times(1))
    server = serve(tmp_path, *QUICK)
    whole = tools.onnx_times(2)
    broken = {"half": whole[: len(whole) // 2], "garbage": b"\xff" * 100, "empty": b""}[kind]

    async def test() -> None:
        async with tools.load(server.port, 2) as load:
            tools.write_model(model / "2", broken)
            while '"UNAVAILABLE"' not in await ask(tools, server.port, POST_INDEX):
                await load.answered(100)
            tools.write_model(model / "2", whole)
            await load.until(lambda answer: answer.factor == 2)
        assert load.broken == []
        assert load.failures == []
        assert load.factors == {1, 2}

    tools.on_loop(test())


LOAD = b"POST /v2/repository/models/m/load HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"


def test_a_command_serves_all_versions_or_changes_nothing(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    """Some of them from the server itself, some from workers."""
    model = tmp_path / "m"
    versions = ("1", "2", "10")
    server = serve(tmp_path, "--mode", "explicit", "--trust", "--access-log", "off")

    async def test() -> None:
        connection = await tools.Connection.open(server.port)

        async def load() -> int:
            return int((await connection.ask(LOAD)).status)

        async def value(version: str) -> float:
            name = f"m/versions/{version}"
            return float((await connection.ask(tools.request(1, name))).value)

        tools.write_model(model / "1", tools.onnx_times(1), "versions: all")
        tools.write_model(model / "2", b"broken")
        tools.write_model(model / "10", tools.onnx_times(10))
        assert await load() == 400
        for version in ("1", "10"):
            answer = await connection.ask(tools.request(1, f"m/versions/{version}"))
            assert answer.status == 503
        (model / "2" / "model.onnx").unlink()
        tools.write_model(model / "2", tools.python_model(factor=2))
        assert await load() == 200
        assert [await value(version) for version in versions] == [1, 2, 10]
        tools.write_model(model / "1", tools.onnx_times(11))
        tools.write_model(model / "2", tools.python_model(factor=12))
        tools.write_model(model / "10", b"broken")
        assert await load() == 400
        assert [await value(version) for version in versions] == [1, 2, 10]
        while len(tools.workers(server.pid)) > 1:
            assert await value("2") == 2
        tools.write_model(model / "10", tools.onnx_times(20))
        assert await load() == 200
        assert [await value(version) for version in versions] == [11, 12, 20]
        await connection.close()

    tools.on_loop(test())
    assert server.stop() == 0
