"""Command line: `python -m benchmarks --help`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import report
from benchmarks.bars import CONTESTS
from benchmarks.errors import BenchmarkError
from benchmarks.measure import Bench, Outcome

HERE = Path(__file__).parent
NAMES = [contest.name for contest in CONTESTS]


@click.command()
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Contests to run; all.")
@click.option("--pairs", default=7, show_default=True, help="Pairs of runs per contest.")
@click.option("--seconds", default=4.0, show_default=True, help="Measured time of one run.")
@click.option("--quick", is_flag=True, help="Three pairs of one second: a look, not a result.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=HERE / "results" / "local",
    help="Folder for results.json and results.png.",
)
def main(only: tuple[str, ...], pairs: int, seconds: float, quick: bool, out: Path) -> None:
    """Measure Salver and its peers side by side. Exit code 1: a bar was missed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    if quick:
        pairs, seconds = 3, 1.0
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        bench = Bench(HERE.parent / ".bench", seconds, pairs)
    except BenchmarkError as error:
        console.print(f"[bold red]{error}[/]")
        sys.exit(2)
    outcomes = _run(bench, only or tuple(NAMES), console)
    console.print(report.table(outcomes))
    for outcome in outcomes:
        if outcome.failed:
            console.print(f"[bold red]{outcome.contest.name}[/]: ", end="")
            console.print(outcome.failed, markup=False)
    paths = report.save(outcomes, {"pairs": pairs, "seconds": seconds}, out)
    console.print("Written:", *map(str, paths))
    sys.exit(0 if all(outcome.passed for outcome in outcomes) else 1)


def _run(bench: Bench, names: tuple[str, ...], console: Console) -> list[Outcome]:
    chosen = [contest for contest in CONTESTS if contest.name in names]
    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn())
    outcomes = []
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        runs = [bench.pairs * (1 if contest.peer is None else 2) for contest in chosen]
        whole = progress.add_task("all", total=sum(runs))
        for contest, count in zip(chosen, runs, strict=True):
            task = progress.add_task(contest.name, total=count)

            def advance(task: object = task) -> None:
                progress.advance(task)  # type: ignore[arg-type]
                progress.advance(whole)

            outcomes.append(bench.run(contest, advance))
    return outcomes


if __name__ == "__main__":
    main()
