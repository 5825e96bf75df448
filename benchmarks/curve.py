"""How throughput and latency grow with the clients, with and without batching.

`python -m benchmarks.curve` draws `batching.png`. The servers take turns at each number of
connections, three times.
"""

from __future__ import annotations

import signal
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import click
from rich.progress import track

from benchmarks.generator import Load
from benchmarks.measure import Bench, Measurement
from benchmarks.servers import Salver, running

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE: Final = Path(__file__).parent
CONNECTIONS: Final = (1, 2, 4, 8, 16, 32, 64)
ROUNDS: Final = 3
LOAD: Final = Load("perceptron", "json")
SIDES: Final = (
    Salver((LOAD.model,), label="dynamic batching (default)"),
    Salver((LOAD.model,), batching=False, label="one request per run"),
)
Curves = dict[tuple[str, int], list[Measurement]]


@click.command()
@click.option("--seconds", default=2.0, show_default=True, help="Measured time of one run.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=HERE / "results" / "local",
    help="Folder for batching.png.",
)
def main(seconds: float, out: Path) -> None:
    """Measure one model with and without dynamic batching over the number of clients."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    found = measure(Bench(HERE.parent / ".bench", seconds, ROUNDS))
    out.mkdir(parents=True, exist_ok=True)
    draw(found, out / "batching.png")
    click.echo(f"Written: {out / 'batching.png'}")


def measure(bench: Bench) -> Curves:
    """Runs by side and number of connections.

    Raises: BenchmarkError for a wrong answer or a failed request.
    """
    found: Curves = defaultdict(list)
    with running(SIDES, bench.cache) as servers:
        steps = [count for count in CONNECTIONS for _ in range(bench.pairs)]
        for count in track(steps, "batching"):
            for side, server in zip(SIDES, servers, strict=True):
                run = bench.served(replace(LOAD, connections=count), server)
                found[side.label, count].append(run)
    return found


def draw(found: Mapping[tuple[str, int], Sequence[Measurement]], path: Path) -> None:
    """Left: requests per second. Right: median latency. Both over the number of connections."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for side, style in zip(SIDES, ("o-", "s--"), strict=True):
        for axes, metric, scale in zip(
            panels, ("requests_per_s", "p50_us"), (1, 1e-3), strict=True
        ):
            values = [
                scale * median(run[metric] for run in found[side.label, count])
                for count in CONNECTIONS
            ]
            axes.plot(CONNECTIONS, values, style, label=side.label)
    for axes, title in zip(panels, ("requests per second", "median latency, ms"), strict=True):
        _dress(axes, title)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _dress(axes: Any, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONNECTIONS, [str(count) for count in CONNECTIONS])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients, each sending one request after the other")
    axes.set_title(title)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
