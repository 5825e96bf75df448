"""The load generator against a server whose every answer is known."""

from __future__ import annotations

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from benchmarks.errors import BenchmarkError
from benchmarks.generator import Load
from benchmarks.requests import write_cases
from benchmarks.servers import free_port

from benchmarks import generator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.tool


class _Doubling(BaseHTTPRequestHandler):
    """Answers with twice the first input, wrongly where it is above `wrong_above`."""

    protocol_version = "HTTP/1.1"
    wrong_above = np.inf

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        value = body["inputs"][0]["data"][0]
        answer = 0 if value > self.wrong_above else 2 * value
        text = json.dumps({"outputs": [{"data": [answer]}]}, separators=(",", ":")).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Doubling,), {})) as running:
        threading.Thread(target=running.serve_forever).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return generator.build(tmp_path_factory.mktemp("load"))
    except (BenchmarkError, OSError) as error:
        pytest.skip(str(error))


def _run(program: Path, port: int, folder: Path, **options: Any) -> Any:
    inputs = np.arange(1, 9, dtype=np.float32)[:, None]
    write_cases(folder / "cases", "json", "m", inputs, 2 * inputs)
    load = Load("m", "json", connections=3, **options)
    command = generator.command(program, folder / "cases", load, port, 0.2)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        return generator.result(process)


def test_right_answers_are_counted_and_timed(
    program: Path, server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    found = _run(program, server.server_port, tmp_path)
    assert found["total"] >= found["requests"] > 0
    times = list(found["quantiles_us"].values())
    assert times == sorted(times)
    assert times[0] > 0


def test_a_rate_is_kept_where_the_server_is_fast_enough(
    program: Path, server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    found = _run(program, server.server_port, tmp_path, rate=50)
    assert found["requests"] <= 50 * found["seconds"] + 4


def test_one_wrong_answer_fails_the_run(
    program: Path, server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    server.RequestHandlerClass.wrong_above = 7  # type: ignore[attr-defined]
    with pytest.raises(BenchmarkError, match="wrong answers"):
        _run(program, server.server_port, tmp_path)


def test_a_closed_port_is_a_clear_error(program: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="connect: Connection refused"):
        _run(program, free_port(), tmp_path)
