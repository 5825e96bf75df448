"""Hands answers to the sinks of calls, and words what targets of every kind refuse them with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from salver.errors import Unavailable

if TYPE_CHECKING:
    from salver.errors import SalverError
    from salver.types import Call, ModelRef, Response

log = logging.getLogger("salver.engine")


def deliver(ref: ModelRef, call: Call, item: Response | SalverError, final: bool) -> None:
    """Pushes an item. One sink's bug must not cost other calls their answers."""
    try:
        call.sink.push(call, item, final)
    except Exception:
        log.exception("%s: an answer was lost", ref)


def being_unloaded(ref: ModelRef) -> Unavailable:
    """Why a call is not accepted."""
    return Unavailable(f"{ref} is being unloaded; try again")


def was_unloaded(ref: ModelRef) -> Unavailable:
    """Why an accepted call ends."""
    return Unavailable(f"{ref} was unloaded before this call ran; try again")
