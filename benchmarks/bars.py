"""What is compared with what, and the bar that each comparison must clear."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.generator import Load
from benchmarks.servers import Flask, Peer, Salver, Triton

Metric = Literal[
    "requests_per_s",
    "requests_per_core_s",  # and per core that the load generator left free
    "p50_us",
    "p99_us",
    "cpu_us",  # server CPU time per request, all its processes
    "ready_s",  # from the start of the process to its first good readiness probe
    "rss_mb",  # after the load
]


@dataclass(frozen=True)
class Served:
    """A server under a load, and perhaps a second load beside it that is not measured, on the same
    server or on one of its own.
    """

    server: Peer
    load: Load
    beside: Load | None = None
    beside_server: Peer | None = None
    label: str = ""


@dataclass(frozen=True)
class Started:
    """A server that is started, must answer a load at once, and is stopped."""

    server: Peer
    load: Load
    label: str = ""


@dataclass(frozen=True)
class Loop:
    """A bare ONNX Runtime loop over `rows` rows at a time; a request is one row."""

    model: str
    rows: int
    label: str = "loop"


Side = Served | Started | Loop


@dataclass(frozen=True)
class Bar:
    """A bound on ours / peer in one metric; on ours alone where there is no peer."""

    metric: Metric
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Contest:
    """Two sides that do the same work, or one side alone."""

    name: str
    title: str
    ours: Side
    peer: Side | None
    bars: tuple[Bar, ...] = ()


def _against_triton(name: str, title: str, load: Load, *bars: Bar) -> Contest:
    models = (load.model,)
    return Contest(name, title, Served(Salver(models), load), Served(Triton(models), load), bars)


_JSON = Load("tiny", "json")
_GRPC = Load("tiny", "grpc")
_ROWS = Load("perceptron", "json")
_IMAGES = Load("resnet18", "binary", connections=4)
_STEADY = Load("tiny", "json", connections=16, rate=1000)
_SHARED = Load("tiny", "grpc", connections=1, streams=16, rate=500)
_FOREST = Load("forest", "json", connections=4)
_TINY = ("tiny",)
_BOTH = ("tiny", "forest")

CONTESTS: tuple[Contest, ...] = (
    _against_triton(
        "http_json",
        "HTTP JSON, 64 connections",
        _JSON,
        Bar("requests_per_s", at_least=2.8),
        Bar("p99_us", at_most=0.4),
    ),
    _against_triton(
        "http_json_single",
        "HTTP JSON, 1 connection",
        Load("tiny", "json", connections=1),
        Bar("p50_us", at_most=0.5),
    ),
    _against_triton("grpc", "gRPC, 64 connections", _GRPC, Bar("requests_per_s", at_least=3.0)),
    _against_triton(
        "grpc_streams",
        "gRPC, 8 connections of 8 streams",
        Load("tiny", "grpc", connections=8, streams=8),
        Bar("requests_per_s", at_least=3.0),
    ),
    _against_triton(
        "grpc_vary",
        "gRPC, 64 connections, changing traceparent and deadline",
        Load("tiny", "grpc", vary=True),
        Bar("requests_per_s", at_least=2.0),
    ),
    _against_triton(
        "http_600kb",
        "HTTP binary, 600 kB, 16 connections",
        Load("sample", "binary", connections=16),
        Bar("requests_per_s", at_least=2.0),
    ),
    _against_triton(
        "grpc_600kb",
        "gRPC, 600 kB, 16 connections",
        Load("sample", "grpc", connections=16),
        Bar("requests_per_s", at_least=1.0),
        Bar("cpu_us", at_most=0.5),
    ),
    Contest(
        "tls",
        "HTTPS against our own HTTP, 64 connections",
        Served(Salver(_TINY, tls=True), Load("tiny", "json", tls=True), label="salver, TLS"),
        Served(Salver(_TINY), _JSON),
        (Bar("requests_per_s", at_least=0.6),),
    ),
    Contest(
        "flask",
        "Flask and ONNX Runtime, 64 connections",
        Served(Salver(_TINY), _JSON),
        Served(Flask(_TINY), Load("tiny", "flask")),
        (Bar("requests_per_s", at_least=10),),
    ),
    Contest(
        "triton_flask",
        "Triton against Flask, 64 connections",
        Served(Triton(_TINY), _JSON),
        Served(Flask(_TINY), Load("tiny", "flask")),
    ),
    Contest(
        "batching_bare",
        "Bare loop, batches of 32 against 1",
        Loop("perceptron", 32, "loop, 32 rows"),
        Loop("perceptron", 1, "loop, 1 row"),
        (Bar("requests_per_s", at_least=3),),
    ),
    Contest(
        "batching",
        "Batching on against off, 64 connections",
        Served(Salver(("perceptron",)), _ROWS),
        Served(Salver(("perceptron",), batching=False), _ROWS, label="salver, unbatched"),
        (Bar("requests_per_s", at_least=3),),
    ),
    Contest(
        "cnn",
        "ResNet-18's shape behind HTTP against a bare loop",
        Served(Salver(("resnet18",)), _IMAGES),
        Loop("resnet18", 1),
        (Bar("requests_per_core_s", at_least=0.95),),
    ),
    Contest(
        "start",
        "Start with a tiny ONNX model",
        Started(Salver(_TINY), _JSON),
        None,
        (Bar("ready_s", at_most=1), Bar("rss_mb", at_most=120)),
    ),
    Contest(
        "shared_connection",
        "gRPC at 500/s beside a 64 MB upload and an unread stream",
        Served(
            Salver(_TINY),
            replace(_SHARED, upload=60 << 20, unread=1000),
            label="salver, upload beside",
        ),
        Served(Salver(_TINY), _SHARED),
        (Bar("p99_us", at_most=3),),
    ),
    Contest(
        "isolation",
        "Tiny model at 1000/s beside a saturated forest",
        Served(Salver(_BOTH), _STEADY, beside=_FOREST, label="salver, forest busy"),
        Served(Salver(_BOTH), _STEADY, label="salver, forest idle"),
        (Bar("p99_us", at_most=2),),
    ),
    Contest(
        "isolation_apart",
        "Tiny model beside a saturated forest: one server against two",
        Served(Salver(_BOTH), _STEADY, beside=_FOREST, label="salver, one for both"),
        Served(
            Salver(_TINY),
            _STEADY,
            beside=_FOREST,
            beside_server=Salver(("forest",)),
            label="salver, one each",
        ),
    ),
)
