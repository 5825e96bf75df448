"""Servers of several processes, driven by real clients; whatever is awaited has a deadline."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from tests.server.fronts.client import (
    GUARD_S,
    Client,
    both_fronts,
    children,
    descendants,
    is_gone,
    is_ready,
    num_descriptors,
    until,
    write_scaling,
    writer_of,
)

from salver.config import ServerConfig
from salver.server.fronts.parent import Fronts
from salver.sources.folder import FolderSource, Place

if TYPE_CHECKING:
    from pathlib import Path

FRONTS = ("--processes", "2", "--access-log", "off")
GATE = """
class Gate:
    def predict(self, path: str) -> str:
        with open(path) as pipe:
            return pipe.read()
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_scaling(folder / "scaling" / "model.onnx", 2.0)
    for name, count in (("gate", 1), ("gates", 2)):
        (folder / name).mkdir()
        (folder / name / "model.py").write_text(GATE)
        (folder / name / "model.yaml").write_text(f"instances: {{count: {count}}}")
    return folder


@pytest.fixture(scope="module")
def polling(serve: Any, models: Path) -> Any:
    return serve(models, *FRONTS, "--trust", "--poll-interval", "0.05")


@pytest.fixture(scope="module")
def explicit(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("explicit")
    write_scaling(folder / "scaling" / "model.onnx", 2.0)
    server = serve(folder, *FRONTS, "--mode", "explicit")
    server.folder = folder
    return server


def test_connections_reach_every_front(polling: Any) -> None:
    assert is_ready(polling)
    with both_fronts(polling) as clients:
        assert {client.pid() for client in clients} < set(children(polling.pid))
        assert [client.scale(value=21.0) for client in clients] == [42.0, 42.0]


def test_every_front_tells_the_totals(polling: Any) -> None:
    def counts(client: Client) -> tuple[int, int, int]:
        (model,) = client.ask("GET", "/v2/models/scaling/stats")[1]["model_stats"]
        state = client.ask("GET", "/page/state")[1]["models"]
        found = re.search(
            r'inference_requests_total\{model="scaling",status="success"\} (\d+)',
            client.ask("GET", "/metrics")[1],
        )
        assert found
        shown = next(model for model in state if model["name"] == "scaling")["requests_total"]
        return model["inference_stats"]["success"]["count"], shown, int(found.group(1))

    with both_fronts(polling) as clients:
        before = counts(clients[0])[0]
        for client, times in zip(clients, (3, 5), strict=True):
            for _ in range(times):
                client.scale()
        assert [counts(client) for client in clients] == [(before + 8,) * 3] * 2


def test_every_front_tells_what_all_have(polling: Any, tmp_path: Path) -> None:
    def gauge(client: Client, name: str, model: str) -> int:
        pattern = rf'salver_{name}{{model="{model}",version="1"}} (\d+)'
        found = re.search(pattern, client.ask("GET", "/metrics")[1])
        assert found
        return int(found.group(1))

    pipe, end, body = tmp_path / "pipe", tmp_path / "end", json.dumps({"input": f"{tmp_path}/pipe"})
    os.mkfifo(pipe)
    os.link(pipe, end)
    with both_fronts(polling) as (busy, other):
        assert gauge(busy, "instances", "scaling") == gauge(other, "instances", "scaling") == 2
        waiting = 5
        head = "POST /predict/gate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        busy.sock.sendall(request * (1 + waiting))
        until(lambda: gauge(other, "queue_depth", "gate") == waiting, "the other's queue")
        (tmp_path / "file").write_text("done")
        (tmp_path / "file").replace(pipe)
        os.close(until(lambda: writer_of(end), "the model"))
        until(lambda: gauge(other, "queue_depth", "gate") == 0, "its end")


def test_a_swap_reaches_every_front(polling: Any, models: Path) -> None:
    with both_fronts(polling) as clients:
        write_scaling(models / "scaling" / "model.onnx", 3.0)
        for client in clients:
            until(lambda client=client: client.scale() == 3.0, "the new version")  # type: ignore[misc]
        assert is_ready(polling)


def test_commands_are_answered_when_every_front_has_obeyed(explicit: Any) -> None:
    with both_fronts(explicit) as (one, other):
        assert one.ask("POST", "/v2/repository/models/scaling/load") == (200, {})
        assert other.scale() == 2.0
        assert other.ask("POST", "/v2/repository/models/scaling/unload") == (200, {})
        for client in (one, other):
            assert client.ask("GET", "/v2/models/scaling/ready")[0] != 200
            (entry,) = client.ask("POST", "/v2/repository/index")[1]
            assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "unloaded")
        assert is_ready(explicit)


def test_a_failed_load_changes_nothing_anywhere(explicit: Any) -> None:
    with both_fronts(explicit) as (one, other):
        assert one.ask("POST", "/v2/repository/models/scaling/load")[0] == 200
        file = explicit.folder / "scaling" / "model.onnx"
        whole = file.read_bytes()
        file.write_bytes(b"\x08\x09 not a model")
        status, answer = other.ask("POST", "/v2/repository/models/scaling/load")
        assert status >= 400
        assert "ONNX" in answer["error"]
        file.write_bytes(whole)
        assert [client.scale() for client in (one, other)] == [2.0, 2.0]
        status, answer = one.ask("POST", "/v2/repository/models/scalign/load")
        assert status == 404
        assert "Did you mean 'scaling'?" in answer["error"]
        assert is_ready(explicit)


def test_loads_leave_no_descriptors_behind(explicit: Any) -> None:
    processes = [explicit.pid, *children(explicit.pid)]
    with both_fronts(explicit) as (one, _):
        assert one.ask("POST", "/v2/repository/models/scaling/load")[0] == 200
        before = [num_descriptors(pid) for pid in processes]
        for _ in range(10):
            assert one.ask("POST", "/v2/repository/models/scaling/load")[0] == 200
        until(lambda: [num_descriptors(pid) for pid in processes] <= before, "closed descriptors")


def test_a_front_that_dies_takes_only_its_own_connections(polling: Any) -> None:
    until(lambda: is_ready(polling), "a whole server")
    with both_fronts(polling) as (victim, survivor):
        dying, living = victim.pid(), survivor.pid()
        factor, is_over, num_answers = survivor.scale(), threading.Event(), 0

        def load() -> None:
            nonlocal num_answers
            while not is_over.is_set():
                assert survivor.scale() == factor
                num_answers += 1

        thread = threading.Thread(target=load)
        thread.start()
        try:
            os.kill(dying, signal.SIGKILL)
            with pytest.raises((OSError, http.client.HTTPException)):
                until(lambda: victim.scale() != factor, "the connection's end")
            until(lambda: dying not in children(polling.pid), "the front's end")
            until(lambda: is_ready(polling), "a new front")
        finally:
            is_over.set()
            thread.join()
        assert num_answers
        assert survivor.pid() == living
    with both_fronts(polling) as clients:
        assert dying not in {client.pid() for client in clients}
        assert [client.scale() for client in clients] == [factor, factor]


def test_a_new_front_goes_on_from_what_was_counted(explicit: Any) -> None:
    def total(client: Client) -> int:
        pattern = r'inference_requests_total\{model="scaling",status="success"\} (\d+)'
        found = re.search(pattern, client.ask("GET", "/metrics")[1])
        assert found
        return int(found.group(1))

    with both_fronts(explicit) as (one, other):
        for _ in range(2):
            assert one.ask("POST", "/v2/repository/models/scaling/load")[0] == 200
            for client in (one, other):
                client.scale()
        before, dying = total(one), other.pid()
        assert before >= 4
        os.kill(dying, signal.SIGKILL)
        until(lambda: dying not in children(explicit.pid), "its end")
        until(lambda: is_ready(explicit), "a new front")
    with both_fronts(explicit) as clients:
        assert [total(client) for client in clients] == [before, before]


def test_a_front_that_hangs_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scaling(tmp_path / "scaling" / "model.onnx", 2.0)
    config = ServerConfig(port=0, processes=2, access_log="off")
    source = FolderSource([Place(tmp_path)], {})

    def hang(server: Any) -> None:
        with both_fronts(server) as (victim, survivor):
            hanging, living = victim.pid(), survivor.pid()
            os.kill(hanging, signal.SIGSTOP)
            until(lambda: hanging not in children(os.getpid()), "the front's end")
            assert survivor.pid() == living
        until(lambda: is_ready(server), "a new front")
        with both_fronts(server) as clients:
            assert hanging not in {client.pid() for client in clients}
            assert [client.scale() for client in clients] == [2.0, 2.0]

    async def run() -> None:
        is_started = asyncio.Event()
        server = Fronts(config, source, heartbeat_s=0.1)
        async with asyncio.timeout(5 * GUARD_S), asyncio.TaskGroup() as group:
            group.create_task(server.run(lambda _: is_started.set()))
            await is_started.wait()
            await asyncio.to_thread(hang, server)
            server.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    assert "does not answer any more" in caplog.text


def test_restarts_leave_nothing_behind(explicit: Any) -> None:
    with both_fronts(explicit) as (one, _):
        assert one.ask("POST", "/v2/repository/models/scaling/load")[0] == 200
    until(lambda: is_ready(explicit), "a whole server")
    before = num_descriptors(explicit.pid)
    for _ in range(5):
        fronts = children(explicit.pid)
        for pid in fronts:
            os.kill(pid, signal.SIGKILL)
        until(lambda fronts=fronts: all(map(is_gone, fronts)), "their ends")  # type: ignore[misc]
        until(lambda: is_ready(explicit), "new fronts")
    assert len(children(explicit.pid)) == 2
    assert num_descriptors(explicit.pid) == before
    with both_fronts(explicit) as clients:
        assert [client.scale() for client in clients] == [2.0, 2.0]


def test_nothing_outlives_the_parent(serve: Any, models: Path) -> None:
    server = serve(models, *FRONTS, "--trust")
    processes = descendants(server.pid)
    assert len(processes) == 6  # two fronts, and a host with three workers
    server.stop(signal.SIGKILL)
    until(lambda: all(map(is_gone, processes)), "the end of all")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_every_front_finish(
    serve: Any, models: Path, tmp_path: Path, number: signal.Signals
) -> None:
    address = tmp_path / "socket"
    server = serve(models, *FRONTS, "--trust", "--unix-socket", str(address))
    processes = descendants(server.pid)
    with both_fronts(server) as clients:
        pipes = [tmp_path / str(index) for index in range(2)]
        for client, pipe in zip(clients, pipes, strict=True):
            os.mkfifo(pipe)
            body = json.dumps({"input": str(pipe)})
            client.request("POST", "/predict/gates", body, {"Content-Type": "application/json"})
        writers = [until(lambda pipe=pipe: writer_of(pipe), "the model") for pipe in pipes]
        os.kill(server.pid, number)
        until(lambda: refuses(server.port), "closed doors")
        for writer in writers:
            os.write(writer, b"done")
            os.close(writer)
        for client in clients:
            answer = client.getresponse()
            assert (answer.status, "done" in answer.read().decode()) == (200, True)
    assert server.process.wait(GUARD_S) == 0
    assert all(map(is_gone, processes))
    assert not address.exists()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_second_interrupt_ends_the_calls_that_the_first_waits_for(
    serve: Any, models: Path, tmp_path: Path, processes: str
) -> None:
    server = serve(models, "--trust", "--access-log", "off", "--processes", processes)
    os.mkfifo(tmp_path / "pipe")
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=GUARD_S)
    body = json.dumps({"input": str(tmp_path / "pipe")})
    client.request("POST", "/predict/gate", body, {"Content-Type": "application/json"})
    writer = until(lambda: writer_of(tmp_path / "pipe"), "the model")
    os.kill(server.pid, signal.SIGINT)
    until(lambda: "waiting for 1 call, at most 30 s; Ctrl-C again" in server.output, "the wait")
    os.kill(server.pid, signal.SIGINT)
    assert client.getresponse().status == 502
    assert server.process.wait(GUARD_S) == 0
    os.close(writer)
    client.close()


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), GUARD_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def test_a_second_server_hears_who_has_the_port(polling: Any, serve: Any, models: Path) -> None:
    with pytest.raises(AssertionError, match=f"port {polling.port} is in use"):
        serve(models, *FRONTS, "--port", str(polling.port))
