"""`salver inspect`: what a file is, what it would be served as, and where it would run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from salver.codecs.json_numbers import dumps

if TYPE_CHECKING:
    from salver.cli.local import Opened
    from salver.engine.placement import Placement
    from salver.interfaces import Probe, VersionOnDisk
    from salver.signature import Signature, TensorSpec

_BATCHING: Final = {
    "rows": "batched by rows",
    "items": "batched by items",
    "single": "one call per run",
}


@click.command()
@click.argument("path", type=click.Path(exists=True))
@click.option("--load", is_flag=True, help="Load it, which tells everything. May run its code.")
@click.option("--trust", is_flag=True, help="Run code from the model's files when loading.")
@click.option("--class", "class_name", help="module:Class of weights or of a Python file.")
@click.option("--runtime", help="Runtime to load with, where the file does not tell.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(path: str, load: bool, trust: bool, as_json: bool, **overrides: Any) -> None:
    """Tells what PATH holds without running anything of it."""
    from salver.cli.local import open_model, placement, versions
    from salver.runtimes.table import detect

    console = Console(highlight=False)
    found = []
    for version in versions(path, overrides):
        if version.problem is not None:
            raise version.problem
        _, probe = detect(version.path, version.config)
        if not load:
            found.append(
                facts(version, probe, probe.signature, before_loading(version, probe.runtime))
            )
            continue
        opened = open_model(version, trust=trust, warn=lambda text: click.echo(text, err=True))
        try:
            where = after_loading(opened, placement(opened))
        finally:
            opened.model.close()
        found.append(facts(version, probe, opened.signature, where))
    if as_json:
        click.echo(dumps(found))
        return
    for index, entry in enumerate(found):
        if index:
            console.print()
        show(console, entry)


def before_loading(version: VersionOnDisk, runtime: str) -> str:
    """Where it would run, as far as the files tell."""
    from salver.engine.placement import CODE_RUNTIMES

    isolation = version.config.instances.isolation
    if isolation == "auto" and runtime in CODE_RUNTIMES:
        return f"in {_workers(version)}, as it is code"
    if isolation == "auto":
        return "on the server's loop, in threads or in workers: its warm-up decides (--load tells)"
    return _places(version)[isolation]


def after_loading(opened: Opened, where: Placement) -> str:
    """Where it would run, by what a warm-up took here."""
    from salver.engine.placement import CODE_RUNTIMES

    version = opened.version
    if version.config.instances.isolation == "auto" and opened.runtime in CODE_RUNTIMES:
        return before_loading(version, opened.runtime)
    places = _places(version)
    large = places["thread"] if where.threads else places["process"] if where.processes else ""
    if not where.inline:
        return large
    return f"{places['inline']}, large batches {large}" if large else places["inline"]


def _places(version: VersionOnDisk) -> dict[str, str]:
    return {
        "inline": "on the server's loop",
        "thread": "in threads of the server",
        "process": f"in {_workers(version)}",
    }


def _workers(version: VersionOnDisk) -> str:
    count = version.config.instances.count or 1
    return "a worker process" if count == 1 else f"{count} worker processes"


def facts(
    version: VersionOnDisk, probe: Probe, signature: Signature | None, where: str
) -> dict[str, Any]:
    """Everything that is shown, as plain values. An unknown signature is None."""
    from salver.cli.local import told_of_triton

    notes = filter(None, (probe.detail, told_of_triton(version.path)))
    methods = None
    if signature is not None:
        methods = [
            {
                "name": name,
                "batching": method.batching,
                "max_rows": method.max_rows,
                "streams": method.streams,
                "inputs": [_tensor(spec) for spec in method.inputs],
                "outputs": [_tensor(spec) for spec in method.outputs],
            }
            for name, method in signature.methods.items()
        ]
    return {
        "name": version.ref.name,
        "version": version.ref.version,
        "description": version.config.description,
        "file": probe.file,
        "runtime": probe.runtime,
        "size_bytes": probe.size_bytes,
        "trust": "" if version.trusted else probe.trust,
        "detail": "; ".join(notes),
        "problem": probe.problem,
        "runs": where,
        "methods": methods,
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": spec.dtype.name,
        "shape": list(spec.shape),
        "content": spec.content,
        "role": spec.role,
        "optional": spec.optional,
        "columns": list(spec.columns),
        "labels": list(spec.labels),
    }


def show(console: Console, entry: dict[str, Any]) -> None:
    """One version as a list of facts."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    rows = {
        "served as": f"{entry['name']} version {entry['version']}",
        "what it is": entry["description"],
        "file": entry["file"],
        "runtime": entry["runtime"],
        "size": size_text(entry["size_bytes"]),
        "trust": entry["trust"] or "not needed",
        "runs": entry["runs"],
        "note": entry["detail"],
        "problem": entry["problem"],
    }
    if entry["methods"] is None:
        rows["signature"] = "only known after loading: add --load"
    for key, value in rows.items():
        if value:
            table.add_row(key, escape(value))
    for method in entry["methods"] or ():
        streams = ", streams" if method["streams"] else ""
        batching = "one row per run" if method["max_rows"] == 1 else _BATCHING[method["batching"]]
        table.add_row(f"method {escape(method['name'])}", batching + streams)
        for kind, key in (("takes", "inputs"), ("gives", "outputs")):
            for spec in method[key]:
                table.add_row(f"  {kind}", escape(tensor_text(spec)))
    console.print(table)


def tensor_text(spec: dict[str, Any]) -> str:
    """`x FP32 [-1, 4] (sepal, petal)`."""
    words = [spec["name"], spec["datatype"], str(spec["shape"])]
    if spec["content"] != "tensor":
        words.append(spec["content"])
    if spec["optional"]:
        words.append("optional")
    names = spec["columns"] or spec["labels"]
    if names:
        more = ", ..." if len(names) > 8 else ""
        words.append(f"({', '.join(names[:8])}{more})")
    return " ".join(words)


def size_text(num_bytes: int) -> str:
    """Bytes in the unit that reads best."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
