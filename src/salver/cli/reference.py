"""Writes the configuration reference: `python -m salver.cli.reference FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args, get_origin

from salver.config import ModelConfig, Options, ServerConfig, is_hot, walk

_HEAD = """# Configuration

Every option is defined once, in `src/salver/config.py`; this page is made from there (`make docs`).
Flags win over the environment, the environment over the file. A running server follows its
`salver.yaml` in what is marked *hot* ([how](operations.md#options)); the rest needs a restart. A
change of `model.yaml` loads that model anew, and no call is lost.
"""


def type_name(kind: Any) -> str:
    """A type as a reader of YAML would say it."""
    arguments = get_args(kind)
    if str(get_origin(kind)) == "typing.Literal":
        return " \\| ".join(f"`{word}`" for word in arguments)
    plain = {bool: "yes/no", int: "integer", float: "number", str: "text", Any: "any"}
    if kind in plain:
        return plain[kind]
    if get_origin(kind) is tuple:
        inner = arguments[0]
        nested = isinstance(inner, type) and issubclass(inner, Options)
        return f"list of {'objects' if nested else type_name(inner)}"
    if get_origin(kind) is dict:
        return "mapping"
    names = [type_name(argument) for argument in arguments if argument is not type(None)]
    return " or ".join(names) or "text"


def table(struct: type[Options]) -> list[str]:
    """One line per option."""
    lines = ["| option | type | default | |", "|---|---|---|---|"]
    for name, kind, meta, default in walk(struct):
        shown = "" if default in ("", (), None, {}) else f"`{default}`".lower()
        text = f"{meta.description} *Hot.*" if is_hot(meta) else meta.description
        lines.append(f"| `{name}` | {type_name(kind)} | {shown} | {text} |")
    return lines


def reference() -> str:
    """The whole page."""
    sections = [
        _HEAD,
        "## The server: `salver.yaml`\n",
        "As a flag without its unit: `--drain-timeout 5`, `--limits-body-bytes 1000000`. In the "
        "environment with two underscores for a dot: `SALVER_LIMITS__BODY_BYTES`.\n",
        *table(ServerConfig),
        "\n## A model: `model.yaml`, beside its file\n",
        *table(ModelConfig),
    ]
    return "\n".join(sections) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1], "reference.md").write_text(reference(), encoding="utf-8")
