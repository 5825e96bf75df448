"""Runs contests: interleaved pairs of runs, each with checked answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from benchmarks import generator
from benchmarks.bars import Bar, Contest, Loop, Served, Side, Started
from benchmarks.errors import BenchmarkError
from benchmarks.models import INPUT, MODELS
from benchmarks.requests import TENSOR, Tensor, write_cases
from benchmarks.servers import Server, forest, machine_cpu_s, running
from benchmarks.statistics import bound, order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.generator import Load
    from benchmarks.models import Floats

Measurement = dict[str, float]
OVERLAP_S = 2.0
"""A load beside the measured one starts with it and lasts this much longer."""


@dataclass(frozen=True)
class Verdict:
    """One bar and what the pairs say about it."""

    bar: Bar
    values: tuple[float, ...]
    centre: float
    bound: float

    @property
    def met(self) -> bool:
        """Whether the bound, not only the median, is on the right side of the bar."""
        if self.bar.at_least is not None:
            return self.bound >= self.bar.at_least
        return self.bound <= (self.bar.at_most or 0)


@dataclass
class Outcome:
    """A contest's measurements, one per pair and side, or why there are none."""

    contest: Contest
    ours: list[Measurement] = field(default_factory=list)
    peer: list[Measurement] = field(default_factory=list)
    failed: str = ""

    def ratios(self, metric: str) -> list[float]:
        """ours / peer of each pair, or ours alone."""
        if self.contest.peer is None:
            return [run[metric] for run in self.ours]
        return [a[metric] / b[metric] for a, b in zip(self.ours, self.peer, strict=True)]

    def verdicts(self) -> Iterator[Verdict]:
        """One per bar."""
        for bar in self.contest.bars:
            values = self.ratios(bar.metric)
            limit = bound(values, "upper" if bar.at_least is None else "lower")
            yield Verdict(bar, tuple(values), float(np.median(values)), limit)

    @property
    def passed(self) -> bool:
        """Whether it ran and met all its bars."""
        return not self.failed and all(verdict.met for verdict in self.verdicts())


class Bench:
    """Measures sides of contests with files kept in `cache`."""

    def __init__(self, cache: Path, seconds: float, pairs: int) -> None:
        self.cache, self.seconds, self.pairs = cache, seconds, pairs
        (cache / "cases").mkdir(parents=True, exist_ok=True)
        self.program = generator.build(cache)

    def run(self, contest: Contest, advance: Callable[[], None]) -> Outcome:
        """All pairs of one contest; `advance` is called after each run."""
        outcome = Outcome(contest)
        sides = [side for side in (contest.ours, contest.peer) if side]
        try:
            with ExitStack() as stack:
                servers = [self._servers(side, stack) for side in sides]
                for turn in order(self.pairs):
                    for index in (index for index in turn if index < len(sides)):
                        runs = (outcome.ours, outcome.peer)[index]
                        runs.append(self._measure(sides[index], servers[index]))
                        advance()
        except BenchmarkError as error:
            outcome.failed = str(error)
        return outcome

    def _servers(self, side: Side, stack: ExitStack) -> list[Server]:
        """The measured server, and if there is one the server of the load beside."""
        if not isinstance(side, Served):
            return []
        peers = [side.server] + ([side.beside_server] if side.beside_server else [])
        return stack.enter_context(running(peers, self.cache))

    def _measure(self, side: Side, servers: list[Server]) -> Measurement:
        if isinstance(side, Loop):
            return self._loop(side)
        if isinstance(side, Started):
            with running([side.server], self.cache) as (started,):
                found = self.served(side.load, started)
                return {"ready_s": started.ready_s, "rss_mb": found["rss_mb"]}
        if side.beside is None:
            return self.served(side.load, servers[0])
        beside = self._start(side.beside, servers[-1], self.seconds + OVERLAP_S)
        try:
            found = self.served(side.load, servers[0])
            found["beside_requests_per_s"] = _rate(generator.result(beside))
        finally:
            beside.kill()
            beside.wait()
        return found

    def _start(self, load: Load, server: Server, seconds: float) -> subprocess.Popen[str]:
        port = server.grpc_port if load.wire == "grpc" else server.http_port
        command = generator.command(self.program, self._cases(load), load, port, seconds)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def served(self, load: Load, server: Server) -> Measurement:
        """One run of a load on a server.

        Raises: BenchmarkError.
        """
        self._cases(load)
        before_s, machine_before_s, began = server.cpu_s(), machine_cpu_s(), time.monotonic()
        found = generator.result(self._start(load, server, self.seconds))
        wall_s, cpu_s = time.monotonic() - began, server.cpu_s() - before_s
        others = (machine_cpu_s() - machine_before_s - cpu_s) / wall_s - found["generator_busy"]
        quantiles = found["quantiles_us"]
        free_cores = (os.cpu_count() or 1) - found["generator_busy"]
        return {
            "requests_per_s": _rate(found),
            "requests_per_core_s": _rate(found) / free_cores,
            "cpu_us": cpu_s / found["total"] * 1e6,
            "rss_mb": server.rss_mb(),
            "generator_busy": found["generator_busy"],
            "others_busy": max(others, 0.0),
            **{f"p{float(q) * 100:g}_us": value for q, value in quantiles.items()},
        }

    def _loop(self, side: Loop) -> Measurement:
        model = MODELS[side.model].save(self.cache / "models")
        arguments = [str(model), str(side.rows), str(self.seconds)]
        command = [sys.executable, "-m", "benchmarks.loop", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"the bare loop failed: {done.stderr.splitlines()[-1]}")
        rate = float(done.stdout)
        return {"requests_per_s": rate, "requests_per_core_s": rate / (os.cpu_count() or 1)}

    def _cases(self, load: Load) -> Path:
        path = self.cache / "cases" / f"{load.model}-{load.wire}-{load.cases}.bin"
        if not path.exists():
            inputs, expected = self._answers(load.model, load.cases)
            tensor = Tensor("input", "FP64") if load.model == "forest" else TENSOR
            write_cases(path, load.wire, load.model, inputs, expected, tensor)
        return path

    def _answers(self, name: str, count: int) -> tuple[Floats, Floats]:
        if name == "forest":
            return _forest_answers(self.cache / "models", count)
        model = MODELS[name]
        inputs = model.inputs(count)
        session = ort.InferenceSession(
            str(model.save(self.cache / "models")), providers=["CPUExecutionProvider"]
        )
        answers = [session.run(None, {INPUT: row[None]})[0][0] for row in inputs]
        return inputs, np.array(answers, dtype=np.float32)


def _rate(found: dict[str, Any]) -> float:
    return float(found["requests"] / found["seconds"])


def _forest_answers(folder: Path, count: int) -> tuple[Floats, Floats]:
    """Rows of the two classes in turn, so that neighbouring answers differ."""
    import joblib

    rows = np.random.default_rng(1).standard_normal((4 * count, 4)).astype(np.float32).round(4)
    labels = joblib.load(forest(folder)).predict(rows).astype(np.float32)
    half = count // 2
    turns = np.column_stack([np.flatnonzero(labels == label)[:half] for label in (0, 1)]).ravel()
    return rows[turns], labels[turns, None]
