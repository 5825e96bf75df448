"""The contract of runtimes: probing, loading, and the models that they load."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import msgspec

from salver.config import ModelConfig
from salver.errors import LoadFailed, TrustRequired
from salver.interfaces import LoadSpec, Probe, Traits
from salver.testing.audit import code_run_from
from salver.testing.clauses import expect, only
from salver.testing.model import check_method
from salver.testing.signature import check_signature
from salver.types import ModelRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.interfaces import Model, Runtime

_DEFAULTS: Final = ModelConfig()
_FOREIGN: Final = {"notes.md": b"# Notes\n", "blob": b"\x00\x01\x02\xff" * 16}


def check_runtime(
    runtime: Runtime,
    path: Path,
    *,
    rows: Sequence[Any],
    failing: Sequence[Any] = (),
    config: ModelConfig = _DEFAULTS,
    tolerance: float | None = 1e-5,
) -> None:
    """Checks `runtime` with a small model file, or folder, that it can load.

    `rows` are inputs for the default method, each as a client sends it to `/predict` under "input",
    without a batch dimension; two or more show batching. `Tensors` and `Raw` are taken too.
    `failing` are inputs that fit the signature and that the model refuses. What an idempotent model
    gives alone and in a batch may differ by `tolerance`, relative and absolute; None for a model
    that draws lots.

    The file is loaded several times, with trust if it asks for it, and a cut copy of it as well.
    Raises: AssertionError.
    """
    probe = _check_probe(runtime, path, config)
    _check_files_of_others(runtime, path, config)
    model = _load(runtime, path, config, trusted=bool(probe.trust))
    _check_trust(runtime, path, config, probe)
    _check_device(runtime, path, config)
    expect(isinstance(model.traits, Traits), "Model.traits are Traits", repr(model.traits))
    check_signature(model.signature)
    expect(
        probe.signature in (None, model.signature),
        "Runtime.probe tells the signature that the model will have, or None",
        f"probe said {probe.signature}, the model has {model.signature}",
    )
    first = model.signature.methods[model.signature.default]
    for name, method in model.signature.methods.items():
        if method.inputs == first.inputs:
            check_method(model, name, rows, failing, tolerance)
    _check_second_load(model, _load(runtime, path, config, trusted=bool(probe.trust)), rows)
    _check_damaged_file(runtime, path, config, probe)


def _check_probe(runtime: Runtime, path: Path, config: ModelConfig) -> Probe:
    before = _listing(path)
    with code_run_from(path) as seen, only("Runtime.probe raises nothing"):
        probe = runtime.probe(path, config)
    expect(not seen, "Runtime.probe runs no code from the file", f"it {', '.join(seen)}")
    expect(_listing(path) == before, "Runtime.probe writes nothing", "the files changed")
    expect(isinstance(probe, Probe), "Runtime.probe gives a Probe of its files", f"got {probe!r}")
    assert probe is not None
    expect(
        bool(runtime.name) and probe.runtime == runtime.name,
        "Probe.runtime is the name of the runtime",
        f"{probe.runtime!r} is not {runtime.name!r}",
    )
    expect(
        probe.file == Path(probe.file).name and _file(path, config, probe).exists(),
        "Probe.file is the name of a file in the folder",
        f"there is no {probe.file!r}",
    )
    file = _file(path, config, probe)
    size = file.stat().st_size if file.is_file() else 1
    expect(
        probe.size_bytes >= size,
        "Probe.size_bytes counts the whole model",
        f"{probe.size_bytes} is less than the {size} of {probe.file}",
    )
    expect(not probe.problem, "Probe.problem is empty for a file that can be loaded", probe.problem)
    expect(
        runtime.probe(path, config) == probe,
        "Runtime is stateless",
        "a second probe of the same file gave something else",
    )
    return probe


def _listing(path: Path) -> list[tuple[Path, int]]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(file, file.stat().st_mtime_ns) for file in files]


def _file(path: Path, config: ModelConfig, probe: Probe) -> Path:
    return path / (config.file or probe.file) if path.is_dir() else path.parent / probe.file


def _check_files_of_others(runtime: Runtime, path: Path, config: ModelConfig) -> None:
    config = msgspec.structs.replace(config, file="")
    with TemporaryDirectory() as name:
        folder = Path(name)
        places = [folder]
        for file, content in _FOREIGN.items():
            (folder / file).write_bytes(content)
            places.append(folder / file)
        for place in places:
            what = "a folder without a model" if place is folder else place.name
            with only(f"Runtime.probe raises nothing, also not for {what}"):
                probe = runtime.probe(place, config)
            expect(
                probe is None,
                "Runtime.probe gives None for what it cannot load",
                f"it took {what}",
            )


def _spec(path: Path, config: ModelConfig, **more: Any) -> LoadSpec:
    return LoadSpec(path=path, ref=ModelRef("model", "1"), config=config, **more)


def _load(runtime: Runtime, path: Path, config: ModelConfig, *, trusted: bool) -> Model:
    with only("Runtime.load loads what probe recognises, with trust only where probe says so"):
        return runtime.load(_spec(path, config, trusted=trusted))


def _check_trust(runtime: Runtime, path: Path, config: ModelConfig, probe: Probe) -> None:
    if not probe.trust:
        return
    clause = "Runtime.load raises TrustRequired for a file that needs trust and has none"
    with code_run_from(path) as seen:
        try:
            with only(clause, TrustRequired):
                runtime.load(_spec(path, config)).close()
        except TrustRequired:
            expect(not seen, "Runtime.load runs no code without trust", f"it {', '.join(seen)}")
            return
    raise AssertionError(f"{clause}; it loaded the file")


def _check_device(runtime: Runtime, path: Path, config: ModelConfig) -> None:
    """A device that cannot exist is refused, or the model's place is told by a warning."""
    said: list[str] = []
    spec = _spec(path, config, trusted=True, device="nowhere", warn=said.append)
    clause = "Runtime.load never changes the device silently"
    try:
        with only(f"{clause}, it raises LoadFailed or warns", LoadFailed):
            runtime.load(spec).close()
    except LoadFailed:
        return
    expect(bool(said), clause, "for the device 'nowhere' it neither raised LoadFailed nor warned")


def _check_second_load(first: Model, second: Model, rows: Sequence[Any]) -> None:
    with only("Model.close ends one load of a file and raises nothing"):
        first.close()
    try:
        check_method(second, second.signature.default, rows[:1], (), None)
    except AssertionError as error:
        raise AssertionError(f"Model.close leaves other loads of the file alone; {error}") from None
    with only("Model.close ends one load of a file and raises nothing"):
        second.close()


def _check_damaged_file(runtime: Runtime, path: Path, config: ModelConfig, probe: Probe) -> None:
    """Half of the file is refused, unless it happens to be a model still."""
    with TemporaryDirectory() as name:
        copy = Path(name) / path.name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
        file = _file(copy, config, probe)
        if not file.is_file():
            return
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with only("Runtime.probe raises nothing, also not for half of a file"):
            runtime.probe(copy, config)
        try:
            with only("Runtime.load raises LoadFailed for half of a file", LoadFailed):
                runtime.load(_spec(copy, config, trusted=True)).close()
        except LoadFailed:
            pass
