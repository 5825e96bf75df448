"""Every option, defined once: type, default, unit, help and whether it may change while serving.

The command line, the environment (`SALVER_<OPTION>`), `salver.yaml`, `model.yaml` and the
documentation all derive from these structs.
"""

from __future__ import annotations

import re
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
import yaml

from salver.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

T = TypeVar("T")

_OTHER_VARIABLE: Final = re.compile(
    # What the client commands and the tests heed, and what Kubernetes says of a Service.
    r"SALVER_(URL|TEST_\w+|(\w+_)?SERVICE_(HOST|PORT(_\w+)?)|(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)


def _option(help: str, **bounds: Any) -> msgspec.Meta:
    return msgspec.Meta(description=help, **bounds)


def _hot(help: str, **bounds: Any) -> msgspec.Meta:
    """An option of the server that may change while it runs: who uses it looks it up each time."""
    return msgspec.Meta(description=help, extra={"is_hot": True}, **bounds)


def is_hot(meta: msgspec.Meta) -> bool:
    """Whether a running server follows an option of its file."""
    return bool(meta.extra)


_UNITS: Final = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "bytes": "bytes",
}


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of options."""


class Batching(Options, frozen=True, kw_only=True):
    """How calls are gathered into batches."""

    max_size: Annotated[
        int,
        _option(
            "Most rows in a batch, and so in a call; 0 takes what the model allows, 1 is off.",
            ge=0,
        ),
    ] = 0
    delay_ms: Annotated[
        float, _option("How long an idle instance waits for a batch to fill.", ge=0)
    ] = 0.0
    preferred_sizes: Annotated[
        tuple[int, ...], _option("Sizes at which a waiting batch is released at once.")
    ] = ()
    slo_ms: Annotated[
        float,
        _option(
            "Answer within this time: sizes are chosen by the learned cost per size. 0 is off.",
            ge=0,
        ),
    ] = 0.0


class Queue(Options, frozen=True, kw_only=True):
    """How many calls may wait, and for how long."""

    max_calls: Annotated[int, _option("Most calls that wait; more are refused.", ge=1)] = 4096
    timeout_ms: Annotated[float, _option("Longest wait in the queue; 0 for no limit.", ge=0)] = 0.0
    priority_levels: Annotated[
        int, _option("Number of priorities; 1 is the most urgent.", ge=1, le=256)
    ] = 1
    default_priority: Annotated[int, _option("Priority of requests that name none.", ge=1)] = 1
    ageing_ms: Annotated[
        float, _option("A waiting call rises one priority each such time.", gt=0)
    ] = 1000.0

    def __post_init__(self) -> None:
        if self.default_priority > self.priority_levels:
            raise ValueError(
                f"default_priority: is {self.default_priority}, but the last of priority_levels is "
                f"{self.priority_levels}"
            )


class Instances(Options, frozen=True, kw_only=True):
    """What runs the batches."""

    count: Annotated[int, _option("Runs of the model that are possible at once; 0 is 1.", ge=0)] = 0
    isolation: Annotated[
        Literal["auto", "inline", "thread", "process"],
        _option("Where an instance runs; `process` survives crashes and hangs."),
    ] = "auto"
    threads: Annotated[int, _option("CPU threads of one instance; 0 shares the cores.", ge=0)] = 0
    run_timeout_ms: Annotated[
        float,
        _option("A process instance that runs longer is killed; 0 for no limit.", ge=0),
    ] = 0.0
    crash_limit: Annotated[
        int, _option("Crashes in a minute after which a model counts as unavailable.", ge=1)
    ] = 5


class TensorOptions(Options, frozen=True, kw_only=True):
    """An input or output that the file cannot tell, or tells wrongly."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Warmup(Options, frozen=True, kw_only=True):
    """What a model runs before it becomes visible."""

    runs: Annotated[int, _option("Runs before a version becomes visible.", ge=0)] = 3


class ModelConfig(Options, frozen=True, kw_only=True):
    """`model.yaml`: what a model is. Everything has a sensible default or is read from the file."""

    name: Annotated[str, _option("Name under which it is served.")] = ""
    description: Annotated[str, _option("One line for the page and the documentation.")] = ""
    runtime: Annotated[str, _option("Runtime; detected from the file if empty.")] = ""
    file: Annotated[str, _option("Model file inside the version folder; detected if empty.")] = ""
    class_name: Annotated[str, _option("`module:Class` for weights or a Python file.")] = ""
    device: Annotated[str, _option("`cpu`, `cuda`, `cuda:1`; the server's if empty.")] = ""
    idempotent: Annotated[
        bool | None, _option("May be run again after a crash; by runtime if not given.")
    ] = None
    default_method: Annotated[str, _option("Method used when a request names none.")] = ""
    version: Annotated[str, _option("Version of a model that has no version folders.")] = ""
    versions: Annotated[
        tuple[str, ...] | Literal["all"] | int,
        _option("Which versions: a number for the latest so many, `all`, or a list."),
    ] = 1
    version_labels: Annotated[dict[str, str], _option("Names for versions: `stable: 3`.")] = {}
    labels: Annotated[tuple[str, ...], _option("Class names, in order.")] = ()
    columns: Annotated[tuple[str, ...], _option("Names of the input columns, in order.")] = ()
    tags: Annotated[tuple[str, ...], _option("Free words for the page.")] = ()
    example: Annotated[Any, _option("One input, for the page, the docs and the warm-up.")] = None
    inputs: Annotated[tuple[TensorOptions, ...], _option("Inputs, where the file is silent.")] = ()
    outputs: Annotated[tuple[TensorOptions, ...], _option("Outputs, likewise.")] = ()
    batching: Batching = Batching()
    queue: Queue = Queue()
    instances: Instances = Instances()
    warmup: Warmup = Warmup()
    options: Annotated[
        dict[str, Any], _option("Options of the runtime, such as ONNX session options.")
    ] = {}


class Limits(Options, frozen=True, kw_only=True):
    """Bounds on what a client may send; each holds on every protocol."""

    body_bytes: Annotated[int, _hot("Largest request body, also after decompression.", ge=1)] = (
        64 << 20
    )
    header_bytes: Annotated[int, _option("Largest request head.", ge=256)] = 32 << 10
    headers: Annotated[int, _option("Most header fields.", ge=8)] = 100
    json_depth: Annotated[int, _option("Deepest nesting of JSON.", ge=4)] = 64
    connections: Annotated[int, _hot("Most open connections.", ge=1)] = 16384
    streams: Annotated[int, _option("Most HTTP/2 streams of one connection.", ge=1)] = 256
    pipelined: Annotated[
        int, _option("Most unanswered HTTP/1.1 requests of one connection.", ge=1)
    ] = 64
    header_timeout_s: Annotated[
        float, _option("Longest time from first byte to whole head.", gt=0)
    ] = 10.0
    body_timeout_s: Annotated[
        float, _hot("Longest pause while a body is received or an answer read.", gt=0)
    ] = 30.0
    idle_timeout_s: Annotated[float, _hot("Idle connections are closed after this time.", gt=0)] = (
        120.0
    )
    request_timeout_s: Annotated[
        float, _hot("Longest life of a request without a deadline; 0 for none.", ge=0)
    ] = 60.0


class ServerConfig(Options, frozen=True, kw_only=True):
    """`salver.yaml`: how to serve."""

    host: Annotated[str, _option("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _option("Port for every protocol; 0 picks one.", ge=0, le=65535)] = 8000
    unix_socket: Annotated[str, _option("Unix socket to listen on as well.")] = ""
    tls_cert: Annotated[str, _option("Certificate chain (PEM); turns TLS on.")] = ""
    tls_key: Annotated[str, _option("Private key (PEM).")] = ""
    api_key: Annotated[str, _option("Key that every request must carry.")] = ""
    cors_origins: Annotated[
        tuple[str, ...], _option("Origins whose pages may call this server; `*` for all.")
    ] = ()
    device: Annotated[str, _option("`cpu`, `cuda` or `cuda:1`; `auto` is the processor.")] = "auto"
    processes: Annotated[int, _option("Front processes.", ge=1)] = 1
    busy_poll_us: Annotated[
        int,
        _option(
            "How long the next request is looked for without sleeping, while they follow each "
            "other closely; 0 for never. Needs a second core.",
            ge=0,
        ),
    ] = 100
    trust: Annotated[bool, _option("Run code from model files: pickles and Python classes.")] = (
        False
    )
    mode: Annotated[
        Literal["poll", "explicit", "none"],
        _option(
            "`poll` follows the files, `explicit` waits for commands, `none` loads once.",
        ),
    ] = "poll"
    poll_interval_s: Annotated[float, _hot("Time between two looks at the files.", gt=0)] = 2.0
    drain_timeout_s: Annotated[
        float, _hot("Longest time to finish accepted calls on shutdown.", ge=0)
    ] = 30.0
    access_log: Annotated[
        Literal["auto", "text", "json", "off"],
        _option("`auto`: text on a terminal, JSON otherwise."),
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _option("How much the server says of itself on stderr."),
    ] = "info"
    limits: Limits = msgspec.field(default_factory=Limits)


def unwrap(hint: Any) -> tuple[Any, msgspec.Meta | None]:
    """`Annotated[T, Meta]` as (T, Meta)."""
    if get_origin(hint) is Annotated:
        plain, *extras = get_args(hint)
        return plain, next((e for e in extras if isinstance(e, msgspec.Meta)), None)
    return hint, None


def walk(struct: type[Options], prefix: str = "") -> Iterator[tuple[str, Any, msgspec.Meta, Any]]:
    """Every option below `struct` as (dotted name, type, Meta, default)."""
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        plain, meta = unwrap(hints[field.name])
        default = field.default_factory() if callable(field.default_factory) else field.default
        if isinstance(plain, type) and issubclass(plain, Options):
            yield from walk(plain, f"{prefix}{field.name}.")
        elif meta is not None:
            yield prefix + field.name, plain, meta, default


def parse(text: str, struct: type[T], where: str) -> T:
    """Reads YAML into `struct`.

    Raises: ConfigError with file, line, key and remedy.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        # A file that ends too soon is wrong in its last line, not behind it.
        line = f":{min(mark.line + 1, len(text.splitlines()))}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{where}{line}: {problem}") from None
    if value is None:
        return struct()
    if struct is ModelConfig and isinstance(value, dict):
        value = {key: _with_names(key, option) for key, option in value.items()}
    lines = dict(_lines(node))
    try:
        return msgspec.convert(value, struct, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), value, struct, lines, where)) from None


def _with_names(key: Any, option: Any) -> Any:
    """An option of a model with names where versions stand as numbers: `versions: [1, 2]`."""
    if key == "version":
        return _version_name(option)
    if key == "versions" and isinstance(option, list):
        return [_version_name(version) for version in option]
    if key == "version_labels" and isinstance(option, dict):
        return {label: _version_name(version) for label, version in option.items()}
    return option


def _version_name(version: Any) -> Any:
    return str(version) if type(version) is int else version


def _lines(node: Any, path: str = "$") -> Iterator[tuple[str, int]]:
    """Path of each value, written as msgspec writes it, with its line."""
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            yield f"{path}.{key.value}!key", key.start_mark.line + 1
            yield from _lines(child, f"{path}.{key.value}")
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _lines(child, f"{path}[{index}]")


def _explain(
    message: str, value: Any, struct: type[Any], lines: Mapping[str, int], where: str
) -> str:
    text, _, path = message.partition(" - at `")
    path = path.removesuffix("`") or "$"
    if unknown := re.match(r"Object contains unknown field `(.+)`", text):
        key = unknown.group(1)
        known = _fields_at(struct, path)
        line = lines.get(f"{path}.{key}!key", lines.get(path, 1))
        return (
            f"{where}:{line}: unknown key {key!r}.{did_you_mean(key, known)} "
            f"There are: {', '.join(known)}"
        )
    key, _, problem = text.partition(": ")
    if f"{path}.{key}" in lines:
        path, text = f"{path}.{key}", problem
    return f"{where}:{lines.get(path, 1)}: {path.removeprefix('$.')}: {text}"


def _fields_at(struct: type[Any], path: str) -> list[str]:
    for step in re.findall(r"\.(\w+)|\[", path):
        hint, _ = unwrap(get_type_hints(struct, include_extras=True).get(step, struct))
        candidates = [hint, *get_args(hint)]
        struct = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, Options)), struct
        )
    return [field.name for field in msgspec.structs.fields(struct)]


def read(path: Path, struct: type[T]) -> T:
    """Reads a YAML file into `struct`; its defaults if there is no such file.

    Raises: ConfigError.
    """
    if not path.is_file():
        return struct()
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: byte {error.start} is not UTF-8") from None
    return parse(text, struct, path.name)


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Server options set as `SALVER_<OPTION>`; dots become two underscores. What is a service link
    is none of ours.
    """
    known = {"SALVER_" + name.upper().replace(".", "__"): name for name, *_ in walk(ServerConfig)}
    return {
        known[key]: value
        for key, value in environ.items()
        if key in known and not is_service_link(key, value)
    }


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Tells of each `SALVER_…` variable that is neither an option nor known otherwise."""
    known = ["SALVER_" + name.upper().replace(".", "__") for name, *_ in walk(ServerConfig)]
    return [
        f"{key} is no option and is ignored.{did_you_mean(key, known)}"
        for key in sorted(environ)
        if key.startswith("SALVER_")
        and key not in known
        and not _OTHER_VARIABLE.fullmatch(key)
        and not is_service_link(key, environ[key])
    ]


def is_service_link(variable: str, value: str) -> bool:
    """Whether Kubernetes set it: a pod gets `NAME_PORT=tcp://10.0.0.1:80` for every Service."""
    return variable.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))


def combine(base: ServerConfig, *layers: Mapping[str, Any]) -> ServerConfig:
    """`base` with dotted options of later layers over those of earlier ones.

    Raises: ConfigError for a value of the wrong type or range.
    """
    value = msgspec.to_builtins(base)
    for layer in layers:
        for name, option in layer.items():
            *groups, last = name.split(".")
            place = value
            for group in groups:
                place = place[group]
            place[last] = option
    try:
        return msgspec.convert(value, ServerConfig, strict=False)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        name = path.removeprefix("$.").removesuffix("`")
        values = [layer[name] for layer in layers if name in layer]
        got = f", got {values[-1]!r}" if values else ""
        raise ConfigError(f"{name}: {_expected(name, text)}{got}") from None


def _expected(name: str, text: str) -> str:
    """What a server option takes: its words if those are all, else what `text` expects."""
    kind = next((kind for known, kind, *_ in walk(ServerConfig) if known == name), None)
    if get_origin(kind) is Literal:
        return f"expected one of {', '.join(get_args(kind))}"
    unit = f" of {unit_of(name)}" if unit_of(name) else ""
    words = text.partition(", got ")[0].replace("`int`", f"a whole number{unit}")
    return words.replace("`float`", f"a number{unit}").replace("Expected", "expected")


def unit_of(name: str) -> str:
    """The unit that an option's name ends with, in full; empty for none."""
    return _UNITS.get(name.rpartition("_")[2], "")
