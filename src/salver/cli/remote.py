"""Commands that talk to a running server: `models`, `infer`, `load` and `unload`."""

from __future__ import annotations

import mimetypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from salver.client.sync import Client
from salver.codecs.json_numbers import dumps

if TYPE_CHECKING:
    from collections.abc import Sequence

_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_SHOWN_CLASSES = 5


def server_options(command: Any) -> Any:
    """Adds `--url` and `--api-key`."""
    command = click.option(
        "--api-key", envvar="SALVER_API_KEY", show_envvar=True, help="The server's API key."
    )(command)
    return click.option(
        "--url",
        envvar="SALVER_URL",
        show_envvar=True,
        default="http://127.0.0.1:8000",
        show_default=True,
        help="The server's address.",
    )(command)


@click.command()
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print what the server says as JSON.")
def models(url: str, api_key: str | None, as_json: bool) -> None:
    """Lists the models of a server: state, load and latency."""
    with Client(url, api_key) as client:
        states = client.models()
        rates = {model["name"]: model for model in client.state()["models"]}
    if as_json:
        click.echo(dumps([{**rates.get(s.name, {}), **s._asdict()} for s in states]))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "version", "state", "runtime"):
        table.add_column(column)
    for column in ("requests/s", "p50", "p99"):
        table.add_column(column, justify="right")
    for state in states:
        rate = rates.get(state.name, {})
        is_latest = rate.get("version") == state.version
        table.add_row(
            state.name,
            state.version,
            _state(state.state, state.reason),
            rate.get("runtime", "") if is_latest else "",
            *(_rates(rate) if is_latest else ()),
        )
    console = Console(highlight=False)
    console.print(table if states else "No models are served.")


def _state(state: str, reason: str) -> str:
    colour = "green" if state == "READY" else "red"
    why = f": {reason}" if reason and state != "READY" else ""
    return f"[{colour}]{state.lower()}[/{colour}]{why.replace('[', chr(92) + '[')}"


def _rates(rate: dict[str, Any]) -> tuple[str, str, str]:
    """Of all versions together: requests per second, and latencies in milliseconds."""
    times = [rate.get("p50_ms"), rate.get("p99_ms")]
    p50, p99 = ("-" if time is None else f"{time:.3g} ms" for time in times)
    return f"{rate.get('requests_per_s', 0.0):g}", p50, p99


@click.command()
@click.argument("name")
@click.argument("values", nargs=-1, metavar="[VALUE | @FILE | - | KEY=VALUE...]")
@click.option("--method", default="", help="Method to call; the default one if not given.")
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Send this file as it is.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as the server gives it.")
@click.option("--timeout", "timeout_s", type=float, default=60.0, help="Longest wait in seconds.")
@server_options
def infer(
    name: str,
    values: tuple[str, ...],
    method: str,
    image: Path | None,
    as_json: bool,
    timeout_s: float,
    url: str,
    api_key: str | None,
) -> None:
    """Asks a model for a prediction.

    \b
    salver infer iris '[5.1, 3.5, 1.4, 0.2]'
    salver infer house area=120 rooms=4 city=Berlin
    salver infer digits --image seven.png
    salver infer iris @rows.csv
    cat text.txt | salver infer summary -
    """
    value, content_type = file_body(image) if image is not None else read_value(values)
    with Client(url, api_key, timeout_s=timeout_s) as client:
        for answer in client.answers(name, value, method=method, content_type=content_type):
            if as_json:
                click.echo(dumps(answer))
            else:
                show(answer)


def read_value(values: Sequence[str]) -> tuple[Any, str]:
    """What the arguments say: a value, or a file's bytes and their content type.

    Raises: UsageError.
    """
    if not values:
        raise click.UsageError(
            "what is the input? Give JSON, @FILE, KEY=VALUE pairs, - for standard input, or "
            "--image FILE"
        )
    if len(values) == 1 and values[0] == "-":
        return _body(sys.stdin.buffer.read(), "")
    if len(values) == 1 and values[0].startswith("@"):
        path = Path(values[0][1:])
        if not path.is_file():
            raise click.UsageError(f"there is no file {path}")
        return file_body(path)
    pairs = [value.partition("=") for value in values]
    # Columns may be called anything; but one text with an equals sign in it may be just that.
    several = len(values) > 1
    if all(separator and (several or key.isidentifier()) for key, separator, _ in pairs):
        return {key: _json_or_text(text) for key, _, text in pairs}, ""
    if len(values) > 1:
        raise click.UsageError("give one value, or every input as KEY=VALUE")
    return _json_or_text(values[0]), ""


def file_body(path: Path) -> tuple[Any, str]:
    """The content of a file: JSON as a value, all else as bytes with a content type."""
    media = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return _body(path.read_bytes(), "" if path.suffix in _JSON_SUFFIXES else media)


def _body(raw: bytes, media: str) -> tuple[Any, str]:
    """Without a media type JSON is a value; all else is for the server to recognise."""
    if media:
        return raw, media
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw, "application/octet-stream"
    is_body = isinstance(value, dict) and len(value) == 1 and value.keys() <= {"input", "inputs"}
    return (raw, "application/json") if is_body else (value, "")


def _json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def show(answer: dict[str, Any]) -> None:
    """Label and probabilities if there are any, else the prediction."""
    prediction = answer["prediction"] if "prediction" in answer else answer["predictions"]
    probabilities = answer.get("probabilities")
    if isinstance(probabilities, dict):
        label = answer.get("label", prediction)
        click.echo(label if isinstance(label, str) else dumps(label))
        best = sorted(probabilities.items(), key=lambda item: -item[1])[:_SHOWN_CLASSES]
        width = max(len(name) for name, _ in best)
        for name, probability in best:
            bar = "█" * round(probability * 30)
            click.echo(f"  {name:<{width}}  {probability:7.2%}  {bar}".rstrip())
        return
    if "labels" in answer:
        click.echo("\n".join(answer["labels"]))
    elif isinstance(prediction, str):
        click.echo(prediction)
    elif isinstance(prediction, dict):
        click.echo(orjson.dumps(prediction, option=orjson.OPT_INDENT_2))
    else:
        click.echo(dumps(prediction))


@click.command()
@click.argument("name")
@server_options
def load(name: str, url: str, api_key: str | None) -> None:
    """Loads or reloads a model, on a server with `--mode explicit`."""
    with Client(url, api_key, timeout_s=None) as client:
        client.load(name)
    click.echo(f"{name} is ready")


@click.command()
@click.argument("name")
@server_options
def unload(name: str, url: str, api_key: str | None) -> None:
    """Takes a model out of service, on a server with `--mode explicit`."""
    with Client(url, api_key, timeout_s=None) as client:
        client.unload(name)
    click.echo(f"{name} is unloaded")
