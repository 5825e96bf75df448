"""How many runs of its model a burst of requests costs a real server."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NUM_REQUESTS = 100
MODEL = """
import os
import salver

class Model:
    def __init__(self):
        self.file = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def predict(self, x: salver.Array["float32", "B", 1]) -> salver.Array["float32", "B", 1]:
        if x.all():
            os.write(self.file, b"%d\\n" % len(x))
        return x * 2
"""


def request(value: float) -> bytes:
    body = json.dumps({"instances": [[value]]}).encode()
    head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def test_a_hundred_requests_at_once_cost_few_runs(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    """They come in one piece, so that no clock has a part in it: all are there before the first
    has waited for its 50 ms.
    """
    runs = tmp_path / "runs"
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL.format(path=str(runs)))
    (folder / "model.yaml").write_text("batching: {max_size: 32, delay_ms: 50}")
    config = tmp_path / "salver.yaml"
    config.write_text(f"limits: {{pipelined: {NUM_REQUESTS}}}")
    server = serve(tmp_path / "models", "--trust", "--config", config)
    values = [float(1 + index) for index in range(NUM_REQUESTS)]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        sock.sendall(b"".join(map(request, values)))
        reader = sock.makefile("rb")
        answers = [answer(reader) for _ in values]
    assert answers == [[[2 * value]] for value in values]
    sizes = [int(line) for line in runs.read_text().split()]
    assert sum(sizes) == NUM_REQUESTS
    assert max(sizes) <= 32
    assert len(sizes) <= 5


def answer(reader: Any) -> Any:
    """The next answer of a connection."""
    head = b"".join(iter(reader.readline, b"\r\n"))
    assert head.startswith(b"HTTP/1.1 200 ")
    lines = head.decode().lower().split("\r\n")
    (length,) = [int(line.split(":")[1]) for line in lines if line.startswith("content-length")]
    return json.loads(reader.read(length))["predictions"]
