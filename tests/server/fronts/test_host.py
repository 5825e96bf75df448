"""Models with one home for all fronts, driven by real clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.server.fronts.client import (
    GUARD_S,
    Client,
    both_fronts,
    children,
    is_ready,
    num_descriptors,
    until,
    write_scaling,
    writer_of,
)

if TYPE_CHECKING:
    from pathlib import Path

FRONTS = ("--processes", "2", "--access-log", "off", "--trust")
WHO = """
import os
import prometheus_client
import salver

asked = prometheus_client.Counter("asked", "How often.")

@salver.model(idempotent=True)
class Model:
    def predict(self, text: str) -> int:
        asked.inc()
        return os.getpid()
"""
DOUBLE = """
import numpy as np
import salver

class Model:
    def __init__(self):
        self.scaling = salver.use("scaling")

    def predict(self, value: float) -> float:
        return float(self.scaling.predict(np.full((1, 1), value, np.float32))[0, 0])
"""
COUNT = """
from collections.abc import Iterator

class Model:
    def predict(self, n: int) -> Iterator[int]:
        yield from range(n)
"""
ROWS = """
import numpy as np
import salver

Row = salver.Array["float32", "B", 1]

class Model:
    def predict(self, x: Row) -> Row:
        if x[0, 0] < 0:
            open("{pipe}").read()
        return np.full_like(x, len(x))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    os.mkfifo(folder / "pipe")
    write_scaling(folder / "scaling" / "model.onnx", 2.0)
    models = {"who": WHO, "double": DOUBLE, "count": COUNT}
    for name, code in (models | {"rows": ROWS.format(pipe=folder / "pipe")}).items():
        (folder / name).mkdir()
        (folder / name / "model.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def server(serve: Any, folder: Path) -> Any:
    return serve(folder, *FRONTS)


def predict(client: Client, model: str, value: Any) -> Any:
    status, answer = client.ask("POST", f"/predict/{model}", {"input": value})
    assert status == 200, answer
    return answer["prediction"]


def host_of(server: Any) -> int:
    """The process that is no front."""
    with both_fronts(server) as clients:
        fronts = {client.pid() for client in clients}
        (found,) = until(lambda: set(children(server.pid)) - fronts, "a host")
    return found


def test_every_front_tells_how_the_host_batches(server: Any) -> None:
    with both_fronts(server) as clients:
        for client in clients:
            _, config = client.ask("GET", "/v2/models/rows/config")
            assert config["max_batch_size"] > 1
            assert "dynamic_batching" in config


def test_every_front_calls_the_same_worker(server: Any) -> None:
    with both_fronts(server) as clients:
        (worker,) = {predict(client, "who", "?") for client in clients}
    assert worker in children(host_of(server))


def test_calls_of_all_fronts_share_a_run(server: Any, folder: Path) -> None:
    with both_fronts(server) as (one, other):
        blocked = Client("127.0.0.1", server.port, timeout=GUARD_S)
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1]}
        bodies = [json.dumps({"inputs": [tensor | {"data": [x]}]}) for x in (-1.0, 1.0)]
        clients = (blocked, one, other)
        for client, body in zip(clients, (bodies[0], bodies[1], bodies[1]), strict=True):
            client.request("POST", "/v2/models/rows/infer", body)
            if client is blocked:
                writer = until(lambda: writer_of(folder / "pipe"), "the model")
        watcher = Client("127.0.0.1", server.port, timeout=GUARD_S)
        pattern = r'salver_queue_depth{model="rows",version="1"} 2\n'
        until(lambda: re.search(pattern, watcher.ask("GET", "/metrics")[1]), "both calls")
        watcher.close()
        os.close(writer)
        sizes = [json.loads(c.getresponse().read())["outputs"][0]["data"] for c in clients]
        blocked.close()
    assert sizes == [[1.0], [2.0], [2.0]]


def test_a_hosted_model_calls_one_that_every_front_has(server: Any) -> None:
    with both_fronts(server) as clients:
        assert [predict(client, "double", 21) for client in clients] == [42.0, 42.0]


def test_streams_come_through(server: Any) -> None:
    with both_fronts(server) as clients:
        for client in clients:
            body = json.dumps({"input": 1000})
            client.request("POST", "/predict/count", body, {"Content-Type": "application/json"})
            lines = client.getresponse().read().decode().splitlines()
            assert [json.loads(line)["prediction"] for line in lines] == list(range(1000))


def test_every_front_tells_what_user_code_counts(server: Any) -> None:
    with both_fronts(server) as clients:
        predict(clients[0], "who", "?")
        told = [
            re.findall(r"^asked_total (\S+)$", client.ask("GET", "/metrics")[1], re.M)
            for client in clients
        ]
    assert told[0] == told[1]
    assert float(told[0][0]) >= 1


def test_a_host_that_dies_costs_nobody_an_answer(server: Any) -> None:
    """`who` may run twice, so what the host had is run again by the next one."""
    answers: Counter[int] = Counter()
    is_over = threading.Event()

    def load() -> None:
        client = Client("127.0.0.1", server.port, timeout=GUARD_S)
        while not is_over.is_set():
            answers[predict(client, "who", "?")] += 1
        client.close()

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for kill in range(1, 4):
            until(lambda kill=kill: len(answers) == kill and min(answers.values()) > 20, "load")  # type: ignore[misc]
            os.kill(host_of(server), signal.SIGKILL)
        until(lambda: len(answers) == 4, "the last host")
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    until(lambda: is_ready(server), "a whole server")
    client = Client("127.0.0.1", server.port, timeout=GUARD_S)
    (model,) = client.ask("GET", "/v2/models/who/stats")[1]["model_stats"]
    assert model["inference_stats"]["fail"]["count"] == 0
    client.close()


def test_a_deadline_holds_when_the_host_hangs(server: Any) -> None:
    """Long before it counts as hung."""
    until(lambda: is_ready(server), "a whole server")
    client = Client("127.0.0.1", server.port, timeout=GUARD_S)
    host = host_of(server)
    os.kill(host, signal.SIGSTOP)
    try:
        body = json.dumps({"input": "?"})
        headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": "50"}
        client.request("POST", "/predict/who", body, headers)
        answer = client.getresponse()
        assert answer.status == http.client.GATEWAY_TIMEOUT
        assert "time was over" in answer.read().decode()
        assert host in children(server.pid)
    finally:
        os.kill(host, signal.SIGCONT)
    predict(client, "who", "?")
    client.close()


def test_what_may_not_run_twice_is_told(server: Any, folder: Path) -> None:
    until(lambda: is_ready(server), "a whole server")
    client = Client("127.0.0.1", server.port, timeout=GUARD_S)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [-1.0]}
    client.request("POST", "/v2/models/rows/infer", json.dumps({"inputs": [tensor]}))
    writer = until(lambda: writer_of(folder / "pipe"), "the model")
    os.kill(host_of(server), signal.SIGKILL)
    answer = client.getresponse()
    assert answer.status == http.client.BAD_GATEWAY
    assert "may not run a request twice" in json.loads(answer.read())["error"]
    os.close(writer)
    client.close()


def test_hosts_leave_nothing_behind(server: Any) -> None:
    def restart() -> None:
        until(lambda: is_ready(server), "a whole server")
        host = host_of(server)
        with contextlib.suppress(ProcessLookupError):
            os.kill(host, signal.SIGKILL)
        until(lambda: host not in children(server.pid), "its end")
        until(lambda: is_ready(server), "a new host")
        with both_fronts(server) as clients:
            assert [predict(client, "double", 1) for client in clients] == [2.0, 2.0]

    def descriptors() -> list[int]:
        return [num_descriptors(pid) for pid in (server.pid, *fronts)]

    restart()
    fronts = sorted({*children(server.pid)} - {host_of(server)})
    before = descriptors()
    for _ in range(3):
        restart()
    until(lambda: descriptors() <= before, "closed descriptors")


def test_without_such_models_there_is_no_host(serve: Any, tmp_path: Path) -> None:
    write_scaling(tmp_path / "scaling" / "model.onnx", 2.0)
    server = serve(tmp_path, *FRONTS)
    assert len(children(server.pid)) == 2
    assert server.stop() == 0
