"""`salver serve`: files, folders and repositories behind one port."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from rich.console import Console
from rich.table import Table

from salver.codecs.api_key import must_be_sendable
from salver.config import (
    ServerConfig,
    combine,
    from_environment,
    is_service_link,
    read,
    unit_of,
    unknown_variables,
    walk,
)
from salver.errors import ConfigError, LoadFailed, TrustRequired
from salver.sources.folder import FolderSource, Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from salver.server.serve import Serving

log = logging.getLogger("salver.cli")
_MODEL_FLAGS = ("class_name", "runtime")
_WHEN_EMPTY = {
    "poll": "No models yet: they are served as they are put there.",
    "explicit": "No models yet: `salver load NAME` serves one.",
    "none": "[yellow]No models, and none will come: the files are read once.[/yellow]",
}


def flag_of(option: str) -> str:
    """`limits.header_timeout_s` as `--limits-header-timeout`: seconds are a flag's usual unit."""
    return "--" + option.removesuffix("_s").replace("_", "-").replace(".", "-")


def form_of(name: str, kind: Any) -> str:
    """What a flag takes, for the help: a unit, choices, or a type."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    plain = {int: "number", float: "number", str: "text"}
    return (unit_of(name) or plain.get(kind, "a,b,...")).upper()


def option_flags(command: Any) -> Any:
    """Adds a flag for every server option, from its one definition."""
    for name, kind, meta, default in reversed(list(walk(ServerConfig))):
        flag = flag_of(name)
        help_text = (meta.description or "") + (f" [{default}]" if default not in ("", ()) else "")
        parameter = "option_" + name.replace(".", "__")
        if kind is bool:
            decorate = click.option(flag, parameter, is_flag=True, default=None, help=help_text)
        else:
            form = form_of(name, kind)
            decorate = click.option(flag, parameter, default=None, help=help_text, metavar=form)
        command = decorate(command)
    return command


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="[NAME=]PATH...")
@click.option("--class", "class_name", help="module:Class of weights or of a Python file.")
@click.option("--runtime", help="Runtime to load with, where the file does not tell.")
@click.option(
    "--config", "config_file", type=click.Path(exists=True, dir_okay=False),
    help="File with server options; salver.yaml, if there is one.",
)  # fmt: skip
@option_flags
def serve(paths: tuple[str, ...], config_file: str | None, **given: Any) -> None:
    """Serves models: files, folders, repositories, Python classes; several at once.

    Options may stand in salver.yaml and in the environment as well: SALVER_API_KEY for --api-key.
    """
    from salver.control.options import OptionsFile
    from salver.server.serve import serve as run

    file = config_file or "salver.yaml"
    options = OptionsFile(Path(file), lambda: read_config(file, given))
    config = read_config(file, given)
    overrides = {key: given[key] for key in _MODEL_FLAGS if given.get(key)}
    source = FolderSource([place(text) for text in paths], overrides)
    console = Console(stderr=True, highlight=False)
    set_up_logging(config.log_level)
    warn_of_service_link(os.environ)
    for told in unknown_variables(os.environ):
        log.warning(told)
    if not config.trust and sys.stdin.isatty() and ask_for_trust(console, source):
        given["option_trust"] = True
        config = read_config(file, given)
    if not config.api_key and config.host not in ("127.0.0.1", "localhost", "::1"):
        console.print(f"[yellow]{config.host} is open to everybody: set --api-key[/yellow]")
    named = config.mode != "explicit" and all(place(text).path.is_file() for text in paths)

    def started(server: Serving) -> None:
        if named and not any(model.versions for model in server.models.values()):
            raise LoadFailed("none of the files could be loaded")
        show_models(console, server)
        announce(console, server)

    run(config, source, started, options)


def read_config(config_file: str, given: dict[str, Any]) -> ServerConfig:
    """File below environment below flags.

    Raises: ConfigError.
    """
    flags = {
        key.removeprefix("option_").replace("__", "."): value
        for key, value in given.items()
        if key.startswith("option_") and value is not None
    }
    for name, kind, _, _ in walk(ServerConfig):
        if isinstance(flags.get(name), str) and str(kind).startswith("tuple"):
            flags[name] = [part.strip() for part in flags[name].split(",")]
    base = read(Path(config_file), ServerConfig)
    config = combine(base, from_environment(os.environ), flags)
    must_be_sendable(config.api_key)
    return config


def warn_of_service_link(environ: Mapping[str, str]) -> None:
    """Says why a variable that looks like ours is not heeded."""
    port = environ.get("SALVER_PORT", "")
    if is_service_link("SALVER_PORT", port):
        log.warning(
            "SALVER_PORT=%s is ignored: Kubernetes sets it for a Service called salver. "
            "enableServiceLinks: false in the pod's spec keeps it away",
            port,
        )


def place(text: str) -> Place:
    """`NAME=PATH` or `PATH`.

    Raises: ConfigError for an empty path, such as that of a variable which is not set.
    """
    name, separator, path = text.partition("=")
    if not separator or "/" in name:
        name, path = "", text
    if not path:
        raise ConfigError(f"{text!r} names no file or folder; `.` is the current one")
    return Place(Path(path), name)


def ask_for_trust(console: Console, source: FolderSource) -> bool:
    """On a terminal, asks once for files that can only be opened by running their code; whether
    there are any, all of them trusted.
    """
    from salver.runtimes.table import detect

    for version in source.scan().values():
        if version.problem is not None or version.trusted:
            continue
        try:
            _, probe = detect(version.path, version.config)
        except Exception as error:
            logging.getLogger("salver").debug("%s: %s", version.ref, error)
            continue
        if probe.trust:
            console.print(f"[yellow]{probe.trust}[/yellow]")
            if not click.confirm("Do you trust it?", err=True):
                raise TrustRequired("nothing was opened")
            return True
    return False


def set_up_logging(level: str) -> None:
    """Our own messages to stderr: level and text, nothing else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("salver")
    logger.addHandler(handler)
    logger.setLevel(level.upper())


def show_models(console: Console, server: Serving) -> None:
    """The table of models and what became of them; the log has told what went wrong."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "version", "runtime", "state"):
        table.add_column(column)
    for name, model in sorted(server.models.items()):
        for version, (state, _) in sorted(model.states.items()):
            runtime = model.versions[version].runtime if version in model.versions else "-"
            colour = "green" if state == "READY" else "red"
            table.add_row(name, version, runtime, f"[{colour}]{state.lower()}[/{colour}]")
    console.print(table)
    if not server.models:
        console.print(_WHEN_EMPTY[server.config.mode])


def announce(console: Console, server: Serving) -> None:
    """Where it is served."""
    scheme = "https" if server.config.tls_cert else "http"
    host = "localhost" if server.config.host in ("0.0.0.0", "::") else server.config.host
    console.print(f"\nServing on [bold]{scheme}://{host}:{server.port}[/bold]  (Ctrl-C ends)")
