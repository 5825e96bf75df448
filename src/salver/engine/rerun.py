"""What becomes of a call whose worker died, or the process that was its home."""

from __future__ import annotations

from typing import Final

from salver.errors import ModelFailed, SalverError, Undeliverable

CRASHES_TO_BLAME: Final = 2
MAX_LOSSES: Final = 2
"""Homes that may end with a call before it is not tried again."""


class WorkerDied(Exception):
    """A worker ended in the middle of a run. Never shown to a client as it is.

    `hung` says that it was killed, because the run took longer than `run_timeout_ms` or because the
    worker neither answered nor computed any more.
    """

    def __init__(self, reason: str, hung: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hung = hung


def judge(
    died: WorkerDied, *, idempotent: bool, had_chunks: bool, batch_size: int, crashes_alone: int
) -> SalverError | None:
    """The error that ends the call, or None: it is to be run again, alone.

    `batch_size` is that of the lost run; `crashes_alone` counts the workers that died while this
    call was the only one in them, the last included. Blame takes two, for a worker may also die of
    something else; a run that was alone and took too long needs no second proof.
    """
    alone = batch_size == 1
    if alone and (died.hung or crashes_alone >= CRASHES_TO_BLAME):
        return ModelFailed(f"the model's worker {died.reason} while it ran this request")
    if had_chunks:
        return Undeliverable(
            f"the model's worker {died.reason} after the answer had begun; send the request again"
        )
    if not idempotent:
        return Undeliverable(
            f"the model's worker {died.reason} and this model may not run a request twice; "
            "send it again, or set `idempotent: true` if that does no harm"
        )
    return None


def judge_lost(*, idempotent: bool, had_chunks: bool, losses: int) -> SalverError | None:
    """The error that ends a call whose home ended, or None: it is to be sent to the next home.

    Nobody can tell which of its calls ended a home, so this blames none.
    """
    if had_chunks:
        return Undeliverable("the model's process ended after the answer had begun; ask again")
    if not idempotent:
        return Undeliverable(
            "the model's process ended and this model may not run a request twice; send it "
            "again, or set `idempotent: true` if that does no harm"
        )
    if losses >= MAX_LOSSES:
        return Undeliverable(f"the model's process ended {losses} times; send the request again")
    return None
