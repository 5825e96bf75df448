"""Models opened without a server, from the same source and runtimes that serving uses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from salver.engine.configured import chosen
from salver.engine.instances import drop_item, run
from salver.engine.placement import device, place, thread_budget
from salver.engine.warmup import warm_up, work_of
from salver.errors import LoadFailed, ModelFailed, SalverError
from salver.interfaces import LoadSpec
from salver.observe.cores import usable_cores
from salver.runtimes.table import detect
from salver.sources.folder import FolderSource, Place
from salver.types import Rows, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from salver.engine.placement import Placement
    from salver.interfaces import Model, Results, VersionOnDisk
    from salver.signature import Signature
    from salver.types import Work


class Opened(NamedTuple):
    """A loaded model, and the signature it is served with."""

    version: VersionOnDisk
    runtime: str
    model: Model
    signature: Signature


def told_of_triton(place: Path) -> str:
    """That Triton's configuration of a model is not read, if it has one beside its versions."""
    folder = place if place.is_dir() else place.parent
    for each in (folder, folder.parent) if folder.name.isdecimal() else (folder,):
        if (each / "config.pbtxt").is_file():
            return (
                f"{each.resolve().name}/config.pbtxt is Triton's and is not read: what it says of "
                "batching, instances and versions goes into model.yaml"
            )
    return ""


def versions(path: str | Path, overrides: Mapping[str, Any]) -> list[VersionOnDisk]:
    """Every version that serving `path` would offer.

    Raises: LoadFailed if there is nothing.
    """
    given = {key: value for key, value in overrides.items() if value}
    found = list(FolderSource([Place(Path(path))], given).scan().values())
    if not found:
        raise LoadFailed(f"{path}: there is no model in this folder")
    return found


def only_version(path: str | Path, overrides: Mapping[str, Any]) -> VersionOnDisk:
    """The latest version of the only model at `path`.

    Raises: LoadFailed naming the models if there are several, or what is wrong with the only one.
    """
    found = versions(path, overrides)
    names = sorted({version.ref.name for version in found})
    if len(names) > 1:
        raise LoadFailed(f"{path} holds several models: {', '.join(names)}; give the path of one")
    latest = found[-1]
    if latest.problem is not None:
        raise latest.problem
    return latest


def open_model(version: VersionOnDisk, *, trust: bool, warn: Callable[[str], None]) -> Opened:
    """Loads a version into this process.

    Raises: LoadFailed and its kinds.
    """
    runtime, _ = detect(version.path, version.config)
    spec = LoadSpec(
        path=version.path,
        ref=version.ref,
        config=version.config,
        device=device(version.config.device or "auto"),
        threads=thread_budget(version.config, usable_cores()),
        trusted=trust or version.trusted,
        warn=warn,
    )
    try:
        model = runtime.load(spec)
    except SalverError:
        raise
    except Exception as error:
        raise LoadFailed(f"{version.ref}: {type(error).__name__}: {error}") from error
    try:
        signature = chosen(model.signature, version.config, model.traits)
    except LoadFailed:
        model.close()
        raise
    return Opened(version, runtime.name, model, signature)


def placement(opened: Opened) -> Placement:
    """Where the server would run the model, by what its warm-up costs here.

    Raises: LoadFailed if the model fails on its own example.
    """

    async def once(work: Work) -> tuple[Results | Exception, int]:
        return run(opened.model, work, drop_item)

    config = opened.version.config
    costs = asyncio.run(warm_up(once, opened.signature, config, opened.version.ref))
    default = next((cost.ns for cost in costs if cost.method == opened.signature.default), None)
    streams = any(method.streams for method in opened.signature.methods.values())
    return place(config.instances.isolation, opened.model.traits, default, streams)


def run_once(opened: Opened, method: str, inputs: Tensors, outputs: tuple[str, ...]) -> Rows:
    """Runs one call.

    Raises: SalverError of the model's own, ModelFailed for anything else that it raises.
    """
    work = work_of(method, opened.signature.methods[method], inputs, outputs)
    # Not by the engine's `run`, which takes Ctrl-C for a failure of the model.
    try:
        results = opened.model.run(work, drop_item)
    except SalverError:
        raise
    except Exception as error:
        raise ModelFailed(f"the model failed: {type(error).__name__}: {error}") from error
    if isinstance(results, Rows):
        return results
    result = results[0]
    if isinstance(result, SalverError):
        raise result
    return Rows(result or Tensors())
