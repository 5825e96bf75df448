"""Where a model's runs happen: on the loop, in threads or in workers, and on which device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from salver.engine.inline import INLINE_BUDGET_NS, MAYBE_SHORT_NS
from salver.errors import LoadFailed

if TYPE_CHECKING:
    from salver.config import ModelConfig
    from salver.interfaces import Traits

CODE_RUNTIMES: Final = frozenset({"python"})
"""What these run is somebody's program: it may crash, hang or hold the interpreter for long."""


class Placement(NamedTuple):
    """Where a model's runs happen: short ones on the loop, others in threads or processes."""

    inline: bool
    threads: bool
    processes: bool


def place(isolation: str, traits: Traits, cost_ns: int | None, streams: bool) -> Placement:
    """Decides by what the model says of itself and what its warm-up cost (None: unknown). What may
    be short is run on the loop as long as its runs there prove to be.

    Code that holds the interpreter lock keeps the loop waiting from a thread as much as from the
    loop itself, so it gets a process for everything that is not certainly short. A stream must be
    able to wait for its reader, which the loop is not.

    Raises: LoadFailed when a stream is to run on the loop.
    """
    if isolation == "inline" and streams:
        raise LoadFailed("a streaming method cannot run inline: set instances.isolation to thread")
    if isolation != "auto":
        return Placement(isolation == "inline", isolation == "thread", isolation == "process")
    cost_ns = None if streams else cost_ns
    if traits.holds_gil:
        return Placement(cost_ns is not None and cost_ns <= INLINE_BUDGET_NS, False, True)
    may_be_short = cost_ns is not None and cost_ns <= MAYBE_SHORT_NS
    return Placement(may_be_short and traits.thread_safe, True, False)


def device(configured: str) -> str:
    """Where to run: what is configured; `auto` is the processor."""
    return "cpu" if configured == "auto" else configured


def thread_budget(config: ModelConfig, num_cores: int) -> int:
    """CPU threads of one instance, so that a model's instances together use each core once."""
    return config.instances.threads or max(1, num_cores // max(config.instances.count, 1))
