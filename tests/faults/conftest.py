"""Clients that count what becomes of every request, and models to hurt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

GUARD_S = 60


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def value(self) -> float:
        assert self.status == 200, self.body
        return float(json.loads(self.body)["outputs"][0]["data"][0])


def request(value: float, model: str = "m") -> bytes:
    """One row with one number."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


class Connection:
    """Sends a request, reads its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, data: bytes) -> Answer:
        self.send(data)
        return await self.answer()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> Answer:
        head = await self._reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: (\d+)", head)
        assert found is not None
        return Answer(int(head[9:12]), await self._reader.readexactly(int(found[1])))

    def abort(self) -> None:
        self._writer.transport.abort()

    async def half_close(self) -> None:
        """Ends what is sent, and waits until the server ends too."""
        self._writer.write_eof()
        assert await self._reader.read() == b""
        await self.close()

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


class Load:
    """Keeps some connections busy; every request that it sends is answered, or `broken` counts it.

    `value_of` makes the number of each request from its index.
    """

    def __init__(self, port: int, value_of: Callable[[int], float]) -> None:
        self.sent = 0
        self.broken = 0
        self.answers: list[tuple[float, Answer]] = []
        self._port = port
        self._value_of = value_of
        self._is_over = False
        self._more = asyncio.Event()

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for _, answer in self.answers)

    @property
    def failures(self) -> list[Answer]:
        return [answer for _, answer in self.answers if answer.status != 200]

    async def run(self) -> None:
        while not self._is_over:
            connection = await Connection.open(self._port)
            try:
                while not self._is_over:
                    value = self._value_of(self.sent)
                    self.sent += 1
                    self.answers.append((value, await connection.ask(request(value))))
                    self._more.set()
            except (OSError, asyncio.IncompleteReadError):
                self.broken += 1
            finally:
                connection.abort()

    def stop(self) -> None:
        self._is_over = True

    async def until(self, is_enough: Callable[[Answer], bool]) -> None:
        """Waits for an answer from now on."""
        seen = len(self.answers)
        while True:
            for _, answer in self.answers[seen:]:
                if is_enough(answer):
                    return
            seen = len(self.answers)
            self._more.clear()
            await self._more.wait()

    async def answered(self, number: int) -> None:
        """Waits for so many answers from now on."""
        goal = len(self.answers) + number
        await self.until(lambda _: len(self.answers) >= goal)


@asynccontextmanager
async def load(
    port: int, connections: int = 8, value_of: Callable[[int], float] = float
) -> AsyncIterator[Load]:
    """Load for the time of the block; then every request has its answer."""
    made = Load(port, value_of)
    tasks = [asyncio.ensure_future(made.run()) for _ in range(connections)]
    try:
        yield made
    finally:
        made.stop()
        await asyncio.gather(*tasks)


def on_loop(test: Any) -> None:
    """Runs a coroutine, for not too long."""

    async def guarded() -> None:
        async with asyncio.timeout(GUARD_S):
            await test

    asyncio.run(guarded())


def onnx_times(factor: float) -> bytes:
    """An ONNX model that multiplies `x` by a number."""
    from onnx import TensorProto, helper

    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in "xy"]
    constant = helper.make_tensor("k", TensorProto.FLOAT, [1], [factor])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "k"], ["y"])], "g", rows[:1], rows[1:], [constant]
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(model.SerializeToString())


PYTHON_MODEL = """
import time
import salver

@salver.model(idempotent={idempotent})
class Model:
    def predict(self, x: salver.Array["float32", "B", 1]) -> salver.Array["float32", "B", 1]:
        if (x < 0).any():
            raise ValueError("negative numbers are bad")
        if (x == 666).any():
            time.sleep(1000)
        time.sleep({pause_s})
        return x * {factor}
"""


def write_model(folder: Path, data: bytes | str, config: str = "") -> None:
    """A version folder with a model; the file appears as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "onnx" if isinstance(data, bytes) else "py"
    draft = folder.parent / f".draft.{suffix}"
    draft.write_bytes(data if isinstance(data, bytes) else data.encode())
    draft.replace(folder / f"model.{suffix}")
    if config:
        (folder.parent / "model.yaml").write_text(config)


def python_model(*, idempotent: bool = True, pause_s: float = 0, factor: float = 2) -> str:
    return PYTHON_MODEL.format(idempotent=idempotent, pause_s=pause_s, factor=factor)


def descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and those that they have."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += child, *descendants(child)
    return found


def is_worker(pid: int) -> bool:
    try:
        return b"salver.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def workers(pid: int) -> list[int]:
    """The workers of a server."""
    return [each for each in descendants(pid) if is_worker(each)]


def own_processes(pid: int) -> list[int]:
    """The processes of a server, without its workers."""
    return [pid, *(each for each in descendants(pid) if not is_worker(each))]


def descriptors(pid: int) -> Counter[str]:
    """Open files of a server, by kind."""
    kinds: Counter[str] = Counter()
    for process in own_processes(pid):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                kinds[re.sub(r"[\d\[\]]+", "", os.readlink(entry))] += 1
    return kinds


def resident_mb(pid: int) -> float:
    """Memory of a server without its workers."""
    statistics = [Path(f"/proc/{process}/statm").read_text() for process in own_processes(pid)]
    pages = sum(int(text.split()[1]) for text in statistics)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Tools:
    """What the tests of this folder share."""

    Connection = Connection
    load = staticmethod(load)
    on_loop = staticmethod(on_loop)
    request = staticmethod(request)
    get = staticmethod(get)
    onnx_times = staticmethod(onnx_times)
    python_model = staticmethod(python_model)
    write_model = staticmethod(write_model)
    workers = staticmethod(workers)
    descriptors = staticmethod(descriptors)
    resident_mb = staticmethod(resident_mb)


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools


@pytest.fixture(params=[1, 2], ids=["one process", "two fronts"])
def serve(serve: Callable[..., Any], request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Everything holds for one process and for several."""
    return lambda *arguments: serve(*arguments, "--processes", request.param)
