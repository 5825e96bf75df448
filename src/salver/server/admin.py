"""Answers what is not inference: health, metadata, states, statistics, metrics; loads and unloads.

Every protocol's queries and commands end here, as plain dictionaries that it puts into its form.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from salver.codecs.v2 import EXTENSIONS
from salver.engine.served import version_key
from salver.errors import Internal, InvalidInput, NotFound, Unavailable
from salver.observe import user_metrics
from salver.observe.memory import device_bytes
from salver.observe.metrics import ObservedModel, ObservedVersion, exposition
from salver.server import documents
from salver.server.openapi import describe
from salver.types import ModelRef
from salver.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.config import ServerConfig
    from salver.control.reload import Commands
    from salver.engine.engine import Engine
    from salver.engine.generation import Generation
    from salver.interfaces import Command, Query
    from salver.observe.rates import Rates
    from salver.server.router import Router


_WORKER_TIMEOUT_S: Final = 0.5


class Admin:
    """The one table of queries and commands."""

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        repository: Commands,
        rates: Rates,
        router: Router,
    ) -> None:
        self._config = config
        self._engine = engine
        self._repository = repository
        self._rates = rates
        self._router = router
        self._started = time.monotonic()
        self._rendering = asyncio.Lock()
        self._next_metrics: asyncio.Task[bytes] | None = None
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
        found = [documents.version_status(model, each) for each in versions]
        ready = any(status["state"] == "AVAILABLE" for status in found)
        return {"name": name, "ready": ready, "model_version_status": found}

    def _server_metadata(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"name": "salver", "version": __version__, "extensions": list(EXTENSIONS)}

    def _model_metadata(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        generation = self._find(arguments)
        model = self._engine.models[generation.ref.name]
        # A label that was asked for stands for its version's number.
        named = [generation.ref.version] if arguments.get("version") else model.versions
        return documents.metadata(generation, sorted(named, key=version_key))

    def _model_config(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return documents.configuration(self._find(arguments), self._config.device)

    def _statistics(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        name, version = arguments.get("model", ""), arguments.get("version") or ""
        if version:
            generations = [self._find(arguments)]
        elif name:
            self._find(arguments)
            generations = [g for g in self._engine.generations() if g.ref.name == name]
        else:
            generations = list(self._engine.generations())
        return {"model_stats": [documents.statistics(generation) for generation in generations]}

    def _repository_index(self, arguments: Mapping[str, Any]) -> list[dict[str, str]]:
        found = [
            {"name": name, "version": version, "state": state, "reason": reason}
            for name, model in sorted(self._engine.models.items())
            for version in sorted(model.states, key=version_key)
            for state, reason in [documents.version_state(model, version)]
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
            "models": [
                documents.page_state(model) | self._rates.of_model(name)
                for name, model in sorted(self._engine.models.items())
            ],
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
        versions = [_observed(generation) for generation in self._engine.generations()]
        parts = []
        for part in exposition(models, versions, devices, user_metrics.added_up(texts)):
            parts.append(part)
            await asyncio.sleep(0)  # hundreds of models make a long text, and requests wait
        return b"".join(parts)

    def _openapi(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        latest = (model.latest for _, model in sorted(self._engine.models.items()))
        ready = [generation for generation in latest if generation is not None]
        return describe(self._router, ready, keyed=bool(self._config.api_key))


def _observed(generation: Generation) -> ObservedVersion:
    """What the metrics tell of a version."""
    generation.observe()
    return ObservedVersion(
        generation.ref.name, generation.ref.version, generation.statistics.total()
    )
