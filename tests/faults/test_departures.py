"""Clients that go away, and a server that is told to."""

from __future__ import annotations

import asyncio
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUIET = ("--trust", "--access-log", "off")


async def metric(tools: Any, connection: Any, name: str) -> float:
    text = (await connection.ask(tools.get("/metrics"))).body.decode()
    return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.M))


def test_clients_that_vanish_leave_nothing_behind(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    tools.write_model(tmp_path / "m" / "1", tools.python_model(pause_s=0.05))
    server = serve(tmp_path, *QUIET)
    large = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n{"

    async def test() -> None:
        watcher = await tools.Connection.open(server.port)
        await watcher.ask(tools.request(1))
        before = tools.descriptors(server.pid)
        async with tools.load(server.port, 2, lambda index: 1.0) as load:
            for _ in range(5):
                leaving = [await tools.Connection.open(server.port) for _ in range(20)]
                for index, connection in enumerate(leaving):
                    connection.send(large if index % 2 else tools.request(1))
                await load.answered(2)
                for connection in leaving:
                    connection.abort()
            await load.answered(4)
        assert load.broken == 0
        assert load.failures == []
        assert load.sent == len(load.answers)
        while await metric(tools, watcher, "salver_queue_depth"):
            await watcher.ask(tools.request(1))
        while tools.descriptors(server.pid) != before:
            await watcher.ask(tools.request(1))
        await watcher.close()

    tools.on_loop(test())
    assert server.stop() == 0


GATED = """
import time
from pathlib import Path

import salver

class Model:
    def predict(self, x: salver.Array["float32", "B", 1]) -> salver.Array["float32", "B", 1]:
        with Path({seen!r}).open("a") as file:
            file.write(str(x.tolist()))
        while not Path({gate!r}).exists():
            time.sleep(0.01)
        return x
"""


@pytest.mark.parametrize("closes", ["close", "half_close"])
def test_a_client_that_closes_leaves_the_queue(
    serve: Callable[..., Any], tools: Any, tmp_path: Path, closes: str
) -> None:
    """Its FIN is all that a server hears of a client that gave up."""
    seen, gate, repository = tmp_path / "seen", tmp_path / "gate", tmp_path / "repository"
    source = GATED.format(seen=str(seen), gate=str(gate))
    tools.write_model(repository / "m" / "1", source, "warmup: {runs: 0}")
    server = serve(repository, *QUIET)
    seen.touch()

    async def test() -> None:
        first, leaving, last, watcher = [await tools.Connection.open(server.port) for _ in range(4)]
        first.send(tools.request(1))
        while not seen.read_text():
            await watcher.ask(tools.get("/v2"))
        leaving.send(tools.request(2))
        while not await metric(tools, watcher, "salver_queue_depth"):
            pass
        await getattr(leaving, closes)()
        while await metric(tools, watcher, "salver_queue_depth"):
            pass
        gate.touch()
        assert (await first.answer()).value == 1
        assert (await last.ask(tools.request(3))).value == 3
        assert await metric(tools, watcher, "salver_failures_total") == 1
        text = (await watcher.ask(tools.get("/metrics"))).body.decode()
        assert re.search(r'salver_failures_total{.*"cancelled"} 1\n', text)
        for client in (first, last, watcher):
            await client.close()

    tools.on_loop(test())
    assert seen.read_text() == "[[1.0]][[3.0]]"
    assert server.stop() == 0


def test_everything_accepted_is_answered_after_sigterm(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    tools.write_model(
        tmp_path / "m" / "1", tools.python_model(pause_s=0.1), "batching: {max_size: 1}"
    )
    server = serve(tmp_path, *QUIET)
    number = 12

    async def test() -> None:
        clients = [await tools.Connection.open(server.port) for _ in range(number)]
        watcher = await tools.Connection.open(server.port)
        for index, client in enumerate(clients):
            client.send(tools.request(index))
        while await metric(tools, watcher, "salver_queue_depth") < number // 2:
            pass
        server.process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*(client.answer() for client in clients))
        assert [answer.status for answer in answers] == [200] * number
        assert [answer.value for answer in answers] == [2.0 * index for index in range(number)]
        for client in (*clients, watcher):
            client.abort()

    tools.on_loop(test())
    assert server.stop() == 0


def test_sigterm_in_the_middle_of_load(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    """A request is answered, refused with the reason, or met a closed connection."""
    tools.write_model(tmp_path / "m" / "1", tools.onnx_times(2))
    server = serve(tmp_path, *QUIET)

    async def test() -> None:
        async def until_gone() -> tuple[int, list[int], int]:
            sent, statuses, broken = 0, [], 0
            connection = await tools.Connection.open(server.port)
            try:
                while True:
                    sent += 1
                    statuses.append((await connection.ask(tools.request(1))).status)
            except (OSError, asyncio.IncompleteReadError):
                broken = 1
            connection.abort()
            return sent, statuses, broken

        clients = [asyncio.ensure_future(until_gone()) for _ in range(8)]
        watcher = await tools.Connection.open(server.port)
        while await metric(tools, watcher, "inference_requests_total") < 500:
            pass
        server.process.send_signal(signal.SIGTERM)
        for sent, statuses, broken in await asyncio.gather(*clients):
            assert sent == len(statuses) + broken
            assert set(statuses) <= {200, 503}
        watcher.abort()

    tools.on_loop(test())
    assert server.stop() == 0


def test_calls_that_outlast_the_drain_are_told_so(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    tools.write_model(tmp_path / "m" / "1", tools.python_model(), "batching: {max_size: 1}")
    server = serve(tmp_path, *QUIET, "--drain-timeout", "0.2")

    async def test() -> None:
        clients = [await tools.Connection.open(server.port) for _ in range(2)]
        watcher = await tools.Connection.open(server.port)
        for client in clients:
            client.send(tools.request(666))
        while not await metric(tools, watcher, "salver_queue_depth"):
            pass
        server.process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*(client.answer() for client in clients))
        assert [answer.status for answer in answers] == [503, 503]
        for client in (*clients, watcher):
            client.abort()

    tools.on_loop(test())
    assert server.stop() == 0


STREAM = """
import numpy as np
import salver
from collections.abc import Iterator

class Model:
    def predict(self, n: int) -> Iterator[salver.Array["float32", None]]:
        for number in range(n):
            yield np.full(25_000, number, np.float32)
"""


def test_a_stream_waits_for_its_reader_and_loses_nothing(
    serve: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    """Far more than may be kept for a reader, who begins to read when others were served."""
    tools.write_model(tmp_path / "s" / "1", STREAM)
    tools.write_model(tmp_path / "m" / "1", tools.onnx_times(2))
    server = serve(tmp_path, *QUIET)
    number = 400

    async def test() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 20)
        body = b'{"input": %d}' % number
        head = b"POST /predict/s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n"
        writer.write(head % len(body) + b"\r\n" + body)
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        async with tools.load(server.port, 2, lambda index: 1.0) as load:
            await load.answered(2000)
        assert load.failures == []
        text = await reader.read()
        assert text.count(b"}\n\r\n") == number
        assert text.endswith(b"0\r\n\r\n")
        writer.close()

    tools.on_loop(test())
    assert server.stop() == 0
