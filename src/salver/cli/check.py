"""`salver check`: every mistake in a folder of models at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from salver.cli.yaml_mistakes import Finding, finding_of, line_of, mistakes
from salver.codecs.api_key import must_be_sendable
from salver.codecs.json_numbers import dumps
from salver.config import ServerConfig
from salver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path), default=".")
@click.option("--trust", is_flag=True, help="Models whose files hold code are fine.")
@click.option("--load", is_flag=True, help="Load every model, which finds more.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(path: Path, trust: bool, load: bool, as_json: bool) -> None:
    """Finds every mistake in PATH: models, model.yaml and salver.yaml. Exits with 1 if any."""
    from salver.cli.check_models import Checker

    root = path if path.is_dir() else path.parent
    found, config = check_server(root)
    checker = Checker(path, trust=trust or config.trust, load=load)
    found += checker.run()
    if as_json:
        click.echo(dumps([finding._asdict() for finding in found]))
    else:
        show(found, checker.num_models)
    for note in checker.notes:
        click.echo(f"Note: {note}", err=True)
    sys.exit(1 if found else 0)


def check_server(root: Path) -> tuple[list[Finding], ServerConfig]:
    """The mistakes in `salver.yaml`, and what it says without them."""
    name = "salver.yaml"
    file = root / name
    if not file.is_file():
        return [], ServerConfig()
    text = file.read_text(encoding="utf-8")
    found, config = mistakes(text, ServerConfig, name)
    for key in ("tls_cert", "tls_key"):
        named = getattr(config, key)
        if named and not Path(named).is_file():
            found.append(Finding(name, 0, key, f"there is no file {named}", "correct the path"))
    try:
        must_be_sendable(config.api_key)
    except ConfigError as error:
        problem = error.message.removeprefix("api_key: ")
        found.append(finding_of(problem, name, line_of(text, "api_key"), "api_key"))
    return found, config


def show(found: Sequence[Finding], num_models: int) -> None:
    """A table, or a word of praise."""
    console = Console(highlight=False)
    models = f"{num_models} model" + ("s" if num_models != 1 else "")
    if not found:
        console.print(f"[green]No mistakes found[/green] in {models}.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("where", "key", "problem", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in found:
        where = f"{finding.file}:{finding.line}" if finding.line else finding.file
        table.add_row(*map(escape, (where, finding.key, finding.problem, finding.remedy)))
    console.print(table)
    number = f"{len(found)} mistake" + ("s" if len(found) != 1 else "")
    console.print(f"[red]{number}[/red] in {models}.")
