"""Bars and verdicts."""

from __future__ import annotations

import pytest
from benchmarks.bars import CONTESTS, Bar, Contest, Started
from benchmarks.generator import Load
from benchmarks.measure import Outcome
from benchmarks.report import table
from benchmarks.servers import Salver

SIDE = Started(Salver(("tiny",)), Load("tiny", "json"))


def _outcome(bar: Bar, ours: float, peer: float | None) -> Outcome:
    contest = Contest("c", "C", SIDE, None if peer is None else SIDE, (bar,))
    outcome = Outcome(contest, [{bar.metric: ours}] * 3)
    if peer is not None:
        outcome.peer = [{bar.metric: peer}] * 3
    return outcome


def test_names_are_unique_and_every_bar_has_one_direction() -> None:
    assert len({contest.name for contest in CONTESTS}) == len(CONTESTS)
    for contest in CONTESTS:
        for bar in contest.bars:
            assert (bar.at_least is None) != (bar.at_most is None)


@pytest.mark.parametrize(
    ("bar", "ours", "peer", "met"),
    [
        (Bar("requests_per_s", at_least=2), 200, 100, True),
        (Bar("requests_per_s", at_least=2), 199, 100, False),
        (Bar("p99_us", at_most=0.5), 50, 100, True),
        (Bar("p99_us", at_most=0.5), 51, 100, False),
        (Bar("ready_s", at_most=1), 0.9, None, True),
        (Bar("ready_s", at_most=1), 1.1, None, False),
    ],
)
def test_a_bar_is_met_or_missed(bar: Bar, ours: float, peer: float | None, met: bool) -> None:
    outcome = _outcome(bar, ours, peer)
    assert [verdict.met for verdict in outcome.verdicts()] == [met]
    assert outcome.passed == met


def test_a_contest_that_could_not_run_has_not_passed() -> None:
    outcome = Outcome(CONTESTS[0], failed="no such program")
    assert not outcome.passed
    assert table([outcome]).row_count == 1
