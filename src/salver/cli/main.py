"""`salver`: one command per thing to do. Each imports what it needs only when it runs."""

from __future__ import annotations

import importlib
from typing import Any

import click

from salver.errors import SalverError
from salver.version import __version__

COMMANDS = {
    "serve": "salver.cli.serve:serve",
    "models": "salver.cli.remote:models",
    "infer": "salver.cli.remote:infer",
    "load": "salver.cli.remote:load",
    "unload": "salver.cli.remote:unload",
    "predict": "salver.cli.predict:predict",
    "inspect": "salver.cli.inspect:inspect",
    "check": "salver.cli.check:check",
}


class LazyGroup(click.Group):
    """Commands by name, imported when used, so that `--help` and completion stay quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SalverError as error:
            raise click.ClickException(error.message) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="salver")
def main() -> None:
    """Serves any model to any client: one process, one port, one command.

    \b
    salver serve model.onnx
    curl localhost:8000/predict -d '{"input": [1.0, 2.0, 3.0, 4.0]}'
    """
