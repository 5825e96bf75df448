from __future__ import annotations

import pytest

from salver.engine.rerun import WorkerDied, judge
from salver.errors import ModelFailed, SalverError, Undeliverable

CRASHED = WorkerDied("was killed by SIGSEGV")
HUNG = WorkerDied("ran too long", hung=True)
IDEMPOTENT, NOT = True, False
BEGUN, NOT_BEGUN = True, False


@pytest.mark.parametrize(
    ("died", "idempotent", "had_chunks", "batch_size", "crashes_alone", "expected"),
    [
        (CRASHED, IDEMPOTENT, NOT_BEGUN, 8, 0, None),
        (CRASHED, IDEMPOTENT, NOT_BEGUN, 1, 1, None),
        (CRASHED, IDEMPOTENT, NOT_BEGUN, 1, 2, ModelFailed),
        (CRASHED, NOT, NOT_BEGUN, 8, 0, Undeliverable),
        (CRASHED, NOT, NOT_BEGUN, 1, 1, Undeliverable),
        (CRASHED, IDEMPOTENT, BEGUN, 1, 1, Undeliverable),
        (CRASHED, IDEMPOTENT, BEGUN, 8, 0, Undeliverable),
        (HUNG, IDEMPOTENT, NOT_BEGUN, 8, 0, None),
        (HUNG, NOT, NOT_BEGUN, 8, 0, Undeliverable),
        (HUNG, IDEMPOTENT, NOT_BEGUN, 1, 1, ModelFailed),
        (HUNG, NOT, BEGUN, 1, 1, ModelFailed),
    ],
)
def test_what_becomes_of_a_call(
    died: WorkerDied,
    idempotent: bool,
    had_chunks: bool,
    batch_size: int,
    crashes_alone: int,
    expected: type[SalverError] | None,
) -> None:
    error = judge(
        died,
        idempotent=idempotent,
        had_chunks=had_chunks,
        batch_size=batch_size,
        crashes_alone=crashes_alone,
    )
    assert (type(error) if error is not None else None) is expected
    if error is not None:
        assert died.reason in error.message
