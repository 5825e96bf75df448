"""Answers what is not inference: health, metadata, states, statistics, metrics; loads and unloads.

Every protocol's queries and commands end here, as plain dictionaries that it puts into its form.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from salver.codecs.json_numbers import dumps
from salver.codecs.v2 import EXTENSIONS
from salver.engine.engine import UNLOADED, version_key
from salver.errors import Internal, InvalidInput, NotFound, Unavailable
from salver.observe import user_metrics
from salver.observe.memory import device_bytes
from salver.observe.metrics import ObservedModel, ObservedVersion, exposition
from salver.server.openapi import describe
from salver.types import ModelRef
from salver.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.config import ServerConfig
    from salver.control.reload import Commands
    from salver.engine.engine import Engine, ServedModel
    from salver.engine.generation import Generation
    from salver.interfaces import Command, Query
    from salver.observe.rates import Rates
    from salver.observe.statistics import Duration, ModelStatistics
    from salver.server.router import Router
    from salver.signature import Method, Signature, TensorSpec


_WORKER_TIMEOUT_S: Final = 0.5
_UNLIMITED: Final = 1 << 20
_CRASHED: Final = "its workers crashed too often; load it again"


class Admin:
    """The one table of queries and commands."""

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        repository: Commands,
        rates: Rates,
    ) -> None:
        self._config = config
        self._engine = engine
        self._repository = repository
        self._rates = rates
        self._started = time.monotonic()
        self._rendering = asyncio.Lock()
        self._next_metrics: asyncio.Task[bytes] | None = None
        self.router: Router
        self._queries = {
            "live": lambda arguments: {"live": True},
            "ready": lambda arguments: {"ready": engine.is_ready},
            "model_ready": self._model_ready,
            "is_model_ready": self._is_model_ready,
            "server_metadata": self._server_metadata,
            "model_names": lambda arguments: {"models": sorted(engine.models)},
            "model_status": self._model_status,
            "model_metadata": self._model_metadata,
            "model_config": self._model_config,
            "statistics": self._statistics,
            "repository_index": self._repository_index,
            "state": self._state,
            "metrics": self._metrics,
            "openapi": self._openapi,
        }

    def query(self, query: Query) -> Any:
        """Reads state; what takes longer comes as an awaitable. Raises: SalverError."""
        answer = self._queries.get(query.name)
        if answer is None:
            raise Internal(f"no query {query.name!r}")
        return answer(query.arguments)

    async def command(self, command: Command) -> dict[str, Any]:
        """Changes state. Raises: SalverError."""
        name = command.arguments.get("model", "")
        if command.name == "load":
            if command.arguments.get("parameters"):
                raise InvalidInput("load takes no parameters here; put them into model.yaml")
            await self._repository.load(name)
        elif command.name == "unload":
            await self._repository.unload(name)
        else:
            raise Internal(f"no command {command.name!r}")
        return {}

    def _find(self, arguments: Mapping[str, Any]) -> Generation:
        return self._engine.find(
            ModelRef(arguments.get("model", ""), arguments.get("version") or "")
        )

    def _model_ready(self, arguments: Mapping[str, Any]) -> dict[str, bool]:
        return {"ready": self._find(arguments).target.is_ready}

    def _is_model_ready(self, arguments: Mapping[str, Any]) -> dict[str, bool]:
        """The same for gRPC, whose clients expect an answer for what is not there, too."""
        try:
            return self._model_ready(arguments)
        except (NotFound, Unavailable):
            return {"ready": False}

    def _model_status(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`ready` for KServe's clients; for TensorFlow Serving's the states of all versions, the
        newest first, or of the one that is asked for.
        """
        name, version = arguments["model"], arguments.get("version", "")
        with suppress(Unavailable):
            self._find(arguments)
        model = self._engine.models[name]
        versions = sorted(model.states, key=version_key, reverse=True)
        if version:
            versions = [version if version in model.states else model.labels[version]]
        found = [version_status(model, each) for each in versions]
        ready = any(status["state"] == "AVAILABLE" for status in found)
        return {"name": name, "ready": ready, "model_version_status": found}

    def _server_metadata(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"name": "salver", "version": __version__, "extensions": list(EXTENSIONS)}

    def _model_metadata(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        generation = self._find(arguments)
        model = self._engine.models[generation.ref.name]
        version = arguments.get("version")
        method = generation.signature.methods[generation.signature.default]
        return {
            "name": generation.ref.name,
            "versions": [version] if version else sorted(model.versions, key=version_key),
            "platform": generation.runtime,
            "inputs": [tensor_metadata(spec) for spec in method.inputs],
            "outputs": [tensor_metadata(spec) for spec in method.outputs],
            "methods": methods_metadata(generation.signature),
        }

    def _model_config(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        generation = self._find(arguments)
        method = generation.signature.methods[generation.signature.default]
        batches = generation.plans[generation.signature.default].batches
        max_batch = largest_batch(method, batches=batches)
        skip = 1 if max_batch else 0
        config: dict[str, Any] = {
            "name": generation.ref.name,
            "platform": "",
            "backend": generation.runtime,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": max_batch,
            "input": [config_tensor(spec, skip) for spec in method.inputs],
            "output": [config_tensor(spec, skip) for spec in method.outputs],
            "instance_group": [
                {
                    "name": generation.ref.name,
                    "kind": "KIND_CPU",
                    "count": observed_version(generation).statistics.gauges.num_instances,
                    "gpus": [],
                }
            ],
            # The only place of the protocol where gRPC can tell of methods.
            "parameters": {
                "methods": {"string_value": dumps(methods_metadata(generation.signature)).decode()}
            },
        }
        if batches:
            batching = generation.config.batching
            config["dynamic_batching"] = {
                "preferred_batch_size": list(batching.preferred_sizes),
                "max_queue_delay_microseconds": int(batching.delay_ms * 1000),
            }
        return config

    def _statistics(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        name, version = arguments.get("model", ""), arguments.get("version") or ""
        if version:
            generations = [self._find(arguments)]
        elif name:
            self._find(arguments)
            generations = [g for g in self._engine.generations() if g.ref.name == name]
        else:
            generations = list(self._engine.generations())
        return {"model_stats": [model_statistics(generation) for generation in generations]}

    def _repository_index(self, arguments: Mapping[str, Any]) -> list[dict[str, str]]:
        found = [
            {"name": name, "version": version, "state": state, "reason": reason}
            for name, model in sorted(self._engine.models.items())
            for version, (state, reason) in sorted(model.states.items())
            if state == "READY" or not arguments.get("ready")
        ]
        known = {entry["name"] for entry in found}
        if not arguments.get("ready"):
            found += [{"name": name} for name in self._repository.names() if name not in known]
        return found

    def _state(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the page shows."""
        return {
            "server": {
                "version": __version__,
                "pid": os.getpid(),
                "processes": self._config.processes,
                "uptime_s": round(time.monotonic() - self._started, 1),
                "device": self._config.device,
                "requests_per_s": self._rates.total_per_s(),
                "api_key_required": bool(self._config.api_key),
            },
            "models": [self._model_state(name) for name in sorted(self._engine.models)],
        }

    def _model_state(self, name: str) -> dict[str, Any]:
        model = self._engine.models[name]
        generation, statistics = model.latest, model.statistics
        state = {
            "name": name,
            "versions": sorted(model.versions, key=version_key),
            **self._rates.of_model(name),
            "requests_total": statistics.success.times + statistics.failure.times,
            "errors_total": statistics.failure.times,
            "avg_batch": round(statistics.num_rows / max(statistics.num_runs, 1), 2),
        }
        if generation is None:
            return state | _NO_GENERATION | _most_telling(model)
        config = generation.config
        generation.observe()
        gauges = generation.statistics.total().gauges
        return state | {
            "version": generation.ref.version,
            "state": "READY" if generation.target.is_ready else "UNAVAILABLE",
            "reason": _problem(model),
            "runtime": generation.runtime,
            "description": config.description,
            "labels": list(config.labels),
            "tags": list(config.tags),
            "methods": [
                page_method(name, method) for name, method in generation.signature.methods.items()
            ],
            "example": config.example,
            "queue_depth": gauges.queue_depth,
            "memory_bytes": gauges.memory_bytes,
        }

    async def _metrics(self, arguments: Mapping[str, Any]) -> bytes:
        """One text for all who asked before it was begun, so that many cost as little as one."""
        if self._next_metrics is None:
            self._next_metrics = asyncio.ensure_future(self._write_metrics())
        return await asyncio.shield(self._next_metrics)

    async def _write_metrics(self) -> bytes:
        async with self._rendering:
            # Who asks from now on is to see what happens from now on.
            self._next_metrics = None
            return await self._metrics_now()

    async def _metrics_now(self) -> bytes:
        generations = list(self._engine.generations())
        told = await asyncio.gather(*(g.user_metrics(_WORKER_TIMEOUT_S) for g in generations))
        texts = [user_metrics.exposition(), *(text for texts in told for text in texts)]
        devices = await asyncio.to_thread(device_bytes)
        models = [
            ObservedModel(name, model.statistics, len(model.versions))
            for name, model in sorted(self._engine.models.items())
        ]
        versions = [observed_version(generation) for generation in self._engine.generations()]
        parts = []
        for part in exposition(models, versions, devices, user_metrics.added_up(texts)):
            parts.append(part)
            await asyncio.sleep(0)  # hundreds of models make a long text, and requests wait
        return b"".join(parts)

    def _openapi(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        latest = (model.latest for _, model in sorted(self._engine.models.items()))
        ready = [generation for generation in latest if generation is not None]
        return describe(self.router, ready, keyed=bool(self._config.api_key))


def observed_version(generation: Generation) -> ObservedVersion:
    """What the metrics tell of a version."""
    generation.observe()
    return ObservedVersion(
        generation.ref.name, generation.ref.version, generation.statistics.total()
    )


def version_status(model: ServedModel, version: str) -> dict[str, Any]:
    """A version as TensorFlow Serving tells it (get_model_status.proto)."""
    state, reason = model.states[version]
    generation = model.versions.get(version)
    if generation is not None and generation.target.is_ready:
        name, problem = "AVAILABLE", ""
    elif state == "LOADING":
        name, problem = "LOADING", ""
    else:
        name = "END"
        problem = "" if model.states[version] == UNLOADED else reason or _CRASHED
    status = {"error_code": "UNAVAILABLE" if problem else "OK", "error_message": problem}
    return {"version": version, "state": name, "status": status}


def tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    """A tensor as the protocol's metadata tell it."""
    return {"name": spec.name, "datatype": spec.dtype.name, "shape": list(spec.shape)}


def methods_metadata(signature: Signature) -> dict[str, Any]:
    """Every method in the form of the metadata, the default one first."""
    return {
        name: {
            "inputs": [method_tensor(spec) for spec in method.inputs],
            "outputs": [method_tensor(spec) for spec in method.outputs],
            "streams": method.streams,
        }
        for name, method in signature.methods.items()
    }


def method_tensor(spec: TensorSpec) -> dict[str, Any]:
    """A tensor of the metadata, and what only our own clients ask for."""
    return {
        **tensor_metadata(spec),
        "content": spec.content,
        "columns": list(spec.columns),
        "optional": spec.optional,
    }


def largest_batch(method: Method, *, batches: bool) -> int:
    """Most rows in a run; 0 if its tensors have none, 1 if calls do not share runs."""
    if method.batching != "rows":
        return 0
    return (method.max_rows or _UNLIMITED) if batches else 1


def config_tensor(spec: TensorSpec, skip: int) -> dict[str, Any]:
    """A tensor as Triton's model configuration tells it, without the batch dimension."""
    name = "STRING" if spec.dtype.name == "BYTES" else spec.dtype.name
    return {"name": spec.name, "data_type": f"TYPE_{name}", "dims": list(spec.shape[skip:])}


_NO_GENERATION: Final[dict[str, Any]] = {
    "runtime": "",
    "description": "",
    "labels": [],
    "tags": [],
    "methods": [],
    "example": None,
    "queue_depth": 0,
    "memory_bytes": 0,
}


def _most_telling(model: ServedModel) -> dict[str, str]:
    """The newest version of a model without a ready one, and what became of it."""
    version = max(model.states, key=version_key, default="")
    state, reason = model.states.get(version, ("LOADING", ""))
    return {"version": version, "state": state, "reason": reason}


def _problem(model: ServedModel) -> str:
    """What keeps the files of a model that is ready from being served as they are."""
    if model.latest is not None and not model.latest.target.is_ready:
        return _CRASHED
    return "; ".join(
        f"version {version}: {reason}"
        for version, (_, reason) in sorted(model.states.items())
        if reason not in ("", "unloaded")
    )


def page_method(name: str, method: Method) -> dict[str, Any]:
    """A method as the page needs it for its form."""
    return {
        "name": name,
        "batching": method.batching,
        "streams": method.streams,
        "inputs": [page_tensor(spec) for spec in method.inputs],
        "outputs": [page_tensor(spec) for spec in method.outputs],
    }


def page_tensor(spec: TensorSpec) -> dict[str, Any]:
    """A tensor as the page needs it for its form."""
    return {**method_tensor(spec), "role": spec.role, "example": spec.example}


def model_statistics(generation: Generation) -> dict[str, Any]:
    """Counters in the form of the statistics extension; times in nanoseconds."""
    statistics: ModelStatistics = generation.statistics.total()
    success, failure = statistics.success, statistics.failure
    runs = {"count": statistics.num_runs, "ns": statistics.compute_ns}
    nothing = {"count": 0, "ns": 0}
    return {
        "name": generation.ref.name,
        "version": generation.ref.version,
        "last_inference": statistics.last_run_ms,
        "inference_count": statistics.num_rows,
        "execution_count": statistics.num_runs,
        "inference_stats": {
            "success": _duration(success),
            "fail": _duration(failure),
            "queue": {"count": sum(statistics.queue_times().steps), "ns": statistics.queue_ns},
            "compute_input": nothing,
            "compute_infer": runs,
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": nothing,
                "compute_infer": _duration(duration),
                "compute_output": nothing,
            }
            for size, duration in statistics.batches().items()
        ],
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.times, "ns": duration.ns}
