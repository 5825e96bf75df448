"""Shows outcomes as a table, a JSON file and a plot."""

from __future__ import annotations

import json
import os
import platform
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.bars import Bar, Side
    from benchmarks.measure import Measurement, Outcome, Verdict

BUSY = 0.9
"""Share of its core above which the load generator itself may be the limit."""
CROWDED = 0.2
"""Cores used by strangers above which a result is called disturbed."""


def label(side: Side | None) -> str:
    """A side's name."""
    if side is None:
        return ""
    return side.label or side.server.label  # type: ignore[union-attr]


def _median(runs: Sequence[Measurement], metric: str) -> float | None:
    values = [run[metric] for run in runs if metric in run]
    return float(np.median(values)) if values else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def bar_text(bar: Bar) -> str:
    """The bar as it is read: `>= 2.8`."""
    return f">= {bar.at_least:g}" if bar.at_least is not None else f"<= {bar.at_most:g}"


def table(outcomes: Sequence[Outcome]) -> Table:
    """One line per metric of interest; ratios are ours / peer with their 95 % bound."""
    shown = Table(title="Medians over the pairs; the bound decides")
    for column, justify in (
        ("contest", "left"),
        ("metric", "left"),
        ("ours", "right"),
        ("peer", "right"),
        ("ratio", "right"),
        ("95 % bound", "right"),
        ("bar", "right"),
        ("", "left"),
    ):
        shown.add_column(column, justify=justify)  # type: ignore[arg-type]
    for outcome in outcomes:
        shown.add_section()
        for row in _rows(outcome):
            shown.add_row(*row)
    return shown


def _rows(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    contest = outcome.contest
    name = f"{contest.name}\n[dim]{label(contest.ours)} / {label(contest.peer)}[/dim]"
    if outcome.failed:
        yield (name, "", "", "", "", "", "", "[bold red]FAILED[/]")
        return
    verdicts: dict[str, Verdict] = {verdict.bar.metric: verdict for verdict in outcome.verdicts()}
    others = ("requests_per_s", "p50_us", "p99_us", "cpu_us")
    if max(_median(runs, "others_busy") or 0 for runs in (outcome.ours, outcome.peer)) > CROWDED:
        name += "\n[yellow]machine was busy[/]"
    metrics = [*verdicts, *(metric for metric in others if metric not in verdicts)]
    for metric in metrics:
        ours, peer = _median(outcome.ours, metric), _median(outcome.peer, metric)
        if ours is None or (contest.peer and peer is None):
            continue
        ratio = float(np.median(outcome.ratios(metric))) if contest.peer else None
        yield (name, metric, _number(ours), _number(peer), _number(ratio), *_verdict(
            verdicts.get(metric), outcome
        ))  # fmt: skip
        name = ""


def _verdict(verdict: Verdict | None, outcome: Outcome) -> tuple[str, str, str]:
    if verdict is None:
        return "", "", ""
    word = "[green]met[/]" if verdict.met else "[bold red]MISSED[/]"
    if (_median(outcome.ours, "generator_busy") or 0) > BUSY:
        word += " [yellow](generator at its limit)[/]"
    return _number(verdict.bound), bar_text(verdict.bar), word


def save(outcomes: Sequence[Outcome], settings: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Writes `results.json` and `results.png`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, image = folder / "results.json", folder / "results.png"
    document = {
        "machine": _machine(),
        "settings": settings,
        "contests": [_document(outcome) for outcome in outcomes],
    }
    data.write_text(json.dumps(document, indent=1) + "\n")
    plot(outcomes, image)
    return data, image


def _machine() -> dict[str, Any]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(": ")[2].strip() for line in file if line[:10] == "model name"]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def _document(outcome: Outcome) -> dict[str, Any]:
    contest = outcome.contest
    verdicts = [] if outcome.failed else outcome.verdicts()
    return {
        "name": contest.name,
        "title": contest.title,
        "sides": [label(contest.ours), label(contest.peer)],
        "passed": outcome.passed,
        "failed": outcome.failed,
        "bars": [
            {
                "metric": verdict.bar.metric,
                "bar": bar_text(verdict.bar),
                "values": verdict.values,
                "median": verdict.centre,
                "bound": verdict.bound,
                "met": verdict.met,
            }
            for verdict in verdicts
        ],
        "ours": outcome.ours,
        "peer": outcome.peer,
    }


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Left: how each bar was cleared. Right: server CPU per request of both sides."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    ran = [outcome for outcome in outcomes if not outcome.failed]
    verdicts = [(outcome, verdict) for outcome in ran for verdict in outcome.verdicts()]
    costs = [outcome for outcome in ran if outcome.ours and "cpu_us" in outcome.ours[0]]
    height = 1.5 + 0.42 * max(len(verdicts), len(costs), 3)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, height), layout="constrained")
    _plot_bars(left, verdicts)
    _plot_costs(right, costs)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _plot_bars(axes: Any, verdicts: Sequence[tuple[Outcome, Verdict]]) -> None:
    """How far each value is on the good side of its bar: 1 is the bar, right of it is good."""
    names = []
    for y, (outcome, verdict) in enumerate(verdicts):
        low, high = verdict.bar.at_least, verdict.bar.at_most
        good = [value / low if low else (high or 0) / value for value in (
            *verdict.values, verdict.centre, verdict.bound
        )]  # fmt: skip
        colour = "tab:green" if verdict.met else "tab:red"
        axes.plot([good[-1], good[-2]], [y, y], color=colour, linewidth=5, alpha=0.35)
        axes.plot(good[:-2], [y] * (len(good) - 2), ".", color="0.6", markersize=4)
        axes.plot(good[-2], y, "o", color=colour)
        names.append(f"{outcome.contest.name}: {verdict.bar.metric} {bar_text(verdict.bar)}")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("missed  <  the bar = 1  <  met (dots: pairs; band: median to 95 % bound)")
    axes.set_title("Bars")
    axes.grid(axis="x", alpha=0.3)


def _plot_costs(axes: Any, outcomes: Sequence[Outcome]) -> None:
    names = []
    for y, outcome in enumerate(outcomes):
        for shift, runs, colour in (
            (-0.2, outcome.ours, "tab:blue"),
            (0.2, outcome.peer, "tab:orange"),
        ):
            if (cost := _median(runs, "cpu_us")) is not None:
                axes.barh(y + shift, cost, height=0.38, color=colour)
                axes.text(cost, y + shift, f" {_number(cost)}", va="center", fontsize=8)
        contest = outcome.contest
        names.append(f"{contest.name}: {label(contest.ours)} / {label(contest.peer)}")
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("µs (blue: ours, orange: peer)")
    axes.set_title("Server CPU per request")
    axes.grid(axis="x", alpha=0.3)
