"""Builds and runs the load generator `load.c`."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.requests import GRPC_PATH, MARKERS, TOLERANCE, Wire

SOURCE = Path(__file__).with_name("load.c")


@dataclass(frozen=True)
class Load:
    """What the clients do: a closed loop, or `rate` requests per second on a schedule."""

    model: str
    wire: Wire
    connections: int = 64
    streams: int = 1
    cases: int = 1024
    rate: float = 0
    vary: bool = False
    """gRPC: another traceparent and grpc-timeout in each request."""
    tls: bool = False
    upload: int = 0
    """gRPC: bytes of a message that the first connection sends besides, again and again."""
    unread: int = 0
    """gRPC: requests of a stream on the first connection whose answers are not read."""


def build(cache: Path) -> Path:
    """Compiles the generator into `cache` unless it is there and newer than its source.

    Raises: BenchmarkError.
    """
    program = cache / "load"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    libraries = ["-lnghttp2", "-lssl", "-lcrypto", "-lm"]
    command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(SOURCE), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = "it needs gcc, libnghttp2-dev and libssl-dev (apt-get install)"
        raise BenchmarkError(f"load.c cannot be compiled; {hint}:\n{done.stderr}")
    return program


def command(program: Path, cases: Path, load: Load, port: int, seconds: float) -> list[str]:
    """The command line of one run."""
    options = {
        "port": port,
        "connections": load.connections,
        "streams": load.streams,
        "seconds": seconds,
        "rate": load.rate,
        "upload": load.upload,
        "unread": load.unread,
        "tolerance": TOLERANCE,
    }
    arguments = [str(program), *(f"--{name}={value}" for name, value in options.items())]
    if load.wire == "grpc":
        arguments.append(f"--grpc={GRPC_PATH}")
    if marker := MARKERS.get(load.wire):
        arguments.append(f"--marker={marker}")
    arguments += [f"--{flag}" for flag in ("vary", "tls") if getattr(load, flag)]
    return [*arguments, str(cases)]


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Waits for a run.

    Raises: BenchmarkError if it broke off, or for any failed request or wrong answer.
    """
    out, err = process.communicate()
    if not out:
        raise BenchmarkError(f"the load generator gave up: {err.strip()}")
    found: dict[str, Any] = json.loads(out)
    if found["errors"] or found["mismatches"]:
        raise BenchmarkError(
            f"{found['errors']} errors and {found['mismatches']} wrong answers in "
            f"{found['total']} requests; first: {found['first_problem']}"
        )
    if not found["requests"]:
        raise BenchmarkError("no request was answered within the measured time")
    return found
