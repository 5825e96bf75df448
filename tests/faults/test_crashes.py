"""Models that raise, hang and die."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUIET = ("--trust", "--access-log", "off")


def message(answer: Any) -> str:
    return str(json.loads(answer.body)["error"])


def test_only_bad_rows_fail(serve: Callable[..., Any], tools: Any, tmp_path: Path) -> None:
    tools.write_model(tmp_path / "m" / "1", tools.python_model(pause_s=0.005))
    server = serve(tmp_path, *QUIET)

    async def test() -> None:
        def value_of(index: int) -> float:
            return -1.0 if index % 20 == 7 else float(index % 500)

        async with tools.load(server.port, 16, value_of) as load:
            await load.answered(500)
        assert load.broken == 0
        assert load.sent == len(load.answers)
        for value, answer in load.answers:
            if value < 0:
                assert answer.status == 500
                assert "negative numbers are bad" in message(answer)
            else:
                assert answer.value == 2 * value

    tools.on_loop(test())


def test_killed_workers_cost_nobody_an_answer(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    config = "instances: {count: 2}"
    tools.write_model(tmp_path / "m" / "1", tools.python_model(pause_s=0.002), config)
    server = serve(tmp_path, *QUIET)

    async def test() -> None:
        async with tools.load(server.port, 16, lambda index: 1.0) as load:
            for _ in range(4):
                # Long enough for what the last kill cost to have been run again: the same call in
                # two dying workers would rightly be blamed.
                await load.answered(400)
                os.kill(tools.workers(server.pid)[0], signal.SIGKILL)
            await load.answered(50)
        assert load.broken == 0
        assert load.failures == []
        assert load.sent == len(load.answers)

    tools.on_loop(test())
    assert "killed" in server.output.lower()
    assert server.stop() == 0


def test_what_may_not_run_twice_is_reported_undeliverable(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    model = tools.python_model(idempotent=False, pause_s=0.002)
    tools.write_model(tmp_path / "m" / "1", model, "instances: {count: 2}")
    server = serve(tmp_path, *QUIET)
    connections, kills = 8, 3

    async def test() -> None:
        async with tools.load(server.port, connections, lambda index: 1.0) as load:
            for _ in range(kills):
                await load.answered(50)
                os.kill(tools.workers(server.pid)[0], signal.SIGKILL)
            await load.answered(50)
        assert load.broken == 0
        assert load.sent == len(load.answers)
        assert len(load.failures) <= connections * kills
        for answer in load.failures:
            assert "may not run a request twice" in message(answer)

    tools.on_loop(test())


def test_a_run_that_hangs_is_ended_and_the_others_go_on(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    config = "instances: {run_timeout_ms: 300}"
    tools.write_model(tmp_path / "m" / "1", tools.python_model(), config)
    server = serve(tmp_path, *QUIET)

    async def test() -> None:
        async with tools.load(server.port, 4, lambda index: 666.0 if index == 20 else 1.0) as load:
            await load.until(lambda answer: answer.status != 200)
            await load.answered(20)
        assert load.broken == 0
        assert load.sent == len(load.answers)
        (failure,) = load.failures
        assert "run_timeout_ms=300" in message(failure)

    tools.on_loop(test())
    assert server.stop() == 0


def test_a_model_that_always_dies_is_given_up(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    """Its callers are told so at once; other models do not notice."""
    deadly = tools.python_model().replace("raise ValueError", "import os; os._exit(1); raise")
    tools.write_model(tmp_path / "deadly" / "1", deadly, "instances: {crash_limit: 2}")
    tools.write_model(tmp_path / "m" / "1", tools.onnx_times(3))
    server = serve(tmp_path, *QUIET)

    async def test() -> None:
        connection = await tools.Connection.open(server.port)
        answers = [await connection.ask(tools.request(-1, "deadly")) for _ in range(3)]
        assert all(answer.status in (500, 503) for answer in answers)
        assert "crashed too often" in message(answers[-1])
        assert (await connection.ask(tools.request(2))).value == 6
        # Of several processes, the one that answers here hears of it from another.
        while (await connection.ask(tools.get("/v2/health/ready"))).status == 200:
            pass
        index = await connection.ask(b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\n\r\n")
        deadly, fine = json.loads(index.body)
        assert (deadly["name"], deadly["state"]) == ("deadly", "UNAVAILABLE")
        assert "change its files or restart" in deadly["reason"]
        assert (fine["state"], fine["reason"]) == ("READY", "")
        await connection.close()

    tools.on_loop(test())
    assert server.stop() == 0
