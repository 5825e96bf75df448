"""Clients of servers with several processes; whatever is awaited has a deadline."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GUARD_S = 60.0


def until(holds: Callable[[], Any], what: str) -> Any:
    """Asks again and again; the first answer that is true."""
    deadline = time.monotonic() + GUARD_S
    while not (found := holds()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        os.sched_yield()
    return found


def write_scaling(path: Path, factor: float) -> None:
    """A model that multiplies by `factor`; put in place at once, as a careful operator would."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scaling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".tmp").write_bytes(model.SerializeToString())
    path.with_suffix(".tmp").replace(path)


class Client(http.client.HTTPConnection):
    """One connection, and so one front."""

    def ask(self, method: str, path: str, value: Any = None) -> tuple[int, Any]:
        body = None if value is None else json.dumps(value)
        self.request(method, path, body, {"Content-Type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.status, json.loads(text) if is_json and text else text.decode()

    def pid(self) -> int:
        """The process at the other end."""
        return int(self.ask("GET", "/page/state")[1]["server"]["pid"])

    def scale(self, name: str = "scaling", value: float = 1.0) -> float:
        """What a scaling model makes of a number."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}
        status, answer = self.ask("POST", f"/v2/models/{name}/infer", {"inputs": [tensor]})
        assert status == 200, answer
        return float(answer["outputs"][0]["data"][0])


@contextlib.contextmanager
def all_fronts(server: Any, number: int) -> Iterator[list[Client]]:
    """A connection to each of so many fronts."""
    with contextlib.ExitStack() as opened:
        found: dict[int, Client] = {}

        def are_found() -> bool:
            client = opened.enter_context(
                contextlib.closing(Client("127.0.0.1", server.port, timeout=GUARD_S))
            )
            return len(found.setdefault(client.pid(), client) and found) == number

        until(are_found, "a connection to each front")
        yield list(found.values())


def both_fronts(server: Any) -> contextlib.AbstractContextManager[list[Client]]:
    """A connection to each of two fronts."""
    return all_fronts(server, 2)


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in text.split()]


def descendants(pid: int) -> list[int]:
    return [one for child in children(pid) for one in (child, *descendants(child))]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody has asked yet how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def is_ready(server: Any) -> bool:
    client = Client("127.0.0.1", server.port, timeout=GUARD_S)
    with contextlib.closing(client), contextlib.suppress(OSError, http.client.HTTPException):
        return client.ask("GET", "/v2/health/ready")[0] == 200
    return False


def num_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def writer_of(pipe: Path) -> int:
    """A descriptor, as soon as somebody reads there."""
    with contextlib.suppress(OSError):
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    return 0
