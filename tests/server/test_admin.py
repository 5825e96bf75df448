from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from salver.clock import system_clock
from salver.config import ServerConfig
from salver.control.reload import Repository
from salver.engine.engine import Engine
from salver.errors import InvalidInput, NotFound, SalverError
from salver.interfaces import Command, Query
from salver.observe.metrics import exposition
from salver.observe.rates import Rates
from salver.protocols.kserve_v2 import KserveV2
from salver.protocols.kserve_v2_grpc import methods
from salver.protocols.plain import PlainDoor
from salver.server import admin
from salver.server.admin import Admin
from salver.server.pages import Pages
from salver.server.router import Router
from salver.sources.folder import FolderSource, Place
from salver.types import ModelRef, Object, Request, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

DOUBLE = """
import salver

class Double:
    def predict(self, x: salver.Array["float32", "B", 2]) -> salver.Array["float32", "B", 2]:
        if x[0, 0] < 0:
            raise ValueError("negative")
        return x * 2
"""
THREE_ROWS = np.zeros((3, 2), np.float32)
SETTINGS = "instances: {isolation: inline}\ntags: [toy]\nlabels: [small, large]\n"


class Served:
    """A server without sockets."""

    def __init__(self, folder: Path) -> None:
        config = ServerConfig(trust=True, mode="explicit", drain_timeout_s=5)
        self.engine = Engine(config, system_clock)
        self.engine.is_started = True
        self.rates = Rates()
        self.repository = Repository(FolderSource([Place(folder)], {}), self.engine, config)
        router = Router([PlainDoor(config.limits), KserveV2(config.limits), Pages()])
        self.admin = Admin(config, self.engine, self.repository, self.rates, router)

    def ask(self, name: str, **arguments: Any) -> Any:
        return self.admin.query(Query(name=name, arguments=arguments))

    async def tell(self, name: str, **arguments: Any) -> Any:
        return await self.admin.command(Command(name=name, arguments=arguments))

    async def predict(self, model: str, value: float) -> Any:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        class Sink:
            def push(self, call: Any, item: Any, final: bool) -> None:
                answered.set_result(item)

        request = Request(Object("rows", [[value, value]]))
        self.engine.submit(ModelRef(model), request, Sink())
        return await answered


def serve(folder: Path, check: Callable[[Served], Awaitable[None]]) -> None:
    async def main() -> None:
        served = Served(folder)
        try:
            await check(served)
        finally:
            await served.engine.stop(1)

    asyncio.run(main())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        (tmp_path / "double" / version).mkdir(parents=True)
        (tmp_path / "double" / version / "model.py").write_text(DOUBLE)
    (tmp_path / "double" / "model.yaml").write_text(SETTINGS)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.py").write_text(
        "class Broken:\n    def predict(self) -> int: 1/0"
    )
    (tmp_path / "broken" / "model.yaml").write_text("nonsense: 1\n")
    return tmp_path


def test_a_model_without_a_version_has_the_same_keys_as_a_ready_one(folder: Path) -> None:
    async def check(served: Served) -> None:
        await served.tell("load", model="double")
        with pytest.raises(SalverError):
            await served.tell("load", model="broken")
        broken, double = served.ask("state")["models"]
        assert broken.keys() == double.keys()
        assert (broken["name"], broken["state"], broken["methods"]) == ("broken", "UNAVAILABLE", [])
        assert "nonsense" in broken["reason"]
        assert (double["state"], double["reason"], double["version"]) == ("READY", "", "2")
        assert double["tags"] == ["toy"]
        assert double["memory_bytes"] >= 0

    serve(folder, check)


def test_counters_outlive_a_swap_and_an_unload(folder: Path) -> None:
    async def check(served: Served) -> None:
        await served.tell("load", model="double")
        await served.predict("double", 1)
        assert isinstance(await served.predict("double", -1), SalverError)
        await served.tell("load", model="double")
        await served.predict("double", 2)
        (state,) = served.ask("state")["models"]
        assert (state["requests_total"], state["errors_total"]) == (3, 1)
        await served.tell("unload", model="double")
        (state,) = served.ask("state")["models"]
        assert (state["requests_total"], state["state"]) == (3, "UNAVAILABLE")
        text = (await served.ask("metrics")).decode()
        assert 'inference_requests_total{model="double",status="success"} 2' in text
        assert 'inference_requests_total{model="double",status="error"} 1' in text
        assert 'salver_versions_ready{model="double"} 0' in text

    serve(folder, check)


def test_a_reload_that_fails_is_told_while_the_old_one_serves(folder: Path) -> None:
    async def check(served: Served) -> None:
        await served.tell("load", model="double")
        (folder / "double" / "2" / "model.py").write_text(DOUBLE.replace("class Double", "1/0"))
        with pytest.raises(SalverError):
            await served.tell("load", model="double")
        (state,) = served.ask("state")["models"]
        assert state["state"] == "READY"
        assert state["reason"].startswith("version 2: loading failed")
        assert served.ask("ready") == {"ready": True}
        assert not isinstance(await served.predict("double", 1), SalverError)

    serve(folder, check)


def test_states_as_tensorflow_serving_and_kserve_ask_for_them(folder: Path) -> None:
    (folder / "double" / "model.yaml").write_text(
        SETTINGS + "versions: all\nversion_labels: {old: '1'}\n"
    )
    fine = {"error_code": "OK", "error_message": ""}
    first, second = (
        {"version": version, "state": "AVAILABLE", "status": fine} for version in ("1", "2")
    )

    async def check(served: Served) -> None:
        await served.tell("load", model="double")
        with pytest.raises(SalverError):
            await served.tell("load", model="broken")
        assert served.ask("model_names") == {"models": ["broken", "double"]}
        found = served.ask("model_status", model="double")
        both = [second, first]
        assert found == {"name": "double", "ready": True, "model_version_status": both}
        for version in ("1", "old"):
            found = served.ask("model_status", model="double", version=version)
            assert found["model_version_status"] == [first]
            assert served.ask("model_metadata", model="double", version=version)["versions"] == [
                "1"
            ]
        found = served.ask("model_status", model="broken")
        (broken,) = found["model_version_status"]
        assert (found["ready"], broken["state"]) == (False, "END")
        assert broken["status"]["error_code"] == "UNAVAILABLE"
        assert "nonsense" in broken["status"]["error_message"]
        for arguments in ({"model": "doubl"}, {"model": "double", "version": "3"}):
            with pytest.raises(NotFound):
                served.ask("model_status", **arguments)
        served.engine.note(ModelRef("new", "1"), "LOADING")
        found = served.ask("model_status", model="new")
        (loading,) = found["model_version_status"]
        assert (found["ready"], loading["state"], loading["status"]) == (False, "LOADING", fine)
        await served.tell("unload", model="double")
        found = served.ask("model_status", model="double")
        ended = [(s["state"], s["status"]) for s in found["model_version_status"]]
        assert (found["ready"], ended) == (False, [("END", fine), ("END", fine)])

    serve(folder, check)


def test_many_who_ask_for_metrics_at_once_cost_two_texts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    has_begun = asyncio.Event()

    def counted(*arguments: Any) -> Iterator[bytes]:
        pieces = list(exposition(*arguments))
        written.append(b"".join(pieces))
        has_begun.set()
        return iter(pieces)

    monkeypatch.setattr(admin, "exposition", counted)

    async def check(served: Served) -> None:
        await served.repository.load("double")
        first = [asyncio.ensure_future(served.ask("metrics")) for _ in range(50)]
        await has_begun.wait()
        # What has begun may lack what happens now, so who asks now gets another.
        await served.predict("double", 1.0)
        later = [asyncio.ensure_future(served.ask("metrics")) for _ in range(50)]
        texts = await asyncio.gather(*first, *later)
        assert texts == [written[0]] * 50 + [written[1]] * 50
        counted_line = b'inference_requests_total{model="double",status="success"} 1'
        assert [counted_line in text for text in written] == [False, True]

    serve(folder, check)


LIMITED = """
import salver

@salver.model(max_batch=16)
class Limited:
    def predict(self, x: salver.Array["float32", "B", 2]) -> salver.Array["float32", "B", 2]:
        return x
"""
ITEM = """
import salver

class Item:
    def predict(self, x: salver.Array["float32", 3]) -> salver.Array["float32", 3]:
        return x
"""


@pytest.mark.parametrize(
    ("code", "settings", "max_batch", "dims"),
    [
        (LIMITED, "", 16, [2]),
        (LIMITED, "batching: {max_size: 8}", 8, [2]),
        (DOUBLE, "batching: {max_size: 8}", 8, [2]),
        (DOUBLE, "batching: {max_size: 1}", 1, [2]),
        (ITEM, "batching: {max_size: 8}", 0, [3]),
    ],
)
def test_the_configuration_tells_the_largest_batch(
    tmp_path: Path, code: str, settings: str, max_batch: int, dims: list[int]
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.py").write_text(code)
    (tmp_path / "m" / "model.yaml").write_text(f"instances: {{isolation: inline}}\n{settings}")

    async def check(served: Served) -> None:
        await served.tell("load", model="m")
        found = served.ask("model_config", model="m")
        assert (found["max_batch_size"], found["input"][0]["dims"]) == (max_batch, dims)
        assert ("dynamic_batching" in found) == (max_batch > 1)

    serve(tmp_path, check)


COUNT = """
from collections.abc import Iterator

class Count:
    def predict(self, n: int) -> Iterator[int]:
        yield n
"""


@pytest.mark.parametrize(
    ("settings", "policy", "kind", "gpus"),
    [
        ("", {"latest": {"num_versions": 1}}, "KIND_CPU", []),
        ("versions: 3", {"latest": {"num_versions": 3}}, "KIND_CPU", []),
        ("versions: all\ndevice: cuda", {"all": {}}, "KIND_GPU", [0]),
        ("versions: ['7']\ndevice: 'cuda:1'", {"specific": {"versions": [7]}}, "KIND_GPU", [1]),
    ],
)
def test_the_configuration_tells_versions_place_and_streaming(
    tmp_path: Path, settings: str, policy: Any, kind: str, gpus: list[int]
) -> None:
    for name, code in (("m", DOUBLE), ("count", COUNT)):
        (tmp_path / name / "7").mkdir(parents=True)
        (tmp_path / name / "7" / "model.py").write_text(code)
    (tmp_path / "m" / "model.yaml").write_text(f"instances: {{isolation: inline}}\n{settings}")
    (tmp_path / "count" / "model.yaml").write_text("instances: {isolation: thread}")

    async def check(served: Served) -> None:
        await served.tell("load", model="m")
        await served.tell("load", model="count")
        found = served.ask("model_config", model="m")
        assert found["version_policy"] == policy
        (group,) = found["instance_group"]
        assert (group["kind"], group["gpus"], group["count"]) == (kind, gpus, 1)
        assert "model_transaction_policy" not in found
        assert served.ask("model_config", model="count")["model_transaction_policy"] == {
            "decoupled": True
        }
        (rpc,) = (each for each in methods() if each.path.endswith("/ModelConfig"))
        assert rpc.encode(Query(name="model_config"), found, True)

    serve(tmp_path, check)


def test_a_request_of_too_many_rows_is_refused_before_it_waits(folder: Path) -> None:
    (folder / "double" / "model.yaml").write_text(SETTINGS + "batching: {max_size: 2}\n")

    async def check(served: Served) -> None:
        await served.repository.load("double")
        assert served.ask("model_config", model="double")["max_batch_size"] == 2
        request = Request(Tensors(x=Tensor.of(THREE_ROWS)))
        with pytest.raises(InvalidInput, match=r"3 rows in one request; .* at most 2: send"):
            served.engine.submit(ModelRef("double"), request, cast("Any", None))
        assert not served.engine.is_busy

    serve(folder, check)


def test_statistics_of_a_version(folder: Path) -> None:
    async def check(served: Served) -> None:
        await served.tell("load", model="double")
        await served.predict("double", 1)
        (found,) = served.ask("statistics", model="double", version="2")["model_stats"]
        assert (found["inference_count"], found["execution_count"]) == (1, 1)
        assert found["last_inference"] > 1_700_000_000_000
        assert isinstance(await served.predict("double", -1), SalverError)
        await asyncio.gather(*(served.predict("double", 1) for _ in range(3)))
        (found,) = served.ask("statistics", model="double", version="2")["model_stats"]
        stats = found["inference_stats"]
        compute = [stats[f"compute_{part}"] for part in ("input", "infer", "output")]
        assert [each["count"] for each in (stats["success"], stats["queue"], *compute)] == [4] * 5
        assert stats["success"]["ns"] == stats["queue"]["ns"] + sum(each["ns"] for each in compute)
        single, shared = found["batch_stats"]
        assert (single["batch_size"], shared["batch_size"]) == (1, 3)
        assert [shared[f"compute_{part}"]["count"] for part in ("input", "infer")] == [1, 1]
        assert stats["compute_infer"]["ns"] >= 3 * shared["compute_infer"]["ns"] > 0
        with pytest.raises(NotFound):
            served.ask("statistics", model="double", version="9")

    serve(folder, check)


def test_models_that_are_only_offered_are_listed(folder: Path) -> None:
    async def check(served: Served) -> None:
        await served.repository.start()
        assert served.ask("repository_index") == [{"name": "broken"}, {"name": "double"}]
        await served.tell("load", model="double")
        ready = served.ask("repository_index", ready=True)
        assert [(entry["name"], entry["version"], entry["state"]) for entry in ready] == [
            ("double", "2", "READY")
        ]

    serve(folder, check)


def test_the_index_sorts_versions_by_number(folder: Path) -> None:
    async def check(served: Served) -> None:
        for version in ("10", "2", "1", "nightly"):
            served.engine.note(ModelRef("m", version), "LOADING")
        index = served.ask("repository_index")
        assert [entry["version"] for entry in index] == ["nightly", "1", "2", "10"]

    serve(folder, check)


def test_load_takes_no_parameters(folder: Path) -> None:
    async def check(served: Served) -> None:
        with pytest.raises(InvalidInput, match=r"model\.yaml"):
            await served.tell("load", model="double", parameters={"config": "{}"})

    serve(folder, check)


def test_one_line_tells_of_each_load_swap_and_unload(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(served: Served) -> None:
        for command in ("load", "load", "unload"):
            await served.tell(command, model="double")
            # What was replaced or unloaded ends beside the loop's other work.
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    caplog.set_level("INFO", "salver.engine")
    serve(folder, check)
    lines = [record.getMessage() for record in caplog.records if record.name == "salver.engine"]
    assert [line.split(" MB")[0].rsplit(" ", 1)[0] for line in lines] == [
        "double version 2 is ready: python, instances 1,",
        "double version 2 is swapped: python, instances 1,",
        "double version 2 is unloaded, its successor is ready:",
        "double version 2 is unloaded, as it was told:",
    ]
