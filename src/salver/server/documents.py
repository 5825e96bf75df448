"""What a server tells of its models: metadata, configuration, statistics and states, in the forms
that clients of Triton, KServe and TensorFlow Serving and the page expect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from salver.codecs.json_numbers import dumps
from salver.engine.placement import device
from salver.engine.served import UNLOADED, State, version_key
from salver.engine.target import GIVEN_UP
from salver.observe.statistics import Duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.config import ModelConfig
    from salver.engine.generation import Generation
    from salver.engine.served import ServedModel
    from salver.observe.statistics import Gauges
    from salver.signature import Method, Signature, TensorSpec

_UNLIMITED: Final = 1 << 20
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


def metadata(generation: Generation, versions: Sequence[str]) -> dict[str, Any]:
    """A model as the Open Inference Protocol's metadata tell it, and all its methods."""
    method = generation.signature.methods[generation.signature.default]
    return {
        "name": generation.ref.name,
        "versions": list(versions),
        "platform": generation.runtime,
        "inputs": [_tensor(spec) for spec in method.inputs],
        "outputs": [_tensor(spec) for spec in method.outputs],
        "methods": _methods(generation.signature),
    }


def configuration(generation: Generation, default_device: str) -> dict[str, Any]:
    """A model as Triton's model configuration tells it."""
    method = generation.signature.methods[generation.signature.default]
    batches = generation.plans[generation.signature.default].batches
    max_batch = _largest_batch(method, batches=batches)
    skip = 1 if max_batch else 0
    config: dict[str, Any] = {
        "name": generation.ref.name,
        "platform": "",
        "backend": generation.runtime,
        "version_policy": _version_policy(generation.config),
        "max_batch_size": max_batch,
        "input": [_config_tensor(spec, skip) for spec in method.inputs],
        "output": [_config_tensor(spec, skip) for spec in method.outputs],
        "instance_group": [_instance_group(generation, default_device)],
        # The only place of the protocol where gRPC can tell of methods.
        "parameters": {"methods": {"string_value": dumps(_methods(generation.signature)).decode()}},
    }
    if batches:
        batching = generation.config.batching
        config["dynamic_batching"] = {
            "preferred_batch_size": list(batching.preferred_sizes),
            "max_queue_delay_microseconds": int(batching.delay_ms * 1000),
        }
    if method.streams:
        config["model_transaction_policy"] = {"decoupled": True}
    return config


def statistics(generation: Generation) -> dict[str, Any]:
    """Counters in the form of the statistics extension: times in nanoseconds, added up over
    successful calls, so that clients may divide them by `count`; those of batches over runs.
    """
    counters = generation.statistics.total()
    success = counters.success
    nothing, unmeasured = Duration(0, 0), Duration(success.times, 0)
    return {
        "name": generation.ref.name,
        "version": generation.ref.version,
        "last_inference": counters.last_run_ms,
        "inference_count": counters.num_rows,
        "execution_count": counters.num_runs,
        "inference_stats": {
            "success": _duration(success),
            "fail": _duration(counters.failure),
            "queue": _duration(counters.waited),
            "compute_input": _duration(unmeasured),
            "compute_infer": _duration(counters.ran),
            "compute_output": _duration(unmeasured),
            "cache_hit": _duration(nothing),
            "cache_miss": _duration(nothing),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": {"count": duration.times, "ns": 0},
                "compute_infer": _duration(duration),
                "compute_output": {"count": duration.times, "ns": 0},
            }
            for size, duration in counters.batches().items()
        ],
    }


def version_state(model: ServedModel, version: str) -> State:
    """What became of a version, also of one that was given up after it was ready."""
    state = model.states[version]
    generation = model.versions.get(version)
    if generation is None or generation.target.is_ready:
        return state
    return State("UNAVAILABLE", state.reason or GIVEN_UP)


def version_status(model: ServedModel, version: str) -> dict[str, Any]:
    """A version as TensorFlow Serving tells it (get_model_status.proto)."""
    state = version_state(model, version)
    name = {"READY": "AVAILABLE", "LOADING": "LOADING"}.get(state.name, "END")
    problem = state.reason if name == "END" and state != UNLOADED else ""
    status = {"error_code": "UNAVAILABLE" if problem else "OK", "error_message": problem}
    return {"version": version, "state": name, "status": status}


def page_state(model: ServedModel) -> dict[str, Any]:
    """A model as the page shows it, by its newest generation, if there is one."""
    counters, generation = model.statistics, model.latest
    state = {
        "name": model.name,
        "versions": sorted(model.versions, key=version_key),
        "requests_total": counters.success.times + counters.failure.times,
        "errors_total": counters.failure.times,
        "avg_batch": round(counters.num_rows / max(counters.num_runs, 1), 2),
    }
    if generation is None:
        return state | _NO_GENERATION | _most_telling(model)
    config, gauges = generation.config, _gauges(generation)
    methods = generation.signature.methods
    return state | {
        "version": generation.ref.version,
        "state": "READY" if generation.target.is_ready else "UNAVAILABLE",
        "reason": _problem(model),
        "runtime": generation.runtime,
        "description": config.description,
        "labels": list(config.labels),
        "tags": list(config.tags),
        "methods": [_page_method(name, method) for name, method in methods.items()],
        "example": config.example,
        "queue_depth": gauges.queue_depth,
        "memory_bytes": gauges.memory_bytes,
    }


def _gauges(generation: Generation) -> Gauges:
    generation.observe()
    return generation.statistics.total().gauges


def _most_telling(model: ServedModel) -> dict[str, str]:
    """The newest version of a model without a ready one, and what became of it."""
    version = max(model.states, key=version_key, default="")
    state, reason = model.states.get(version, ("LOADING", ""))
    return {"version": version, "state": state, "reason": reason}


def _problem(model: ServedModel) -> str:
    """What keeps the files of a model that is ready from being served as they are."""
    if model.latest is not None and not model.latest.target.is_ready:
        return GIVEN_UP
    return "; ".join(
        f"version {version}: {reason}"
        for version, (_, reason) in sorted(model.states.items())
        if reason not in ("", UNLOADED.reason)
    )


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """A tensor as the protocol's metadata tell it."""
    return {"name": spec.name, "datatype": spec.dtype.name, "shape": list(spec.shape)}


def _methods(signature: Signature) -> dict[str, Any]:
    """Every method in the form of the metadata, the default one first."""
    return {
        name: {
            "inputs": [_method_tensor(spec) for spec in method.inputs],
            "outputs": [_method_tensor(spec) for spec in method.outputs],
            "streams": method.streams,
        }
        for name, method in signature.methods.items()
    }


def _method_tensor(spec: TensorSpec) -> dict[str, Any]:
    """A tensor of the metadata, and what only our own clients ask for."""
    return {
        **_tensor(spec),
        "content": spec.content,
        "columns": list(spec.columns),
        "optional": spec.optional,
    }


def _version_policy(config: ModelConfig) -> dict[str, Any]:
    """Which versions are wanted; Triton knows numbers only."""
    wanted = config.versions
    if wanted == "all":
        return {"all": {}}
    if isinstance(wanted, int):
        return {"latest": {"num_versions": wanted}}
    return {"specific": {"versions": [int(each) for each in wanted if each.isdecimal()]}}


def _instance_group(generation: Generation, default_device: str) -> dict[str, Any]:
    """What runs a model, as Triton's model configuration tells it."""
    where = device(generation.config.device or default_device)
    kind, _, index = where.partition(":")
    return {
        "name": generation.ref.name,
        "kind": "KIND_GPU" if kind == "cuda" else "KIND_CPU",
        "count": _gauges(generation).num_instances,
        "gpus": [int(index) if index.isdecimal() else 0] if kind == "cuda" else [],
    }


def _largest_batch(method: Method, *, batches: bool) -> int:
    """Most rows in a run; 0 if its tensors have none, 1 if calls do not share runs."""
    if method.batching != "rows":
        return 0
    return (method.max_rows or _UNLIMITED) if batches else 1


def _config_tensor(spec: TensorSpec, skip: int) -> dict[str, Any]:
    """A tensor as Triton's model configuration tells it, without the batch dimension."""
    name = "STRING" if spec.dtype.name == "BYTES" else spec.dtype.name
    return {"name": spec.name, "data_type": f"TYPE_{name}", "dims": list(spec.shape[skip:])}


def _page_method(name: str, method: Method) -> dict[str, Any]:
    """A method as the page needs it for its form."""
    return {
        "name": name,
        "batching": method.batching,
        "streams": method.streams,
        "inputs": [_page_tensor(spec) for spec in method.inputs],
        "outputs": [_page_tensor(spec) for spec in method.outputs],
    }


def _page_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {**_method_tensor(spec), "role": spec.role, "example": spec.example}


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.times, "ns": duration.ns}
