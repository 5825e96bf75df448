from __future__ import annotations

import pytest

from salver.config import Instances, ModelConfig
from salver.engine.inline import INLINE_BUDGET_NS, MAYBE_SHORT_NS
from salver.engine.placement import Placement, place, thread_budget
from salver.errors import LoadFailed
from salver.interfaces import Traits

SHORT, LONG = MAYBE_SHORT_NS, MAYBE_SHORT_NS + 1
SAFE = Traits(holds_gil=False, thread_safe=True)
UNSAFE = Traits(holds_gil=False)


@pytest.mark.parametrize(
    ("isolation", "traits", "cost", "streams", "expected"),
    [
        ("auto", SAFE, SHORT, False, Placement(True, True, False)),
        ("auto", SAFE, LONG, False, Placement(False, True, False)),
        ("auto", SAFE, None, False, Placement(False, True, False)),
        ("auto", SAFE, SHORT, True, Placement(False, True, False)),
        ("auto", UNSAFE, SHORT, False, Placement(False, True, False)),
        ("auto", Traits(), INLINE_BUDGET_NS, False, Placement(True, False, True)),
        ("auto", Traits(), INLINE_BUDGET_NS + 1, False, Placement(False, False, True)),
        ("inline", Traits(), LONG, False, Placement(True, False, False)),
        ("thread", Traits(), SHORT, True, Placement(False, True, False)),
        ("process", SAFE, SHORT, False, Placement(False, False, True)),
    ],
)
def test_where_runs_happen(
    isolation: str, traits: Traits, cost: int | None, streams: bool, expected: Placement
) -> None:
    assert place(isolation, traits, cost, streams) == expected


def test_a_stream_cannot_run_on_the_loop() -> None:
    with pytest.raises(LoadFailed, match="cannot run inline"):
        place("inline", SAFE, SHORT, True)


def test_instances_share_the_cores() -> None:
    def budget(count: int, threads: int = 0) -> int:
        return thread_budget(ModelConfig(instances=Instances(count=count, threads=threads)), 8)

    assert [budget(0), budget(1), budget(3), budget(16), budget(2, 5)] == [8, 8, 2, 1, 5]
